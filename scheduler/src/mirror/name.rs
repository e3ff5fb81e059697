//! What a mirror may be asked for: names, tags and digests that are safe as they are in paths and URLs.
//!
//! The grammar is that of the OCI distribution specification. Nothing else is ever made into a path or passed on, so
//! there is no `..`, no empty part and no encoded slash to think about.

use std::fmt;

use sha2::{Digest as _, Sha256, Sha512};

/// Longest repository name, what registries take.
const REPOSITORY_BYTES_MAX: usize = 255;
/// Longest tag, of the distribution specification.
const TAG_BYTES_MAX: usize = 128;

/// A repository of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// The registry as `host[:port]`; one of those that are mirrored.
    pub registry: String,
    /// The repository's name there.
    pub name: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

/// What a manifest is asked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What it is called at the moment.
    Tag(String),
    /// What it is.
    Content(Content),
}

impl Wanted {
    /// Reads a tag or a digest.
    pub fn parse(text: &str) -> Option<Self> {
        if text.contains(':') {
            return Content::parse(text).map(Self::Content);
        }
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        (first && text.len() <= TAG_BYTES_MAX && text.bytes().all(good)).then(|| Self::Tag(text.to_owned()))
    }
}

/// Tells whether a text is the name of a repository.
pub fn is_repository(name: &str) -> bool {
    name.len() <= REPOSITORY_BYTES_MAX && name.split('/').all(is_component)
}

/// Letters and digits with single separators between them: `.`, `_`, `__`, or any number of `-`.
fn is_component(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separators = part.split(|char: char| char.is_ascii_lowercase() || char.is_ascii_digit());
    let good = |between: &str| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-');
    part.bytes().next().is_some_and(word) && part.bytes().last().is_some_and(word) && separators.into_iter().all(good)
}

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// What everybody uses.
    Sha256,
    /// The other one that the image specification has.
    Sha512,
}

/// A digest: what content is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content {
    algorithm: Algorithm,
    hex: String,
}

impl Content {
    /// Reads `sha256:HEX` or `sha512:HEX`, in lower case.
    pub fn parse(text: &str) -> Option<Self> {
        let (algorithm, hex) = text.split_once(':')?;
        let (algorithm, length) = match algorithm {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return None,
        };
        let good = hex.len() == length && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Self { algorithm, hex: hex.to_owned() })
    }

    /// Hashes bytes by SHA-256.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = Hash::Sha256(Sha256::new());
        hash.update(bytes);
        hash.finish()
    }

    /// Tells whether bytes are this.
    pub fn is(&self, bytes: &[u8]) -> bool {
        let mut hash = self.hash();
        hash.update(bytes);
        hash.finish() == *self
    }

    /// Begins to hash by the same function.
    pub fn hash(&self) -> Hash {
        match self.algorithm {
            Algorithm::Sha256 => Hash::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hash::Sha512(Sha512::new()),
        }
    }

    /// The function's name, which is a directory's.
    pub fn folder(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The part after the colon, which is a file's name.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.folder(), self.hex)
    }
}

/// A hash on its way.
pub enum Hash {
    /// See [`Algorithm::Sha256`].
    Sha256(Sha256),
    /// See [`Algorithm::Sha512`].
    Sha512(Sha512),
}

impl Hash {
    /// Takes bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// Gives what the bytes were.
    pub fn finish(self) -> Content {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(hash) => Content { algorithm: Algorithm::Sha256, hex: hex(&hash.finalize()) },
            Self::Sha512(hash) => Content { algorithm: Algorithm::Sha512, hex: hex(&hash.finalize()) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_grammar_has_is_a_name_a_tag_or_a_digest() {
        for good in ["busybox", "library/busybox", "a/b/c", "a--b/c__d/e.f_g", "0"] {
            assert!(is_repository(good), "{good}");
        }
        for bad in [
            "", "/", "a/", "/a", "a//b", "..", "a/..", "../a", "a/../b", ".", "A", "a%2fb", "a/.b", "a._b", "a___b",
            "a..b", "-a", "a\\b", "a b", "a\0", "ä", "a?b", "a#b", "a:b", "a@b",
        ] {
            assert!(!is_repository(bad), "{bad}");
        }
        assert!(!is_repository(&"a".repeat(REPOSITORY_BYTES_MAX + 1)));
        assert!(is_repository(&"a".repeat(REPOSITORY_BYTES_MAX)));
        assert!(matches!(Wanted::parse("latest"), Some(Wanted::Tag(_))));
        let hex = "0".repeat(64);
        assert!(matches!(Wanted::parse(&format!("sha256:{hex}")), Some(Wanted::Content(_))));
        let upper = format!("sha256:{}", "A".repeat(64));
        let bad = ["", "..", ".", "-a", "a/b", "a%2fb", "sha256:", "sha256:0", "md5:00", "sha256:../../x", &upper];
        for bad in bad {
            assert_eq!(Wanted::parse(bad), None, "{bad}");
        }
        assert_eq!(Wanted::parse(&"a".repeat(TAG_BYTES_MAX + 1)), None);
    }

    #[test]
    fn content_is_known_by_its_hash() {
        let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(Content::of(b"hello").to_string(), format!("sha256:{hello}"));
        assert!(Content::of(b"hello").is(b"hello") && !Content::of(b"hello").is(b"hellp"));
        let long = Content::parse(&format!("sha512:{}", "0".repeat(128))).unwrap();
        assert!(!long.is(b""));
    }
}
