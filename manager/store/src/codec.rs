//! How values become bytes: MessagePack with field names, so that fields can be added.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value could not be turned into bytes or back.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("could not encode a {what}")]
    Encode { what: &'static str, source: rmp_serde::encode::Error },
    #[error("could not decode a {what}; if it was written by a newer version of skep, start that version again")]
    Decode { what: &'static str, source: rmp_serde::decode::Error },
    #[error("a log entry is incomplete")]
    Incomplete(#[from] crate::compact::Dangling),
}

/// Byte strings are written as such rather than as lists of numbers: a secret of 500 KB stays one of 500 KB.
pub(crate) fn encode<T: Serialize + ?Sized>(what: &'static str, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(256);
    encode_into(what, value, &mut bytes)?;
    Ok(bytes)
}

pub(crate) fn encode_into<T: Serialize + ?Sized>(what: &'static str, value: &T, bytes: &mut Vec<u8>) -> Result<(), CodecError> {
    let mut serializer = rmp_serde::Serializer::new(bytes).with_struct_map().with_bytes(rmp_serde::config::BytesMode::ForceIterables);
    value.serialize(&mut serializer).map_err(|source| CodecError::Encode { what, source })
}

pub(crate) fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    rmp_serde::from_slice(bytes).map_err(|source| CodecError::Decode { what, source })
}
