//! kill -9 at many random moments: the store is always usable and keeps what was whole (O4).

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use crate::env::{TestEnv, leak, poll, tree, wait_until};
use crate::require;

/// How often a pull is killed.
const KILLS: u32 = 40;

/// A small generator, so that a failure can be repeated from the printed seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Lists published blobs, each of which must be what its name says.
fn blobs(env: &TestEnv, known: &mut BTreeSet<String>) {
    let Ok(entries) = fs_err::read_dir(env.root().join("images/blobs/sha256")) else {
        return;
    };
    for entry in entries {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if known.insert(name.clone()) {
            assert_eq!(tree::sha256_file(&entry.path()), name, "a blob was published before it was whole");
        }
    }
}

#[test]
fn a_pull_that_is_killed_at_any_moment_is_completed_by_the_next() {
    require!();
    let env = TestEnv::new();
    let image = env.image("python3");
    let start = Instant::now();
    env.coracle(&["pull", &image]).ok();
    let whole_us = u64::try_from(start.elapsed().as_micros()).unwrap();
    env.coracle(&["rmi", &image]).ok();

    let seed =
        u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() & 0xffff_ffff).unwrap() | 1;
    println!("seed {seed}, a whole pull takes {whole_us} us");
    let mut random = Random(seed);
    let mut known = BTreeSet::new();
    let mut unfinished = 0;
    for _ in 0..KILLS {
        let moment = Duration::from_micros(random.next() % whole_us);
        let mut pull = env.coracle(&["pull", &image]).spawn();
        poll(moment, || false);
        let family = leak::below(pull.pid());
        unfinished += u32::from(!pull.has_ended());
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pull.pid()), Signal::SIGKILL);
        drop(pull);
        wait_until("the killed pull's children to end", || {
            family.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}/root/")).exists())
        });
        let list = env.coracle(&["images", "--format", "json"]).ok();
        blobs(&env, &mut known);
        if !list.is_empty() {
            // It got through before the kill: what is listed must run. Then from the start again.
            env.container(&["--pull", "never", &image, "python3", "-c", "import hashlib"]).ok();
            env.coracle(&["rmi", &image]).ok();
            known.clear();
        }
    }
    assert!(unfinished > KILLS / 4, "only {unfinished} pulls were really killed");

    let fetched = |digest: &str| env.registry().requests("GET", &format!("/blobs/sha256:{digest}"));
    let before: Vec<(String, usize)> = known.iter().map(|digest| (digest.clone(), fetched(digest))).collect();
    env.coracle(&["pull", &image]).ok();
    for (digest, count) in before {
        assert_eq!(fetched(&digest), count, "{digest} was whole and is fetched again");
    }
    blobs(&env, &mut known);
    env.container(&[&image, "python3", "-c", "import hashlib"]).ok();
}

#[test]
fn a_killed_pull_resumes_where_it_was() {
    require!();
    let env = TestEnv::new();
    let image = env.image("python3");
    // Kill as soon as some bytes of a layer are on disk.
    let partial = env.root().join("images/partial");
    let mut pull = env.coracle(&["pull", &image]).spawn();
    let bytes = || {
        let entries = fs_err::read_dir(&partial).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).max().unwrap_or(0)
    };
    wait_until("some bytes of a blob", || bytes() > 1 << 20 || pull.has_ended());
    let family = leak::below(pull.pid());
    pull.signal(Signal::SIGKILL);
    drop(pull);
    wait_until("its children to end", || {
        family.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}/root/")).exists())
    });
    assert!(bytes() > 0, "nothing was kept");
    env.coracle(&["pull", &image]).ok();
    let partial_answers = env.registry().log().lines().filter(|line| line.contains("http.response.status=206")).count();
    assert!(partial_answers > 0, "the download began anew instead of resuming by Range");
    env.container(&[&image, "python3", "-c", "pass"]).ok();
}

#[test]
fn a_killed_rmi_leaves_a_store_that_works() {
    require!();
    let env = TestEnv::new();
    let image = env.image("odd");
    for step in 0..12_u64 {
        env.coracle(&["pull", &image]).ok();
        let rmi = env.coracle(&["rmi", &image]).spawn();
        poll(Duration::from_micros(step * 500), || false);
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(rmi.pid()), Signal::SIGKILL);
        drop(rmi);
        env.container(&[&image, "true"]).ok();
    }
    env.coracle(&["rmi", &image]).ok();
    assert_eq!(env.coracle(&["images", "-q"]).ok(), "");
}
