//! O1: a tree that nothing may touch, compared in every attribute before and after.

use std::path::{Path, PathBuf};

use super::{TestEnv, set_mode, tree};

/// A planted tree and how it looked.
pub struct Canary {
    dir: PathBuf,
    before: Vec<String>,
}

impl Canary {
    /// Plants one outside of the state directory.
    pub fn plant(env: &TestEnv) -> Self {
        let dir = env.path("canary");
        fs_err::create_dir_all(dir.join("dir/below")).unwrap();
        for name in ["file", "dir/file", "ptmx", "null", "core_pattern", "passwd", "resolv.conf", "hosts"] {
            fs_err::write(dir.join(name), format!("canary {name}\n")).unwrap();
        }
        fs_err::hard_link(dir.join("file"), dir.join("hard")).unwrap();
        fs_err::os::unix::fs::symlink("file", dir.join("link")).unwrap();
        set_mode(&dir.join("dir/file"), 0o600);
        set_mode(&dir.join("dir/below"), 0o711);
        let before = tree::attributes(&dir);
        Self { dir, before }
    }

    /// Gives the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Demands that everything is as it was.
    #[track_caller]
    pub fn assert_untouched(&self) {
        let after = tree::attributes(&self.dir);
        assert_eq!(self.before, after, "O1: the canary was touched");
    }
}
