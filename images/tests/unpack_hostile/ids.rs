//! Row T22 and others that need owners: they run again inside a user namespace with subordinate
//! ids, made by util-linux' unshare, so an ordinary user can run them.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use coracle_images::Ownership;
use coracle_images::limits::Limits;
use coracle_images::unpack::UnpackError;

use crate::evil_tar::{EvilTar, Head};
use crate::place::Place;

const INSIDE: &str = "CORACLE_TEST_INSIDE";

/// Runs the test `name` again in a user namespace; `true` means that this is the run inside.
fn is_inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let itself = std::env::current_exe().expect("own path");
    let again = [itself.as_os_str(), "--exact".as_ref(), name.as_ref(), "--nocapture".as_ref()];
    if rustix::process::geteuid().is_root() {
        assert!(run_mapped_by_root(&again), "{name} failed inside the user namespace");
        return false;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--map-auto"]);
        command
    };
    if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
        assert!(
            std::env::var("CORACLE_TEST_REQUIRE").map_or(true, |value| value != "all"),
            "no subordinate ids for {name}"
        );
        eprintln!("SKIP {name}: unshare cannot map subordinate ids");
        return false;
    }
    let status = unshare().args(again).env(INSIDE, "1").status().expect("unshare");
    assert!(status.success(), "{name} failed inside the user namespace");
    false
}

/// Root needs no subordinate ids, it may write any map: here ids 0 to 65535 as they are.
fn run_mapped_by_root(again: &[&std::ffi::OsStr]) -> bool {
    let mut child = Command::new("unshare")
        .args(["--user", "sh", "-c", "echo && read go && exec \"$@\"", "sh"])
        .args(again)
        .env(INSIDE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let mut ready = [0; 1];
    child.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("the shell is in its namespace");
    for map in ["uid_map", "gid_map"] {
        fs_err::write(format!("/proc/{}/{map}", child.id()), "0 0 65536").expect(map);
    }
    child.stdin.take().expect("piped").write_all(b"go\n").expect("write");
    let output = child.wait_with_output().expect("wait");
    eprint!("{}", String::from_utf8_lossy(&output.stdout));
    output.status.success()
}

fn keep(place: &mut Place, archive: &[u8]) -> Result<(), UnpackError> {
    place.unpack_with(archive, Ownership::Keep, &Limits::default()).map(|_| ())
}

#[test]
fn t22_owners_are_kept() {
    if !is_inside("ids::t22_owners_are_kept") {
        return;
    }
    let owned = |kind: u8, name: &[u8], uid, gid| Head::new(kind, name).uid(uid).gid(gid);
    let capability_v2 = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let archive = EvilTar::new()
        .entry(owned(b'5', b"d", 33, 34).mode(0o700), b"")
        .entry(owned(b'0', b"d/setuid", 1000, 1001).mode(0o6755), b"")
        .entry(owned(b'2', b"d/l", 5, 6).link(b"setuid"), b"")
        .entry(owned(b'6', b"d/fifo", 7, 8), b"")
        .entry(owned(b'1', b"d/h", 0, 0).link(b"d/setuid"), b"")
        .pax(&[("uid", b"60000"), ("gid", b"60001"), ("SCHILY.xattr.security.capability", capability_v2)])
        .file("pax", "");
    let mut place = Place::new();
    keep(&mut place, &archive.end()).expect("all ids are mapped");
    let check = |name: &str, uid: u32, gid: u32, mode: u32| {
        let file = fs_err::symlink_metadata(place.in_root(name)).expect(name);
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (uid, gid, mode), "{name}");
    };
    check("d", 33, 34, 0o700);
    check("d/setuid", 1000, 1001, 0o6755);
    check("d/h", 1000, 1001, 0o6755);
    check("d/l", 5, 6, 0o777);
    check("d/fifo", 7, 8, 0o644);
    check("pax", 60000, 60001, 0o644);
    // T23: the kernel binds it to this namespace's root.
    assert_eq!(place.tree()[std::path::Path::new("pax")].xattrs.len(), 1);
}

#[test]
fn t22_unmapped_ids() {
    if !is_inside("ids::t22_unmapped_ids") {
        return;
    }
    let refused = |head: Head| keep(&mut Place::new(), &EvilTar::new().entry(head, b"").end()).expect_err("unmapped");
    let available: u64 = fs_err::read_to_string("/proc/self/uid_map")
        .expect("map")
        .lines()
        .map(|line| line.split_ascii_whitespace().nth(2).expect("count").parse::<u64>().expect("number"))
        .sum();
    let error = refused(Head::new(b'0', b"f").uid(1 << 20)).to_string();
    assert_eq!(error, format!("image needs uid 1048576, have {available} ids"));
    assert!(refused(Head::new(b'5', b"d").gid(1 << 20)).to_string().starts_with("image needs gid 1048576, have"));
    let large = |id: u64| [&b"\x80\0\0\0"[..], &u32::try_from(id).expect("u32").to_be_bytes()].concat();
    assert!(matches!(refused(Head::new(b'0', b"f").raw(108, &large(1 << 21))), UnpackError::UnmappedId { .. }));
    assert!(matches!(refused(Head::new(b'0', b"f").raw(108, &large(0xffff_ffff))), UnpackError::Entry { .. }));
    assert!(matches!(refused(Head::new(b'0', b"f").raw(108, &[0xff; 8])), UnpackError::Archive { .. }));
    let huge = EvilTar::new().pax(&[("uid", b"4294967296")]).file("f", "").end();
    assert!(matches!(keep(&mut Place::new(), &huge), Err(UnpackError::Entry { .. })));
    let squashed = EvilTar::new().entry(Head::new(b'0', b"f").uid(1 << 20), b"").end();
    Place::new().unpack(&squashed).expect("squashing needs no ids");
}

#[test]
fn t03_links_when_owners_are_kept() {
    if !is_inside("ids::t03_links_when_owners_are_kept") {
        return;
    }
    for target in ["../canary", "/proc/self/cwd", "/proc/self/fd/3"] {
        let evil = |kind: u8, name: &[u8]| Head::new(kind, name).uid(1000).gid(1000).mode(0o7777);
        let link = EvilTar::new().entry(evil(b'2', b"e").link(target.as_bytes()), b"");
        for attack in [
            evil(b'0', b"e/f"),
            evil(b'5', b"e/d"),
            evil(b'0', b"e/.wh.f"),
            evil(b'1', b"h").link(b"e/f"),
            evil(b'5', b"e"),
        ] {
            let _ = keep(&mut Place::new(), &link.clone().entry(attack, b"").end());
        }
    }
}
