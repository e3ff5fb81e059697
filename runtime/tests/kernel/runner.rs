//! Runs each case as each user it is for, in a process of its own, and counts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::cases::CASES;
use crate::place::Place;

/// First argument of the process that runs one case.
pub const ONE_CASE: &str = "--coracle-one-case";
/// First argument of a process that a case needs beside itself.
pub const HELPER: &str = "--coracle-helper";
/// A launch takes milliseconds; a case that takes this long hangs.
const CASE_SECONDS_MAX: u64 = 60;

/// Whom a case is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// An ordinary user with subordinate ids.
    Alice,
    /// An ordinary user without.
    Bob,
    Root,
}

pub const ALL: &[User] = &[User::Alice, User::Bob, User::Root];
pub const ORDINARY: &[User] = &[User::Alice, User::Bob];

impl User {
    fn name(self) -> &'static str {
        match self {
            User::Alice => "alice",
            User::Bob => "bob",
            User::Root => "root",
        }
    }
}

/// One test.
pub struct Case {
    pub name: &'static str,
    pub users: &'static [User],
    pub run: fn(&Place),
}

enum Outcome {
    Passed,
    Failed(String),
}

pub fn run_all(args: &[String]) -> ExitCode {
    if args.iter().any(|arg| arg == "--list") {
        for case in CASES.iter().copied().flatten() {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let base = tempfile::Builder::new().prefix("coracle-kernel-").tempdir().expect("a directory");
    open_to_all(base.path());
    // A copy, because the build directory may be closed to the users.
    let program = base.path().join("kernel");
    fs_err::copy(std::env::current_exe().expect("own path"), &program).expect("copied");
    let (mut passed, mut failed) = (0, Vec::new());
    let skipped = skip_users();
    if !skipped.is_empty() && is_everything_required() {
        return ExitCode::FAILURE;
    }
    for case in CASES.iter().copied().flatten() {
        for user in case.users.iter().filter(|user| is_possible(**user)) {
            let name = format!("{}@{}", case.name, user.name());
            if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
                continue;
            }
            match run_apart(&program, base.path(), case, *user) {
                Outcome::Passed => passed += 1,
                Outcome::Failed(output) => {
                    println!("FAILED {name}\n{output}");
                    failed.push(name);
                }
            }
        }
    }
    println!("kernel: {passed} passed, {} users skipped, {} failed {failed:?}", skipped.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs_err::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).expect("opened");
}

/// The users that this host lacks, each said aloud. Somebody who is not root can only be one.
fn skip_users() -> Vec<User> {
    if !am_root() {
        return Vec::new();
    }
    let lacking: Vec<User> = ALL.iter().copied().filter(|user| !is_possible(*user)).collect();
    for user in &lacking {
        println!("SKIP kernel@{0}: there is no user {0}", user.name());
    }
    lacking
}

fn is_everything_required() -> bool {
    std::env::var("CORACLE_TEST_REQUIRE").is_ok_and(|value| value == "all")
}

fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// As root every user can be tried; an ordinary user is whoever it is.
fn is_possible(user: User) -> bool {
    if am_root() {
        return user == User::Root
            || fs_err::read_to_string("/etc/passwd").is_ok_and(|text| text.contains(&format!("\n{}:", user.name())));
    }
    let ranges = coracle_runtime::HostIds::probe().is_ok_and(|ids| ids.has_ranges());
    user == if ranges { User::Alice } else { User::Bob }
}

fn run_apart(program: &Path, base: &Path, case: &Case, user: User) -> Outcome {
    let place = base.join(format!("{}@{}", case.name, user.name()));
    fs_err::create_dir(&place).expect("made");
    let mut command = command_as(user, &place);
    command.arg(program).arg(ONE_CASE).arg(case.name).arg(&place);
    let log = base.join(format!("{}@{}.log", case.name, user.name()));
    let file = fs_err::File::create(&log).expect("made").into_parts().0;
    command.stdin(Stdio::null()).stdout(file.try_clone().expect("copied")).stderr(file);
    let mut child = command.spawn().expect("spawned");
    let deadline = Instant::now() + Duration::from_secs(CASE_SECONDS_MAX);
    let status = loop {
        if let Some(status) = child.try_wait().expect("waited") {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill().expect("killed");
            child.wait().expect("reaped");
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let output = String::from_utf8_lossy(&fs_err::read(&log).expect("read")).into_owned();
    match status.map(|status| status.code()) {
        Some(Some(0)) => Outcome::Passed,
        Some(code) => Outcome::Failed(format!("{output}\nexit {code:?}")),
        None => Outcome::Failed(format!("{output}\nstill running after {CASE_SECONDS_MAX} s")),
    }
}

/// A command that starts as this user, in an empty environment.
fn command_as(user: User, place: &Path) -> Command {
    if !am_root() || user == User::Root {
        let mut command = Command::new("env");
        command.arg("-i");
        return with_env(command, place);
    }
    let chown = Command::new("chown").arg(format!("{0}:{0}", user.name())).arg(place).status().expect("chown runs");
    assert!(chown.success());
    let mut command = Command::new("setpriv");
    let name = user.name();
    command.args([format!("--reuid={name}"), format!("--regid={name}"), "--init-groups".to_owned()]);
    command.args(["env", "-i"]);
    with_env(command, place)
}

fn with_env(mut command: Command, place: &Path) -> Command {
    command
        .arg(format!("HOME={}", place.display()))
        .arg("PATH=/usr/bin:/bin:/usr/sbin:/sbin")
        .arg("SECRET=host-secret");
    command
}

/// Runs one case in this process.
pub fn run_one(args: &[String]) -> ExitCode {
    let [name, dir] = args else { panic!("usage: NAME DIR") };
    let case = CASES.iter().copied().flatten().find(|case| case.name == name).expect("a known case");
    let place = Place::new(PathBuf::from(dir));
    match catch_unwind(AssertUnwindSafe(|| (case.run)(&place))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
