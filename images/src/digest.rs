//! Content digests: the only names under which anything is stored.
//!
//! A [`Digest`] is made by parsing or by hashing, so holding one proves that its text is safe as a
//! file name and in a URL: one known algorithm, lower-case hex of the right length, nothing else
//! (security.md A51). Text is never used as a path before it has become a `Digest`.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// A hash function that image manifests may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, what everybody uses.
    Sha256,
    /// SHA-512, registered by the OCI image specification.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// How many hex digits a digest of this algorithm has.
    fn hex_length(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// The digest of some bytes, such as `sha256:<64 lower-case hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// A text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: {input} (want sha256: and 64 lower-case hex digits)")]
pub struct DigestError {
    /// What was given, shortened, with control characters escaped.
    pub input: String,
}

/// How much of a bad digest an error repeats.
const QUOTED_LENGTH_MAX: usize = 80;
/// How many hex digits people see.
const SHORT_LENGTH: usize = 12;

impl Digest {
    /// Hashes `bytes` with SHA-256.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The part after the colon.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first twelve hex digits, for people.
    pub fn short(&self) -> &str {
        &self.hex[..SHORT_LENGTH]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(input: &str) -> Result<Digest, DigestError> {
        let refuse =
            || DigestError { input: input.chars().take(QUOTED_LENGTH_MAX).flat_map(char::escape_debug).collect() };
        let (name, hex) = input.split_once(':').ok_or_else(refuse)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(refuse()),
        };
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex || hex.len() != algorithm.hex_length() {
            return Err(refuse());
        }
        Ok(Digest { algorithm, hex: hex.into() })
    }
}

impl TryFrom<&str> for Digest {
    type Error = DigestError;

    fn try_from(input: &str) -> Result<Digest, DigestError> {
        input.parse()
    }
}

/// A running hash, for data that comes in pieces.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Starts with nothing hashed.
    pub fn new(algorithm: Algorithm) -> Hasher {
        Hasher(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// Returns the digest of all that was added.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => from_raw(Algorithm::Sha256, &state.finalize()),
            State::Sha512(state) => from_raw(Algorithm::Sha512, &state.finalize()),
        }
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader that hashes and counts what passes through it.
#[derive(Debug)]
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    /// Wraps `inner`.
    pub fn new(inner: R, algorithm: Algorithm) -> Self {
        HashingReader { inner, hasher: Hasher::new(algorithm), count: 0 }
    }

    /// The digest and the number of bytes that were read.
    pub fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.count)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.count += read as u64;
        Ok(read)
    }
}

fn from_raw(algorithm: Algorithm, raw: &[u8]) -> Digest {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = String::with_capacity(raw.len() * 2);
    for byte in raw {
        hex.push(char::from(DIGITS[usize::from(byte >> 4)]));
        hex.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    Digest { algorithm, hex: hex.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn hashes_and_prints() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().expect("valid"), Digest::of(b""));
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
        let mut sha512 = Hasher::new(Algorithm::Sha512);
        sha512.update(b"abc");
        let sha512 = sha512.finish();
        assert!(sha512.to_string().starts_with("sha512:ddaf35a193617abacc417349ae204131"));
        assert_eq!(sha512.to_string().parse(), Ok(sha512));
    }

    #[test]
    fn a51_digest_as_path() {
        let hex = &EMPTY[7..];
        for bad in [
            "".into(),
            hex.to_string(),
            "sha256:".into(),
            "sha256:../../x".into(),
            format!("sha256:{}", hex.to_uppercase()),
            format!("SHA256:{hex}"),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}0"),
            format!("sha512:{hex}"),
            format!("md5:{}", &hex[..32]),
            format!("sha256:{}\0", &hex[1..]),
            format!("sha256:{}\n", &hex[1..]),
            format!(" sha256:{hex}"),
            format!("sha256:sha256:{}", &hex[7..]),
            format!("sha256:{}\u{ff11}", &hex[3..]),
        ] {
            let result = bad.parse::<Digest>();
            assert!(result.is_err(), "{bad:?} was taken for a digest");
        }
        let error = "a\x1b[31m".parse::<Digest>().expect_err("no digest").to_string();
        assert!(!error.contains('\x1b'), "{error:?}");
    }
}
