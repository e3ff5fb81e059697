//! Stacks of layers and what they merge to.

use super::Case;
use super::Make::{Attribute, Dir, Fifo, File, Hard, Hole, Link, Mode, Opaque, Socket, Time, Whiteout};

pub(super) const ALL: &[Case] = &[
    Case { name: "no layer has anything", layers: &[&[], &[]], expect: &[] },
    Case {
        name: "files of all layers, the topmost of a name",
        layers: &[
            &[File("a", "0", 0o644), File("d/x", "0", 0o644), File("d/y", "0", 0o600)],
            &[File("d/y", "1", 0o640), File("d/z", "1", 0o644)],
            &[File("d/z", "2", 0o444), File("e/f/g", "2", 0o644)],
        ],
        expect: &[
            "f a 644 0",
            "d d 755",
            "f d/x 644 0",
            "f d/y 640 1",
            "f d/z 444 2",
            "d e 755",
            "d e/f 755",
            "f e/f/g 644 2",
        ],
    },
    Case {
        name: "whiteouts of a file, a link, a directory, nothing",
        layers: &[
            &[File("f", "0", 0o644), Link("l", "f"), File("d/x/y", "0", 0o644), File("stays", "0", 0o644)],
            &[Whiteout("f"), Whiteout("l"), Whiteout("d"), Whiteout("nothing"), Whiteout("new/nothing")],
        ],
        expect: &["d new 755", "f stays 644 0"],
    },
    Case {
        name: "a whiteout of a directory that is made anew above",
        layers: &[
            &[File("d/old", "0", 0o644), Dir("d/sub", 0o700)],
            &[Whiteout("d")],
            &[File("d/new", "2", 0o644), Mode("d", 0o711)],
        ],
        expect: &["d d 711", "f d/new 644 2"],
    },
    Case {
        name: "a whiteout between two directories deep down",
        layers: &[&[File("a/b/c/old", "0", 0o644)], &[Whiteout("a/b/c")], &[File("a/b/c/new", "2", 0o644)]],
        expect: &["d a 755", "d a/b 755", "d a/b/c 755", "f a/b/c/new 644 2"],
    },
    Case {
        name: "opaque directories",
        layers: &[
            &[
                File("d/old", "0", 0o644),
                File("d/sub/old", "0", 0o644),
                File("e/sub/old", "0", 0o644),
                File("f", "0", 0o644),
            ],
            &[
                File("d/mid", "1", 0o644),
                Opaque("d"),
                File("e/sub/mid", "1", 0o644),
                Opaque("e/sub"),
                Dir("f", 0o755),
                Opaque("f"),
            ],
            &[File("d/new", "2", 0o644), File("e/sub/new", "2", 0o644), Dir("lonely", 0o700), Opaque("lonely")],
        ],
        expect: &[
            "d d 755",
            "f d/mid 644 1",
            "f d/new 644 2",
            "d e 755",
            "d e/sub 755",
            "f e/sub/mid 644 1",
            "f e/sub/new 644 2",
            "d f 755",
            "d lonely 700",
        ],
    },
    Case {
        name: "kinds replace each other",
        layers: &[
            &[
                File("dir-file/x", "0", 0o644),
                File("file-dir", "0", 0o644),
                File("dir-link/x", "0", 0o644),
                File("file-link", "0", 0o644),
            ],
            &[
                File("dir-file", "1", 0o644),
                File("file-dir/y", "1", 0o644),
                Link("dir-link", "file-dir"),
                Link("file-link", "file-dir/y"),
            ],
        ],
        expect: &[
            "f dir-file 644 1",
            "l dir-link -> file-dir",
            "d file-dir 755",
            "f file-dir/y 644 1",
            "l file-link -> file-dir/y",
        ],
    },
    Case {
        name: "kinds replace each other twice",
        layers: &[
            &[File("d/x", "0", 0o644), File("l/x", "0", 0o644), Link("m", "d")],
            &[File("d", "1", 0o644), Link("l", "d"), Dir("m", 0o755)],
            &[File("d/y", "2", 0o644), File("l/y", "2", 0o644), Link("m", "l")],
        ],
        expect: &["d d 755", "f d/y 644 2", "d l 755", "f l/y 644 2", "l m -> l"],
    },
    Case {
        name: "a link named like a lower directory, and below it nothing of either",
        layers: &[&[File("etc/passwd", "0", 0o644)], &[Link("etc", "/nowhere")], &[File("other", "2", 0o644)]],
        expect: &["l etc -> /nowhere", "f other 644 2"],
    },
    Case {
        name: "directories without permissions",
        layers: &[
            &[File("d/x", "0", 0o644), File("d/e/x", "0", 0), Mode("d/e", 0), Mode("d", 0), Mode("", 0o555)],
            &[File("d/e/y", "1", 0o400), Dir("d/f", 0o111), Mode("d/e", 0), Mode("d", 0o500)],
            &[Dir("d", 0), Mode("", 0)],
        ],
        expect: &["d d 0", "d d/e 0", "f d/e/x 0 0", "f d/e/y 400 1", "d d/f 111", "f d/x 644 0"],
    },
    Case {
        name: "set-id and sticky bits",
        layers: &[
            &[File("su", "0", 0o4755), File("sg", "0", 0o2711), Dir("tmp", 0o1777), Dir("shared", 0o2775)],
            &[
                File("su2", "1", 0o6511),
                File("shared/f", "1", 0o644),
                Dir("shared/d", 0o755),
                Mode("shared", 0o2770),
                Mode("shared/d", 0o755),
            ],
        ],
        expect: &[
            "f sg 2711 0",
            "d shared 2770",
            "d shared/d 755",
            "f shared/f 644 1",
            "f su 4755 0",
            "f su2 6511 1",
            "d tmp 1777",
        ],
    },
    Case {
        name: "hard links",
        layers: &[
            &[
                File("a", "0", 0o4755),
                Hard("a", "d/b"),
                Hard("a", "d/e/c"),
                Link("l", "a"),
                Hard("l", "m"),
                File("x", "0", 0o644),
                Hard("x", "y"),
            ],
            &[
                File("d/b", "1", 0o644),
                Whiteout("x"),
                File("n", "1", 0o600),
                Hard("n", "d/e/o"),
                Dir("y", 0o755),
                Fifo("p", 0o600),
                Hard("p", "q"),
            ],
        ],
        expect: &[
            "f a 4755 0",
            "d d 755",
            "f d/b 644 1",
            "d d/e 755",
            "f d/e/c 4755 0",
            "f d/e/o 600 1",
            "l l -> a",
            "l m -> a",
            "f n 600 1",
            "p p 600",
            "p q 600",
            "d y 755",
        ],
    },
    Case {
        name: "times",
        layers: &[
            &[File("d/x", "0", 0o644), File("d/gone", "0", 0o644), Time("d/x", 1, 2), Time("d", 3, 4), Time("", 5, 6)],
            &[
                File("d/e/y", "1", 0o644),
                Link("d/l", "x"),
                Whiteout("d/gone"),
                Fifo("p", 0o644),
                Time("d/e/y", -86400, 123_456_789),
                Time("d/l", 7, 8),
                Time("p", 9, 10),
                Time("d/e", 11, 12),
                Time("d", 13, 14),
                Time("", 15, 16),
            ],
        ],
        expect: &["d d 755", "d d/e 755", "f d/e/y 644 1", "l d/l -> x", "f d/x 644 0", "p p 644"],
    },
    Case {
        name: "attributes, those of the topmost directory only",
        layers: &[
            &[
                File("f", "0", 0o400),
                Attribute("f", "user.a", "f"),
                Dir("d", 0o755),
                Attribute("d", "user.lower", "d"),
                Attribute("d", "user.both", "lower"),
                Dir("e", 0o755),
                Attribute("e", "user.lower", "e"),
                Attribute("", "user.root", "lower"),
            ],
            &[
                Dir("d", 0o755),
                Attribute("d", "user.both", "upper"),
                Attribute("d", "user.empty", ""),
                Attribute("", "user.top", "upper"),
            ],
        ],
        expect: &["d d 755", "d e 755", "f f 400 0"],
    },
    Case {
        name: "fifos are copied, sockets are not but hide what is below",
        layers: &[
            &[File("s", "0", 0o644), File("t/x", "0", 0o644), Fifo("p", 0o640), File("q", "0", 0o644)],
            &[Socket("s"), Socket("t"), Fifo("q", 0), Socket("new")],
        ],
        expect: &["p p 640", "p q 0"],
    },
    Case { name: "holes", layers: &[&[Hole("d/h", 3 << 20)], &[Hole("i", 70_001), Dir("d", 0o700)]], expect: HOLES },
    Case {
        name: "names that are no words",
        layers: &[
            &[File("...", "0", 0o644), File(" a\n", "0", 0o644), File(".wh.x", "0", 0o644), File("x", "0", 0o644)],
            &[Link("\\", ".."), Whiteout(" a\n"), File("-rf", "1", 0o644)],
        ],
        expect: &["f -rf 644 1", "f ... 644 0", "f .wh.x 644 0", "l \\ -> ..", "f x 644 0"],
    },
];

/// Content of holes is compared with overlayfs; see the unit test of `contents` for their blocks.
const HOLES: &[&str] = &["d d 700", "f d/h 644", "f i 644"];
