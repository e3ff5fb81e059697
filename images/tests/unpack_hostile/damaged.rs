//! Rows about broken archives and bounds: T10 to T14, T17, T19, and what is behind the end (T15).

use coracle_images::Ownership;
use coracle_images::limits::{self, Limits};
use coracle_images::unpack::{ArchiveProblem, EntryProblem, UnpackError};

use crate::evil_tar::{EvilTar, Head, record};
use crate::place::{Place, check_names, check_refused};

fn check_damaged(archive: &[u8], expect: ArchiveProblem) {
    let result = Place::new().unpack(archive);
    match result {
        Err(UnpackError::Archive { problem, .. }) => assert_eq!(problem, expect),
        other => panic!("expected {expect:?}, got {other:?}"),
    }
}

#[test]
fn t10_pax_size_wins() {
    // The body of the first is an archive of its own; only a reader that believes ustar sees it.
    let nested = EvilTar::new().file("hidden", "evil").end();
    let size = nested.len().to_string();
    let archive = EvilTar::new()
        .pax(&[("size", size.as_bytes())])
        .bytes(&Head::new(b'0', b"outer").size(0).block())
        .bytes(&nested)
        .file("after", "1")
        .end();
    let place = check_names(&archive, &["after", "outer"]);
    assert_eq!(fs_err::read(place.in_root("outer")).expect("read"), nested);
    let archive = EvilTar::new()
        .pax(&[("size", b"0")])
        .bytes(&Head::new(b'0', b"outer").size(nested.len() as u64).block())
        .file("after", "1")
        .end();
    check_names(&archive, &["after", "outer"]);
    // A value with newlines in front of the size must not hide it.
    let archive = EvilTar::new()
        .pax(&[("SCHILY.xattr.user.x", b"a\n11 size=99\nb"), ("size", size.as_bytes())])
        .bytes(&Head::new(b'0', b"outer").size(0).block())
        .bytes(&nested)
        .end();
    check_names(&archive, &["outer"]);
}

#[test]
fn t10_sizes_of_what_has_no_body() {
    for kind in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let head = Head::new(kind, b"odd").link(b"f").device(1, 3).size(512);
        let archive = EvilTar::new().file("f", "1").bytes(&head.block()).file("after", "2").end();
        let mut place = Place::new();
        place.unpack(&archive).expect("the size means nothing");
        assert_eq!(place.merged("after").as_deref(), Some("2"), "type {}", char::from(kind));
    }
}

#[test]
fn t11_malformed_pax() {
    for body in [&b"5 a\n"[..], b"99 path=x\n", b"0 a=b\n", b"x a=b\n", b"6 a=b\nrest", b"7 a\0=b\n", b"6 a=bc"] {
        check_damaged(&EvilTar::new().pax_raw(b'x', body).file("f", "").end(), ArchiveProblem::MalformedPax);
    }
    let twice = [record(b"path", b"a"), record(b"path", b"b")].concat();
    check_damaged(&EvilTar::new().pax_raw(b'x', &twice).file("f", "").end(), ArchiveProblem::DuplicatePaxKey);
    let pax = |tar: EvilTar| tar.pax(&[("path", b"p")]);
    check_damaged(&pax(pax(EvilTar::new())).file("f", "").end(), ArchiveProblem::DuplicateExtension);
    check_damaged(&pax(EvilTar::new()).end(), ArchiveProblem::DanglingExtension);
    let global = |body: &[u8]| EvilTar::new().pax_raw(b'g', body).file("f", "").end();
    check_names(&global(&record(b"comment", b"from git archive")), &["f"]);
    for body in [record(b"path", b"../x"), record(b"size", b"9"), record(b"SCHILY.xattr.user.a", b"b")] {
        check_damaged(&global(&body), ArchiveProblem::GlobalPax);
    }
    check_damaged(&global(b"garbage"), ArchiveProblem::MalformedPax);
    let large = vec![b'c'; 1 << 20];
    let result = EvilTar::new().pax(&[("comment", &large)]).file("f", "").end();
    check_damaged(&result, ArchiveProblem::ExtensionTooLarge);
    let fits = vec![b'c'; (1 << 20) - 20];
    check_names(&EvilTar::new().pax(&[("comment", &fits)]).file("f", "").end(), &["f"]);
    let claimed = EvilTar::new().bytes(&Head::new(b'x', b"p").size(100 << 20).block()).end();
    check_damaged(&claimed, ArchiveProblem::ExtensionTooLarge);
}

#[test]
fn t12_gnu_long_names() {
    let long = |body: &[u8]| EvilTar::new().gnu_long(b'L', body).file("short", "1").end();
    let component = "n".repeat(200);
    check_names(&long(format!("{component}\0").as_bytes()), &[&component]);
    check_names(&long(component.as_bytes()), &[&component]);
    check_refused(&long(b""), EntryProblem::EmptyName);
    check_refused(&long(b"\0"), EntryProblem::EmptyName);
    check_damaged(&long(&vec![b'n'; 1 << 20]), ArchiveProblem::ExtensionTooLarge);
    let twice = EvilTar::new().gnu_long(b'L', b"a\0").gnu_long(b'L', b"b\0").file("c", "").end();
    check_damaged(&twice, ArchiveProblem::DuplicateExtension);
    for (first, second) in [(true, false), (false, true)] {
        let mut tar = EvilTar::new();
        for is_pax in [first, second] {
            tar = if is_pax { tar.pax(&[("path", b"pax")]) } else { tar.gnu_long(b'L', b"gnu\0") };
        }
        check_names(&tar.file("ustar", "").end(), &["pax"]);
    }
    check_names(
        &EvilTar::new().entry(Head::new(b'0', b"name").raw(345, b"prefix"), b"").end(),
        &["prefix", "prefix/name"],
    );
    let target = "t".repeat(300);
    let place = check_names(&EvilTar::new().symlink("l", &target).end(), &["l"]);
    assert_eq!(fs_err::read_link(place.in_root("l")).expect("link").as_os_str(), target.as_str());
    let limit = limits::LINK_TARGET_BYTES_MAX;
    check_names(&EvilTar::new().symlink("l", &"t".repeat(limit)).end(), &["l"]);
    check_refused(&EvilTar::new().symlink("l", &"t".repeat(limit + 1)).end(), EntryProblem::LinkTarget);
}

#[test]
fn t13_damaged_headers() {
    let mut archive = EvilTar::new().file("f", "1").end();
    archive[150] ^= 1;
    check_damaged(&archive, ArchiveProblem::Checksum);
    let number = |at: usize, bytes: &[u8]| EvilTar::new().entry(Head::new(b'0', b"f").raw(at, bytes), b"").end();
    check_damaged(&number(124, b"0000000000x\0"), ArchiveProblem::Number("size"));
    check_damaged(&number(124, &[0xff; 12]), ArchiveProblem::Number("size"));
    check_damaged(&number(108, b"9999999\0"), ArchiveProblem::Number("uid"));
    check_damaged(&number(100, b"rwxr-xr\0"), ArchiveProblem::Number("mode"));
    let huge = number(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    assert!(matches!(Place::new().unpack(&huge), Err(UnpackError::TooManyBytes { .. })));
    for kind in [b'Z', b'V', b'M', b'D', b'N', 0xff] {
        check_damaged(&EvilTar::new().entry(Head::new(kind, b"f"), b"").end(), ArchiveProblem::UnknownType(kind));
    }
    let zero_inside = EvilTar::new().file("a", "1").bytes(&[0; 512]).file("b", "2").end();
    check_damaged(&zero_inside, ArchiveProblem::LoneZeroBlock);
    check_names(&EvilTar::new().file("a", "1").bytes(&[0; 512]).0, &["a"]);
    // Seventh edition: no magic, no type.
    let v7 = Head::new(0, b"old").raw(257, &[0; 8]).size(3);
    check_names(&EvilTar::new().entry(v7, b"abc").end(), &["old"]);
    // Ancient writers summed signed bytes.
    let mut block = Head::new(b'0', b"\xe9").block();
    block[148..156].fill(b' ');
    let sum: i32 = block.iter().map(|byte| i32::from(byte.cast_signed())).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Place::new().unpack(&EvilTar::new().bytes(&block).end()).expect("signed sum");
}

#[test]
fn t14_truncated() {
    let archive = EvilTar::new().file("a", "1").file("b", &"2".repeat(5000)).end();
    let body = 512 * 2 + 512;
    for cut in [1, 100, 511, 513, 600, 512 * 2 + 7, body + 1, body + 4999] {
        check_damaged(&archive[..cut], ArchiveProblem::Truncated);
    }
    // Without its end an archive looks whole; the digest tells.
    check_names(&archive[..512 * 2], &["a"]);
    check_names(b"", &[]);
    check_names(&[0; 1024], &[]);
}

#[test]
fn t15_behind_the_end() {
    let archive = [EvilTar::new().file("a", "1").end(), EvilTar::new().file("second", "evil").end()].concat();
    check_names(&archive, &["a"]);
    check_names(&[EvilTar::new().file("a", "1").end(), b"garbage".to_vec()].concat(), &["a"]);
}

#[test]
fn t17_bounds() {
    let limits = Limits { layer_entries_max: 10, layer_unpacked_bytes_max: 1000, ..Limits::default() };
    let with = |archive: &[u8]| Place::new().unpack_with(archive, Ownership::Squash, &limits);
    let files = |count: usize| (0..count).fold(EvilTar::new(), |tar, at| tar.file(&format!("f{at}"), "")).end();
    with(&files(10)).expect("at the limit");
    assert!(matches!(with(&files(11)), Err(UnpackError::TooManyEntries { max: 10 })));
    with(&EvilTar::new().file("a", &"x".repeat(600)).file("b", &"x".repeat(400)).end()).expect("at the limit");
    let over = EvilTar::new().file("a", &"x".repeat(600)).file("b", &"x".repeat(401)).end();
    assert!(matches!(with(&over), Err(UnpackError::TooManyBytes { max: 1000 })));
    let claimed = EvilTar::new().bytes(&Head::new(b'0', b"a").size(1 << 30).block()).end();
    assert!(matches!(with(&claimed), Err(UnpackError::TooManyBytes { .. })));
}

/// A file of the old GNU format with these segments.
fn gnu_sparse(segments: &[(u64, u64)], real: u64, body: &[u8]) -> EvilTar {
    let mut head = Head::new(b'S', b"sparse").raw(257, b"ustar  \0").size(body.len() as u64);
    head = head.raw(483, format!("{real:011o}\0").as_bytes());
    for (at, (offset, length)) in segments.iter().enumerate() {
        head = head.raw(386 + at * 24, format!("{offset:011o}\0{length:011o}\0").as_bytes());
    }
    EvilTar::new().entry(head, body)
}

#[test]
fn t19_sparse_files() {
    let mut expect = vec![0u8; 5000];
    expect[1000..1003].copy_from_slice(b"abc");
    expect[4000..4002].copy_from_slice(b"de");
    let segments = [(1000, 3), (4000, 2), (5000, 0)];
    let check = |tar: EvilTar| {
        let place = check_names(&tar.file("after", "1").end(), &["after", "sparse"]);
        assert!(fs_err::read(place.in_root("sparse")).expect("read") == expect);
    };
    check(gnu_sparse(&segments, 5000, b"abcde"));
    let name = ("GNU.sparse.name", &b"sparse"[..]);
    let size = ("GNU.sparse.size", &b"5000"[..]);
    let map = ("GNU.sparse.map", &b"1000,3,4000,2,5000,0"[..]);
    check(EvilTar::new().pax(&[name, size, map, ("GNU.sparse.numblocks", b"3")]).file("GNUSparseFile.0/x", "abcde"));
    let pair = |offset: &'static str, length: &'static str| {
        [("GNU.sparse.offset", offset.as_bytes()), ("GNU.sparse.numbytes", length.as_bytes())]
    };
    let pairs = [pair("1000", "3"), pair("4000", "2"), pair("5000", "0")].concat();
    check(EvilTar::new().pax(&[&[size][..], &pairs].concat()).file("sparse", "abcde"));
    let version1 =
        [("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0"), name, ("GNU.sparse.realsize", b"5000")];
    let mut body = b"3\n1000\n3\n4000\n2\n5000\n0\n".to_vec();
    body.resize(512, 0);
    body.extend(b"abcde");
    check(EvilTar::new().pax(&version1).file_bytes(b"GNUSparseFile.0/x", &body));
    for (segments, real, body) in [
        (&[(0, 3), (1, 2)][..], 10, &b"abcde"[..]),
        (&[(5, 3), (0, 2)], 10, b"abcde"),
        (&[(0, 3)], 10, b"abcde"),
        (&[(0, 5)], 4, b"abcde"),
        (&[(0o77_777_777_777, 5)], 10, b"abcde"),
    ] {
        check_damaged(&gnu_sparse(segments, real, body).end(), ArchiveProblem::Sparse);
    }
    let huge = EvilTar::new().pax(&[name, ("GNU.sparse.size", b"9223372036854775807"), ("GNU.sparse.map", b"")]);
    let result = Place::new().unpack(&huge.file("x", "").end());
    assert!(matches!(result, Err(UnpackError::TooManyBytes { .. })), "{result:?}");
    let many = [b"10000000\n".to_vec(), vec![b'1'; 503]].concat();
    let result = EvilTar::new().pax(&version1).file_bytes(b"x", &many).end();
    check_damaged(&result, ArchiveProblem::SparseSegments);
}
