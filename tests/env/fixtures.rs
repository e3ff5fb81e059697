//! What tests/setup made on this host: the binary under test, images, keys. Says SKIP where it is missing.
#![expect(clippy::disallowed_methods, reason = "the one place of the tests that reads the environment")]

use std::path::{Path, PathBuf};

/// Says whether the issue's own numbers are wanted: minutes instead of seconds.
pub fn is_full() -> bool {
    std::env::var("CORACLE_TEST_FULL").is_ok_and(|value| value == "1")
}

/// Gives the seed of random tests that a person wants repeated.
pub fn given_seed() -> Option<u64> {
    std::env::var("CORACLE_TEST_SEED").ok()?.parse().ok()
}

/// Gives the binary under test: the copy that an ordinary user may read, else cargo's own.
pub fn coracle() -> PathBuf {
    std::env::var_os("CORACLE_TEST_BIN").map_or_else(|| env!("CARGO_BIN_EXE_coracle").into(), PathBuf::from)
}

/// Gives the directory that tests/setup/images built, if it did.
pub fn images() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CORACLE_TEST_IMAGES").filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let cache = std::env::var_os("CORACLE_TEST_CACHE").unwrap_or_else(|| "/var/cache/coracle-test".into());
    let entries = fs_err::read_dir(PathBuf::from(cache)).ok()?;
    let built = entries.flatten().filter_map(|entry| {
        let time = fs_err::metadata(entry.path().join("complete")).ok()?.modified().ok()?;
        Some((time, entry.path()))
    });
    built.max().map(|(_, path)| path)
}

/// Finds a program in the usual places.
pub fn find_program(name: &str) -> Option<PathBuf> {
    SEARCH_PATH.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

/// The search path of everything that a test starts.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Says that the test cannot run here, and why; panics where nothing may be skipped.
pub fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    println!("SKIP {test}: {reason}");
    let require = std::env::var("CORACLE_TEST_REQUIRE").unwrap_or_default();
    assert_ne!(require, "all", "{test} may not be skipped: {reason}");
}

/// Says that another user's run of the same test shows it, and why this one cannot.
pub fn elsewhere(reason: &str) {
    println!("ELSEWHERE {}: {reason}", std::thread::current().name().unwrap_or("?"));
}

/// Names the first thing of the set-up that is missing.
pub fn missing(programs: &[&str]) -> Option<String> {
    if images().is_none() {
        return Some("no test images; as root: make test".to_owned());
    }
    programs.iter().find(|name| find_program(name).is_none()).map(|name| format!("{name} is not installed"))
}

/// Returns from the test with a SKIP line when the images or one of the programs are missing.
#[macro_export]
macro_rules! require {
    ($($program:expr),* $(,)?) => {
        if let Some(reason) = $crate::env::fixtures::missing(&["docker-registry", $($program),*]) {
            $crate::env::fixtures::skip(&reason);
            return;
        }
    };
}
