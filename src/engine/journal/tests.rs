//! Journals that are rotated while they are read.

use std::io::Write;

use super::*;

fn journal(files_max: u32) -> (tempfile::TempDir, Journal) {
    let place = tempfile::tempdir().unwrap();
    let journal = Journal { directory: place.path().to_owned(), name: "j", files_max };
    (place, journal)
}

fn append(journal: &Journal, text: &str) {
    let mut file = fs_err::OpenOptions::new().append(true).create(true).open(journal.path(0)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn rotate(journal: &Journal) {
    for number in (0..journal.files_max - 1).rev() {
        let _ = fs_err::rename(journal.path(number), journal.path(number + 1));
    }
}

fn all(reader: &mut Reader) -> String {
    let mut text = String::new();
    loop {
        match reader.next().unwrap() {
            Chunk::Lines(lines) => text.push_str(std::str::from_utf8(lines).unwrap()),
            Chunk::Lost => text.push_str("LOST "),
            Chunk::End => return text,
        }
    }
}

#[test]
fn files_are_read_oldest_first() {
    let (_place, journal) = journal(3);
    assert_eq!(all(&mut journal.read(false, None).unwrap()), "", "nothing is there");
    append(&journal, "1\n2\n");
    rotate(&journal);
    append(&journal, "3\nhalf");
    rotate(&journal);
    append(&journal, "4\n5");
    let mut reader = journal.read(false, None).unwrap();
    append(&journal, " more\n6\n");
    assert_eq!(all(&mut reader), "1\n2\n3\n4\n", "as far as it had come");
    assert_eq!(all(&mut journal.read(true, None).unwrap()), "1\n2\n3\n4\n5 more\n6\n");
}

#[test]
fn tails_reach_over_files() {
    let (_place, journal) = journal(3);
    append(&journal, "1\n2\n");
    rotate(&journal);
    append(&journal, "3\n");
    rotate(&journal);
    append(&journal, "4\n5\n");
    for (lines, expect) in [
        (0, ""),
        (1, "5\n"),
        (2, "4\n5\n"),
        (3, "3\n4\n5\n"),
        (4, "2\n3\n4\n5\n"),
        (5, "1\n2\n3\n4\n5\n"),
        (9, "1\n2\n3\n4\n5\n"),
    ] {
        assert_eq!(all(&mut journal.read_tail(false, lines).unwrap()), expect, "{lines}");
    }
    let mut follower = journal.read_tail(true, 1).unwrap();
    assert_eq!(all(&mut follower), "5\n");
    append(&journal, "6\n");
    assert_eq!(all(&mut follower), "6\n");
    let long: String = (0..100_000).map(|number| format!("{number}\n")).collect();
    append(&journal, &long);
    let tail = all(&mut journal.read_tail(false, 70_000).unwrap());
    assert_eq!(tail.lines().next(), Some("30000"));
    assert_eq!(tail.lines().count(), 70_000);
}

#[test]
fn a_follower_sees_a_rotation_between_any_two_steps() {
    let (_place, journal) = journal(3);
    let mut follower = journal.read(true, None).unwrap();
    assert_eq!(all(&mut follower), "");
    append(&journal, "1\n");
    assert_eq!(all(&mut follower), "1\n");
    append(&journal, "2\n");
    rotate(&journal);
    assert_eq!(all(&mut follower), "2\n", "written before the rotation, read after it");
    append(&journal, "3\n");
    rotate(&journal);
    append(&journal, "4\n");
    assert_eq!(all(&mut follower), "3\n4\n");
    append(&journal, "5\n");
    for number in 0..4 {
        rotate(&journal);
        append(&journal, &format!("{number}\n"));
    }
    assert_eq!(all(&mut follower), "5\nLOST 1\n2\n3\n", "more rotations than files: said, and what is left is given");
}

#[test]
fn nothing_is_lost_or_repeated_while_a_writer_rotates() {
    const LINES: usize = 200_000;
    // As many files as there can be rotations, so that only the follower itself could lose one.
    let (_place, journal) = journal(200);
    let writer = journal.clone();
    let thread = std::thread::spawn(move || {
        for start in (0..LINES).step_by(1000) {
            let text: String = (start..start + 1000).map(|number| format!("line {number}\n")).collect();
            for part in text.as_bytes().chunks(777) {
                append(&writer, std::str::from_utf8(part).unwrap());
            }
            rotate(&writer);
        }
    });
    let mut follower = journal.read(true, None).unwrap();
    let mut next = 0;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while next < LINES {
        assert!(std::time::Instant::now() < end, "only {next} lines came");
        let text = all(&mut follower);
        for line in text.lines() {
            assert_eq!(line, format!("line {next}"));
            next += 1;
        }
    }
    thread.join().unwrap();
    assert_eq!(all(&mut follower), "");
}

#[test]
fn a44_only_files_of_ours_are_read() {
    let (place, journal) = journal(3);
    let canary = place.path().join("canary");
    fs_err::write(&canary, "secret\n").unwrap();
    append(&journal, "1\n");
    let mut follower = journal.read(true, None).unwrap();
    assert_eq!(all(&mut follower), "1\n");
    rotate(&journal);
    std::os::unix::fs::symlink(&canary, journal.path(0)).unwrap();
    assert!(follower.next().is_err(), "a link");
    assert!(journal.read(false, None).is_err());
    fs_err::remove_file(journal.path(0)).unwrap();
    fs_err::hard_link(&canary, journal.path(0)).unwrap();
    assert!(journal.read(false, None).is_err(), "a second name");
    fs_err::remove_file(journal.path(0)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, journal.path(0), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(journal.read_tail(true, 5).is_err(), "a fifo, and nobody waits for a writer");
    fs_err::remove_file(journal.path(0)).unwrap();
    append(&journal, "2\n");
    assert_eq!(all(&mut journal.read(false, None).unwrap()), "1\n2\n");
}

#[test]
fn rotations_during_a_look_bring_nothing_out_of_order() {
    let (_place, journal) = journal(9);
    append(&journal, "1\n");
    rotate(&journal);
    append(&journal, "2\n");
    let mut files = VecDeque::new();
    let two_more = |texts: [&str; 2]| {
        for text in texts {
            rotate(&journal);
            append(&journal, text);
        }
    };
    // After the newest was seen there are two newer ones, and all numbers have moved twice.
    let mut once = Some(["3\n", "4\n"]);
    assert!(journal.steady(None, &mut files, |_| once.take().into_iter().for_each(two_more)).unwrap());
    let texts: Vec<String> = files
        .iter_mut()
        .map(|file| {
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        })
        .collect();
    assert_eq!(texts, ["1\n", "2\n", "3\n", "4\n"]);
    let known = files.back().unwrap().metadata().unwrap().ino();
    let mut newer = VecDeque::new();
    two_more(["5\n", "6\n"]);
    // While it never stands still nothing is found, rather than something in a wrong place.
    assert!(journal.steady(Some(known), &mut newer, |_| two_more(["x\n", "y\n"])).unwrap());
    assert!(newer.is_empty());
    assert!(!journal.newer_than(Some(known), &mut newer).unwrap(), "what was known is long gone");
    assert!(!newer.is_empty());
}
