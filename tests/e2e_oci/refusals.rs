//! What `coracle-oci` refuses, and what is left when it is interrupted.

use serde_json::{Value, json};

use super::{Oci, unique};
use crate::env::{Outcome, TestEnv};

#[test]
fn c19_ids_and_the_race_for_one() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let long = "a".repeat(256);
    for bad in ["../x", "", ".", "..", "a/b", "é", "a b", ".x", &long] {
        oci.with_bundle(&["create", bad]).outcome().refused(1).says("invalid container id");
        oci.run(&["delete", "--force", bad]).outcome().refused(1);
    }
    let id = &unique("race");
    let log = |number: usize| env.path(format!("log{number}"));
    let attempt = |number: usize| {
        let log = format!("--log={}", log(number).display());
        let null = || fs_err::OpenOptions::new().write(true).open("/dev/null").unwrap().into_file();
        let bundle = oci.bundle.to_str().unwrap();
        oci.run(&[&log, "create", "--bundle", bundle, id]).stdout_to(null()).stderr_to(null()).spawn()
    };
    let tries: Vec<_> = (0..6).map(attempt).collect();
    let outcomes: Vec<Outcome> = tries.into_iter().map(crate::env::command::Running::wait).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.code == 0).count(), 1);
    for (number, _) in outcomes.iter().enumerate().filter(|(_, outcome)| outcome.code != 0) {
        let text = fs_err::read_to_string(log(number)).unwrap();
        assert!(text.contains("already exists"), "{text}");
    }
    assert_eq!(oci.state(id)["status"], "created", "the losers leave the winner's container alone");
    oci.run(&["delete", id]).ok();
}

#[test]
fn c22_configurations_are_bounded_and_of_our_version() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    let good = fs_err::read_to_string(oci.config()).unwrap();
    let id = &unique("config");
    let refused = |what: &str| {
        oci.with_bundle(&["run", id]).outcome().refused(1).says(what);
        oci.run(&["state", id]).outcome().refused(1).says("does not exist");
    };
    for version in ["0.9.0", "99.0.0", ""] {
        oci.change(|config| config["ociVersion"] = json!(version));
        refused("ociVersion");
    }
    fs_err::write(oci.config(), format!("{good} x")).unwrap();
    refused("not a valid configuration");
    fs_err::File::create(oci.config()).unwrap().set_len(1 << 30).unwrap();
    refused("larger than");
    fs_err::remove_file(oci.config()).unwrap();
    refused("config.json: no such file or directory");
    for (name, edit) in [
        ("linux.intelRdt", json!({ "linux": { "intelRdt": { "closID": "x" } } })),
        ("linux.netDevices", json!({ "linux": { "netDevices": { "eth0": {} } } })),
        ("memory.limit", json!({ "linux": { "resources": { "memory": { "limit": 1 << 26 } } } })),
        ("process.scheduler", json!({ "process": { "scheduler": { "policy": "SCHED_ISO" } } })),
        ("SCMP_ACT_NOTIFY", json!({ "linux": { "seccomp": { "defaultAction": "SCMP_ACT_NOTIFY" } } })),
    ] {
        fs_err::write(oci.config(), &good).unwrap();
        oci.change(|config| merge(config, &edit));
        refused(name);
    }
    fs_err::write(oci.config(), &good).unwrap();
    oci.change(|config| {
        config["future"] = json!({ "unknown": true });
        config["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_FOO"]);
        config["process"]["capabilities"]["effective"] = json!([]);
        config["process"]["capabilities"]["permitted"] = json!([]);
    });
    let log = env.path("log");
    let flags = ["--log", log.to_str().unwrap(), "--log-format", "json"];
    oci.run(&flags).args(&["run", "--bundle", oci.bundle.to_str().unwrap(), id]).ok();
    let line: Value = serde_json::from_str(fs_err::read_to_string(&log).unwrap().lines().next().unwrap()).unwrap();
    assert_eq!(line["level"], "warning", "C09: {line}");
}

pub(super) fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

#[test]
fn oci_log_has_runcs_form() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    let log = env.path("log");
    let log = log.to_str().unwrap();
    oci.run(&["--log", log, "--log-format", "json", "state", "nobody"]).outcome().refused(1);
    oci.run(&["--log", log, "state", "nobody"]).outcome().refused(1);
    let text = fs_err::read_to_string(log).unwrap();
    let (first, second) = text.trim_end().split_once('\n').unwrap();
    let first: Value = serde_json::from_str(first).unwrap();
    assert_eq!((&first["level"], &first["msg"]), (&json!("error"), &json!("container nobody does not exist")));
    assert!(first["time"].as_str().unwrap().ends_with('Z'));
    assert!(second.contains("level=error msg=\"container nobody does not exist\""), "{second}");
    oci.run(&["--log", "/nonexistent/log", "list"]).outcome().refused(1);
}

#[test]
fn oci_what_is_missing_is_refused_by_name() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    for (args, text) in [
        (vec!["checkpoint", "x"], "error: command checkpoint is not implemented"),
        (vec!["run", "--criu", "x"], "error: flag --criu is not implemented"),
        (vec!["kill"], "error: argument <ID> is missing"),
        (vec!["kill", "nobody", "SIGFOO"], "error: invalid signal \"SIGFOO\""),
    ] {
        oci.run(&args).outcome().error(1, text);
    }
    assert!(oci.run(&["--version"]).ok().starts_with("coracle-oci version "));
    let features: Value = serde_json::from_str(&oci.run(&["features"]).ok()).unwrap();
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    oci.run(&["spec", "--bundle", oci.bundle.to_str().unwrap()]).outcome().refused(1).says("already exists");
}

#[test]
fn f15_a_state_of_another_boot_is_stopped() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let id = &unique("boot");
    oci.quiet(&["create", id]).ok();
    oci.run(&["start", id]).ok();
    let file = oci.state_root().join(id).join("status");
    let whole = fs_err::read_to_string(&file).unwrap();
    let mut state: Value = serde_json::from_str(&whole).unwrap();
    state["init"]["bootId"] = json!("00000000-0000-0000-0000-000000000000");
    fs_err::write(&file, state.to_string()).unwrap();
    assert_eq!(oci.state(id)["status"], "stopped");
    oci.run(&["kill", id, "KILL"]).outcome().refused(1);
    fs_err::write(&file, whole).unwrap();
    assert_eq!(oci.state(id)["status"], "running", "nothing was signalled");
    oci.run(&["delete", "--force", id]).ok();
    oci.change(|config| config["process"]["args"] = json!(["true"]));
    oci.with_bundle(&["run", "--keep", id]).ok();
    fs_err::write(&file, "{").unwrap();
    oci.run(&["delete", id]).outcome().refused(1);
    assert_eq!(oci.run(&["list", "-f", "json"]).ok(), "[]", "the others are still listed");
    oci.run(&["delete", "--force", id]).ok();
    oci.is_empty();
}

#[test]
fn o4_a_killed_create_leaves_an_id_that_can_be_deleted() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let id = &unique("killed");
    for delay_us in [0, 500, 1000, 2000, 3000, 5000, 8000, 12000] {
        let running = oci.quiet(&["create", id]).spawn();
        std::thread::sleep(std::time::Duration::from_micros(delay_us));
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.pid()), nix::sys::signal::Signal::SIGKILL);
        drop(running);
        oci.run(&["delete", "--force", id]).ok();
        oci.run(&["state", id]).outcome().refused(1).says("does not exist");
    }
    oci.quiet(&["run", "--detach", id]).ok();
    oci.run(&["delete", "--force", id]).ok();
}
