//! Bounds that hold for every text and list, whatever it means: no NUL, at most 64 KiB, at most 4096 entries, at most 1 MiB together.
//!
//! A serializer that writes nothing but walks over everything with the path at hand: a field added later is checked, too.

use serde::ser::{self, Serialize};
use skep_types::FieldError;
use std::fmt::{self, Display};

/// Longest text in a spec, bytes.
pub const MAX_TEXT: usize = 64 * 1024;
/// Most entries in one list or map of a spec.
pub const MAX_LIST: usize = 4096;
/// All texts of a spec together, bytes: an object must fit into one entry of the raft log (1.5 MiB).
pub const MAX_TOTAL: usize = 1024 * 1024;

/// Checks all texts and lists of `object`; `field` is its name for the path in the error.
///
/// # Errors
/// [`FieldError`] for the first that breaks a bound.
pub fn check_texts<T: Serialize>(field: &str, object: &T) -> Result<(), FieldError> {
    let mut walk = Walk { path: field.to_owned(), total: 0 };
    object.serialize(&mut walk).map_err(|Bad(error)| error)
}

struct Walk {
    path: String,
    total: usize,
}

#[derive(Debug)]
struct Bad(FieldError);

impl Display for Bad {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl std::error::Error for Bad {}

impl ser::Error for Bad {
    fn custom<T: Display>(problem: T) -> Self {
        Self(FieldError::new("", problem.to_string()))
    }
}

impl Walk {
    fn bad<T>(&self, problem: impl Into<String>) -> Result<T, Bad> {
        Err(Bad(FieldError::new(self.path.clone(), problem)))
    }

    fn text(&mut self, text: &str) -> Result<(), Bad> {
        if text.contains('\0') {
            return self.bad("contains a NUL byte; remove it");
        }
        self.bytes(text.len())
    }

    fn bytes(&mut self, length: usize) -> Result<(), Bad> {
        if length > MAX_TEXT {
            return self.bad(format!("is {length} bytes long; at most {MAX_TEXT} are allowed (put large data into a config or a volume)"));
        }
        self.total += length;
        if self.total > MAX_TOTAL {
            return self.bad(format!("makes the spec larger than {MAX_TOTAL} bytes; put large data into configs or volumes"));
        }
        Ok(())
    }

    /// Goes into `name` and comes back.
    fn within<T: ?Sized + Serialize>(&mut self, name: &str, value: &T) -> Result<(), Bad> {
        let length = self.path.len();
        if !name.starts_with('[') && !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(name);
        value.serialize(&mut *self)?;
        self.path.truncate(length);
        Ok(())
    }
}

/// Elements of a list or entries of a map.
struct List<'a> {
    walk: &'a mut Walk,
    index: usize,
    key: String,
}

impl List<'_> {
    fn element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Bad> {
        let index = self.index;
        self.index += 1;
        // Payloads are lists of bytes to serde; their length is that of a text.
        if index >= MAX_TEXT {
            return self.walk.bad(format!("has more than {MAX_TEXT} bytes"));
        }
        let before = self.walk.total;
        self.walk.within(&format!("[{index}]"), value)?;
        let is_byte = std::mem::size_of_val(value) == 1;
        if !is_byte && index >= MAX_LIST {
            return self.walk.bad(format!("has more than {MAX_LIST} entries"));
        }
        self.walk.total = self.walk.total.max(before);
        Ok(())
    }
}

macro_rules! nothing {
    ($($method:ident: $kind:ty),*) => { $(fn $method(self, _: $kind) -> Result<(), Bad> { Ok(()) })* };
}

impl<'a> ser::Serializer for &'a mut Walk {
    type Ok = ();
    type Error = Bad;
    type SerializeSeq = List<'a>;
    type SerializeTuple = List<'a>;
    type SerializeTupleStruct = List<'a>;
    type SerializeTupleVariant = List<'a>;
    type SerializeMap = List<'a>;
    type SerializeStruct = &'a mut Walk;
    type SerializeStructVariant = Variant<'a>;

    nothing!(serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_u8: u8,
        serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_f32: f32, serialize_f64: f64, serialize_char: char);

    fn serialize_str(self, text: &str) -> Result<(), Bad> {
        self.text(text)
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), Bad> {
        self.bytes(bytes.len())
    }

    fn serialize_none(self) -> Result<(), Bad> {
        Ok(())
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<(), Bad> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Bad> {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Bad> {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), Bad> {
        Ok(())
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(self, _: &'static str, value: &T) -> Result<(), Bad> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Bad> {
        self.within(&variant.to_lowercase(), value)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<List<'a>, Bad> {
        if length.is_some_and(|length| length > MAX_TEXT) {
            return self.bad(format!("has more than {MAX_TEXT} entries"));
        }
        Ok(List { walk: self, index: 0, key: String::new() })
    }

    fn serialize_tuple(self, _: usize) -> Result<List<'a>, Bad> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<List<'a>, Bad> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<List<'a>, Bad> {
        self.serialize_seq(None)
    }

    fn serialize_map(self, length: Option<usize>) -> Result<List<'a>, Bad> {
        if length.is_some_and(|length| length > MAX_LIST) {
            return self.bad(format!("has more than {MAX_LIST} entries"));
        }
        Ok(List { walk: self, index: 0, key: String::new() })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<&'a mut Walk, Bad> {
        Ok(self)
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, variant: &'static str, _: usize) -> Result<Variant<'a>, Bad> {
        Ok(Variant { walk: self, name: variant.to_lowercase() })
    }
}

impl ser::SerializeSeq for List<'_> {
    type Ok = ();
    type Error = Bad;
    fn serialize_element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Bad> {
        self.element(value)
    }
    fn end(self) -> Result<(), Bad> {
        Ok(())
    }
}

impl ser::SerializeTuple for List<'_> {
    type Ok = ();
    type Error = Bad;
    fn serialize_element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Bad> {
        self.element(value)
    }
    fn end(self) -> Result<(), Bad> {
        Ok(())
    }
}

impl ser::SerializeTupleStruct for List<'_> {
    type Ok = ();
    type Error = Bad;
    fn serialize_field<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Bad> {
        self.element(value)
    }
    fn end(self) -> Result<(), Bad> {
        Ok(())
    }
}

impl ser::SerializeTupleVariant for List<'_> {
    type Ok = ();
    type Error = Bad;
    fn serialize_field<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Bad> {
        self.element(value)
    }
    fn end(self) -> Result<(), Bad> {
        Ok(())
    }
}

impl ser::SerializeMap for List<'_> {
    type Ok = ();
    type Error = Bad;
    fn serialize_key<T: ?Sized + Serialize>(&mut self, key: &T) -> Result<(), Bad> {
        self.index += 1;
        if self.index > MAX_LIST {
            return self.walk.bad(format!("has more than {MAX_LIST} entries"));
        }
        self.key = format!("[{}]", self.index - 1);
        self.walk.within(&self.key, key)
    }
    fn serialize_value<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Bad> {
        self.walk.within(&self.key, value)
    }
    fn end(self) -> Result<(), Bad> {
        Ok(())
    }
}

impl ser::SerializeStruct for &mut Walk {
    type Ok = ();
    type Error = Bad;
    fn serialize_field<T: ?Sized + Serialize>(&mut self, name: &'static str, value: &T) -> Result<(), Bad> {
        // Rust's name for what the API calls `container`, `attachment` or `generic`.
        if name == "runtime" { value.serialize(&mut **self) } else { self.within(name, value) }
    }
    fn end(self) -> Result<(), Bad> {
        Ok(())
    }
}

/// A variant with named fields.
struct Variant<'a> {
    walk: &'a mut Walk,
    name: String,
}

impl ser::SerializeStructVariant for Variant<'_> {
    type Ok = ();
    type Error = Bad;
    fn serialize_field<T: ?Sized + Serialize>(&mut self, name: &'static str, value: &T) -> Result<(), Bad> {
        self.walk.within(&format!("{}.{name}", self.name), value)
    }
    fn end(self) -> Result<(), Bad> {
        Ok(())
    }
}
