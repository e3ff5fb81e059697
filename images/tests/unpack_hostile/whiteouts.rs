//! Rows about whiteouts: T26 to T28, and their forgeries T20 and T24.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use coracle_images::unpack::EntryProblem;

use crate::evil_tar::{EvilTar, Head};
use crate::place::{Place, check_names, check_refused};

fn is_whiteout(path: &Path) -> bool {
    fs_err::symlink_metadata(path).is_ok_and(|file| file.file_type().is_char_device() && file.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    matches!(rustix::fs::lgetxattr(path, "user.overlay.opaque", &mut value), Ok(1)) && value[0] == b'y'
}

#[test]
fn t26_whiteout_names() {
    let place =
        check_names(&EvilTar::new().file(".wh.missing", "").file("a/.wh.x", "").end(), &["a", "a/x", "missing"]);
    assert!(is_whiteout(&place.in_root("missing")) && is_whiteout(&place.in_root("a/x")));
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", "a/.wh..."] {
        check_refused(&EvilTar::new().file(name, "").end(), EntryProblem::Whiteout);
    }
}

#[test]
fn t27_opaque_hides_only_below() {
    for order in 0..3 {
        let mut parts = vec![("d/one", "1"), ("d/two", "2")];
        parts.insert(order, ("d/.wh..wh..opq", ""));
        let mut upper = EvilTar::new().dir("d");
        for (name, content) in parts {
            upper = upper.file(name, content);
        }
        let mut place = Place::new();
        place.unpack(&EvilTar::new().file("d/lower", "0").file("d/one", "0").end()).expect("lower");
        place.unpack(&upper.end()).expect("upper");
        assert!(is_opaque(&place.in_root("d")));
        assert_eq!(place.names(), ["d", "d/one", "d/two"]);
        let merged = |name| place.merged(name);
        assert_eq!((merged("d/one").as_deref(), merged("d/two").as_deref()), (Some("1"), Some("2")));
        assert_eq!(merged("d/lower"), None);
    }
    let place = check_names(&EvilTar::new().file("new/.wh..wh..opq", "").end(), &["new"]);
    assert!(is_opaque(&place.in_root("new")));
    check_refused(&EvilTar::new().file("f", "1").file("f/.wh..wh..opq", "").end(), EntryProblem::NotADirectory);
    // An entry for the directory that comes later does not take the mark away.
    let place = check_names(&EvilTar::new().file("d/.wh..wh..opq", "").dir("d").end(), &["d"]);
    assert!(is_opaque(&place.in_root("d")));
}

#[test]
fn t27_opaque_root() {
    let mut place = Place::new();
    place.unpack(&EvilTar::new().file("lower", "0").end()).expect("lower");
    place.unpack(&EvilTar::new().file("upper", "1").file(".wh..wh..opq", "").end()).expect("upper");
    assert!(is_opaque(&place.in_root("")));
    assert_eq!((place.merged("lower"), place.merged("upper").as_deref()), (None, Some("1")));
}

#[test]
fn t28_whiteouts_and_the_layer_itself() {
    // A whiteout never hides an entry of its own layer, before or after it.
    for archive in [EvilTar::new().file(".wh.f", "").file("f", "1"), EvilTar::new().file("f", "1").file(".wh.f", "")] {
        assert_eq!(check_names(&archive.end(), &["f"]).merged("f").as_deref(), Some("1"));
    }
    for archive in [
        EvilTar::new().file(".wh.d", "").file("d/x", "1"),
        EvilTar::new().file(".wh.d", "").dir("d").file("d/x", "1"),
        EvilTar::new().file("d/x", "1").file(".wh.d", ""),
        EvilTar::new().file(".wh.d", "").symlink("l", "d").file("l/x", "1"),
    ] {
        let mut place = Place::new();
        place.unpack(&EvilTar::new().file("d/lower", "0").end()).expect("lower");
        place.unpack(&archive.end()).expect("upper");
        assert!(is_opaque(&place.in_root("d")));
        assert_eq!((place.merged("d/lower"), place.merged("d/x").as_deref()), (None, Some("1")));
    }
}

#[test]
fn t28_whiteouts_through_links() {
    let place = Place::new();
    let canary = place.canary().display().to_string();
    drop(place);
    for target in [canary.as_str(), "../canary", "/proc/self/cwd", "/proc/self/fd/0", "dead/link"] {
        for name in ["link/.wh.x", "link/.wh.f", "link/.wh..wh..opq", "link/d/.wh.x", "link/.wh.d"] {
            let _ = Place::new().unpack(&EvilTar::new().symlink("link", target).file(name, "").end());
        }
    }
    let place =
        check_names(&EvilTar::new().dir("d").symlink("link", "d").file("link/.wh.x", "").end(), &["d", "d/x", "link"]);
    assert!(is_whiteout(&place.in_root("d/x")));
    check_refused(&EvilTar::new().file("dne/../.wh.etc", "").end(), EntryProblem::ParentComponent);
}

#[test]
fn t28_whiteouts_of_other_kinds() {
    check_refused(&EvilTar::new().dir(".wh.d").end(), EntryProblem::Whiteout);
    check_refused(&EvilTar::new().file(".wh.d/child", "").end(), EntryProblem::Whiteout);
    check_refused(&EvilTar::new().symlink(".wh.l", "/canary").end(), EntryProblem::Whiteout);
    check_refused(&EvilTar::new().entry(Head::new(b'3', b".wh.c").device(0, 0), b"").end(), EntryProblem::Whiteout);
    check_refused(&EvilTar::new().file("f", "").hard_link("h", ".wh.f").end(), EntryProblem::HardLinkTarget);
    let aufs =
        EvilTar::new().file(".wh..wh.aufs", "").dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "x").dir(".wh..wh.orph");
    let aufs = aufs.hard_link(".wh.gone", ".wh..wh.aufs").end();
    let mut place = Place::new();
    let report = place.unpack(&aufs).expect("old images have these");
    assert_eq!(report.ignored, 4);
    assert!(is_whiteout(&place.in_root("gone")));
}

#[test]
fn t20_devices_are_no_whiteouts() {
    let head = |kind: u8, name: &[u8], major, minor| Head::new(kind, name).device(major, minor);
    let archive = EvilTar::new()
        .entry(head(b'3', b"zero", 0, 0), b"")
        .entry(head(b'3', b"mem", 1, 1), b"")
        .entry(head(b'4', b"sda", 8, 0), b"")
        .entry(Head::new(b'6', b"fifo").mode(0o620), b"");
    let mut place = Place::new();
    let report = place.unpack(&archive.end()).expect("devices are left out");
    assert_eq!(report.devices_skipped, 3);
    assert_eq!(place.names(), ["fifo"]);
    let fifo = fs_err::symlink_metadata(place.in_root("fifo")).expect("fifo");
    assert!(fifo.file_type().is_fifo() && fifo.mode() & 0o7777 == 0o620);
    for device in [&b"\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"\x80\0\0\x01\0\0\0\0"] {
        let archive = EvilTar::new().entry(Head::new(b'3', b"c").raw(329, device), b"").end();
        check_refused(&archive, EntryProblem::DeviceRange);
    }
}

#[test]
fn t24_overlay_attributes() {
    let planted: [(&str, &[u8]); 8] = [
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.user.overlay.metacopy", b""),
        ("SCHILY.xattr.user.overlay.whiteout", b"y"),
        ("SCHILY.xattr.user.overlay.origin", b"x"),
        ("SCHILY.xattr.user.overlay.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.fine", b"1"),
    ];
    let archive = EvilTar::new().pax(&planted).dir("d").pax(&planted).file("d/f", "1").pax(&planted).dir("./");
    let mut place = Place::new();
    place.unpack(&EvilTar::new().file("d/lower", "0").end()).expect("lower");
    let report = place.unpack(&archive.end()).expect("attributes are dropped");
    assert_eq!(report.xattrs_dropped, 21);
    for (path, node) in place.tree() {
        assert_eq!(node.xattrs, [(b"user.fine".to_vec(), b"1".to_vec())], "{}", path.display());
    }
    assert_eq!(place.merged("d/lower").as_deref(), Some("0"));
}
