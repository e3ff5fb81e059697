//! The golden probe (security.md, section 7): what a default container is granted, whole and as one file.
//!
//! `probe/granted.txt` is reviewed like code: a line that changes is a door that opens or closes. Made by
//! `probe/probe.c`, which asks.

use std::collections::BTreeMap;
use std::process::Command;

use crate::env::{TestEnv, Who, fixtures};
use crate::require;

/// Calls of Linux 5.14 and later that a kernel may be too old for; the filter lets them through.
const MAY_BE_TOO_NEW: i64 = 444;

const SETGROUPS: &str = "call 116";
const GOLDEN: &str = include_str!("probe/granted.txt");
const SOURCE: &str = include_str!("probe/probe.c");

#[test]
fn section7_golden_probe() {
    require!();
    let env = TestEnv::new();
    if !cfg!(target_arch = "x86_64") {
        return fixtures::skip("the numbers in the golden file are those of x86_64");
    }
    if fixtures::find_program("cc").is_none() {
        return fixtures::skip("no C compiler");
    }
    let (source, probe) = (env.write("probe.c", SOURCE), env.path("probe"));
    let compiled = Command::new("cc").args(["-static", "-O1", "-o"]).arg(&probe).arg(&source).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let volume = format!("{}:/probe:ro", probe.display());
    let heard = env.container(&["-v", &volume, &env.image("busybox"), "/probe"]).ok();
    let (golden, heard) = (answers(GOLDEN), answers(&heard));
    let mut wrong = Vec::new();
    for (question, answer) in &heard {
        let expect = golden.get(question).map_or("no answer", String::as_str);
        let number = question.strip_prefix("call ").and_then(|number| number.parse::<i64>().ok());
        let too_new = number.is_some_and(|number| number >= MAY_BE_TOO_NEW) && expect == "passes" && answer == "ENOSYS";
        // With one id the kernel itself denies setgroups.
        let one_id = env.who() == Who::Single && question == SETGROUPS && answer == "EPERM";
        if expect != answer && !too_new && !one_id {
            wrong.push(format!("{question}: {answer}, the golden file says {expect}"));
        }
    }
    assert!(wrong.is_empty(), "a container is granted something else than was reviewed:\n{}", wrong.join("\n"));
    assert_eq!(heard.len(), golden.len(), "questions are missing");
}

/// Behind # is a comment; the last word of a line answers the words before it.
fn answers(text: &str) -> BTreeMap<String, String> {
    let facts = text.lines().map(|line| line.split_once('#').map_or(line, |(fact, _)| fact).trim_end());
    let lines = facts.filter_map(|line| line.rsplit_once([' ', '\t']));
    lines.map(|(question, answer)| (question.trim_end().to_owned(), answer.to_owned())).collect()
}
