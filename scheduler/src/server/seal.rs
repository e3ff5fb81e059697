//! The seal on secrets: AES-256-GCM with a key that is in no store and no backup (S30).
//!
//! The key is a file of its own, which only its owner reads. Every scheduler of a pool needs the same one. What is sealed
//! is bound to its group and name, so that nobody can put one tenant's row in another's place.

use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use super::secret::hex;
use crate::model::{GroupId, Name, Plain, Sealed};

/// Tells which way of sealing made a text.
const VERSION: &str = "v1:";
/// Bytes of the key.
const KEY_BYTES: usize = 32;

/// Says why there is no seal.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file cannot be read or made.
    #[error("cannot use the key for secrets {}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no key.
    #[error("{} is no key for secrets: 64 hexadecimal digits are", .0.display())]
    Key(PathBuf),
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Entropy(#[source] getrandom::Error),
}

/// The seal.
pub struct Seal {
    key: LessSafeKey,
    mark: hmac::Key,
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

impl Seal {
    /// Reads the key, or makes one where there is none yet.
    pub fn open(path: &Path) -> Result<Self, SealError> {
        let file = |source| SealError::File { path: path.to_owned(), source };
        let text = match fs_err::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => make(path)?,
            Err(error) => return Err(file(error)),
        };
        let key = bytes(text.trim()).map(Zeroizing::new).filter(|key| key.len() == KEY_BYTES);
        let key = key.ok_or_else(|| SealError::Key(path.to_owned()))?;
        let unbound = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| SealError::Key(path.to_owned()))?;
        let mark = Sha256::new().chain_update(b"coracle idempotency").chain_update(&*key).finalize();
        Ok(Self { key: LessSafeKey::new(unbound), mark: hmac::Key::new(hmac::HMAC_SHA256, &mark) })
    }

    /// Seals a value for a name of a group.
    pub fn close(&self, group: GroupId, name: &Name, value: &Plain) -> Result<Sealed, SealError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(SealError::Entropy)?;
        let mut text = value.expose().as_bytes().to_vec();
        let sealed =
            self.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound(group, name), &mut text);
        if sealed.is_err() {
            // Only a value of gigabytes is too long for the cipher.
            text.zeroize();
            return Err(SealError::Key(PathBuf::new()));
        }
        Ok(Sealed::new(format!("{VERSION}{}{}", hex(&nonce), hex(&text))))
    }

    /// Opens what was sealed for this name of this group, with this key.
    pub fn open_for(&self, group: GroupId, name: &Name, sealed: &Sealed) -> Option<Plain> {
        let all = bytes(sealed.text().strip_prefix(VERSION)?)?;
        let (nonce, text) = all.split_at_checked(NONCE_LEN)?;
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self.key.open_in_place(nonce, bound(group, name), &mut text).ok()?;
        Some(Plain::new(std::str::from_utf8(plain).ok()?.to_owned()))
    }

    /// Makes a digest that tells nothing to who does not have the key.
    pub fn mark(&self, digest: &str) -> String {
        hex(hmac::sign(&self.mark, digest.as_bytes()).as_ref())
    }
}

fn bound(group: GroupId, name: &Name) -> Aad<Vec<u8>> {
    Aad::from(format!("{group}/{name}").into_bytes())
}

fn make(path: &Path) -> Result<Zeroizing<String>, SealError> {
    use std::io::Write as _;

    use fs_err::os::unix::fs::OpenOptionsExt as _;
    let file = |source| SealError::File { path: path.to_owned(), source };
    let mut key = Zeroizing::new([0u8; KEY_BYTES]);
    getrandom::fill(&mut *key).map_err(SealError::Entropy)?;
    let text = Zeroizing::new(hex(&*key));
    let made = fs_err::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    let mut made = made.map_err(file)?;
    made.write_all(text.as_bytes()).and_then(|()| made.sync_all()).map_err(file)?;
    Ok(text)
}
