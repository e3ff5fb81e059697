//! Every bound on what an image may make us do, in one place (security.md, "Limits to pin").
//!
//! An image never changes a limit; local configuration may, through [`Limits`]. Plain constants
//! are the bounds of formats and protocols, where another value would make no sense.

/// Longest image manifest or index: what registries accept (containerd's limit as well).
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Longest image configuration. Real ones are below 100 KiB.
pub const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Deepest nesting of JSON; serde_json's own recursion limit, so it cannot be larger.
pub const JSON_DEPTH_MAX: usize = 128;
/// Most layers of an image. Docker stops at 128; overlayfs at 500.
pub const LAYERS_MAX: usize = 500;
/// Most manifests that one index may list.
pub const INDEX_ENTRIES_MAX: usize = 1024;
/// How often an index may point to an index.
pub const INDEX_NESTING_MAX: usize = 4;
/// Most bytes of annotations (keys and values) on one descriptor or manifest.
pub const ANNOTATIONS_BYTES_MAX: usize = 64 << 10;
/// Most images that the store's own index.json may name, and its size, so that a damaged file
/// cannot exhaust memory. A thousand images take about 400 KiB.
pub const STORE_INDEX_BYTES_MAX: u64 = 64 << 20;

/// Longest path of an archive entry, Linux's PATH_MAX.
pub const PATH_BYTES_MAX: usize = 4096;
/// Longest component of a path, NAME_MAX of every Linux filesystem.
pub const COMPONENT_BYTES_MAX: usize = 255;
/// Longest target of a link: PATH_MAX counts the terminating NUL.
pub const LINK_TARGET_BYTES_MAX: usize = 4095;
/// Symlinks followed while one path is resolved, as many as the kernel follows.
pub const SYMLINKS_FOLLOWED_MAX: usize = 40;
/// Largest PAX extended header.
pub const PAX_BYTES_MAX: u64 = 1 << 20;
/// Most segments of a sparse file.
pub const SPARSE_SEGMENTS_MAX: usize = 100_000;
/// Most extended attributes of a file that are looked at.
pub const XATTRS_PER_FILE_MAX: usize = 64;
/// Longest name of an extended attribute, XATTR_NAME_MAX of the kernel.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest value of an extended attribute, XATTR_SIZE_MAX of the kernel.
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// Longest list of names of extended attributes, XATTR_LIST_MAX of the kernel.
pub const XATTR_LIST_BYTES_MAX: usize = 64 << 10;
/// What may be remembered about directories until their modes and times are set at the end of a
/// layer; 24 MiB is about 300,000 directories, the largest images have 50,000.
pub const DIRECTORY_NOTES_BYTES_MAX: usize = 24 << 20;
/// Base-2 logarithm of the largest zstd window, which is memory that reading takes: 32 MiB is what
/// the strongest level of the encoder that BuildKit and skopeo use asks for. `zstd --long` asks for
/// 128 MiB and is refused.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 25;
/// Most gzip members or zstd frames of a blob; parallel compressors make one each 128 KiB or more.
pub const COMPRESSED_MEMBERS_MAX: u64 = 1_000_000;
/// How often a broken download of a blob is continued while not a single byte arrives.
pub const SOURCE_REOPENS_MAX: u32 = 5;

/// Most redirects of one request, what browsers and curl allow within a factor of two.
pub const REDIRECTS_MAX: usize = 10;
/// Longest answer of a token server.
pub const TOKEN_BYTES_MAX: usize = 64 << 10;
/// Largest block of response headers; HTTP/1 adds hyper's own bound of 100 headers.
pub const HEADER_BLOCK_BYTES_MAX: u32 = 64 << 10;
/// How much of an error body is read to find the registry's error code.
pub const ERROR_BODY_BYTES_MAX: usize = 16 << 10;
/// How often a request that failed for a passing reason is made.
pub const ATTEMPTS_MAX: u32 = 5;
/// Longest wait that a registry may ask for.
pub const RETRY_AFTER_SECONDS_MAX: u64 = 600;
/// Most indexes that are fetched while one platform is looked for.
pub const INDEXES_FETCHED_MAX: usize = 16;
/// What is sent to a registry in one piece without streaming: what every registry takes (the
/// smallest known limit is 4 MiB).
pub const UPLOAD_CHUNK_BYTES: usize = 4 << 20;
/// The largest chunk that a registry may insist on, because a chunk is held in memory.
pub const UPLOAD_CHUNK_BYTES_MAX: usize = 64 << 20;
/// Most blobs that are fetched at the same time.
pub const PARALLEL_MAX: usize = 8;

/// Bounds that local configuration may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most files, directories and links of one layer.
    pub layer_entries_max: u64,
    /// Most bytes that one layer may unpack to, holes of sparse files included.
    pub layer_unpacked_bytes_max: u64,
    /// Longest compressed layer.
    pub blob_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            // The largest public images (machine learning, TeX) have about half a million.
            layer_entries_max: 2_000_000,
            // Five times the largest known layers; a disk quota is the real bound.
            layer_unpacked_bytes_max: 256 << 30,
            blob_bytes_max: 64 << 30,
        }
    }
}
