//! Where a case works: a directory of its own with a busybox root filesystem and a canary outside.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// Applets that the cases use.
const APPLETS: [&str; 40] = [
    "sh", "cat", "ls", "id", "echo", "true", "false", "mount", "umount", "mkdir", "touch", "stat", "readlink", "grep",
    "sleep", "kill", "ps", "env", "hostname", "test", "wc", "head", "rm", "ln", "chmod", "chown", "mknod", "dd", "pwd",
    "find", "sort", "tr", "cut", "printf", "tty", "stty", "setsid", "nc", "df", "awk",
];

pub struct Place {
    pub dir: PathBuf,
}

impl Place {
    pub fn new(dir: PathBuf) -> Self {
        std::env::set_current_dir(&dir).expect("entered");
        let place = Self { dir };
        fs_err::create_dir(place.bundle()).expect("made");
        fs_err::create_dir(place.canary()).expect("made");
        fs_err::write(place.canary().join("file"), "canary").expect("written");
        fs_err::write(place.canary().join("ptmx"), "canary").expect("written");
        make_rootfs(&place.rootfs());
        place
    }

    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    /// A directory outside of the container that nothing may touch.
    pub fn canary(&self) -> PathBuf {
        self.dir.join("canary")
    }

    /// Makes a directory beside the bundle.
    pub fn make(&self, name: &str) -> PathBuf {
        let path = self.dir.join(name);
        fs_err::create_dir_all(&path).expect("made");
        path
    }

    /// Runs `work` and asserts that the canary is as before (O1).
    pub fn untouched(&self, work: impl FnOnce()) {
        let before = self.photograph();
        work();
        assert_eq!(before, self.photograph(), "the canary was touched");
    }

    /// Everything about the canary, to be compared later (oracle O1).
    pub fn photograph(&self) -> BTreeMap<PathBuf, String> {
        let mut picture = BTreeMap::new();
        photograph(&self.canary(), &mut picture);
        picture
    }
}

fn photograph(path: &Path, picture: &mut BTreeMap<PathBuf, String>) {
    let meta = fs_err::symlink_metadata(path).expect("there");
    let content = if meta.is_file() { fs_err::read(path).unwrap_or_default() } else { Vec::new() };
    let line = format!(
        "{:o} {}:{} links {} mtime {}.{} {:?}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.mtime(),
        meta.mtime_nsec(),
        content
    );
    picture.insert(path.to_owned(), line);
    if meta.is_dir() {
        for entry in fs_err::read_dir(path).expect("listed") {
            photograph(&entry.expect("read").path(), picture);
        }
    }
}

/// A root filesystem of a static busybox.
pub fn make_rootfs(root: &Path) {
    for dir in ["bin", "etc", "tmp", "proc", "sys", "dev", "root", "home"] {
        fs_err::create_dir_all(root.join(dir)).expect("made");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
    fs_err::copy(busybox.expect("busybox-static is installed"), root.join("bin/busybox")).expect("copied");
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("linked");
    }
    fs_err::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n")
        .expect("written");
    fs_err::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n").expect("written");
}
