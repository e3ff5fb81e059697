//! The name of a container in the runc-compatible face.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An id is a directory name, so it is no longer than one.
const ID_BYTES_MAX: usize = 255;

/// A container id that is safe as a file name, as an argument and in any output (C19).
///
/// runc's letters, digits, `_ + . -`, but never first a dot or a dash: a listing must not hide it
/// and a command line must not take it for a flag.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

/// The text is no container id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid container id {0:?}: letters, digits and _ + . - are allowed, 255 at most, and a letter, digit or _ comes first"
)]
pub struct InvalidId(pub String);

impl Id {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Id {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let valid = text.len() <= ID_BYTES_MAX
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|byte| word(byte) || matches!(byte, b'+' | b'.' | b'-'));
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidId(text.to_owned())) }
    }
}

impl TryFrom<String> for Id {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c19_ids() {
        let longest = "a".repeat(255);
        for good in ["a", "0", "_x", "node1.alice.17.4294967291.0", "A+b-c.d", &longest] {
            assert_eq!(good.parse::<Id>().map(|id| id.to_string()), Ok(good.to_owned()));
        }
        let too_long = "a".repeat(256);
        for bad in ["", ".", "..", "../x", "a/b", "-rf", ".hidden", "é", "a b", "a\n", "a\0", "a:b", &too_long] {
            assert_eq!(bad.parse::<Id>(), Err(InvalidId(bad.to_owned())), "{bad:?}");
        }
    }
}
