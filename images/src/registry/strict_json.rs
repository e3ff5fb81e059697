//! JSON that can be read in one way only.
//!
//! Two readers of one document must not see two documents (security.md A50): no object may have a
//! key twice, at the top not even in two spellings that Go's parser takes for one. The depth is
//! bounded by serde_json's own recursion limit, which is
//! [`JSON_DEPTH_MAX`](crate::limits::JSON_DEPTH_MAX).

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Checks that `bytes` are one JSON document without doubled keys.
pub(super) fn check(bytes: &[u8]) -> Result<(), serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    Value { top: true }.deserialize(&mut reader)?;
    reader.end()
}

#[derive(Clone, Copy)]
struct Value {
    top: bool,
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let key = if self.top { key.to_ascii_lowercase() } else { key };
            if !seen.insert(key) {
                return Err(A::Error::custom("a key appears twice"));
            }
            map.next_value_seed(Value { top: false })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Value { top: false })?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn a50_only_unambiguous_documents_pass() {
        let good: [&[u8]; 4] =
            [b"{}", b"{\"a\":[1,2.5,null,true,\"x\"],\"b\":{\"a\":1}}", b" [] ", b"{\"x\":{\"a\":1,\"A\":2}}"];
        for text in good {
            check(text).expect("good");
        }
        let bad: [&[u8]; 8] = [
            b"",
            b"{\"a\":1,\"a\":2}",
            b"{\"x\":{\"a\":1,\"a\":2}}",
            b"{\"layers\":1,\"Layers\":2}",
            b"\xef\xbb\xbf{}",
            b"{} {}",
            b"{\"a\":1e999}",
            b"{\"a\":\"\xff\"}",
        ];
        for text in bad {
            assert!(check(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
        assert!(check("[".repeat(200_000).as_bytes()).is_err());
        assert!(check(format!("{}{}", "[".repeat(127), "]".repeat(127)).as_bytes()).is_ok());
        assert!(check(format!("{}{}", "[".repeat(129), "]".repeat(129)).as_bytes()).is_err());
    }
}
