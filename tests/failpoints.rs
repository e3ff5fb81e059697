//! Every failpoint of a container's life, killed, failed and delayed: what is left is always something
//! that the next command can use or remove (F01, section 4 of the fault list).

use std::collections::BTreeSet;

use crate::env::{Outcome, TestEnv, poll, wait_until};
use crate::life::{lives, status};
use crate::require;

/// What happens at a failpoint.
const ACTIONS: [&str; 3] = ["abort", "error", "delay"];
/// Those that a `run` can meet; the others are met by `stop` and `rm`.
const OF_STOP_AND_RM: [&str; 3] = ["stop_term_sent", "rootfs_removed", "state_removed"];

fn names(env: &TestEnv) -> Vec<String> {
    env.coracle(&["--list-failpoints"]).ok().lines().map(str::to_owned).collect()
}

fn state(env: &TestEnv, id: &str) -> String {
    env.coracle(&["ps", "-a", "--filter", &format!("id={id}"), "--format", "{{.State}}"]).ok()
}

/// Demands what holds after everything: nothing says running that does not, nothing runs that is not
/// listed, every name can be used again, and everything can be removed.
fn check_and_clear(env: &TestEnv, what: &str) {
    let shown = env.coracle(&["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.State}}"]).ok();
    let mut listed = BTreeSet::new();
    for line in shown.lines() {
        let (id, told) = line.split_once(' ').unwrap();
        listed.insert(id.to_owned());
        let path = env.root().join("containers").join(id).join("state.json");
        if told == "running" {
            let text: serde_json::Value = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
            let init = text["init"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
            // It may end between the two looks, but not stay like that.
            let right = || init.is_some_and(lives) || state(env, id) != "running";
            wait_until(&format!("{what}: {id} is said to run and does not"), right);
        }
    }
    for id in &listed {
        env.coracle(&["rm", "-f", id]).ok();
    }
    // Half made and half removed ones are swept by age; here they must at least be nobody's.
    let again =
        env.coracle(&["create", "--name", "again", "--network", "none", &env.image("busybox"), "true"]).outcome();
    assert_eq!(again.code, 0, "{what}: {again}");
    env.coracle(&["rm", "again"]).ok();
    assert_eq!(env.coracle(&["ps", "-aq"]).ok(), "", "{what}");
}

fn is_known(outcome: &Outcome, what: &str) {
    assert!(!outcome.stderr.contains("panicked"), "{what}: {outcome}");
}

#[test]
fn f01_every_failpoint_of_a_start_leaves_what_can_be_used() {
    require!();
    let env = TestEnv::new();
    // Drafts that were killed are swept when they are a minute old.
    env.containers_may_stay();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let all = names(&env);
    assert!(all.len() >= 26, "{all:?}");
    let mut met = BTreeSet::new();
    for name in all.iter().filter(|name| !OF_STOP_AND_RM.contains(&name.as_str())) {
        for action in ACTIONS {
            let what = format!("{name}={action}");
            let run = env.coracle(&["run", "-d", "--network", "none", "--name", "again", "--log-opt", "max-size=1k"]);
            let run = run.args(&[&image, "sh", "-c", "seq 1 200; sleep 0.05; exit 3"]);
            let outcome = run.env("CORACLE_FAILPOINT", &what).outcome();
            is_known(&outcome, &what);
            if outcome.code == 0 {
                // The shim may have met it later; then its end is written down or known to be unknown.
                wait_until(&format!("{what}: its end"), || status(&env, "again") != "running");
                let code = env.coracle(&["wait", "again"]).ok();
                assert!(["3", "137"].contains(&code.as_str()), "{what}: {code}");
                if code == "137" {
                    met.insert(name.clone());
                }
            } else {
                met.insert(name.clone());
            }
            check_and_clear(&env, &what);
        }
    }
    // Some are only on the way of others: pasta's, a cgroup's, one map's.
    assert!(met.len() >= 15, "only these had an effect: {met:?}");
}

#[test]
fn f01_every_failpoint_of_stop_and_rm_leaves_what_can_be_used() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    for name in OF_STOP_AND_RM {
        for action in ACTIONS {
            let what = format!("{name}={action}");
            let run = env.coracle(&["run", "-d", "--network", "none", "--name", "again", &image, "sleep", "1000"]);
            let id = run.ok();
            for command in [&["stop", "-t", "0", "again"][..], &["rm", "-f", "again"]] {
                let outcome = env.coracle(command).env("CORACLE_FAILPOINT", &what).outcome();
                is_known(&outcome, &what);
            }
            let gone = || !env.root().join("containers").join(&id).exists();
            poll(std::time::Duration::from_secs(2), gone);
            check_and_clear(&env, &what);
        }
    }
}

#[test]
fn f25_a_second_command_comes_while_a_step_is_slow() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    for name in ["start_received", "execed", "exit_seen"] {
        for command in [&["stop", "-t", "0", "c"][..], &["rm", "-f", "c"], &["kill", "c"], &["start", "c"]] {
            env.coracle(&["create", "--network", "none", "--name", "c", &image, "sleep", "0.1"]).ok();
            let slow = env.coracle(&["start", "c"]).env("CORACLE_FAILPOINT", format!("{name}=delay")).spawn();
            let second = env.coracle(command).outcome();
            is_known(&second, name);
            let first = slow.wait();
            is_known(&first, name);
            env.coracle(&["rm", "-f", "c"]).ok();
            assert_eq!(env.coracle(&["ps", "-aq"]).ok(), "", "{name} {command:?}");
        }
    }
}
