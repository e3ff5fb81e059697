//! Facts that the owner's own programs tell: the executables of `facts.d`, run again and again, each bounded.
//!
//! A program prints a JSON object, or lines `name=value`; `ttl_s` among them says for how many seconds the others may be
//! believed. A program that is bad is named in the fact `facts_bad` and by `provider status`, and disturbs no other.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_scheduler::model::{FactReport, FactValue};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::engine::{container, containers};

const FOLDER: &str = "facts.d";
const BAD: &str = "facts.bad.json";
/// How often each program runs.
const EVERY: Duration = Duration::from_secs(30);
/// A program that takes longer hangs.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Three runs may be missed until its facts are no longer believed.
const TTL: Duration = Duration::from_secs(90);
/// No program may ask to be believed for longer than a day.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Bytes that a program may print.
const OUTPUT_BYTES_MAX: usize = 16 << 10;
/// Programs; the scheduler takes 256 facts in all.
const PROGRAMS_MAX: usize = 32;
/// Facts of one program.
const FACTS_MAX: usize = 32;
/// Bytes of a name, and of a word, that the scheduler takes.
const NAME_BYTES_MAX: usize = 64;
const WORD_BYTES_MAX: usize = 256;

struct Running {
    child: Child,
    output: ChildStdout,
    said: Vec<u8>,
    begun: Instant,
}

struct Told {
    facts: BTreeMap<String, FactValue>,
    at: Instant,
    ttl: Duration,
}

/// Runs the programs.
pub struct Extras {
    folder: PathBuf,
    looked: Option<Instant>,
    running: BTreeMap<String, Running>,
    told: BTreeMap<String, Told>,
    bad: BTreeMap<String, String>,
}

impl Drop for Extras {
    fn drop(&mut self) {
        self.running.values_mut().for_each(end);
    }
}

/// Ends a program with all that it has started.
fn end(running: &mut Running) {
    if let Some(pid) = i32::try_from(running.child.id()).ok().and_then(Pid::from_raw) {
        // It leads a group of its own and is not reaped yet, so the number is its own.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = running.child.wait();
}

impl Extras {
    /// Begins with nothing told.
    pub fn new(folder: &Path) -> Self {
        let (running, told, bad) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { folder: folder.to_owned(), looked: None, running, told, bad }
    }

    /// Starts what is due and takes in what has ended; waits for nothing.
    pub fn step(&mut self) {
        let before = self.bad.clone();
        if self.looked.is_none_or(|at| at.elapsed() >= EVERY) {
            self.looked = Some(Instant::now());
            self.begin();
        }
        let names: Vec<String> = self.running.keys().cloned().collect();
        names.iter().for_each(|name| self.look(name));
        if before != self.bad {
            // Only shown to the owner, who loses nothing when the disk is full.
            let _ = container::publish_json(&self.folder, BAD, &self.bad, false);
        }
    }

    fn begin(&mut self) {
        let mut found: Vec<PathBuf> = match fs_err::read_dir(self.folder.join(FOLDER)) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(_) => Vec::new(),
        };
        found.sort();
        let name_of = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let names: Vec<String> = found.iter().map(name_of).collect();
        self.told.retain(|name, _| names.contains(name));
        self.bad.retain(|name, _| names.contains(name));
        for (place, (path, name)) in found.iter().zip(names).enumerate() {
            if self.running.contains_key(&name) {
                continue;
            }
            let begun = if place < PROGRAMS_MAX { start(path) } else { Err(format!("more than {PROGRAMS_MAX}")) };
            match begun {
                Ok(running) => drop(self.running.insert(name, running)),
                Err(reason) => drop(self.bad.insert(name, reason)),
            }
        }
    }

    fn look(&mut self, name: &str) {
        let Some(running) = self.running.get_mut(name) else { return };
        let mut chunk = [0; 4096];
        while running.said.len() <= OUTPUT_BYTES_MAX {
            match running.output.read(&mut chunk) {
                Ok(count @ 1..) => running.said.extend_from_slice(&chunk[..count]),
                _ => break,
            }
        }
        let outcome = match running.child.try_wait() {
            _ if running.said.len() > OUTPUT_BYTES_MAX => Err(format!("it says more than {OUTPUT_BYTES_MAX} bytes")),
            Ok(None) if running.begun.elapsed() < TIME_MAX => return,
            Ok(None) => Err(format!("it takes more than {} seconds", TIME_MAX.as_secs())),
            Ok(Some(status)) if status.success() => read(&running.said),
            Ok(Some(status)) => Err(status.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Some(mut running) = self.running.remove(name) {
            end(&mut running);
        }
        match outcome {
            Ok((facts, ttl)) => {
                self.bad.remove(name);
                self.told.insert(name.to_owned(), Told { facts, at: Instant::now(), ttl });
            }
            Err(reason) => drop(self.bad.insert(name.to_owned(), reason)),
        }
    }

    /// Adds what was told; what coracle itself measures cannot be told otherwise.
    pub fn add_to(&self, facts: &mut BTreeMap<String, FactReport>) {
        for told in self.told.values().filter(|told| told.at.elapsed() < told.ttl) {
            let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            for (name, value) in &told.facts {
                let report =
                    FactReport { value: value.clone(), age_ms: ms(told.at.elapsed()), ttl_ms: Some(ms(told.ttl)) };
                facts.entry(name.clone()).or_insert(report);
            }
        }
        let bad = FactValue::Set(self.bad.keys().map(|name| name.chars().take(NAME_BYTES_MAX).collect()).collect());
        facts.insert("facts_bad".to_owned(), FactReport { value: bad, age_ms: 0, ttl_ms: None });
    }
}

/// Lists the bad programs and why, as the agent last saw them.
pub fn bad(folder: &Path) -> BTreeMap<String, String> {
    containers::read_json(&folder.join(BAD)).unwrap_or_default()
}

fn start(path: &Path) -> Result<Running, String> {
    let stat = fs_err::metadata(path).map_err(|error| error.to_string())?;
    let own = [0, rustix::process::geteuid().as_raw()].contains(&stat.uid());
    if !stat.is_file() || stat.mode() & 0o111 == 0 {
        return Err("it is no executable file".to_owned());
    }
    if !own || stat.mode() & 0o022 != 0 {
        return Err("others may change it".to_owned());
    }
    let mut command = Command::new(path);
    command.process_group(0).stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let output = child.stdout.take().ok_or("it has no output")?;
    rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK).map_err(|error| error.to_string())?;
    Ok(Running { child, output, said: Vec::new(), begun: Instant::now() })
}

fn read(said: &[u8]) -> Result<(BTreeMap<String, FactValue>, Duration), String> {
    let text = std::str::from_utf8(said).map_err(|_| "it says what is no text".to_owned())?;
    let mut words: BTreeMap<String, Value> = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let pair = |line: &str| {
            let (name, value) = line.split_once('=').ok_or_else(|| format!("{line:?} is not name=value"))?;
            let value = value.trim();
            let plain =
                serde_json::from_str::<Value>(value).ok().filter(|value| value.is_number() || value.is_boolean());
            Ok((name.trim().to_owned(), plain.unwrap_or_else(|| Value::from(value))))
        };
        lines.map(pair).collect::<Result<_, String>>()?
    };
    let ttl = match words.remove("ttl_s") {
        None => TTL,
        Some(ttl) => Duration::from_secs(ttl.as_u64().ok_or("ttl_s is no number of seconds")?).min(TTL_MAX),
    };
    if words.len() > FACTS_MAX {
        return Err(format!("it tells more than {FACTS_MAX} facts"));
    }
    let facts = words.into_iter().map(|(name, value)| fact(name, value)).collect::<Result<_, _>>()?;
    Ok((facts, ttl))
}

fn fact(name: String, value: Value) -> Result<(String, FactValue), String> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte));
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !plain {
        return Err(format!("{name:?} is no name of a fact: a-z, 0-9 and ._-"));
    }
    let word = |text: &str| {
        let good = text.len() <= WORD_BYTES_MAX && !text.chars().any(char::is_control);
        good.then(|| text.to_owned()).ok_or_else(|| format!("{name} is too long or has control characters"))
    };
    let value = match &value {
        Value::Bool(value) => FactValue::Bool(*value),
        Value::Number(number) => FactValue::Number(number.as_f64().unwrap_or(0.0)),
        Value::String(text) => FactValue::Text(word(text)?),
        Value::Array(list) if list.len() <= FACTS_MAX => {
            FactValue::Set(list.iter().map(|one| word(one.as_str().unwrap_or_default())).collect::<Result<_, _>>()?)
        }
        _ => return Err(format!("{name} is neither a number, a word, a list of words nor true or false")),
    };
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_say() {
        let (facts, ttl) = read(b"# a comment\nrack=7b\nspare = 3\nttl_s=5\n").unwrap();
        assert_eq!(
            (facts["rack"].clone(), facts["spare"].clone()),
            (FactValue::Text("7b".into()), FactValue::Number(3.0))
        );
        assert_eq!(ttl, Duration::from_secs(5));
        let (facts, ttl) = read(br#"{"n": 1.5, "b": true, "s": ["x", "y"]}"#).unwrap();
        assert_eq!(facts["s"], FactValue::Set(vec!["x".into(), "y".into()]));
        assert_eq!((facts["n"].clone(), facts["b"].clone()), (FactValue::Number(1.5), FactValue::Bool(true)));
        assert_eq!(ttl, TTL);
        for bad in ["{", "nonsense", "A=1", "a=\u{7}", r#"{"a": {}}"#, r#"{"a": null}"#, "ttl_s=x"] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
