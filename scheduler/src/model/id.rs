//! Object ids: 128 bits shown as 26 characters of Crockford's base 32, one type per kind.
//!
//! An id is never a path, never parsed from a prefix and never compared as text. Upper 48 bits are the creation time
//! in milliseconds, so that ids sort by age; the other 80 come from the state's secret generator, so that an id cannot
//! be guessed (S10).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Says why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id of 26 characters in 0-9a-z without i, l, o, u")]
pub struct IdError(String);

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 26 characters of five bits hold 130 bits; the first character is therefore at most `7`.
const LENGTH: usize = 26;

fn encode(value: u128) -> String {
    (0..LENGTH).rev().map(|place| char::from(ALPHABET[usize::from(((value >> (place * 5)) & 31) as u8)])).collect()
}

fn decode(text: &str) -> Result<u128, IdError> {
    let refuse = || IdError(text.chars().take(40).collect());
    if text.len() != LENGTH || text.as_bytes()[0] > b'7' {
        return Err(refuse());
    }
    text.bytes().try_fold(0u128, |sum, byte| {
        let digit = ALPHABET.iter().position(|known| *known == byte).ok_or_else(refuse)?;
        Ok(sum << 5 | digit as u128)
    })
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// Makes an id of its number.
            pub const fn new(value: u128) -> Self { Self(value) }
            /// Returns the number.
            pub const fn get(self) -> u128 { self.0 }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&encode(self.0)) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&encode(self.0)) }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> { decode(text).map(Self) }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> { out.serialize_str(&encode(self.0)) }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(input)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> { schema() }
        }
        impl utoipa::ToSchema for $name {
            fn name() -> Cow<'static, str> { Cow::Borrowed(stringify!($name)) }
        }
    )* };
}

fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
    use utoipa::openapi::schema::{ObjectBuilder, Type};
    ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[0-7][0-9a-hjkmnp-tv-z]{25}$")).build().into()
}

ids! {
    /// Names one tenant.
    GroupId
    /// Names one person or robot of a group.
    UserId
    /// Names one API or provider token; not its secret.
    TokenId
    /// Names one join token; not its secret.
    JoinId
    /// Names one lent machine.
    ProviderId
    /// Names one instance for its whole life, whichever provider runs it.
    InstanceId
    /// Names one service.
    ServiceId
    /// Names one batch job.
    JobId
    /// Names one volume.
    VolumeId
    /// Names one secret; not its value.
    SecretId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text_and_keep_their_order() {
        let values = [0, 1, 31, 32, u128::from(u64::MAX), u128::MAX - 1, u128::MAX];
        let texts: Vec<String> = values.iter().map(|value| InstanceId::new(*value).to_string()).collect();
        for (value, text) in values.iter().zip(&texts) {
            assert_eq!(text.len(), 26);
            assert_eq!(text.parse::<InstanceId>(), Ok(InstanceId::new(*value)));
        }
        assert!(texts.is_sorted());
    }

    #[test]
    fn a85_ids_are_never_paths() {
        let long = "0".repeat(27);
        for text in [
            "",
            "../../../../../etc/passwd00",
            "0000000000000000000000000/",
            "8zzzzzzzzzzzzzzzzzzzzzzzzz",
            "0000000000000000000000000u",
            "0000000000000000000000000A",
            "%2e%2e",
            "0000000000000000000000000\0",
            &long,
            "é000000000000000000000000",
        ] {
            assert!(text.parse::<InstanceId>().is_err(), "{text:?}");
        }
    }
}
