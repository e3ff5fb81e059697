//! `coracle info`: what this host offers and what is missing.

use serde_json::Value;

use crate::env::{TestEnv, Who, fixtures};
use crate::require;

#[test]
fn info_knows_the_host() {
    let env = TestEnv::new();
    let info: Value = serde_json::from_str(&env.coracle(&["info", "--format", "json"]).ok()).unwrap();
    let text = info.to_string();
    let kernel = fs_err::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(text.contains(kernel.trim()), "{info}");
    assert!(text.contains(&env.root().display().to_string()), "{info}");
    let table = env.coracle(&["info"]).ok().to_lowercase();
    for word in ["kernel", "overlay", "cgroup", "pasta", "ids"] {
        assert!(table.contains(word), "info does not speak of {word}:\n{table}");
    }
}

#[test]
fn info_says_what_is_missing_and_how_to_mend_it() {
    require!();
    let env = TestEnv::new();
    let outcome = env.coracle(&["info"]).env("PATH", "/nonexistent").outcome();
    let text = outcome.ok();
    assert!(text.contains("apt install passt"), "{text}");
    match env.who() {
        Who::Ranges => assert!(text.contains("apt install uidmap"), "{text}"),
        Who::Single => assert!(text.contains("usermod --add-subuids") || text.contains("subuid"), "{text}"),
        Who::Root => {}
    }
}

#[test]
fn the_binary_runs_from_anywhere_by_any_way() {
    require!();
    let env = TestEnv::new();
    let copy = env.path("some where/coracle copy");
    fs_err::create_dir_all(copy.parent().unwrap()).unwrap();
    fs_err::copy(fixtures::coracle(), &copy).unwrap();
    crate::env::set_mode(&copy, 0o755);
    let run = env.program(&copy.display().to_string()).args(&[
        "run",
        "--rm",
        "--network",
        "none",
        &env.image("busybox"),
        "echo",
        "here",
    ]);
    assert_eq!(run.ok(), "here");
}

#[test]
fn a_root_directory_by_flag_wins_over_the_variable() {
    require!();
    let env = TestEnv::new();
    let other = env.path("other root");
    env.coracle(&["--root", &other.display().to_string(), "pull", &env.image("busybox")]).ok();
    assert!(other.join("images/oci-layout").exists());
    assert_eq!(env.coracle(&["images", "-q"]).ok(), "");
    crate::env::leak::remove_tree(&other);
}
