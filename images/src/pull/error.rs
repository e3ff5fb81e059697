//! Why a pull fails, sorted by what somebody can do about it.

use crate::credentials::CredentialError;
use crate::platform::Platform;
use crate::registry::RegistryError;
use crate::registry::manifest::ManifestError;
use crate::store::{IngestError, SourceError, StoreError};

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry did not give it; the variant inside says why.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The login files cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// What the registry gave is no image that can be used.
    #[error("{image} cannot be used")]
    Manifest {
        /// The image's full name.
        image: String,
        /// Why.
        source: ManifestError,
    },
    /// There is no image for the platform.
    #[error("{image} has no image for {wanted}{}", Offered(available))]
    WrongPlatform {
        /// The image's full name.
        image: String,
        /// What was asked for, or this host.
        wanted: Platform,
        /// What there is.
        available: Vec<Platform>,
    },
    /// Indexes that point to indexes without end.
    #[error("{image} is hidden behind too many indexes")]
    TooNested {
        /// The image's full name.
        image: String,
    },
    /// The image's configuration is not one.
    #[error("the configuration of {image} is not valid")]
    Config {
        /// The image's full name.
        image: String,
        /// Why.
        source: oci_spec::OciSpecError,
    },
    /// The configuration describes another number of layers.
    #[error("{image} has {layers} layers, and its configuration describes {described}")]
    LayerCount {
        /// The image's full name.
        image: String,
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        described: usize,
    },
    /// A blob could not be taken in: wrong content, disk full, a layer that cannot be unpacked.
    #[error(transparent)]
    Ingest(IngestError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<IngestError> for PullError {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::Source { digest, source } => match registry_error(source) {
                Ok(error) => PullError::Registry(error),
                Err(source) => PullError::Ingest(IngestError::Source { digest, source }),
            },
            IngestError::Store(error) => PullError::Store(error),
            other => PullError::Ingest(other),
        }
    }
}

/// Finds our own error in what came back through the store.
fn registry_error(source: SourceError) -> Result<RegistryError, SourceError> {
    let source = match source.downcast::<RegistryError>() {
        Ok(error) => return Ok(*error),
        Err(source) => source,
    };
    match source.downcast::<std::io::Error>() {
        Ok(error) if error.get_ref().is_some_and(|inner| inner.is::<RegistryError>()) => match error.into_inner() {
            Some(inner) => registry_error(inner),
            None => Ok(RegistryError::Cancelled),
        },
        Ok(error) => Err(error),
        Err(source) => Err(source),
    }
}

/// Lists platforms at the end of a sentence.
struct Offered<'a>(&'a [Platform]);

impl std::fmt::Display for Offered<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some((first, rest)) = self.0.split_first() else { return Ok(()) };
        write!(f, "; there is {first}")?;
        rest.iter().try_for_each(|platform| write!(f, ", {platform}"))
    }
}
