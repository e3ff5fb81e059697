//! Host keys of instances, and the provider's own authority that signs them.
//!
//! A client trusts the authority for one instance at a time (`@cert-authority` of sshd(8)), so no host key has to be
//! believed at first sight and no check has to be off. Private keys are files of mode 0600 that are written once.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{Certificate, PrivateKey};

/// A certificate is made for one session and lasts so long: more than the longest rekeying interval.
const CERTIFICATE_SECONDS: u64 = 24 * 3600;
/// Clocks that differ by less do not matter.
const CLOCK_SECONDS: u64 = 3600;

/// Says why there is no key or certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("cannot keep SSH host keys")]
    File(#[from] std::io::Error),
    /// What is kept is no key, or cannot sign.
    #[error("cannot use the SSH host key {path}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: russh::keys::ssh_key::Error,
    },
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Entropy,
}

/// Makes a key that is kept nowhere: for one stream.
pub fn one_time_key() -> Result<PrivateKey, AuthorityError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|_| AuthorityError::Entropy)?;
    Ok(PrivateKey::from(Ed25519Keypair::from_seed(&seed)))
}

/// Reads a key, or makes it; of two that make it at once both get the same one.
fn key(path: &Path) -> Result<PrivateKey, AuthorityError> {
    let unusable = |source| AuthorityError::Key { path: path.to_owned(), source };
    match fs_err::read(path) {
        Ok(text) => return PrivateKey::from_openssh(&text).map_err(unusable),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let fresh = one_time_key()?;
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    let _ = fs_err::remove_file(&aside);
    let mut file = fs_err::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&aside)?;
    file.write_all(fresh.to_openssh(LineEnding::LF).map_err(unusable)?.as_bytes())?;
    file.sync_all()?;
    // A link, because it never replaces a key that somebody else was quicker to make.
    let linked = fs_err::hard_link(&aside, path);
    fs_err::remove_file(&aside)?;
    match linked {
        Ok(()) => Ok(fresh),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            PrivateKey::from_openssh(fs_err::read(path)?).map_err(unusable)
        }
        Err(error) => Err(error.into()),
    }
}

fn host_path(folder: &Path, host: &str) -> PathBuf {
    folder.join(format!("{host}.host"))
}

/// A provider's authority over the host keys of its instances.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    key: PrivateKey,
}

impl Authority {
    /// Reads what is in a folder, or makes it.
    pub fn open(folder: &Path) -> Result<Self, AuthorityError> {
        fs_err::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned(), key: key(&folder.join("authority"))? })
    }

    /// Gives the public key in OpenSSH's one-line form.
    pub fn public_line(&self) -> Result<String, AuthorityError> {
        self.key.public_key().to_openssh().map_err(|source| self.unusable(source))
    }

    fn unusable(&self, source: russh::keys::ssh_key::Error) -> AuthorityError {
        AuthorityError::Key { path: self.folder.join("authority"), source }
    }

    /// Gives the host key of an instance with a fresh certificate; the key stays the same for its whole life.
    pub fn host(&self, host: &str) -> Result<(PrivateKey, Certificate), AuthorityError> {
        let key = key(&host_path(&self.folder, host))?;
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|_| AuthorityError::Entropy)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let sign = || {
            let (from, to) = (now.saturating_sub(CLOCK_SECONDS), now + CERTIFICATE_SECONDS);
            let mut builder = Builder::new(nonce, key.public_key(), from, to)?;
            builder.cert_type(CertType::Host)?.key_id(host)?.valid_principal(host)?;
            builder.sign(&self.key)
        };
        let certificate = sign().map_err(|source| self.unusable(source))?;
        Ok((key, certificate))
    }
}

/// Removes the host key of an instance that is gone.
pub fn forget_host(folder: &Path, host: &str) {
    let _ = fs_err::remove_file(host_path(folder, host));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use russh::keys::HashAlg;

    use super::*;

    #[test]
    fn s28_a_host_key_is_private_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        let (key, certificate) = authority.host("01ABC").unwrap();
        let again = Authority::open(folder.path()).unwrap();
        assert_eq!(again.public_line().unwrap(), authority.public_line().unwrap());
        assert_eq!(again.host("01ABC").unwrap().0.public_key(), key.public_key());
        assert_ne!(again.host("01ABD").unwrap().0.public_key(), key.public_key());
        for file in fs_err::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
        }
        let trusted = authority.key.public_key().fingerprint(HashAlg::Sha256);
        certificate.validate([&trusted]).unwrap();
        assert_eq!(
            (certificate.cert_type(), certificate.valid_principals()),
            (CertType::Host, &["01ABC".to_owned()][..])
        );
        forget_host(folder.path(), "01ABC");
        assert_ne!(authority.host("01ABC").unwrap().0.public_key(), key.public_key());
    }
}
