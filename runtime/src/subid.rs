//! Reads what /etc/subuid and /etc/subgid grant a user (subuid(5)).
//!
//! A wrong line of the user's own is an error that names file and line, because newuidmap would only
//! say "not allowed". Lines of others are skipped here and judged by [`review`], for `coracle info`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::idmap::IdMapError;

/// A file of 100,000 lines has about 3 MiB; anything larger is not a list of people.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The lowest id that a person of any common distribution can have.
const FIRST_PERSON: u32 = 1000;

/// One grant: the first id and how many.
pub(crate) type Grant = (u32, u32);

/// The grants of one user, in the order of the file. A missing file grants nothing.
pub(crate) fn read(path: &Path, user: Option<&str>, uid: u32) -> Result<Vec<Grant>, IdMapError> {
    let text = read_file(path)?;
    let number = uid.to_string();
    let mut grants = Vec::new();
    for (line, text) in lines(&text) {
        let name = text.split(':').next().unwrap_or_default();
        if name != number && Some(name) != user {
            continue;
        }
        let (_, grant) = parse(text).map_err(|problem| wrong(path, line, problem))?;
        grants.push(grant);
    }
    Ok(grants)
}

/// Everything wrong with a whole file: malformed lines, ranges of two users that overlap, ranges
/// that contain the id of a person in `people` (CVE-2024-56433).
pub(crate) fn review(path: &Path, people: &[(String, u32)]) -> Result<Vec<String>, IdMapError> {
    let text = read_file(path)?;
    let mut problems = Vec::new();
    let mut ranges: Vec<(u64, u64, &str, usize)> = Vec::new();
    let mut complain = |line: usize, problem: String| {
        problems.push(format!("{}:{line}: {problem}", path.display()));
    };
    for (line, text) in lines(&text) {
        match parse(text) {
            Err(problem) => complain(line, problem),
            Ok((name, (first, count))) => {
                let end = u64::from(first) + u64::from(count);
                ranges.push((u64::from(first), end, name, line));
                let inside = |uid: u32| uid >= FIRST_PERSON && (u64::from(first)..end).contains(&uid.into());
                if let Some((person, uid)) = people.iter().find(|(_, uid)| inside(*uid)) {
                    complain(line, format!("the range contains the id {uid} of {person}"));
                }
            }
        }
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [(_, end, first, _), (start, _, second, line)] = pair
            && start < end
            && first != second
        {
            complain(*line, format!("the ranges of {first} and {second} overlap"));
        }
    }
    Ok(problems)
}

/// Asks shadow's `getsubids`, which knows the sources that nsswitch.conf names (LDAP, SSSD).
pub(crate) fn ask_getsubids(user: &str, groups: bool) -> Vec<Grant> {
    let mut command = Command::new("getsubids");
    if groups {
        command.arg("-g");
    }
    let output = command.arg(user).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let Ok(output) = output else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout).lines().filter_map(parse_getsubids).collect()
}

/// `0: alice 100000 65536`
fn parse_getsubids(line: &str) -> Option<Grant> {
    let mut words = line.split_ascii_whitespace().skip(2);
    let first = words.next()?.parse().ok()?;
    let count = words.next()?.parse().ok()?;
    check_range(first, count).ok()
}

/// The people of a passwd file: name and id.
pub(crate) fn people(path: &Path) -> Result<Vec<(String, u32)>, IdMapError> {
    let text = read_file(path)?;
    Ok(lines(&text)
        .filter_map(|(_, line)| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            Some((name.to_owned(), uid))
        })
        .collect())
}

fn parse(line: &str) -> Result<(&str, Grant), String> {
    let mut fields = line.split(':');
    let (Some(name), Some(first), Some(count), None) = (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err("not of the form name:first:count".to_owned());
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|_| digits).ok_or_else(|| format!("{text:?} is not a number"))
    };
    Ok((name, check_range(number(first)?, number(count)?)?))
}

fn check_range(first: u64, count: u64) -> Result<Grant, String> {
    /// 4294967295 is "no id" to the kernel, so a range ends below it.
    const END_MAX: u64 = u32::MAX as u64;
    if count == 0 {
        return Err("the count is 0".to_owned());
    }
    let fits = first.checked_add(count).is_some_and(|end| end <= END_MAX);
    match (u32::try_from(first), u32::try_from(count)) {
        (Ok(first), Ok(count)) if fits => Ok((first, count)),
        _ => Err("the range goes beyond the last id".to_owned()),
    }
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.split('\n').enumerate().map(|(index, line)| (index + 1, line));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

fn wrong(path: &Path, line: usize, problem: String) -> IdMapError {
    IdMapError::Subordinate { file: path.to_owned(), line, problem }
}

fn read_file(path: &Path) -> Result<String, IdMapError> {
    let failed = |source| IdMapError::Read { path: PathBuf::from(path), source };
    let file = match fs_err::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs_err::write(file.path(), text).expect("written");
        file
    }

    fn check(text: &str, expect: Result<&[Grant], &str>) {
        let file = file(text);
        let found = read(file.path(), Some("alice"), 1000);
        match (found, expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect, "{text:?}"),
            (Err(error), Err(end)) => {
                let said = error.to_string();
                assert!(said.ends_with(end), "{text:?}: {said}");
            }
            (found, expect) => panic!("{text:?}: {found:?}, not {expect:?}"),
        }
    }

    #[test]
    fn a31_own_lines() {
        check("", Ok(&[]));
        check("bob:1:2\n", Ok(&[]));
        check("alice:100000:65536\n", Ok(&[(100_000, 65536)]));
        check("# c\n\nalice:100000:65536\n1000:500000:10\nali:1:1", Ok(&[(100_000, 65536), (500_000, 10)]));
        check("alice:0:4294967295", Ok(&[(0, u32::MAX)]));
        check("bob:garbage\nalice:1:2", Ok(&[(1, 2)]));
        check("bob:1:1\nalice:100000:0\n", Err(":2: the count is 0"));
        check("alice:100000", Err(":1: not of the form name:first:count"));
        check("alice:100000:65536:9", Err(":1: not of the form name:first:count"));
        check("alice:100000:65536\r\n", Err("\"65536\\r\" is not a number"));
        check("alice:+1:65536", Err("\"+1\" is not a number"));
        check("alice:-1:65536", Err("\"-1\" is not a number"));
        check("alice:4294967290:65536", Err("beyond the last id"));
        check("alice:1:4294967295", Err("beyond the last id"));
        check("alice:18446744073709551615:1", Err("beyond the last id"));
        check("alice:1:99999999999999999999999", Err("is not a number"));
    }

    #[test]
    fn a31_many_lines_of_others() {
        let mut text: String = (0..100_000_u32).map(|n| format!("u{n}:{n}:1\n")).collect();
        text.push_str("alice:200000:65536\n");
        check(&text, Ok(&[(200_000, 65536)]));
    }

    #[test]
    fn a31_review_names_file_and_line() {
        let file = file("alice:100000:65536\nbob:150000:65536\njunk\ncarol:1000:10\n");
        let people = [("dave".to_owned(), 1004), ("root".to_owned(), 0)];
        let problems = review(file.path(), &people).expect("readable");
        let all = problems.join("\n");
        for expect in [
            ":2: the ranges of alice and bob overlap",
            ":3: not of the form",
            ":4: the range contains the id 1004 of dave",
        ] {
            assert!(all.contains(expect), "{expect} in {all}");
        }
        assert_eq!(problems.len(), 3);
    }

    #[test]
    fn getsubids_output() {
        assert_eq!(parse_getsubids("0: alice 100000 65536"), Some((100_000, 65536)));
        assert_eq!(parse_getsubids("Error fetching ranges"), None);
    }
}
