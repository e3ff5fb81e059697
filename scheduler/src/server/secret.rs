//! Secrets: made here, shown once, kept nowhere.

use std::fmt;

use sha2::{Digest, Sha256};

/// A token's secret. It has no `Debug` and no serialisation but [`Secret::reveal`], for the one answer that shows it.
pub struct Secret(String);

impl Secret {
    /// Makes 256 random bits behind a prefix that secret scanners know.
    pub fn generate(prefix: &'static str) -> Result<Self, getrandom::Error> {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!("{prefix}{}", hex(&bytes))))
    }

    /// Takes a secret that somebody shows.
    pub fn shown(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Returns what is stored of it. Random secrets need no slow hash (S01).
    pub fn hash(&self) -> String {
        hex(&Sha256::digest(self.0.as_bytes()))
    }

    /// Returns it, once, for its owner.
    pub fn reveal(self) -> String {
        self.0
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Prefix of API and provider tokens.
pub const TOKEN_PREFIX: &str = "crc_";
/// Prefix of join tokens.
pub const JOIN_PREFIX: &str = "crj_";

/// Writes bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
