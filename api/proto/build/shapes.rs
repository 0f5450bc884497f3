//! What requests look like in memory, from their description.
//!
//! Sizes are those of the structures that prost makes on 64-bit machines, or a little more: fields are added up as if none shared its
//! padding.

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;

/// `String`, `Vec` and `BTreeMap`.
const HEADER: u32 = 24;
const NUMBER: u32 = 8;
/// Whether there is one.
const OPTION: u32 = 8;
/// A map's entry has its share of a node, which may be half empty.
const NODES: u32 = 3;

/// The table of shapes, sorted by name, as Rust.
pub fn source(descriptors: &[u8]) -> io::Result<String> {
    let set = FileDescriptorSet::decode(descriptors)?;
    let mut messages = BTreeMap::new();
    let mut requests = BTreeSet::new();
    for file in &set.file {
        let package = format!(".{}", file.package());
        for message in &file.message_type {
            enter(&mut messages, &package, message);
        }
        requests.extend(file.service.iter().flat_map(|service| &service.method).map(|method| method.input_type().to_owned()));
    }
    let shapes = Shapes { messages };
    let mut reached = BTreeSet::new();
    for request in &requests {
        shapes.reach(request, &mut reached)?;
    }
    let numbers: BTreeMap<&str, usize> = reached.iter().enumerate().map(|(number, name)| (name.as_str(), number)).collect();
    let mut text = format!("static SHAPES: [Shape; {}] = [\n", reached.len());
    for name in &reached {
        let shape = shapes.get(name)?;
        let mut by_number: Vec<_> = shape.field.iter().collect();
        by_number.sort_by_key(|field| field.number());
        let fields: Vec<_> = by_number.into_iter().map(|field| part(field, &numbers)).collect::<io::Result<_>>()?;
        let (plain, size, asked) = (name.trim_start_matches('.'), shapes.size(name)?, requests.contains(name));
        let fields = fields.join(", ");
        writeln!(text, "    Shape {{ name: {plain:?}, size: {size}, is_request: {asked}, parts: &[{fields}] }},")
            .map_err(io::Error::other)?;
    }
    text.push_str("];\n");
    Ok(text)
}

fn enter<'a>(messages: &mut BTreeMap<String, &'a DescriptorProto>, outer: &str, message: &'a DescriptorProto) {
    let name = format!("{outer}.{}", message.name());
    for nested in &message.nested_type {
        enter(messages, &name, nested);
    }
    messages.insert(name, message);
}

/// How one field is written in the table.
fn part(field: &FieldDescriptorProto, numbers: &BTreeMap<&str, usize>) -> io::Result<String> {
    let many = field.label() == Label::Repeated;
    let kind = match field.r#type() {
        Type::Message => {
            let shape = numbers.get(field.type_name()).ok_or_else(|| unknown(field.type_name()))?;
            format!("{}({shape})", if many { "Messages" } else { "Message" })
        }
        Type::String | Type::Bytes => if many { "Texts" } else { "Text" }.to_owned(),
        _ => if many { "Numbers" } else { "Number" }.to_owned(),
    };
    Ok(format!("({}, Part::{kind})", field.number()))
}

fn unknown(name: &str) -> io::Error {
    io::Error::other(format!("{name} is described nowhere"))
}

struct Shapes<'a> {
    messages: BTreeMap<String, &'a DescriptorProto>,
}

impl<'a> Shapes<'a> {
    fn get(&self, name: &str) -> io::Result<&'a DescriptorProto> {
        self.messages.get(name).copied().ok_or_else(|| unknown(name))
    }

    /// This message and all in it.
    fn reach(&self, name: &str, reached: &mut BTreeSet<String>) -> io::Result<()> {
        if reached.insert(name.to_owned()) {
            for field in self.get(name)?.field.iter().filter(|field| field.r#type() == Type::Message) {
                self.reach(field.type_name(), reached)?;
            }
        }
        Ok(())
    }

    /// Bytes of the structure itself. A message that holds itself, which prost would put elsewhere, does not occur.
    fn size(&self, name: &str) -> io::Result<u32> {
        let message = self.get(name)?;
        let (mut total, mut choices) = (0, BTreeMap::<i32, u32>::new());
        for field in &message.field {
            let size = self.field_size(field)?;
            match field.oneof_index {
                Some(choice) if !field.proto3_optional() => {
                    let largest = choices.entry(choice).or_default();
                    *largest = size.max(*largest);
                }
                Some(_) => total += size + OPTION,
                None => total += size,
            }
        }
        total += choices.values().map(|largest| largest + OPTION).sum::<u32>();
        let is_entry = message.options.as_ref().is_some_and(|options| options.map_entry());
        Ok(if is_entry { NODES * total } else { total })
    }

    fn field_size(&self, field: &FieldDescriptorProto) -> io::Result<u32> {
        Ok(match (field.label(), field.r#type()) {
            (Label::Repeated, _) | (_, Type::String | Type::Bytes) => HEADER,
            (_, Type::Message) => self.size(field.type_name())? + OPTION,
            _ => NUMBER,
        })
    }
}
