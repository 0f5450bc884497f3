//! Protobuf messages as trees of fields, to be changed without knowing their types.

use crate::support::Dice;

#[derive(Debug, Clone)]
pub enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

#[derive(Debug, Clone)]
pub struct Field {
    number: u64,
    value: Value,
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

/// The fields of a message, or `None` for bytes that are none. What could be a text is taken for one.
pub fn parse(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = read_varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Varint(read_varint(&mut bytes)?),
            1 => Value::Fixed64(take(&mut bytes, 8)?.try_into().ok()?),
            5 => Value::Fixed32(take(&mut bytes, 4)?.try_into().ok()?),
            2 => {
                let length = usize::try_from(read_varint(&mut bytes)?).ok()?;
                let inner = take(&mut bytes, length)?;
                let is_text = inner.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
                match parse(inner).filter(|_| !is_text) {
                    Some(fields) => Value::Message(fields),
                    None => Value::Bytes(inner.to_vec()),
                }
            }
            _ => return None,
        };
        if key >> 3 == 0 {
            return None;
        }
        fields.push(Field { number: key >> 3, value });
    }
    Some(fields)
}

pub fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

pub fn write(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Field { number, value } in fields {
        let mut key = |kind| bytes.extend(varint(number << 3 | kind));
        match value {
            Value::Varint(value) => {
                key(0);
                bytes.extend(varint(*value));
            }
            Value::Fixed64(value) => {
                key(1);
                bytes.extend(value);
            }
            Value::Fixed32(value) => {
                key(5);
                bytes.extend(value);
            }
            Value::Bytes(inner) => {
                key(2);
                bytes.extend(varint(inner.len() as u64));
                bytes.extend(inner);
            }
            Value::Message(fields) => {
                key(2);
                let inner = write(fields);
                bytes.extend(varint(inner.len() as u64));
                bytes.extend(inner);
            }
        }
    }
    bytes
}

/// Texts that are too long, none, or more than they seem; and `known`: names of things that are there.
fn odd_text(dice: &mut Dice, known: &[String]) -> Vec<u8> {
    match dice.below(9) {
        0 => Vec::new(),
        1 => vec![b'a'; 1 << 16],
        2 => b"\xff\xfe".to_vec(),
        3 => b"nul\0 line\n\x1b[2J".to_vec(),
        4 => b"../../etc/passwd".to_vec(),
        5 => "\u{202e}{{.Node.Hostname}}".as_bytes().to_vec(),
        6 => dice.extreme().to_string().into_bytes(),
        _ => known.get(dice.index(known.len())).map_or_else(Vec::new, |text| text.clone().into_bytes()),
    }
}

/// Changes one thing somewhere in the tree.
pub fn mutate(fields: &mut Vec<Field>, dice: &mut Dice, known: &[String]) {
    if fields.is_empty() {
        let value = if dice.below(2) == 0 { Value::Varint(dice.extreme()) } else { Value::Bytes(odd_text(dice, known)) };
        fields.push(Field { number: 1 + dice.below(12), value });
        return;
    }
    let at = dice.index(fields.len());
    // Into the depth more often than not.
    if let Value::Message(inner) = &mut fields[at].value
        && dice.below(4) > 0
    {
        return mutate(inner, dice, known);
    }
    match dice.below(8) {
        0 => drop(fields.remove(at)),
        1 => fields.push(fields[at].clone()),
        2 => fields.extend(vec![fields[at].clone(); 300]),
        3 => fields[at].number = 1 + dice.below(30),
        4 => {
            let whole = fields.clone();
            fields[at].value = Value::Message(whole);
        }
        5 => {
            let mut deep = Vec::new();
            for _ in 0..120 {
                deep = vec![Field { number: fields[at].number, value: Value::Message(deep) }];
            }
            fields[at].value = Value::Message(deep);
        }
        _ => fields[at].value = changed(&fields[at].value, dice, known),
    }
}

fn changed(value: &Value, dice: &mut Dice, known: &[String]) -> Value {
    match value {
        Value::Varint(_) if dice.below(8) == 0 => Value::Bytes(odd_text(dice, known)),
        Value::Varint(_) => Value::Varint(dice.extreme()),
        Value::Fixed64(_) => Value::Fixed64(dice.pick(&[&f64::NAN, &f64::INFINITY, &-1.0, &0.0]).to_le_bytes()),
        Value::Fixed32(_) => Value::Fixed32((dice.extreme() as u32).to_le_bytes()),
        Value::Bytes(bytes) if !bytes.is_empty() && dice.below(3) == 0 => {
            let mut bytes = bytes.clone();
            let at = dice.index(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
            Value::Bytes(bytes)
        }
        Value::Bytes(_) if dice.below(10) == 0 => Value::Varint(dice.extreme()),
        Value::Bytes(_) | Value::Message(_) => Value::Bytes(odd_text(dice, known)),
    }
}
