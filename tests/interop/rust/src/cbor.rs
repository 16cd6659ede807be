// CBOR maps with text keys, their deterministic encoding, and what of them is JSON.

use crate::Result;
use ciborium::Value;

pub fn decode(raw: &[u8]) -> Result<Value> {
    let mut rest = raw;
    let value = ciborium::from_reader(&mut rest)?;
    if rest.is_empty() { Ok(value) } else { Err("bytes after the value".into()) }
}

/// The deterministic encoding of RFC 8949, 4.2.1, which digests and signatures need and nothing else minds.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut raw = Vec::new();
    // ciborium writes numbers in their shortest form; the order of keys is left to us.
    ciborium::into_writer(&sorted(value), &mut raw).expect("a vector takes all bytes");
    raw
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        Value::Map(entries) => {
            let mut entries: Vec<_> = entries.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            entries.sort_by_key(|(key, _)| {
                let mut raw = Vec::new();
                ciborium::into_writer(key, &mut raw).expect("a vector takes all bytes");
                raw
            });
            Value::Map(entries)
        }
        _ => value.clone(),
    }
}

/// The value with integers for the floats that are whole and less than 2^53: what 1.1.0 of the bid protocol digests.
pub fn whole_numbers(value: &Value) -> Value {
    match value {
        Value::Float(number) if number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0 => {
            Value::from(*number as i64)
        }
        Value::Array(items) => Value::Array(items.iter().map(whole_numbers).collect()),
        Value::Map(entries) => {
            Value::Map(entries.iter().map(|(key, value)| (key.clone(), whole_numbers(value))).collect())
        }
        _ => value.clone(),
    }
}

pub fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Map(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
}

/// Reads fields of a map; what is missing or of another type is named.
pub trait Fields {
    fn get(&self, name: &str) -> Option<&Value>;

    fn need(&self, name: &str) -> Result<&Value> {
        self.get(name).ok_or_else(|| format!("{name} is missing").into())
    }

    fn text(&self, name: &str) -> Result<&str> {
        self.need(name)?.as_text().ok_or_else(|| format!("{name} is no text").into())
    }

    fn octets(&self, name: &str) -> Result<&[u8]> {
        self.need(name)?.as_bytes().map(Vec::as_slice).ok_or_else(|| format!("{name} is no byte string").into())
    }

    fn list(&self, name: &str) -> Result<&[Value]> {
        self.need(name)?.as_array().map(Vec::as_slice).ok_or_else(|| format!("{name} is no list").into())
    }

    fn unsigned(&self, name: &str) -> Result<u64> {
        let whole = self.need(name)?.as_integer().and_then(|number| number.try_into().ok());
        whole.ok_or_else(|| format!("{name} is no unsigned integer").into())
    }

    fn number(&self, name: &str) -> Result<f64> {
        number(self.need(name)?).ok_or_else(|| format!("{name} is no number").into())
    }
}

impl Fields for Value {
    fn get(&self, name: &str) -> Option<&Value> {
        self.as_map()?.iter().find(|(key, _)| key.as_text() == Some(name)).map(|(_, value)| value)
    }
}

pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(*number),
        Value::Integer(number) => Some(i128::from(*number) as f64),
        _ => None,
    }
}

/// Byte strings become {"hex": ...}, as in the test vectors.
pub fn to_json(value: &Value) -> Result<serde_json::Value> {
    use serde_json::Value as Json;
    Ok(match value {
        Value::Null => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Text(value) => value.as_str().into(),
        Value::Bytes(value) => serde_json::json!({ "hex": hex::encode(value) }),
        Value::Float(value) => (*value).into(),
        Value::Integer(value) => match u64::try_from(*value) {
            Ok(value) => value.into(),
            Err(_) => i64::try_from(*value)?.into(),
        },
        Value::Array(items) => Json::Array(items.iter().map(to_json).collect::<Result<_>>()?),
        Value::Map(entries) => {
            let mut found = serde_json::Map::new();
            for (key, value) in entries {
                let name = key.as_text().ok_or("a key that is no text")?;
                if found.insert(name.into(), to_json(value)?).is_some() {
                    return Err(format!("the key {name} is there twice").into());
                }
            }
            Json::Object(found)
        }
        _ => return Err("a value that a message does not have".into()),
    })
}
