//! One unpacking under observation.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use coracle_images::limits::Limits;
use coracle_images::unpack::{EntryProblem, UnpackError, UnpackOptions, UnpackReport, unpack_layer};
use coracle_images::{Ownership, open_in_layers, remove_tree};
use rustix::fs::{CWD, Mode, OFlags};

use crate::canary::{Tree, picture, plant};

/// A place with a canary beside the root; removed by our own remover, which so gets its test too.
pub struct Place {
    top: PathBuf,
    before: Tree,
    cwd: (&'static Path, Tree),
    pub layers: Vec<PathBuf>,
}

impl Drop for Place {
    fn drop(&mut self) {
        remove_tree(&self.top).expect("remove the test's directory");
    }
}

/// The directory that this process stands in: relative names of an archive must not touch it.
fn stand_in_canary() -> &'static Path {
    static CWD_CANARY: OnceLock<tempfile::TempDir> = OnceLock::new();
    let canary = CWD_CANARY.get_or_init(|| {
        let directory = tempfile::tempdir().expect("temp dir");
        plant(directory.path());
        std::env::set_current_dir(directory.path()).expect("chdir");
        directory
    });
    canary.path()
}

impl Place {
    pub fn new() -> Place {
        let cwd = stand_in_canary();
        let top = tempfile::tempdir().expect("temp dir").keep();
        plant(&top.join("canary"));
        let mut place = Place { top, before: Tree::new(), cwd: (cwd, picture(cwd)), layers: Vec::new() };
        place.before = picture(&place.canary());
        place
    }

    /// The directory that nothing may touch.
    pub fn canary(&self) -> PathBuf {
        self.top.join("canary")
    }

    pub fn unpack(&mut self, archive: &[u8]) -> Result<UnpackReport, UnpackError> {
        self.unpack_with(archive, Ownership::Squash, &Limits::default())
    }

    /// Unpacks one more layer and then looks at the canaries.
    pub fn unpack_with(
        &mut self,
        archive: &[u8],
        ownership: Ownership,
        limits: &Limits,
    ) -> Result<UnpackReport, UnpackError> {
        let root = self.top.join(format!("layer{}", self.layers.len()));
        fs_err::create_dir(&root).expect("mkdir");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, &root, flags, Mode::empty()).expect("open root");
        self.layers.push(root);
        let result = unpack_layer(archive, fd, &UnpackOptions { ownership, limits });
        self.check_canaries();
        result.map(|unpacked| unpacked.report)
    }

    /// Oracle O1.
    pub fn check_canaries(&self) {
        assert_eq!(picture(&self.canary()), self.before, "the canary beside the root has changed");
        assert_eq!(picture(self.cwd.0), self.cwd.1, "the canary in the working directory has changed");
    }

    /// What the last layer became.
    pub fn tree(&self) -> Tree {
        picture(self.layers.last().expect("a layer"))
    }

    /// The names in the last layer, sorted, without the root.
    pub fn names(&self) -> Vec<String> {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        self.tree().keys().map(text).filter(|name| !name.is_empty()).collect()
    }

    /// The content of a file in the merged layers.
    pub fn merged(&self, path: &str) -> Option<String> {
        let file = open_in_layers(&self.layers, Path::new(path)).expect(path)?;
        Some(std::io::read_to_string(file).expect("read"))
    }

    pub fn in_root(&self, name: &str) -> PathBuf {
        self.layers.last().expect("a layer").join(name)
    }
}

/// Unpacks and expects the names in the result.
pub fn check_names(archive: &[u8], expect: &[&str]) -> Place {
    let mut place = Place::new();
    place.unpack(archive).expect("is unpacked");
    assert_eq!(place.names(), expect);
    place
}

/// Unpacks and expects the entry to be refused.
pub fn check_refused(archive: &[u8], expect: EntryProblem) {
    let result = Place::new().unpack(archive);
    match result {
        Err(UnpackError::Entry { problem, .. }) => assert_eq!(problem, expect),
        other => panic!("expected {expect:?}, got {other:?}"),
    }
}
