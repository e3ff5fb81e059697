//! Rows about links: T03 to T07.

use std::os::unix::fs::MetadataExt;

use coracle_images::unpack::{EntryProblem, UnpackError};

use crate::evil_tar::{EvilTar, Head};
use crate::place::{Place, check_names, check_refused};

/// What an archive may try through a link called `e`.
fn attacks(tar: &EvilTar) -> Vec<EvilTar> {
    vec![
        tar.clone().file("e/x", "evil"),
        tar.clone().file("e/f", "evil"),
        tar.clone().dir("e/d"),
        tar.clone().entry(Head::new(b'5', b"e/d/sub").mode(0o777).mtime(1), b""),
        tar.clone().file("e/.wh.x", ""),
        tar.clone().file("e/.wh..wh..opq", ""),
        tar.clone().symlink("e/x", "/etc"),
        tar.clone().hard_link("h", "e/f"),
        tar.clone().hard_link("e/h", "e/f"),
        tar.clone().file("g", "1").hard_link("e/g", "g"),
        tar.clone().entry(Head::new(b'6', b"e/fifo"), b""),
        tar.clone().file("e", "evil"),
        tar.clone().file("e/d/sub/deeper/x", "evil"),
        tar.clone().pax(&[("SCHILY.xattr.user.evil", b"1")]).file("e/x", "evil"),
        tar.clone().pax(&[("SCHILY.xattr.user.evil", b"1")]).dir("e/d"),
    ]
}

/// Runs each attack through a link to `target`; the canary is looked at after each.
fn attack_through(target: &str) {
    for attack in attacks(&EvilTar::new().symlink("e", target)) {
        // Inside the root or refused, both are fine: the place checks its canaries.
        let _ = Place::new().unpack(&attack.end());
    }
}

#[test]
fn t03_symlink_then_file() {
    let mut place = Place::new();
    let canary = place.canary().display().to_string();
    place.unpack(&EvilTar::new().symlink("e", &canary).file("e/x", "evil").end()).expect("lands inside");
    assert_eq!(place.merged(&format!("{canary}/x")).as_deref(), Some("evil"));
    for attack in attacks(&EvilTar::new().symlink("e", &canary)) {
        let mut place = Place::new();
        let target = place.canary().display().to_string();
        let bytes = replace(&attack.end(), &canary, &target);
        let _ = place.unpack(&bytes);
    }
}

/// Rewrites a link target of the same length and keeps the checksum: temp names differ per place.
fn replace(archive: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(512) {
        if block[157..].starts_with(from.as_bytes()) {
            block[157..157 + to.len()].copy_from_slice(to.as_bytes());
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    archive
}

#[test]
fn t04_relative_and_magic_targets() {
    for target in [
        "../canary",
        "../../canary",
        "../../../../../../../../../..",
        "/",
        ".",
        "..",
        "/proc/self/root",
        "/proc/self/cwd",
    ] {
        attack_through(target);
    }
    for fd in 0..6 {
        attack_through(&format!("/proc/self/fd/{fd}"));
    }
}

#[test]
fn t04_chains_and_loops() {
    let refused = |archive: EvilTar| check_refused(&archive.end(), EntryProblem::SymlinkLoop);
    refused(EvilTar::new().symlink("a", "b").symlink("b", "a").file("a/x", "evil"));
    refused(EvilTar::new().symlink("a", "a").file("a/x", "evil"));
    refused(EvilTar::new().symlink("a", "a/a").dir("a/x"));
    let mut chain = EvilTar::new().dir("l0");
    for at in 1..=60 {
        chain = chain.symlink(&format!("l{at}"), &format!("l{}", at - 1));
    }
    let mut place = Place::new();
    place.unpack(&chain.clone().file("l40/x", "1").end()).expect("40 links are followed");
    assert_eq!(place.merged("l0/x").as_deref(), Some("1"));
    refused(chain.file("l60/x", "evil"));
    let mut dangling = EvilTar::new();
    for at in 1..=60 {
        dangling = dangling.symlink(&format!("l{at}"), &format!("l{}", at - 1));
    }
    let mut place = Place::new();
    place.unpack(&dangling.clone().file("l40/x", "1").end()).expect("40 dangling links are followed");
    refused(dangling.file("l60/x", "evil"));
    check_refused(&EvilTar::new().file("f", "").symlink("a", "f").file("a/x", "").end(), EntryProblem::NotADirectory);
}

#[test]
fn t03_links_resolve_inside_the_root() {
    let mut place = Place::new();
    let archive =
        EvilTar::new().dir("real").symlink("abs", "/real").symlink("up", "../../real").symlink("new", "/made/here");
    let archive = archive.file("abs/a", "1").file("up/b", "2").file("new/c", "3").file("new/../d", "");
    let result = place.unpack(&archive.end());
    assert!(matches!(result, Err(UnpackError::Entry { problem: EntryProblem::ParentComponent, .. })));
    assert_eq!(place.merged("real/a").as_deref(), Some("1"));
    assert_eq!(place.merged("real/b").as_deref(), Some("2"));
    assert_eq!(place.merged("made/here/c").as_deref(), Some("3"));
}

#[test]
fn t05_across_layers() {
    for target in ["/canary", "../canary", "../layer0", "/proc/self/cwd"] {
        for attack in attacks(&EvilTar::new()) {
            let mut place = Place::new();
            place.unpack(&EvilTar::new().symlink("e", target).end()).expect("a link is no crime");
            let first = place.tree();
            let _ = place.unpack(&attack.clone().end());
            let _ = place.unpack(&attack.end());
            let first_now = crate::canary::picture(&place.layers[0]);
            assert_eq!(first_now, first, "an upper layer changed a lower one");
        }
    }
}

#[test]
fn t05_the_root_stays() {
    for name in [".", "/", "./", "/.", "//", "./."] {
        let root = |archive: EvilTar| check_refused(&archive.end(), EntryProblem::Root);
        root(EvilTar::new().entry(Head::new(b'2', name.as_bytes()).link(b"/canary"), b""));
        root(EvilTar::new().entry(Head::new(b'1', name.as_bytes()).link(b"x"), b""));
        root(EvilTar::new().entry(Head::new(b'6', name.as_bytes()), b""));
        let mut place = Place::new();
        let archive = EvilTar::new().entry(Head::new(b'5', name.as_bytes()).mode(0o751).mtime(77), b"");
        place.unpack(&archive.file("x", "1").end()).expect("the root may be described");
        let root = fs_err::metadata(place.in_root("")).expect("root");
        assert_eq!((root.mode() & 0o7777, root.mtime()), (0o751, 77));
    }
    check_refused(&EvilTar::new().entry(Head::new(b'2', b"").link(b"/canary"), b"").end(), EntryProblem::EmptyName);
    check_refused(&EvilTar::new().symlink("..", "/canary").end(), EntryProblem::ParentComponent);
    check_refused(&EvilTar::new().symlink("a", "").end(), EntryProblem::LinkTarget);
}

#[test]
fn t06_hard_links_outside() {
    let place = Place::new();
    let canary = place.canary().join("f").display().to_string();
    let refused = |archive: EvilTar| check_refused(&archive.end(), EntryProblem::HardLinkTarget);
    for target in [canary.as_str(), "f", "x", "./f", "etc/passwd", "/etc/passwd", "/proc/self/exe", "missing", "/", "."]
    {
        refused(EvilTar::new().hard_link("h", target));
    }
    for target in ["../../f", "../canary/f", "a/../../f"] {
        check_refused(&EvilTar::new().hard_link("h", target).end(), EntryProblem::ParentComponent);
    }
    refused(EvilTar::new().symlink("e", &place.canary().display().to_string()).hard_link("h", "e/f"));
    refused(EvilTar::new().symlink("e", "../canary").hard_link("h", "e/f"));
    refused(EvilTar::new().symlink("e", "/proc/self/fd").hard_link("h", "e/0"));
    refused(EvilTar::new().dir("d").hard_link("h", "d"));
    refused(EvilTar::new().hard_link("h", "h"));
    refused(EvilTar::new().hard_link("h", "later").file("later", "1"));
    refused(EvilTar::new().entry(Head::new(b'6', b"fifo"), b"").hard_link("h", "fifo"));
    refused(EvilTar::new().file(".wh.x", "").hard_link("h", "x"));
    refused(EvilTar::new().file("f", "1").hard_link("h", "f/x"));
}

#[test]
fn t06_hard_links_inside() {
    let archive =
        EvilTar::new().file("f", "1").hard_link("d/h", "/f").hard_link("h", "./d/h").hard_link("f", "h").end();
    let place = check_names(&archive, &["d", "d/h", "f", "h"]);
    let inode = |name: &str| fs_err::metadata(place.in_root(name)).expect("file").ino();
    assert!(inode("f") == inode("h") && inode("f") == inode("d/h"));
    // Linked to a link: the link itself, not what it leads to.
    let mut place = Place::new();
    let canary = place.canary().join("f").display().to_string();
    let archive = EvilTar::new().symlink("l", &canary).hard_link("h", "l").end();
    place.unpack(&archive).expect("the link gets a second name");
    assert!(place.in_root("h").is_symlink());
    assert_eq!(fs_err::symlink_metadata(place.in_root("h")).expect("link").nlink(), 2);
    for target in ["dead", "../canary", "/proc/self/fd/0"] {
        check_names(&EvilTar::new().symlink("l", target).hard_link("h", "l").end(), &["h", "l"]);
    }
}

#[test]
fn t07_metadata_does_not_follow() {
    let place = Place::new();
    let canary = place.canary().join("f").display().to_string();
    drop(place);
    let archives = |target: &str| {
        let link = EvilTar::new().symlink("l", target);
        let head = |kind: u8, name: &[u8]| Head::new(kind, name).mode(0o7777).mtime(1);
        vec![
            link.clone().entry(head(b'1', b"h").link(b"l"), b""),
            link.clone().entry(head(b'1', b"h").link(b"l"), b"").entry(head(b'0', b"h"), b""),
            link.clone().entry(head(b'2', b"l").link(target.as_bytes()), b""),
            link.clone().entry(head(b'5', b"l"), b""),
            link.clone().hard_link("h", "l").entry(head(b'5', b"h"), b""),
            link.pax(&[("SCHILY.xattr.user.evil", b"1")]).entry(head(b'2', b"m").link(target.as_bytes()), b""),
        ]
    };
    for archive in archives(&canary) {
        let mut place = Place::new();
        let target = place.canary().join("f").display().to_string();
        let _ = place.unpack(&replace(&archive.end(), &canary, &target));
    }
    for target in ["../canary/f", "f", "/etc/passwd"] {
        for archive in archives(target) {
            let _ = Place::new().unpack(&archive.end());
        }
    }
}

#[test]
fn a52_directories_swapped_meanwhile() {
    use std::sync::atomic::{AtomicBool, Ordering};
    const SWAPS_MIN: u32 = 20;
    let mut archive = EvilTar::new().dir("d").dir("d/sub");
    for at in 0..300 {
        archive = archive.file(&format!("d/sub/x{at}"), "evil").dir(&format!("d/y{at}")).file("d/sub/.wh.x", "");
    }
    let archive = archive.end();
    let mut place = Place::new();
    let canary = place.canary().join("d");
    let root = place.canary().with_file_name("layer0");
    let done = AtomicBool::new(false);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let swaps = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let (directory, link) = (root.join("d"), root.join("swap"));
            let mut swaps = 0;
            while !done.load(Ordering::Relaxed) && std::time::Instant::now() < deadline {
                let _ = fs_err::os::unix::fs::symlink(&canary, &link);
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                swaps += u32::from(rustix::fs::renameat_with(cwd, &link, cwd, &directory, flags).is_ok());
            }
            swaps
        });
        for _ in 0..8 {
            // Both may fail in any way; the canaries are what counts.
            let _ = place.unpack(&archive);
            let again = place.layers.pop().expect("a layer");
            while coracle_images::remove_tree(&again).is_err() {}
            place.check_canaries();
        }
        done.store(true, Ordering::Relaxed);
        swapper.join().expect("swapper")
    });
    place.check_canaries();
    assert!(swaps > SWAPS_MIN, "only {swaps} swaps, this says nothing");
}
