//! Merging layers into one directory: against written expectations, and entry by entry against
//! what a mount of overlayfs shows of the same layers. Every run also proves that the layers and
//! a canary outside stay as they were.
#![expect(clippy::disallowed_methods, reason = "a test finds its settings in the environment")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::collections::BTreeMap;
use std::error::Error as _;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_images::{FlattenError, flatten, remove_tree};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};

#[path = "flatten/cases.rs"]
mod cases;

/// One step of making a layer; parents are made as needed.
#[derive(Debug, Clone, Copy)]
enum Make {
    Dir(&'static str, u32),
    File(&'static str, &'static str, u32),
    Link(&'static str, &'static str),
    /// The second name becomes a hard link of the first.
    Hard(&'static str, &'static str),
    Fifo(&'static str, u32),
    Socket(&'static str),
    Hole(&'static str, u64),
    Whiteout(&'static str),
    Opaque(&'static str),
    Attribute(&'static str, &'static str, &'static str),
    Time(&'static str, i64, i64),
    Owner(&'static str, u32, u32),
    /// Last, for modes that would get in the way earlier.
    Mode(&'static str, u32),
}

#[derive(Debug)]
struct Case {
    name: &'static str,
    /// Bottom to top.
    layers: &'static [&'static [Make]],
    /// All paths of the result but the root, sorted, with what [`Entry::brief`] says of each.
    expect: &'static [&'static str],
}

struct Stack {
    root: tempfile::TempDir,
    layers: Vec<PathBuf>,
    into: PathBuf,
}

impl Stack {
    fn new(layers: &[&[Make]]) -> Stack {
        let root = tempfile::tempdir().expect("temp dir");
        let (into, canary) = (root.path().join("into"), root.path().join("canary"));
        fs_err::create_dir(&into).expect("mkdir");
        fs_err::create_dir(&canary).expect("mkdir");
        fs_err::write(canary.join("file"), "canary").expect("write");
        let mut stack = Stack { root, layers: Vec::new(), into };
        for (at, steps) in layers.iter().enumerate() {
            let layer = stack.root.path().join(at.to_string());
            fs_err::create_dir(&layer).expect("mkdir");
            steps.iter().for_each(|step| build(&layer, *step));
            stack.layers.push(layer);
        }
        stack
    }

    /// Merges, and checks that nothing else was touched.
    fn flatten(&self) -> Result<Snapshot, FlattenError> {
        let untouched = || {
            self.layers.iter().chain([&self.root.path().join("canary")]).map(|path| snapshot(path)).collect::<Vec<_>>()
        };
        let before = untouched();
        let outcome = flatten(&self.layers, &self.into);
        assert!(before == untouched(), "layers or canary changed");
        outcome.map(|()| snapshot(&self.into))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        for path in self.layers.iter().chain([&self.into]) {
            remove_tree(path).expect("removal");
        }
    }
}

fn build(layer: &Path, step: Make) {
    let at = |path: &str| {
        let path = layer.join(path);
        fs_err::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        path
    };
    let chmod =
        |path: &str, mode| fs_err::set_permissions(layer.join(path), PermissionsExt::from_mode(mode)).expect("chmod");
    let node = |path: &str, kind| rustix::fs::mknodat(CWD, at(path), kind, Mode::RWXU, 0).expect("mknod");
    let attribute = |path: &str, name, value: &[u8]| {
        rustix::fs::setxattr(layer.join(path), name, value, XattrFlags::empty()).expect("setxattr")
    };
    match step {
        Make::Dir(path, mode) => {
            fs_err::create_dir_all(at(path)).expect("mkdir");
            chmod(path, mode);
        }
        Make::File(path, content, mode) => {
            fs_err::write(at(path), content).expect("write");
            chmod(path, mode);
        }
        Make::Link(path, target) => fs_err::os::unix::fs::symlink(target, at(path)).expect("symlink"),
        Make::Hard(path, more) => rustix::fs::linkat(CWD, at(path), CWD, at(more), AtFlags::empty()).expect("link"),
        Make::Fifo(path, mode) => {
            node(path, FileType::Fifo);
            chmod(path, mode);
        }
        Make::Socket(path) => node(path, FileType::Socket),
        Make::Hole(path, size_bytes) => {
            let file = fs_err::File::create(at(path)).expect("create");
            file.file().write_all_at(b"end", size_bytes - 3).expect("write");
        }
        Make::Whiteout(path) => node(path, FileType::CharacterDevice),
        Make::Opaque(path) => attribute(path, "user.overlay.opaque", b"y"),
        Make::Attribute(path, name, value) => attribute(path, name, value.as_bytes()),
        Make::Time(path, tv_sec, tv_nsec) => {
            let time = Timespec { tv_sec, tv_nsec };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, layer.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).expect("utimensat");
        }
        Make::Owner(path, uid, gid) => {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(CWD, layer.join(path), uid, gid, AtFlags::SYMLINK_NOFOLLOW).expect("chown");
        }
        Make::Mode(path, mode) => chmod(path, mode),
    }
}

/// All that can be seen of a file, but for its inode number and the time of its last change.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: char,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    /// Bytes of a file or target of a link.
    content: Vec<u8>,
    attributes: BTreeMap<String, Vec<u8>>,
    /// The first path in this tree that is the same file.
    same_as: PathBuf,
}

/// Longest content that is worth writing down.
const BRIEF_BYTES_MAX: usize = 80;

type Snapshot = BTreeMap<PathBuf, Entry>;

impl Entry {
    fn brief(&self, path: &Path) -> String {
        let path = path.display();
        match self.kind {
            'l' => format!("l {path} -> {}", String::from_utf8_lossy(&self.content)),
            'f' if self.content.len() > BRIEF_BYTES_MAX => format!("f {path} {:o}", self.mode),
            'f' => format!("f {path} {:o} {}", self.mode, String::from_utf8_lossy(&self.content)),
            kind => format!("{kind} {path} {:o}", self.mode),
        }
    }
}

fn snapshot(root: &Path) -> Snapshot {
    let (mut entries, mut inodes, mut todo) = (Snapshot::new(), BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(path) = todo.pop() {
        // Never with a trailing slash, which would follow a link.
        let full = if path.as_os_str().is_empty() { root.to_path_buf() } else { root.join(&path) };
        let meta = match fs_err::symlink_metadata(&full) {
            // overlayfs lists whiteouts of directories that are not merged.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.expect("lstat"),
        };
        let kind = match FileType::from_raw_mode(meta.mode()) {
            FileType::Directory => 'd',
            FileType::RegularFile => 'f',
            FileType::Symlink => 'l',
            FileType::Fifo => 'p',
            FileType::CharacterDevice => 'c',
            _ => 's',
        };
        let content = match kind {
            'f' => fs_err::read(&full).expect("read"),
            'l' => fs_err::read_link(&full).expect("readlink").as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        if kind == 'd' {
            todo.extend(
                fs_err::read_dir(&full).expect("list").map(|entry| path.join(entry.expect("entry").file_name())),
            );
        }
        let same_as = inodes.entry(meta.ino()).or_insert_with(|| path.clone()).clone();
        let (mode, owner, mtime) = (meta.mode() & 0o7777, (meta.uid(), meta.gid()), (meta.mtime(), meta.mtime_nsec()));
        let attributes = if matches!(kind, 'd' | 'f') { attributes(&full) } else { BTreeMap::new() };
        entries.insert(path, Entry { kind, mode, owner, mtime, content, attributes, same_as });
    }
    // In the order of names, not of discovery.
    for inode in inodes.values() {
        let group: Vec<_> =
            entries.iter().filter(|(_, entry)| entry.same_as == *inode).map(|(path, _)| path.clone()).collect();
        group.iter().for_each(|path| entries.get_mut(path).expect("present").same_as = group[0].clone());
    }
    entries
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0u8; 4096];
    let length = rustix::fs::listxattr(path, &mut names).expect("listxattr");
    let names = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user.") || *name == b"security.capability");
    names
        .map(|name| {
            let mut value = vec![0u8; 4096];
            let length = rustix::fs::getxattr(path, name, &mut value).expect("getxattr");
            value.truncate(length);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}

const INSIDE: &str = "CORACLE_TEST_INSIDE";

fn skip(name: &str, reason: &str) {
    assert!(std::env::var("CORACLE_TEST_REQUIRE").map_or(true, |value| value != "all"), "{name}: {reason}");
    eprintln!("SKIP {name}: {reason}");
}

/// Runs the test `name` again below `wrapper`; `true` means that this is the run inside.
fn is_inside(name: &str, wrapper: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let wrapped = |more: &[&OsStr]| Command::new(wrapper[0]).args(&wrapper[1..]).args(more).env(INSIDE, "1").output();
    match wrapped(&["true".as_ref()]) {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            skip(name, &format!("{}: {}", wrapper.join(" "), String::from_utf8_lossy(&output.stderr).trim()));
            return false;
        }
        Err(error) => {
            skip(name, &format!("{}: {error}", wrapper[0]));
            return false;
        }
    }
    let itself = std::env::current_exe().expect("own path");
    let output =
        wrapped(&[itself.as_os_str(), "--exact".as_ref(), name.as_ref(), "--nocapture".as_ref()]).expect("run again");
    let text = [output.stdout, output.stderr].concat();
    eprint!("{}", String::from_utf8_lossy(&text));
    assert!(output.status.success(), "{name} failed below {}", wrapper.join(" "));
    assert!(String::from_utf8_lossy(&text).contains("1 passed"), "{name} did not run below {}", wrapper.join(" "));
    false
}

#[test]
fn flatten_as_written_down() {
    // Files without permissions are for whoever has capabilities.
    if !rustix::process::geteuid().is_root() && !is_inside("flatten_as_written_down", &["unshare", "-Urm"]) {
        return;
    }
    for case in cases::ALL {
        let merged = Stack::new(case.layers).flatten().expect(case.name);
        let brief: Vec<_> = merged.iter().skip(1).map(|(path, entry)| entry.brief(path)).collect();
        assert_eq!(brief, case.expect, "{}", case.name);
    }
}

#[test]
fn flatten_equals_overlay() {
    let name = "flatten_equals_overlay";
    if !is_inside(name, &["unshare", "-Urm"]) {
        return;
    }
    for case in cases::ALL {
        let stack = Stack::new(case.layers);
        // overlayfs wants two layers at least.
        let (mount, bottom) = (stack.root.path().join("mount"), stack.root.path().join("bottom"));
        fs_err::create_dir(&mount).expect("mkdir");
        fs_err::create_dir(&bottom).expect("mkdir");
        let lower: Vec<_> =
            stack.layers.iter().rev().chain([&bottom]).map(|path| path.to_str().expect("UTF-8")).collect();
        let options = format!("userxattr,lowerdir={}", lower.join(":"));
        let output = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&mount)
            .output()
            .expect("mount(8)");
        if !output.status.success() {
            return skip(name, String::from_utf8_lossy(&output.stderr).trim());
        }
        let mut expect = snapshot(&mount);
        assert!(Command::new("umount").arg(&mount).status().expect("umount(8)").success());
        expect.retain(|_, entry| entry.kind != 's');
        for entry in expect.values_mut() {
            entry.attributes.retain(|name, _| !name.starts_with("user.overlay."));
        }
        let merged = stack.flatten().expect(case.name);
        let paths = |of: &Snapshot| of.keys().cloned().collect::<Vec<_>>();
        assert_eq!(paths(&merged), paths(&expect), "{}", case.name);
        for (path, entry) in &merged {
            assert_eq!(entry, &expect[path], "{}: {}", case.name, path.display());
        }
    }
}

#[test]
fn flatten_never_follows_a_link() {
    let outside = tempfile::tempdir().expect("temp dir");
    fs_err::write(outside.path().join("file"), "canary").expect("write");
    let before = snapshot(outside.path());
    let stack = Stack::new(&[
        &[Make::File("etc/passwd", "0", 0o644), Make::File("f", "0", 0o644), Make::File("g", "0", 0o644)],
        &[],
        &[
            Make::File("etc/file", "2", 0o600),
            Make::File("f", "2", 0o600),
            Make::Whiteout("g/file"),
            Make::File("up/x", "2", 0o600),
            Make::Time("f", 1, 0),
        ],
    ]);
    let (target, file) = (outside.path(), outside.path().join("file"));
    for (name, target) in [("etc", target), ("f", &file), ("g", target), ("up", Path::new("../canary"))] {
        fs_err::os::unix::fs::symlink(target, stack.layers[1].join(name)).expect("symlink");
    }
    let merged = stack.flatten().expect("flatten");
    assert!(before == snapshot(outside.path()), "the outside was touched");
    let kinds: String = merged.values().map(|entry| entry.kind).collect();
    assert_eq!((kinds.as_str(), merged[Path::new("f")].content.as_slice()), ("ddffddf", b"2".as_slice()), "{merged:?}");

    // The one name that merging uses itself is no way out either.
    let stack = Stack::new(&[&[Make::File("a", "0", 0o644), Make::Hard("a", "b")], &[]]);
    fs_err::os::unix::fs::symlink(outside.path(), stack.layers[1].join(".coracle-flatten-links")).expect("symlink");
    let error = stack.flatten().expect_err("taken name");
    assert!(error.to_string().starts_with("cannot merge .coracle-flatten-links of layer /"), "{error}");
    assert!(before == snapshot(outside.path()), "the outside was touched");
}

#[test]
fn flatten_keeps_owners_and_capabilities() {
    let name = "flatten_keeps_owners_and_capabilities";
    if !rustix::process::geteuid().is_root()
        && !is_inside(name, &["unshare", "--user", "--map-root-user", "--map-auto"])
    {
        return;
    }
    let stack = Stack::new(&[
        &[Make::Dir("d", 0o755), Make::Owner("d", 5, 5)],
        &[
            Make::File("d/su", "x", 0o755),
            Make::Owner("d/su", 7, 8),
            Make::Mode("d/su", 0o6755),
            Make::Link("d/l", "nowhere"),
            Make::Owner("d/l", 9, 10),
            Make::Fifo("d/p", 0o600),
            Make::Owner("d/p", 11, 12),
            Make::File("d/cap", "x", 0o755),
            Make::Owner("d/cap", 13, 0),
            Make::Owner("d", 14, 15),
            Make::Mode("d", 0o2500),
        ],
    ]);
    // cap_net_bind_service=ep, revision 2 (linux/capability.h).
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(stack.layers[1].join("d/cap"), "security.capability", &capability, XattrFlags::empty())
        .expect("setxattr");
    let expect = snapshot(&stack.layers[1]);
    let merged = stack.flatten().expect("flatten");
    assert_eq!(merged, expect);
    assert_eq!((merged[Path::new("d/su")].mode, merged[Path::new("d/su")].owner), (0o6755, (7, 8)));
    assert!(merged[Path::new("d/cap")].attributes.contains_key("security.capability"));
}

#[test]
fn flatten_needs_few_descriptors_at_any_depth() {
    const LEVELS: usize = 600;
    const NAME: &str = "a-rather-long-name-of-a-directory";
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let few = rustix::process::Rlimit { current: Some(128), ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, few).expect("setrlimit");
    let down = |mut here: rustix::fd::OwnedFd, make: bool| {
        for _ in 0..LEVELS {
            if make {
                rustix::fs::mkdirat(&here, NAME, Mode::RWXU).expect("mkdir");
            }
            here = rustix::fs::openat(&here, NAME, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("open");
        }
        here
    };
    let open =
        |path: &Path| rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("open");
    let stack = Stack::new(&[&[], &[]]);
    for layer in &stack.layers {
        let deepest = down(open(layer), true);
        let name = layer.file_name().expect("name");
        rustix::fs::mknodat(&deepest, name, FileType::Fifo, Mode::RUSR, 0).expect("mkfifo");
    }
    flatten(&stack.layers, &stack.into).expect("flatten");
    let deepest = down(open(&stack.into), false);
    for name in ["0", "1"] {
        rustix::fs::statat(&deepest, name, AtFlags::SYMLINK_NOFOLLOW).expect(name);
    }
}

#[test]
fn flatten_says_what_is_wrong_where() {
    if rustix::process::geteuid().is_root()
        && !is_inside(
            "flatten_says_what_is_wrong_where",
            &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
        )
    {
        return;
    }
    let stack = Stack::new(&[&[Make::File("a/secret\n/f", "x", 0o644)]]);
    let secret = stack.layers[0].join("a/secret\n");
    fs_err::set_permissions(&secret, PermissionsExt::from_mode(0o000)).expect("chmod");
    let error = flatten(&stack.layers, &stack.into).expect_err("unreadable");
    assert_eq!(error.to_string(), format!("cannot merge directory a/secret\\n of layer {}", stack.layers[0].display()));
    let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>()).expect("errno");
    assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);

    let error = flatten(&stack.layers, &stack.into).expect_err("the first attempt left something");
    assert!(matches!(error, FlattenError::NotEmpty { .. }), "{error}");
    let error = flatten(&["/nonexistent".into()], &stack.root.path().join("canary")).expect_err("not empty");
    assert!(matches!(error, FlattenError::NotEmpty { .. }), "{error}");
    let stack = Stack::new(&[]);
    let error = flatten(&["/nonexistent".into()], &stack.into).expect_err("missing layer");
    assert_eq!(error.to_string(), "cannot open /nonexistent");
}
