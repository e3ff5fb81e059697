//! What a layer is, before anybody looks into it.

use std::fmt;

use crate::digest::Digest;

/// How a layer blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A bare tar archive.
    Plain,
    /// One or more gzip members (RFC 1952).
    Gzip,
    /// One or more zstd frames (RFC 8878).
    Zstd,
}

impl Compression {
    /// Reads the compression out of a layer's media type; `None` for types that are no layer
    /// (encrypted layers among them).
    pub fn from_media_type(media_type: &str) -> Option<Compression> {
        const DOCKER: &str = "application/vnd.docker.image.rootfs.";
        const OCI: &str = "application/vnd.oci.image.layer.";
        let kind = media_type.strip_prefix(DOCKER).or_else(|| media_type.strip_prefix(OCI))?;
        match kind {
            "diff.tar" | "v1.tar" | "nondistributable.v1.tar" => Some(Compression::Plain),
            "diff.tar.gzip" | "foreign.diff.tar.gzip" | "v1.tar+gzip" | "nondistributable.v1.tar+gzip" => {
                Some(Compression::Gzip)
            }
            "diff.tar.zstd" | "v1.tar+zstd" | "nondistributable.v1.tar+zstd" => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// The OCI media type of a layer compressed like this.
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::Plain => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::Plain => "plain tar",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        })
    }
}

/// Who owns the files of an unpacked layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ownership {
    /// As the archive says. The process must be in a user namespace where those ids are mapped.
    Keep,
    /// Everything belongs to the caller. Mode bits are kept; a setuid file becomes setuid the
    /// caller, whose store nobody else can enter (T21, A32).
    Squash,
}

/// Under which id map layers were unpacked. Layers of one space are shared by all its images.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayerSpace {
    /// A file name of letters, digits and `+,.-_`, not starting with a dot.
    pub name: String,
    /// What happens to owners.
    pub ownership: Ownership,
}

impl LayerSpace {
    /// Longest name: leaves room in NAME_MAX for prefixes.
    const NAME_BYTES_MAX: usize = 200;

    /// Says whether the name may be used as a directory.
    pub fn is_valid(&self) -> bool {
        let fits = (1..=Self::NAME_BYTES_MAX).contains(&self.name.len());
        let clean = |byte: u8| byte.is_ascii_alphanumeric() || b"+,.-_".contains(&byte);
        fits && !self.name.starts_with('.') && self.name.bytes().all(clean)
    }
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the uncompressed archive; names the unpacked layer.
    pub diff_id: Digest,
    /// Digest of the blob.
    pub blob: Digest,
    /// How the blob is compressed.
    pub compression: Compression,
    /// Size of the blob.
    pub size_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types() {
        let check = |media_type: &str, expect| {
            assert_eq!(Compression::from_media_type(media_type), expect, "{media_type}");
        };
        check("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip));
        check("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd));
        check("application/vnd.oci.image.layer.v1.tar", Some(Compression::Plain));
        check("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip));
        check("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(Compression::Gzip));
        check("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None);
        check("application/vnd.oci.image.config.v1+json", None);
        check("application/vnd.oci.image.layer.v1.tar+xz", None);
        check("", None);
    }

    #[test]
    fn space_names() {
        let check = |name: &str, expect| {
            let space = LayerSpace { name: name.into(), ownership: Ownership::Squash };
            assert_eq!(space.is_valid(), expect, "{name:?}");
        };
        check("squashed", true);
        check("0+1,100000+65536", true);
        for bad in ["", ".", "..", ".x", "a/b", "a\0", "a b", &"x".repeat(201)] {
            check(bad, false);
        }
    }
}
