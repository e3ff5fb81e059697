//! The option words of a mount, as flags of the mount API.

use super::refuse;
use crate::failure::LaunchFailure;
use crate::sys::MountAttr;

// `MOUNT_ATTR_*` of linux/mount.h (mount_setattr(2)).
pub(crate) const RDONLY: u64 = 0x1;
pub(crate) const NOSUID: u64 = 0x2;
pub(crate) const NODEV: u64 = 0x4;
pub(crate) const NOEXEC: u64 = 0x8;
/// The field of the access time setting: 0 is relatime.
pub(crate) const ATIME: u64 = 0x70;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

// Propagation of mount(2).
pub(crate) const PRIVATE: u64 = libc::MS_PRIVATE;

/// What the option words of one mount say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OptionWords {
    pub(crate) bind: bool,
    pub(crate) recursive_bind: bool,
    /// For the mount itself.
    pub(crate) attr: MountAttr,
    /// For the mount and everything below it.
    pub(crate) recursive_attr: MountAttr,
    /// Propagation and whether it goes down the tree.
    pub(crate) propagation: Option<(u64, bool)>,
    pub(crate) copy_up: bool,
    /// Whether owners are shown through an id map, and whether below the mount too.
    pub(crate) owners: Option<bool>,
    /// Words for the filesystem: `key` or `key=value`.
    pub(crate) data: Vec<(String, Option<String>)>,
}

/// Words that say what is so anyway: a fresh mount is not remounted, access times are relative unless another
/// word says otherwise, tmpfs always has access lists, and versions of inodes are nobody's choice any more.
const EMPTY: [&str; 14] = [
    "",
    "defaults",
    "remount",
    "silent",
    "loud",
    "async",
    "nomand",
    "nolazytime",
    "iversion",
    "noiversion",
    "acl",
    "noacl",
    "norelatime",
    "rnorelatime",
];

/// Reads the words in order; a later word undoes an earlier one.
pub(crate) fn parse(words: &[String]) -> Result<OptionWords, LaunchFailure> {
    let mut options = OptionWords::default();
    for word in words {
        match word.as_str() {
            "bind" => options.bind = true,
            "rbind" => (options.bind, options.recursive_bind) = (true, true),
            "copyup" | "tmpcopyup" => options.copy_up = true,
            _ if EMPTY.contains(&word.as_str()) => {}
            "idmap" => options.owners = Some(false),
            "ridmap" => options.owners = Some(true),
            _ => {
                if let Some(change) = attribute(word) {
                    change.apply(&mut options.attr);
                } else if let Some(change) = word.strip_prefix('r').and_then(attribute) {
                    change.apply(&mut options.recursive_attr);
                } else if let Some(propagation) = propagation(word) {
                    options.propagation = Some(propagation);
                } else {
                    options.data.push(split(word));
                }
            }
        }
    }
    Ok(options)
}

/// One attribute word: the bits it sets and the bits it clears first.
#[derive(Debug, Clone, Copy)]
struct Change {
    set: u64,
    clear: u64,
    /// For a word that only undoes another one: the access time that it ends.
    undoes: Option<u64>,
}

impl Change {
    fn apply(self, attr: &mut MountAttr) {
        let said = attr.clear & ATIME != 0;
        if self.undoes.is_some_and(|undone| said && attr.set & ATIME != undone) {
            return;
        }
        attr.set = (attr.set & !self.clear) | self.set;
        attr.clear = (attr.clear & !self.set) | self.clear;
    }
}

fn attribute(word: &str) -> Option<Change> {
    let on = |bit| Some(Change { set: bit, clear: 0, undoes: None });
    let off = |bit| Some(Change { set: 0, clear: bit, undoes: None });
    // The access time is one field: setting it needs the whole field cleared.
    let atime = |value| Some(Change { set: value, clear: ATIME, undoes: None });
    let undo = |value| Some(Change { set: 0, clear: ATIME, undoes: Some(value) });
    match word {
        "ro" => on(RDONLY),
        "rw" => off(RDONLY),
        "nosuid" => on(NOSUID),
        "suid" => off(NOSUID),
        "nodev" => on(NODEV),
        "dev" => off(NODEV),
        "noexec" => on(NOEXEC),
        "exec" => off(NOEXEC),
        "nodiratime" => on(NODIRATIME),
        "diratime" => off(NODIRATIME),
        "nosymfollow" => on(NOSYMFOLLOW),
        "symfollow" => off(NOSYMFOLLOW),
        "noatime" => atime(NOATIME),
        "strictatime" => atime(STRICTATIME),
        "relatime" => atime(0),
        "atime" => undo(NOATIME),
        "nostrictatime" => undo(STRICTATIME),
        _ => None,
    }
}

fn propagation(word: &str) -> Option<(u64, bool)> {
    let (kind, recursive) = match word.strip_prefix('r') {
        Some(kind) => (kind, true),
        None => (word, false),
    };
    let flag = match kind {
        "private" => libc::MS_PRIVATE,
        "slave" => libc::MS_SLAVE,
        "shared" => libc::MS_SHARED,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some((flag, recursive))
}

fn split(word: &str) -> (String, Option<String>) {
    match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    }
}

/// `linux.rootfsPropagation`; without one nothing of the container reaches the host.
pub(super) fn root_propagation(word: Option<&str>) -> Result<u64, LaunchFailure> {
    match word.filter(|word| !word.is_empty()) {
        None => Ok(libc::MS_SLAVE),
        Some(word) => propagation(word)
            .map(|(flag, _)| flag)
            .ok_or_else(|| refuse("linux.rootfsPropagation", &format!("{word:?} is unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> OptionWords {
        let list: Vec<String> = text.split(',').map(str::to_owned).collect();
        parse(&list).expect("known words")
    }

    #[test]
    fn later_words_win() {
        assert_eq!(words("ro,rw").attr, MountAttr { set: 0, clear: RDONLY, propagation: 0 });
        assert_eq!(words("rw,ro").attr, MountAttr { set: RDONLY, clear: 0, propagation: 0 });
    }

    #[test]
    fn access_time_is_one_field() {
        let attr = words("noatime,strictatime").attr;
        assert_eq!((attr.set & ATIME, attr.clear & ATIME), (STRICTATIME, ATIME));
        // A word with "no" ends its own setting and nobody else's.
        for (text, expect) in [
            ("noatime,atime", 0),
            ("noatime,norelatime", NOATIME),
            ("noatime,nostrictatime", NOATIME),
            ("strictatime,atime", STRICTATIME),
            ("strictatime,nostrictatime", 0),
            ("strictatime,relatime", 0),
        ] {
            assert_eq!(words(text).attr.set & ATIME, expect, "{text}");
        }
        assert_eq!(words("rstrictatime,rnorelatime").recursive_attr.set & ATIME, STRICTATIME);
    }

    #[test]
    fn recursive_words_are_kept_apart() {
        let options = words("rbind,rro,nosuid,rslave");
        assert!(options.bind && options.recursive_bind);
        assert_eq!(options.recursive_attr.set, RDONLY);
        assert_eq!(options.attr.set, NOSUID);
        assert_eq!(options.propagation, Some((libc::MS_SLAVE, true)));
        assert!(options.data.is_empty());
    }

    #[test]
    fn the_rest_is_for_the_filesystem() {
        let options = words("size=64k,mode=1777,nr_inodes=3,inode64");
        assert_eq!(options.data.len(), 4);
        assert_eq!(options.data[0], ("size".to_owned(), Some("64k".to_owned())));
        assert_eq!(options.data[3], ("inode64".to_owned(), None));
    }
}
