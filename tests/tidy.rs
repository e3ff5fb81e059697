//! Keeps the house rules that no compiler checks (conventions.md).
#![expect(clippy::unwrap_used, reason = "a test that panics is a test that failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A file longer than this without its tests must be on [`LONG_FILES`].
const FILE_LINES_MAX: usize = 500;
/// No list helps a file longer than this.
const FILE_LINES_HARD_MAX: usize = 800;
/// Files over [`FILE_LINES_MAX`], with the reason.
const LONG_FILES: [(&str, &str); 1] =
    [("scheduler/tests/world/mod.rs", "the simulated world: its parts share every field")];
/// Names that say nothing about what is inside.
const BANNED_NAMES: [&str; 6] = ["utils", "util", "common", "helpers", "misc", "manager"];
/// Which of our crates may see which.
const ARROWS: [(&str, &[&str]); 5] = [
    ("coracle", &["coracle-images", "coracle-runtime", "coracle-shim", "coracle-scheduler"]),
    ("coracle-shim", &["coracle-runtime"]),
    ("coracle-images", &[]),
    ("coracle-runtime", &[]),
    ("coracle-scheduler", &[]),
];
/// Crates that start no async runtime and no thread before a container's init is forked.
const NO_TOKIO: [&str; 2] = ["coracle-runtime", "coracle-shim"];

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Lists our own Rust files, relative to the top.
fn rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> =
        ["src", "images", "runtime", "shim", "scheduler", "tests"].iter().map(|dir| top().join(dir)).collect();
    while let Some(dir) = waiting.pop() {
        for entry in fs_err::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(top()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert!(found.len() > 20, "the files were not found: {found:?}");
    found
}

fn read(path: &Path) -> String {
    fs_err::read_to_string(top().join(path)).unwrap()
}

/// Gives the lines before a file's unit tests.
fn without_tests(text: &str) -> usize {
    text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count()
}

fn none(what: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{what}:\n{}", offenders.join("\n"));
}

#[test]
fn files_are_short() {
    let mut offenders = Vec::new();
    for path in rust_files() {
        let lines = without_tests(&read(&path));
        let listed = LONG_FILES.iter().any(|(name, _)| Path::new(name) == path);
        if lines > FILE_LINES_HARD_MAX || (lines > FILE_LINES_MAX && !listed) {
            offenders.push(format!("{}: {lines} lines", path.display()));
        }
    }
    none("split these, or list them with a reason", &offenders);
}

#[test]
fn every_file_says_what_it_is_for() {
    let files = rust_files();
    let offenders: Vec<String> =
        files.iter().filter(|path| !read(path).starts_with("//! ")).map(|path| path.display().to_string()).collect();
    none("these do not open with //!", &offenders);
}

#[test]
fn names_say_what_is_inside() {
    let mut offenders = Vec::new();
    for path in rust_files() {
        for part in path.iter() {
            let name = part.to_string_lossy();
            let name = name.trim_end_matches(".rs");
            if name.split('_').any(|word| BANNED_NAMES.contains(&word)) {
                offenders.push(path.display().to_string());
            }
        }
    }
    none("banned names", &offenders);
}

#[test]
fn unsafe_code_is_in_one_place() {
    let mut offenders = Vec::new();
    for path in rust_files() {
        if path.starts_with("runtime/src/sys") || path == Path::new("runtime/src/sys.rs") {
            continue;
        }
        for (number, line) in read(&path).lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if code.contains(concat!("unsafe", " {"))
                || code.contains(concat!("unsafe", " fn"))
                || code.contains(concat!("allow(", "unsafe_code"))
            {
                offenders.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    none("unsafe outside of runtime/src/sys", &offenders);
}

#[test]
fn nothing_is_left_for_later_and_no_test_is_asleep() {
    let words = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("#[ig", "nore"), concat!("dbg", "!(")];
    let mut offenders = Vec::new();
    for path in rust_files() {
        for (number, line) in read(&path).lines().enumerate() {
            // The program that a test starts as its own child is no test that sleeps.
            let child = line.contains("= \"only a child process of other tests\"]");
            if words.iter().any(|word| line.contains(word)) && !child {
                offenders.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    none("finish these", &offenders);
}

#[test]
fn suppressions_give_a_reason_and_end_when_they_are_not_needed() {
    let mut offenders = Vec::new();
    for path in rust_files() {
        let text = read(&path);
        for (number, line) in text.lines().enumerate() {
            let allows =
                line.trim_start().starts_with(concat!("#[al", "low(")) || line.starts_with(concat!("#![al", "low("));
            let expects = line.trim_start().starts_with("#[expect(") || line.starts_with("#![expect(");
            let rest: String = text.lines().skip(number).take(6).collect();
            if allows || (expects && !rest.contains("reason")) {
                offenders.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    none("use #[expect(…, reason = \"…\")]", &offenders);
}

#[test]
fn no_test_file_is_forgotten() {
    let mut offenders = Vec::new();
    let manifest = read(Path::new("Cargo.toml"));
    for path in rust_files() {
        let Ok(inside) = path.strip_prefix("tests") else {
            continue;
        };
        if manifest.contains(&format!("path = \"{}\"", path.display())) {
            continue;
        }
        // tests/x.rs is named by main.rs, tests/x/y.rs by x/mod.rs, x/main.rs or by x.rs beside the directory.
        let dir = inside.parent().unwrap();
        let name = if inside.ends_with("mod.rs") { dir } else { inside };
        let above = name.parent().unwrap();
        let parents = if above == Path::new("") {
            vec![PathBuf::from("tests/main.rs")]
        } else {
            let above = Path::new("tests").join(above);
            vec![above.join("mod.rs"), above.join("main.rs"), above.with_extension("rs")]
        };
        let name = name.file_stem().unwrap().to_string_lossy().into_owned();
        let declares = |parent: &PathBuf| {
            let text = fs_err::read_to_string(top().join(parent)).unwrap_or_default();
            text.lines().any(|line| line.trim_start_matches("pub ") == format!("mod {name};"))
        };
        if !parents.iter().any(declares) {
            offenders.push(path.display().to_string());
        }
    }
    none("test files that nobody compiles", &offenders);
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path"])
        .arg(top().join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn crates_see_only_what_the_design_says() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(ours, known, "a crate is missing in ARROWS");
    let mut offenders = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let allowed = ARROWS.iter().find(|(of, _)| *of == name).unwrap().1;
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = dependency["name"].as_str().unwrap();
            if ours.contains(to) && !allowed.contains(&to) {
                offenders.push(format!("{name} -> {to}"));
            }
            if to == "tokio" && NO_TOKIO.contains(&name) {
                offenders.push(format!("{name} -> tokio"));
            }
        }
        assert_eq!(package["license"], "GPL-3.0-or-later", "{name}");
    }
    none("arrows that the design does not have", &offenders);
}

#[test]
fn the_changelog_keeps_its_form() {
    let text = read(Path::new("CHANGELOG.md"));
    assert!(text.starts_with("# Changelog\n"), "the title");
    assert!(text.contains("\n## [Unreleased]\n"), "the section for what comes");
    let kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("### ") {
            assert!(kinds.contains(&kind), "{line}");
        } else if let Some(version) = line.strip_prefix("## ") {
            assert!(version.starts_with('['), "{line}");
        }
    }
}

#[test]
fn the_architecture_fits_its_limit() {
    let path = Path::new("ARCHITECTURE.md");
    let lines = read(path).lines().count();
    assert!(lines <= 250, "ARCHITECTURE.md has {lines} lines, 250 are allowed");
}
