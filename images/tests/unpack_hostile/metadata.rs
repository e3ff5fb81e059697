//! Rows about modes, times and attributes: T21, T23, T25, T30.

use std::os::unix::fs::MetadataExt;

use coracle_images::unpack::UnpackError;

use crate::evil_tar::{EvilTar, Head};
use crate::place::{Place, check_names};

fn mode_of(place: &Place, name: &str) -> u32 {
    fs_err::symlink_metadata(place.in_root(name)).expect(name).mode() & 0o7777
}

#[test]
fn t21_modes() {
    let head = |kind: u8, name: &[u8], mode| Head::new(kind, name).mode(mode);
    let archive = EvilTar::new()
        .entry(head(b'0', b"setuid", 0o4755), b"")
        .entry(head(b'0', b"all", 0o7777), b"")
        .entry(head(b'0', b"none", 0), b"")
        .entry(head(b'5', b"shut", 0), b"")
        .file("shut/child", "1")
        .entry(head(b'5', b"shut/inner", 0o111), b"")
        .file("shut/inner/child", "2")
        .entry(head(b'5', b"tmp", 0o1777), b"")
        .entry(head(b'5', b"setgid", 0o2755), b"")
        .file("setgid/f", "3");
    let mut place = Place::new();
    place.unpack(&archive.end()).expect("modes come last");
    let check = |name: &str, mode| assert_eq!(mode_of(&place, name), mode, "{name}");
    check("setuid", 0o4755);
    check("all", 0o7777);
    check("none", 0);
    check("shut", 0);
    check("tmp", 0o1777);
    check("setgid", 0o2755);
    fs_err::set_permissions(place.in_root("shut"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
    check("shut/child", 0o644);
    check("shut/inner", 0o111);
    // Directories without an entry of their own are open to all, whatever the umask is.
    let place = check_names(&EvilTar::new().file("a/b/c", "").end(), &["a", "a/b", "a/b/c"]);
    assert_eq!((mode_of(&place, "a"), mode_of(&place, "a/b"), mode_of(&place, "")), (0o755, 0o755, 0o755));
}

#[test]
fn t21_directory_times_come_last() {
    let directory = |name: &[u8], mtime| Head::new(b'5', name).mtime(mtime);
    let archive = EvilTar::new()
        .entry(directory(b"a", 11), b"")
        .entry(directory(b"a/b", 12), b"")
        .file("a/b/f", "1")
        .symlink("a/b/l", "f")
        .file("a/g", "2")
        .file("a/g", "3");
    let mut place = Place::new();
    place.unpack(&archive.end()).expect("is fine");
    let mtime = |name: &str| fs_err::symlink_metadata(place.in_root(name)).expect(name).mtime();
    assert_eq!((mtime("a"), mtime("a/b"), mtime("a/b/f"), mtime("a/b/l")), (11, 12, 1_000_000_000, 1_000_000_000));
    assert_eq!(mtime(""), 0, "a root that is not listed has no time of its own");
}

#[test]
fn t23_t25_attributes() {
    let capability_v2 = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let long_name = format!("SCHILY.xattr.user.{}", "n".repeat(251));
    let huge = vec![b'v'; (64 << 10) + 1];
    let archive = EvilTar::new()
        .pax(&[
            ("SCHILY.xattr.security.selinux", b"system_u"),
            ("SCHILY.xattr.security.ima", b"x"),
            ("SCHILY.xattr.security.evm", b"x"),
            ("SCHILY.xattr.system.posix_acl_access", b"x"),
            ("SCHILY.xattr.trusted.x", b"x"),
            ("SCHILY.xattr.user.kept", b"binary\0\n=1"),
            (&long_name, b"x"),
            ("SCHILY.xattr.user.huge", &huge),
        ])
        .file("f", "1")
        .pax(&[("SCHILY.xattr.security.capability", b"malformed")])
        .file("bad-caps", "")
        .pax(&[("SCHILY.xattr.security.capability", capability_v2)])
        .file("caps", "")
        .pax(&[("SCHILY.xattr.user.on-link", b"x")])
        .symlink("l", "f");
    let mut place = Place::new();
    let report = place.unpack(&archive.end()).expect("what may not be set is dropped");
    let tree = place.tree();
    let xattrs = |name: &str| &tree[std::path::Path::new(name)].xattrs;
    assert_eq!(*xattrs("f"), [(b"user.kept".to_vec(), b"binary\0\n=1".to_vec())]);
    assert!(xattrs("bad-caps").is_empty() && xattrs("l").is_empty());
    // Whether we may give a file capabilities depends on who runs the test.
    let has_caps = !xattrs("caps").is_empty();
    assert_eq!(report.xattrs_dropped, if has_caps { 9 } else { 10 });
}

#[test]
fn t25_many_attributes() {
    let names: Vec<String> = (0..1000).map(|at| format!("SCHILY.xattr.user.x{at}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"1"[..])).collect();
    let mut place = Place::new();
    let report = place.unpack(&EvilTar::new().pax(&records).file("f", "").end()).expect("the first 64 count");
    assert!(report.xattrs_dropped >= 1000 - 64, "{report:?}");
    assert!(place.tree()[std::path::Path::new("f")].xattrs.len() <= 64);
}

#[test]
fn t30_times() {
    let check = |text: &str, seconds: i64, nanoseconds: i64| {
        let mut place = Place::new();
        let archive = EvilTar::new().pax(&[("mtime", text.as_bytes())]).file("f", "").end();
        place.unpack(&archive).expect(text);
        let file = fs_err::metadata(place.in_root("f")).expect("file");
        assert_eq!((file.mtime(), file.mtime_nsec()), (seconds, nanoseconds), "{text}");
    };
    check("0", 0, 0);
    check("-0", 0, 0);
    check("-1.5", -2, 500_000_000);
    check("1234567890.123456789", 1_234_567_890, 123_456_789);
    check("1.999999999999", 1, 999_999_999);
    for clamped in ["9223372036854775807", "9223372036854775808", "99999999999999999999999", "-99999999999999999999"] {
        Place::new().unpack(&EvilTar::new().pax(&[("mtime", clamped.as_bytes())]).file("f", "").end()).expect(clamped);
    }
    for bad in ["nan", "inf", "1e400", "-", "+1", "1.2.3", "0x10"] {
        let result = Place::new().unpack(&EvilTar::new().pax(&[("mtime", bad.as_bytes())]).file("f", "").end());
        assert!(matches!(result, Err(UnpackError::Archive { .. })), "{bad}");
    }
    for raw in [&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"]
    {
        Place::new().unpack(&EvilTar::new().entry(Head::new(b'0', b"f").raw(136, raw), b"").end()).expect("clamped");
    }
}
