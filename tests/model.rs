//! Several processes do random things to the same containers at once; what each answers and what is
//! left agrees with a small state machine (F25), and many containers at once are no different from one.

use std::sync::{Barrier, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::env::{TestEnv, fixtures, wait_until};
use crate::life::status;
use crate::require;

/// Rounds of the sequential part and steps of each thread of the parallel one.
const STEPS: usize = 60;
const THREADS: usize = 3;
/// The numbers are 1,000, 50 and 250; CORACLE_TEST_FULL=1 takes them.
const CROWD: usize = 60;
const CROWD_AT_ONCE: usize = 10;
const SLEEPERS: usize = 20;

/// A small generator, so that a failure can be repeated from the printed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound).unwrap()).unwrap()
    }
}

fn seed() -> u64 {
    let given = fixtures::given_seed();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = given.unwrap_or_else(|| u64::from(now) | 1);
    println!("CORACLE_TEST_SEED={seed}");
    seed
}

/// What a container is by the rules alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    Absent,
    Created,
    Running,
    Exited,
}

impl Model {
    /// Gives whether a command works and what the container is then.
    fn step(self, command: &str) -> (bool, Self) {
        match (command, self) {
            ("create", Self::Absent) => (true, Self::Created),
            ("create", _) => (false, self),
            ("rm -f", _) => (true, Self::Absent),
            (_, Self::Absent) => (false, self),
            ("start", _) => (true, Self::Running),
            ("stop", Self::Running) => (true, Self::Exited),
            ("stop", _) => (true, self),
            ("kill", Self::Running) => (true, Self::Exited),
            ("exec", Self::Running) => (true, self),
            ("kill" | "exec", _) => (false, self),
            ("rm", Self::Running) => (false, self),
            ("rm", _) => (true, Self::Absent),
            ("rename", _) => (true, self),
            ("restart", _) => (true, Self::Running),
            _ => unreachable!("{command}"),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Absent => "",
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
        }
    }
}

const COMMANDS: [&str; 9] = ["create", "start", "stop", "kill", "exec", "rm", "rm -f", "rename", "restart"];

/// Does one thing to the container that is called `name`; says whether it worked.
fn act(env: &TestEnv, image: &str, command: &str, name: &str) -> bool {
    let run = match command {
        "create" => env.coracle(&["create", "--network", "none", "--name", name, image, "sleep", "1000"]),
        "stop" => env.coracle(&["stop", "-t", "0", name]),
        "exec" => env.coracle(&["exec", name, "true"]),
        "restart" => env.coracle(&["restart", "-t", "0", name]),
        "rm -f" => env.coracle(&["rm", "-f", name]),
        "rename" => {
            let other = format!("{name}-other");
            let renamed = env.coracle(&["rename", name, &other]).outcome();
            if renamed.code != 0 {
                return false;
            }
            env.coracle(&["rename", &other, name])
        }
        command => env.coracle(&[command, name]),
    };
    let outcome = run.outcome();
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    outcome.code == 0
}

#[test]
fn one_after_the_other_agrees_with_the_model() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let mut random = Random(seed());
    // Names that no id begins with.
    let mut models = [("one", Model::Absent), ("two", Model::Absent)];
    let mut history = Vec::new();
    for _ in 0..STEPS {
        let (name, model) = &mut models[random.below(2)];
        let command = COMMANDS[random.below(COMMANDS.len())];
        history.push(format!("{command} {name}"));
        let (works, next) = model.step(command);
        assert_eq!(act(&env, &image, command, name), works, "{model:?}, {history:?}");
        *model = next;
        assert_eq!(status(&env, name), next.word(), "{history:?}");
    }
    env.coracle(&["rm", "-f", "one", "two"]).ok();
}

#[test]
fn f25_several_at_once_end_in_a_state_that_the_model_has() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let seed = seed();
    let commands: Vec<Vec<&str>> = (0..THREADS)
        .map(|thread| {
            let mut random = Random(seed.wrapping_add(u64::try_from(thread).unwrap() * 7919) | 1);
            (0..STEPS / 4).map(|_| COMMANDS[random.below(COMMANDS.len() - 2)]).collect()
        })
        .collect();
    // Lines are prepared here and run there: a command line needs nothing of this process.
    let lines = Mutex::new(Vec::new());
    let start = Barrier::new(THREADS);
    let place = (env.root(), env.home());
    std::thread::scope(|scope| {
        for own in &commands {
            let (image, lines, start, place) = (&image, &lines, &start, &place);
            scope.spawn(move || {
                start.wait();
                for command in own {
                    let line: Vec<&str> = match *command {
                        "create" => vec!["create", "--network", "none", "--name", "x", image, "sleep", "1000"],
                        "stop" => vec!["stop", "-t", "0", "x"],
                        "exec" => vec!["exec", "x", "true"],
                        "rm -f" => vec!["rm", "-f", "x"],
                        command => vec![command, "x"],
                    };
                    let done = std::process::Command::new(fixtures::coracle())
                        .args(&line)
                        .env_clear()
                        .env("CORACLE_ROOT", &place.0)
                        .env("HOME", &place.1)
                        .env("PATH", fixtures::SEARCH_PATH)
                        .stdin(std::process::Stdio::null())
                        .output()
                        .unwrap();
                    let said = String::from_utf8_lossy(&done.stderr).into_owned();
                    lines.lock().unwrap().push((command.to_string(), done.status.code(), said));
                }
            });
        }
    });
    let lines = lines.into_inner().unwrap();
    for (command, code, said) in &lines {
        // What `exec` runs may be killed with the container by another thread.
        let is_killed = command == "exec" && *code == Some(128 + nix::sys::signal::Signal::SIGKILL as i32);
        assert!(code.is_some_and(|code| code < 128) || is_killed, "{command}: {code:?}, {said}");
        assert!(!said.contains("panicked"), "{command}: {said}");
    }
    // At rest again, the model holds for the one that is left.
    let word = status(&env, "x");
    let model = [Model::Absent, Model::Created, Model::Running, Model::Exited].into_iter().find(|m| m.word() == word);
    let model = model.unwrap_or_else(|| panic!("{word}: {lines:?}"));
    assert_eq!(act(&env, &image, "exec", "x"), model == Model::Running, "{lines:?}");
    env.coracle(&["rm", "-f", "x"]).ok();
    assert_eq!(env.coracle(&["ps", "-aq"]).ok(), "", "{lines:?}");
}

#[test]
fn a_crowd_is_created_run_logged_and_removed() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let (crowd, at_once) = if fixtures::is_full() { (1000, 50) } else { (CROWD, CROWD_AT_ONCE) };
    for first in (0..crowd).step_by(at_once) {
        let numbers = first..(first + at_once).min(crowd);
        let name = |number: usize| format!("n{number}");
        let runs: Vec<_> = numbers
            .clone()
            .map(|number| {
                let script = format!("echo line {number}; exit {}", number % 100);
                let run = env.coracle(&["run", "-d", "--network", "none", "--name"]).args(&[name(number)]);
                run.args(&[&image, "sh", "-c", &script]).spawn()
            })
            .collect();
        for run in runs {
            run.wait().ok();
        }
        let names: Vec<String> = numbers.clone().map(name).collect();
        let codes = env.coracle(&["wait"]).args(&names).ok();
        let expected: Vec<String> = numbers.clone().map(|number| (number % 100).to_string()).collect();
        assert_eq!(codes.lines().collect::<Vec<_>>(), expected);
        for number in numbers.clone() {
            assert_eq!(env.coracle(&["logs", &name(number)]).ok(), format!("line {number}"));
        }
        env.coracle(&["rm"]).args(&names).ok();
    }
    assert_eq!(env.coracle(&["ps", "-aq"]).ok(), "");
}

#[test]
fn f38_many_sleep_at_once() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let count = if fixtures::is_full() { 250 } else { SLEEPERS };
    for number in 0..count {
        let run = env.coracle(&["run", "-d", "--network", "none", "--name"]).args(&[format!("s{number}")]);
        run.args(&[&image, "sleep", "1000"]).ok();
    }
    let listed = || env.coracle(&["ps", "-q"]).ok().lines().count();
    assert_eq!(listed(), count);
    let names: Vec<String> = (0..count).map(|number| format!("s{number}")).collect();
    let ids = env.coracle(&["ps", "-q", "--no-trunc"]).ok();
    let shims: Vec<i32> = ids.lines().map(|id| crate::life::pid(&env, id, "watcher")).collect();
    wait_until("the shims to give memory back", || {
        shims.iter().all(|shim| crate::attached::private_kib(*shim) < crate::attached::SHIM_KIB_MAX)
    });
    env.coracle(&["kill"]).args(&names).time_limit(300).ok();
    assert_eq!(listed(), 0);
    env.coracle(&["rm"]).args(&names).time_limit(300).ok();
    assert_eq!(env.coracle(&["ps", "-aq"]).ok(), "");
}
