//! Writes images to files: docker-archive, oci-archive, OCI layout directory.
//!
//! Blobs are hashed on their way out, so a damaged store does not make damaged archives unnoticed.
//! A file appears under its name only when it is whole.

mod docker;
mod layout;
mod output;

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::reference::Reference;
use crate::store::{Image, Store, StoreError};
use output::Output;

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveFormat {
    /// What `docker save` and `docker load` use.
    DockerArchive,
    /// An OCI image layout in a tar archive.
    OciArchive,
    /// An OCI image layout as a directory.
    OciDir,
}

/// Why an image cannot be saved.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum SaveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot {op} {}", path.display())]
    Io {
        op: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the archive")]
    Write {
        #[source]
        source: io::Error,
    },
    #[error("layer {digest} is damaged; pull the image again")]
    Layer { digest: Digest },
    #[error("layer {digest} cannot be read; pull the image again")]
    Read {
        digest: Digest,
        #[source]
        source: io::Error,
    },
    #[error("cannot describe the image")]
    Json {
        #[source]
        source: serde_json::Error,
    },
    #[error("{} exists already", path.display())]
    Exists { path: PathBuf },
    #[error("a directory needs a name")]
    NoDirectory,
}

/// One image and the names to write with it.
struct Item<'a> {
    image: &'a Image,
    names: Vec<&'a Reference>,
}

/// Writes images, each under the given name or none, to a file, a new or empty directory, or
/// standard output.
///
/// # Errors
/// A file or directory of that name is not left behind half.
pub fn save(
    store: &Store,
    images: &[(Image, Option<Reference>)],
    format: SaveFormat,
    target: Option<&Path>,
) -> Result<(), SaveError> {
    let _keep = store.keep()?;
    let items = merge(images);
    let mut output = match (format, target) {
        (SaveFormat::OciDir, Some(path)) => Output::directory(path)?,
        (SaveFormat::OciDir, None) => return Err(SaveError::NoDirectory),
        (_, Some(path)) => Output::file(path)?,
        (_, None) => Output::stdout(),
    };
    let written = match format {
        SaveFormat::DockerArchive => docker::write(store, &items, &mut output),
        SaveFormat::OciArchive | SaveFormat::OciDir => layout::write(store, &items, &mut output),
    };
    match written {
        Ok(()) => output.finish(),
        Err(error) => {
            output.discard();
            Err(error)
        }
    }
}

/// Puts the names of one image together.
fn merge(images: &[(Image, Option<Reference>)]) -> Vec<Item<'_>> {
    let mut items: Vec<Item<'_>> = Vec::new();
    for (image, name) in images {
        let known = items.iter().position(|item| item.image.manifest == image.manifest);
        let at = known.unwrap_or_else(|| {
            items.push(Item { image, names: Vec::new() });
            items.len() - 1
        });
        let names = &mut items[at].names;
        names.extend(name.iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
    }
    items
}
