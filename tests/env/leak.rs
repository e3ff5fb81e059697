//! O2: after the test there is no process, mount or file that was not there before.
//!
//! This process is the subreaper of everything it starts, so whatever is left is its descendant,
//! also a helper that put itself into the background.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::poll;

/// Processes that are on their way out get this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Directories in which a careless program leaves something.
const SHARED_DIRS: [&str; 3] = ["/tmp", "/dev/shm", "/var/tmp"];
/// Other tests and the suite make these at the same time.
const NOT_OURS: [&str; 3] = ["coracle-test-", "coracle-stage.", "coracle-openapi."];

/// What there was before the test.
pub struct Before {
    files: BTreeSet<PathBuf>,
}

impl Before {
    /// Looks at the shared directories.
    pub fn look() -> Self {
        Self { files: shared_files() }
    }

    /// Lists what is left; empty is good.
    pub fn leaks(&self, place: &Path, containers_may_stay: bool) -> Vec<String> {
        let mut leaks = Vec::new();
        if !poll(PATIENCE, || descendants().is_empty()) {
            leaks.extend(descendants().iter().map(|process| format!("process {process}")));
        }
        let mounts = fs_err::read_to_string("/proc/self/mountinfo").unwrap();
        let inside = format!("{}/", place.display());
        leaks.extend(mounts.lines().filter(|line| line.contains(&inside)).map(|line| format!("mount {line}")));
        let new = shared_files();
        let ours = new.difference(&self.files).filter(|path| !is_anothers_secret(path, place));
        leaks.extend(ours.map(|path| format!("file {}", path.display())));
        // What a failed pull leaves in images/partial is no leak: the next one resumes there.
        let mut empty = vec![("tmp", true), ("run/coracle", false)];
        if !containers_may_stay {
            empty.push(("root/containers", false));
        }
        for (dir, hidden_too) in empty {
            leaks.extend(left_in(&place.join(dir), hidden_too));
        }
        leaks
    }
}

/// Tells whether this is where a machine of another test keeps secrets: the name ends with the machine's directory.
fn is_anothers_secret(path: &Path, place: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let below = |dir: &Path| fs_err::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let of = |dir: PathBuf| {
        let found = fs_err::metadata(dir).map(|stat| format!("-{:x}-{:x}", stat.dev(), stat.ino()));
        found.is_ok_and(|end| name.ends_with(&end))
    };
    let own = below(place).chain(below(&place.join("root")));
    name.starts_with("coracle-secrets-") && !own.into_iter().any(of)
}

/// Lists files in a directory that should be empty; lock files that somebody may hold next do not count.
fn left_in(dir: &Path, hidden_too: bool) -> Vec<String> {
    let Ok(entries) = fs_err::read_dir(dir) else {
        return Vec::new();
    };
    let mut left = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !hidden_too && (name.ends_with(".lock") || name == "lock" || name == "locks") {
            continue;
        }
        left.push(format!("file {}", entry.path().display()));
    }
    left
}

/// Lists what this user owns at the top of the shared directories.
fn shared_files() -> BTreeSet<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let uid = nix::unistd::getuid().as_raw();
    let mut found = BTreeSet::new();
    for dir in SHARED_DIRS {
        let Ok(entries) = fs_err::read_dir(dir) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let mine = entry.metadata().is_ok_and(|metadata| metadata.uid() == uid);
            // Other programs of this user work in /tmp at the same time; what coracle leaves has its name.
            if mine && name.contains("coracle") && !NOT_OURS.iter().any(|prefix| name.starts_with(prefix)) {
                found.insert(entry.path());
            }
        }
    }
    found
}

/// One process below this one.
#[derive(Clone, Debug)]
struct Process {
    pid: i32,
    parent: i32,
    zombie: bool,
    name: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cmdline = fs_err::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        write!(f, "{} ({}): {cmdline}", self.pid, self.name)
    }
}

/// Lists living descendants, reaping dead children on the way.
fn descendants() -> Vec<Process> {
    let all = processes();
    let mut family = BTreeSet::from([std::process::id().cast_signed()]);
    loop {
        let before = family.len();
        family.extend(
            all.iter()
                .filter(|process| family.contains(&process.parent))
                .map(|process| process.pid)
                .collect::<Vec<_>>(),
        );
        if family.len() == before {
            break;
        }
    }
    let mut living = Vec::new();
    for process in all {
        if process.pid == std::process::id().cast_signed() || !family.contains(&process.pid) {
            continue;
        }
        if process.zombie {
            let _ = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
        } else {
            living.push(process);
        }
    }
    living
}

fn processes() -> Vec<Process> {
    let mut all = Vec::new();
    for entry in fs_err::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let Ok(stat) = fs_err::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else {
            continue;
        };
        let mut fields = stat[close + 1..].split_whitespace();
        let (Some(state), Some(parent)) = (fields.next(), fields.next()) else {
            continue;
        };
        all.push(Process {
            pid,
            parent: parent.parse().unwrap_or(0),
            zombie: state == "Z" || state == "X",
            name: stat[open + 1..close].to_owned(),
        });
    }
    all
}

/// Lists the process ids below a process, itself not included.
pub fn below(pid: i32) -> Vec<i32> {
    let all = processes();
    let mut family = vec![pid];
    let mut next = 0;
    while next < family.len() {
        let parent = family[next];
        family.extend(all.iter().filter(|process| process.parent == parent).map(|process| process.pid));
        next += 1;
    }
    family.split_off(1)
}

/// Ends everything that this process started, for a test that failed.
pub fn kill_descendants() {
    poll(PATIENCE, || {
        let left = descendants();
        for process in &left {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        left.is_empty()
    });
}

/// Removes a tree in which files belong to subordinate ids and directories may have mode 0.
pub fn remove_tree(path: &Path) {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]);
    if super::who() == super::Who::Ranges {
        command.arg("--map-auto");
    }
    let script = r#"chmod -R u+rwX -- "$1" 2>/dev/null; rm -rf -- "$1""#;
    let mut command = if super::who() == super::Who::Root { Command::new("env") } else { command };
    let _ = command
        .env("PATH", super::fixtures::SEARCH_PATH)
        .args(["sh", "-c", script, "sh"])
        .arg(path)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
}
