//! Rows about names: T01, T02, T08, T09, T29.

use coracle_images::unpack::{EntryProblem, UnpackError};

use crate::evil_tar::{EvilTar, Head};
use crate::place::{Place, check_names, check_refused};

#[test]
fn t01_parent_components() {
    let long = "../".repeat(1300);
    for name in ["../x", "a/../../x", "/../x", "./../x", "a/./..//../x", "..", "a/..", "../canary/f", &long] {
        check_refused(&EvilTar::new().file(name, "evil").end(), EntryProblem::ParentComponent);
        check_refused(&EvilTar::new().dir(name).end(), EntryProblem::ParentComponent);
        check_refused(&EvilTar::new().symlink(name, "x").end(), EntryProblem::ParentComponent);
    }
    let pax = EvilTar::new().pax(&[("path", b"../x")]).file("fine", "evil").end();
    check_refused(&pax, EntryProblem::ParentComponent);
    let prefix = EvilTar::new().entry(Head::new(b'0', b"x").raw(345, b"a/../.."), b"").end();
    check_refused(&prefix, EntryProblem::ParentComponent);
    let result = Place::new().unpack(&EvilTar::new().file(&"../".repeat(4000), "evil").end());
    assert!(result.is_err());
}

#[test]
fn t02_absolute_names() {
    let archive =
        EvilTar::new().file("/etc/x", "1").file("//y", "2").dir("///").file("C:\\x", "3").file("\\..\\x", "4");
    check_names(&archive.end(), &["C:\\x", "\\..\\x", "etc", "etc/x", "y"]);
    let mut place = Place::new();
    let inside = format!("{}/f", place.canary().display());
    place.unpack(&EvilTar::new().file(&inside, "evil").end()).expect("lands inside");
    assert!(place.in_root(&inside[1..]).is_file());
}

#[test]
fn t08_type_changes() {
    // The last entry wins; the directory goes with all it holds.
    let file_over_dir = EvilTar::new().dir("a").file("a/x", "1").dir("a/b").file("a/b/y", "2").file("a", "file").end();
    assert_eq!(check_names(&file_over_dir, &["a"]).merged("a").as_deref(), Some("file"));
    let link_over_dir = EvilTar::new().dir("a").file("a/x", "1").symlink("a", "/canary").end();
    assert!(check_names(&link_over_dir, &["a"]).in_root("a").is_symlink());
    let dir_over_file = EvilTar::new().file("a", "1").dir("a").file("a/x", "2").end();
    check_names(&dir_over_file, &["a", "a/x"]);
    let file_over_link = EvilTar::new().symlink("a", "b").file("b", "1").file("a", "2").end();
    let place = check_names(&file_over_link, &["a", "b"]);
    assert_eq!(place.merged("b").as_deref(), Some("1"));
    let dir_again = EvilTar::new().dir("a").file("a/x", "1").dir("a").end();
    check_names(&dir_again, &["a", "a/x"]);
    let below_file = EvilTar::new().file("nondir", "1").file("nondir/foo/bar", "2").end();
    check_refused(&below_file, EntryProblem::NotADirectory);
    let hard_link_over_dir = EvilTar::new().file("f", "1").dir("a").file("a/x", "2").hard_link("a", "f").end();
    check_names(&hard_link_over_dir, &["a", "f"]);
    let hard_link_over_its_parent = EvilTar::new().dir("a").file("a/x", "2").hard_link("a", "a/x").end();
    assert!(Place::new().unpack(&hard_link_over_its_parent).is_err());
}

#[test]
fn t08_symlink_then_directory() {
    let mut place = Place::new();
    let canary = place.canary().display().to_string();
    let archive =
        EvilTar::new().symlink("e", &canary).entry(Head::new(b'5', b"e").mode(0o777), b"").file("e/x", "evil");
    place.unpack(&archive.end()).expect("the directory replaces the link");
    assert!(place.in_root("e").is_dir() && !place.in_root("e").is_symlink());
    assert_eq!(place.names(), ["e", "e/x"]);
}

#[test]
fn t09_duplicates() {
    let mut archive = EvilTar::new();
    for at in 0..1000 {
        archive = archive.file("same", &at.to_string()).dir("d").symlink("l", &at.to_string());
    }
    let archive = archive.file("Same", "case").file("\u{e9}", "nfc").file("e\u{301}", "nfd");
    let place = check_names(&archive.end(), &["Same", "d", "e\u{301}", "l", "same", "\u{e9}"]);
    assert_eq!(place.merged("same").as_deref(), Some("999"));
}

#[test]
fn t29_odd_names() {
    let odd: [&[u8]; 6] = [b"\xff\xfe", b"new\nline", b"\x1b[31mred", b"-rf", b"sp ace", b"tab\t"];
    let mut archive = EvilTar::new();
    for name in odd {
        archive = archive.file_bytes(name, b"x");
    }
    let mut place = Place::new();
    place.unpack(&archive.file_bytes(&[b'n'; 255], b"x").end()).expect("all are names");
    for name in odd.iter().copied().chain([&[b'n'; 255][..]]) {
        assert!(place.in_root("").join(crate::canary::name(name)).is_file(), "{name:?}");
    }
    check_refused(&EvilTar::new().file_bytes(&[b'n'; 256], b"x").end(), EntryProblem::NameTooLong);
    check_refused(&EvilTar::new().pax(&[("path", b"a\0b")]).file("x", "").end(), EntryProblem::NulByte);
    check_refused(&EvilTar::new().entry(Head::new(b'0', b""), b"").end(), EntryProblem::EmptyName);
    check_refused(&EvilTar::new().entry(Head::new(b'0', b"."), b"").end(), EntryProblem::Root);
    check_refused(&EvilTar::new().file("d/", "a body").end(), EntryProblem::DirectoryBody);
    let error = Place::new().unpack(&EvilTar::new().file_bytes(b"\x1b[31m/..", b"").end()).expect_err("refused");
    assert!(!error.to_string().contains('\x1b'), "{error}");
    check_names(&EvilTar::new().entry(Head::new(b'0', b"d/"), b"").end(), &["d"]);
}

#[test]
fn t18_depth() {
    let deep = "d/".repeat(2000);
    let mut place = Place::new();
    place.unpack(&EvilTar::new().file(&format!("{deep}f"), "x").end()).expect("2000 levels");
    // Dropping the place removes it with far fewer descriptors than levels.
    let result = Place::new().unpack(&EvilTar::new().file(&format!("{}f", "d/".repeat(2100)), "x").end());
    assert!(matches!(
        result,
        Err(UnpackError::Entry { problem: EntryProblem::NameTooLong, .. } | UnpackError::Archive { .. })
    ));
}
