//! JSON as dockerd reads and writes it.
//!
//! Go's decoder takes field names in any case, ignores fields it does not know, and leaves a field alone that is `null`; under a key
//! of a map or in a list `null` stands for what is empty: `""`, 0, an object without fields. [`Json`] reads so: types need `#[serde(default)]` and must not use `flatten`, which would see the names before they are put right.

use crate::ApiError;
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use std::fmt;

/// Longest JSON body: the largest config in base64 is a third of it.
const MAX_BODY: usize = 4 << 20;

/// A body that must be there; as an answer: status 200.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

/// A body that may be left out, which is as an empty object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OptionalJson<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (headers, body) = read(request).await?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Err(ApiError::invalid("invalid JSON: got EOF while reading request body"));
        }
        parse(&headers, &body).map(Self)
    }
}

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (headers, body) = read(request).await?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return from_value(Value::Object(serde_json::Map::new())).map(Self);
        }
        parse(&headers, &body).map(Self)
    }
}

async fn read(request: Request) -> Result<(HeaderMap, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok((parts.headers, body.to_bytes())),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(ApiError::invalid(format!("the request is longer than {MAX_BODY} bytes")))
        }
        Err(error) => Err(ApiError::invalid(format!("the request broke off: {error}"))),
    }
}

fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return Err(ApiError::invalid(format!("unsupported Content-Type header ({kind}): must be 'application/json'")));
    }
    let mut values = serde_json::Deserializer::from_slice(body);
    let value = Value::deserialize(&mut values).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?;
    values.end().map_err(|_| ApiError::invalid("unexpected content after JSON"))?;
    from_value(value)
}

/// Reads a value as [`Json`] does, such as one out of a header.
///
/// # Errors
/// 400 naming what does not fit.
pub(crate) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    T::deserialize(Loose(value))
        .map_err(|error| ApiError::invalid(format!("invalid JSON: {}", error.to_string().trim_start_matches(WITHIN))))
}

/// Before the field in errors on their way out of an object: what follows has a path that is gone on with.
const WITHIN: char = '\u{1}';

/// The same error seen from the object that has the field, such as `Mode.Replicated.Replicas: invalid value …`.
fn within(field: &str, error: &serde_json::Error) -> serde_json::Error {
    let text = error.to_string();
    let text = match text.strip_prefix(WITHIN) {
        Some(path) => format!("{WITHIN}{field}.{path}"),
        None => format!("{WITHIN}{field}: {text}"),
    };
    serde::de::Error::custom(text)
}

/// Fields of an object, whose errors tell which it was.
struct Fields {
    rest: std::vec::IntoIter<(&'static str, Loose)>,
    value: Option<(&'static str, Loose)>,
}

impl<'de> MapAccess<'de> for Fields {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        self.value = self.rest.next();
        let Some((name, _)) = &self.value else { return Ok(None) };
        seed.deserialize((*name).into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        let (name, value) = self.value.take().unwrap_or(("", Loose(Value::Null)));
        seed.deserialize(value).map_err(|error| within(name, &error))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        with_status(StatusCode::OK, &self.0)
    }
}

/// JSON with a status of its own, such as 201. Ends with a newline and does not escape `<`, as dockerd.
pub(crate) fn with_status<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let mut text = match serde_json::to_vec(value) {
        Ok(text) => text,
        Err(error) => return ApiError::internal(format!("the answer cannot be written: {error}")).into_response(),
    };
    text.push(b'\n');
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], Body::from(text)).into_response()
}

/// Of a list that is longer, this much is in memory at a time.
const PIECE: usize = 64 << 10;

/// A list as JSON with status 200, each item made and written when the client takes it.
pub(crate) fn list_of<T: Serialize>(items: impl Iterator<Item = T> + Send + 'static) -> Response {
    let mut pieces = Pieces { items, begun: false, ended: false };
    let first = match pieces.piece() {
        Ok(first) => first,
        Err(error) => return ApiError::internal(format!("the answer cannot be written: {error}")).into_response(),
    };
    let body = match pieces.ended {
        true => Body::from(first),
        false => {
            let rest = std::iter::from_fn(move || (!pieces.ended).then(|| pieces.piece()));
            Body::from_stream(stream::iter(std::iter::once(Ok(first)).chain(rest)))
        }
    };
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

struct Pieces<I> {
    items: I,
    begun: bool,
    ended: bool,
}

impl<T: Serialize, I: Iterator<Item = T>> Pieces<I> {
    /// The next one; nothing follows an error.
    fn piece(&mut self) -> serde_json::Result<Bytes> {
        let mut piece = Vec::with_capacity(if self.begun { PIECE + PIECE / 8 } else { 0 });
        while piece.len() < PIECE {
            let Some(item) = self.items.next() else {
                self.ended = true;
                piece.extend_from_slice(if self.begun { b"]\n" } else { b"[]\n" });
                break;
            };
            piece.push(if self.begun { b',' } else { b'[' });
            self.begun = true;
            serde_json::to_writer(&mut piece, &item).inspect_err(|_| self.ended = true)?;
        }
        Ok(piece.into())
    }
}

/// A value whose objects are read by Go's rules.
struct Loose(Value);

impl<'de> IntoDeserializer<'de, serde_json::Error> for Loose {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Numbers of all kinds, of which `null` is 0.
macro_rules! numbers {
    ($($name:ident)*) => {$(
        fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            if self.0.is_null() { visitor.visit_u8(0) } else { self.deserialize_any(visitor) }
        }
    )*};
}

impl<'de> Deserializer<'de> for Loose {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Loose))),
            Value::Object(fields) => visitor.visit_map(MapDeserializer::new(fields.into_iter().map(|(name, value)| (name, Loose(value))))),
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { visitor.visit_bool(false) } else { self.deserialize_any(visitor) }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { visitor.visit_str("") } else { self.deserialize_any(visitor) }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_string(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { Self(Value::Array(Vec::new())).deserialize_any(visitor) } else { self.deserialize_any(visitor) }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { Self(Value::Object(serde_json::Map::new())).deserialize_any(visitor) } else { self.deserialize_any(visitor) }
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_f32 deserialize_f64
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let fields = match self.0 {
            Value::Object(fields) => fields,
            Value::Null => serde_json::Map::new(),
            // A list would be taken for the fields in their order.
            Value::Array(_) => return Err(serde::de::Error::invalid_type(serde::de::Unexpected::Seq, &visitor)),
            plain => return Self(plain).deserialize_any(visitor),
        };
        let mut known: Vec<(&'static str, Loose)> = Vec::new();
        for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
            let exact = names.iter().find(|known| **known == name);
            let Some(name) = exact.or_else(|| names.iter().find(|known| known.eq_ignore_ascii_case(&name))) else { continue };
            // Twice, in two spellings: the last one counts.
            known.retain(|(earlier, _)| earlier != name);
            known.push((name, Loose(value)));
        }
        visitor.visit_map(Fields { rest: known.into_iter(), value: None })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// Bytes that travel as standard base64 with padding. `Debug` does not print them: most are secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl fmt::Debug for Base64 {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "({} bytes)", self.0.len())
    }
}

impl Base64 {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        // Go's decoder passes over line ends.
        let text: String = String::deserialize(input)?.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        STANDARD.decode(text).map(Self).map_err(|error| serde::de::Error::custom(format!("illegal base64 data: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Outer {
        name: String,
        labels: BTreeMap<String, String>,
        #[serde(rename = "CAConfig")]
        ca_config: Inner,
        list: Vec<Inner>,
        maybe: Option<Inner>,
        data: Base64,
        ratio: f32,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Inner {
        node_cert_expiry: i64,
    }

    fn read(text: &str) -> Result<Outer, ApiError> {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"))]);
        parse(&headers, text.as_bytes())
    }

    #[test]
    fn names_are_found_in_any_case_and_null_is_nothing() {
        let text = r#"{"name":"x","LABELS":{"Name":"kept"},"caconfig":{"nodecertexpiry":5,"other":[]},"List":[{"NodeCertExpiry":1},{}],
            "Maybe":{"nodeCertExpiry":2},"data":"aGk=","ratio":1}"#;
        let outer = read(text).unwrap();
        assert_eq!((outer.name.as_str(), outer.labels["Name"].as_str(), outer.ca_config.node_cert_expiry), ("x", "kept", 5));
        assert_eq!((outer.list.len(), outer.list[0].node_cert_expiry, outer.maybe.unwrap().node_cert_expiry), (2, 1, 2));
        assert_eq!((outer.data.0.as_slice(), outer.ratio), (&b"hi"[..], 1.0));
        assert_eq!(read(r#"{"Name":null,"Labels":null,"CAConfig":null,"List":null,"Maybe":null,"Data":null}"#).unwrap(), Outer::default());
        assert_eq!(read(r#"{"name":"a","Name":"b"}"#).unwrap().name.len(), 1);
    }

    #[test]
    fn null_under_a_key_of_a_map_or_in_a_list_is_what_is_empty() {
        let outer = read(r#"{"Labels":{"a":null,"b":"c"},"List":[null,{"NodeCertExpiry":1}]}"#).unwrap();
        assert_eq!((outer.labels.len(), outer.labels["a"].as_str(), outer.labels["b"].as_str()), (2, "", "c"));
        assert_eq!((&outer.list[0], outer.list[1].node_cert_expiry), (&Inner::default(), 1));
        let loose = |text: &str| Loose(serde_json::from_str(text).unwrap());
        assert_eq!(Vec::<i64>::deserialize(loose("[null, 7]")).unwrap(), [0, 7]);
        assert_eq!(BTreeMap::<String, Vec<bool>>::deserialize(loose(r#"{"a": null, "b": [null]}"#)).unwrap()["b"], [false]);
        assert_eq!(BTreeMap::<String, Option<i64>>::deserialize(loose(r#"{"a": null}"#)).unwrap()["a"], None);
        assert_eq!(BTreeMap::<String, Value>::deserialize(loose(r#"{"a": null}"#)).unwrap()["a"], Value::Null);
    }

    #[test]
    fn what_is_no_json_is_refused() {
        assert!(read(r#"{"Name":5}"#).unwrap_err().message.starts_with("invalid JSON: "));
        assert_eq!(read("{} {}").unwrap_err().message, "unexpected content after JSON");
        let refused = read(r#"{"Maybe":{"NodeCertExpiry":"x"}}"#).unwrap_err().message;
        assert!(refused.starts_with("invalid JSON: Maybe.NodeCertExpiry: invalid type: string"), "{refused}");
        assert!(read("[]").unwrap_err().message.contains("invalid type: sequence"));
        assert!(read(r#"{"CAConfig":[]}"#).is_err() && read(r#"{"CAConfig":5}"#).is_err());
        assert_eq!(read("null").unwrap(), Outer::default());
        assert!(read(r#"{"Data":"***"}"#).unwrap_err().message.contains("illegal base64 data"));
        let refused = parse::<Outer>(&HeaderMap::new(), b"{}").unwrap_err();
        assert!(refused.message.starts_with("unsupported Content-Type header ()"), "{refused}");
    }

    #[tokio::test]
    async fn a_list_of_any_length_is_one_value_and_a_line() {
        for length in [0, 1, 3, 5_000] {
            let response = list_of((0..length).map(|number| format!("{number:040}")));
            let (headers, mut body) = (response.headers().clone(), response.into_body());
            assert_eq!(headers[header::CONTENT_TYPE], "application/json");
            let (mut text, mut longest) = (Vec::new(), 0);
            while let Some(frame) = body.frame().await {
                let piece = frame.unwrap().into_data().unwrap();
                longest = longest.max(piece.len());
                text.extend_from_slice(&piece);
            }
            assert!(longest < 2 * PIECE, "{longest}");
            assert_eq!(text.last(), Some(&b'\n'));
            let items: Vec<String> = serde_json::from_slice(&text).unwrap();
            assert_eq!(items, (0..length).map(|number| format!("{number:040}")).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn a_list_that_cannot_be_written_breaks_off() {
        struct Bad(bool);
        impl Serialize for Bad {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if self.0 { Err(serde::ser::Error::custom("bad")) } else { serializer.serialize_str(&"x".repeat(PIECE)) }
            }
        }
        assert_eq!(list_of([Bad(true)].into_iter()).status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(list_of([Bad(false), Bad(false), Bad(true)].into_iter()).into_body().collect().await.is_err());
    }
}
