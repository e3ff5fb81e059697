//! Why a layer cannot be unpacked.

use std::io;

/// How much of a hostile name an error repeats.
const QUOTED_BYTES_MAX: usize = 200;

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum UnpackError {
    #[error("layer archive is damaged at byte {offset}: {problem}")]
    Archive { offset: u64, problem: ArchiveProblem },
    #[error("cannot read the layer archive")]
    Read {
        #[source]
        source: io::Error,
    },
    #[error("layer entry {path} is refused: {problem}")]
    Entry { path: String, problem: EntryProblem },
    #[error("cannot {op} {path} of the layer")]
    Io {
        op: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("image needs {kind} {id}, have {available} ids")]
    UnmappedId { kind: &'static str, id: u64, available: u64 },
    #[error("layer has more than {max} entries")]
    TooManyEntries { max: u64 },
    #[error("layer unpacks to more than {max} bytes")]
    TooManyBytes { max: u64 },
    #[error("layer has too many directories")]
    TooManyDirectories,
    #[error("cannot learn which ids are mapped")]
    IdMap {
        #[source]
        source: io::Error,
    },
}

/// What is wrong with the bytes of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum ArchiveProblem {
    #[error("it ends in the middle of an entry")]
    Truncated,
    #[error("the checksum of a header is wrong")]
    Checksum,
    #[error("the {0} of a header is no valid number")]
    Number(&'static str),
    #[error("unknown entry type {:?}", char::from(*.0))]
    UnknownType(u8),
    #[error("a zero block in the middle")]
    LoneZeroBlock,
    #[error("a header about the next entry comes twice")]
    DuplicateExtension,
    #[error("a header about the next entry, but no next entry")]
    DanglingExtension,
    #[error("an extended header is too large")]
    ExtensionTooLarge,
    #[error("a malformed extended header")]
    MalformedPax,
    #[error("the same key twice in one extended header")]
    DuplicatePaxKey,
    #[error("a global extended header that would change entries")]
    GlobalPax,
    #[error("a malformed sparse map")]
    Sparse,
    #[error("too many segments in a sparse map")]
    SparseSegments,
}

/// What is wrong with one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum EntryProblem {
    #[error("the name is empty")]
    EmptyName,
    #[error("the name has a .. component")]
    ParentComponent,
    #[error("the name has a NUL byte")]
    NulByte,
    #[error("the name is too long")]
    NameTooLong,
    #[error("it would replace the root directory")]
    Root,
    #[error("it is below something that is not a directory")]
    NotADirectory,
    #[error("too many symbolic links")]
    SymlinkLoop,
    #[error("the link target is empty, too long or has a NUL byte")]
    LinkTarget,
    #[error("the hard link target is not a file of this layer")]
    HardLinkTarget,
    #[error("an invalid whiteout")]
    Whiteout,
    #[error("a directory with a body")]
    DirectoryBody,
    #[error("user or group id out of range")]
    IdRange,
    #[error("device number out of range")]
    DeviceRange,
    #[error("it is no directory and would replace one")]
    OverDirectory,
    #[error("it is a directory and would replace something else")]
    OverFile,
    #[error("it is on another filesystem")]
    OtherFilesystem,
}

/// A name from an image, safe to print.
pub(crate) fn quote(name: &[u8]) -> String {
    let shown = &name[..name.len().min(QUOTED_BYTES_MAX)];
    let mut text: String = String::from_utf8_lossy(shown).chars().flat_map(char::escape_debug).collect();
    if text.is_empty() {
        text.push_str("(empty)");
    }
    if shown.len() < name.len() {
        text.push_str("...");
    }
    text
}
