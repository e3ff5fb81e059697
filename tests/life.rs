//! Containers that outlive their command: the shim, and the commands of a container's life.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::env::{TestEnv, poll, wait_until};
use crate::require;

/// Gives the directory of the only container, or of the one with this id.
pub fn directory(env: &TestEnv, id: &str) -> PathBuf {
    env.root().join("containers").join(id)
}

/// Reads a JSON file of a container.
pub fn json(env: &TestEnv, id: &str, file: &str) -> Value {
    serde_json::from_slice(&fs_err::read(directory(env, id).join(file)).unwrap()).unwrap()
}

/// Gives the number of the shim, or of the first process, of a container that runs.
pub fn pid(env: &TestEnv, id: &str, whose: &str) -> i32 {
    i32::try_from(json(env, id, "state.json")[whose]["pid"].as_i64().unwrap()).unwrap()
}

/// Says whether a process is there and not a zombie.
pub fn lives(pid: i32) -> bool {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X'])) && !stat.is_empty()
}

/// Runs `run -d` in a container without network and gives its id.
pub fn detached(env: &TestEnv, args: &[&str]) -> String {
    let id = env.coracle(&["run", "-d", "--network", "none"]).args(args).ok();
    assert_eq!(id.len(), 64, "an id: {id}");
    id
}

/// Gives `ps -a`'s word for a container.
pub fn status(env: &TestEnv, name: &str) -> String {
    env.coracle(&["ps", "-a", "--no-trunc", "--filter"])
        .args(&[&format!("name=^{name}$")])
        .args(&["--format", "{{.State}}"])
        .ok()
}

/// Gives what a container has logged, by stream.
fn logged(env: &TestEnv, id: &str) -> Vec<(String, String)> {
    let text = fs_err::read_to_string(directory(env, id).join("logs/current.json")).unwrap();
    let entry = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        (value["stream"].as_str().unwrap().to_owned(), value["log"].as_str().unwrap().to_owned())
    };
    text.lines().map(entry).collect()
}

#[test]
fn a_detached_container_runs_is_logged_stopped_started_and_removed() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let script = "echo out; echo err >&2; trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let id = detached(&env, &["--name", "web", "--label", "a=b", &image, "sh", "-c", script]);
    assert_eq!(status(&env, "web"), "running");
    wait_until("its output in the log", || logged(&env, &id).len() == 2);
    let mut log = logged(&env, &id);
    log.sort();
    assert_eq!(log, [("stderr".into(), "err\n".into()), ("stdout".into(), "out\n".into())]);
    env.coracle(&["rm", "web"]).outcome().refused(1).says("running");
    assert_eq!(env.coracle(&["exec", "web", "echo", "inside"]).ok(), "inside");
    let waiting = env.coracle(&["wait", "web"]).spawn();
    assert_eq!(env.coracle(&["stop", "web"]).ok(), "web");
    assert_eq!(waiting.wait().ok(), "7");
    assert_eq!(status(&env, "web"), "exited");
    assert_eq!(env.coracle(&["stop", "web"]).ok(), "web", "stopping what has ended is no error");
    env.coracle(&["exec", "web", "true"]).outcome().refused(1).says("is not running");
    env.coracle(&["start", "web"]).ok();
    env.coracle(&["rename", "web", "site"]).ok();
    assert_eq!(env.coracle(&["kill", "site"]).ok(), "site");
    assert_eq!(env.coracle(&["wait", &id[..10]]).ok(), "137");
    env.coracle(&["rm", "site"]).ok();
    env.coracle(&["rm", "site"]).outcome().refused(1).says("no such container");
    env.coracle(&["rm", "-f", "site"]).ok();
}

#[test]
fn create_then_start_attached_gives_output_and_exit_code() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let id = env.coracle(&["create", "-i", "--network", "none", "--cidfile"]).args(&[env.path("cid")]).args(&[&image]);
    let id = id.args(&["sh", "-c", "cat; echo done >&2; exit 5"]).ok();
    assert_eq!(fs_err::read_to_string(env.path("cid")).unwrap(), id);
    assert!(!directory(&env, &id).join("state.json").exists(), "created, not started");
    let outcome = env.coracle(&["start", "-a", "-i", &id]).stdin("one\ntwo\n").outcome();
    outcome.code(5);
    assert_eq!((outcome.text().as_str(), outcome.stderr.trim()), ("one\ntwo", "done"));
    assert_eq!(json(&env, &id, "exit.json")["exit_code"], 5);
    env.coracle(&["rm", &id]).ok();
    let again = env.coracle(&["create", "--cidfile"]).args(&[env.path("cid")]).args(&[&image]).outcome();
    again.refused(125).says("cid");
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["run", "-d", "--network", "none", &image, "nosuch"]).outcome().refused(127).says("nosuch");
    env.coracle(&["run", "-d", "--network", "none", &image, "/etc/passwd"]).outcome().refused(126);
    assert_eq!(env.coracle(&["ps", "-aq"]).ok(), "");
}

#[test]
fn rm_of_a_detached_container_takes_it_away_at_its_end_and_wait_still_knows() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let id = detached(&env, &["--rm", &image, "sh", "-c", "read x < /dev/null; sleep 0.5; exit 9"]);
    assert_eq!(env.coracle(&["wait", &id]).ok(), "9");
    wait_until("it to be gone", || !directory(&env, &id).exists());
    let id = detached(&env, &["--rm", "--name", "x", &image, "sleep", "1000"]);
    env.coracle(&["rm", "-f", "x"]).ok();
    assert!(!directory(&env, &id).exists());
}

#[test]
fn f02_shim_killed() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let id = detached(&env, &["--name", "c", "--restart", "always", &image, "sh", "-c", "echo here; sleep 1000"]);
    let (shim, init) = (pid(&env, &id, "watcher"), pid(&env, &id, "init"));
    wait_until("its output", || logged(&env, &id).len() == 1);
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    wait_until("its container to end with it", || !lives(init));
    assert_eq!(status(&env, "c"), "exited", "nothing says running for what is gone");
    assert_eq!(env.coracle(&["stop", "c"]).ok(), "c");
    assert_eq!(env.coracle(&["wait", "c"]).ok(), "137");
    assert_eq!(env.coracle(&["logs", "c"]).ok(), "here");
    // It can be started again, and then the unknown end has been written down.
    env.coracle(&["start", "c"]).ok();
    assert_eq!(json(&env, &id, "exit.json")["unknown"], true);
    assert_eq!(status(&env, "c"), "running");
    env.coracle(&["rm", "-f", "c"]).ok();
}

#[test]
fn f06_a_shim_that_is_stopped_holds_nothing_up() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let id = detached(&env, &["--name", "c", &image, "sleep", "1000"]);
    let shim = Pid::from_raw(pid(&env, &id, "watcher"));
    kill(shim, Signal::SIGSTOP).unwrap();
    assert_eq!(status(&env, "c"), "running");
    env.coracle(&["kill", "c"]).ok();
    assert_eq!(status(&env, "c"), "exited", "its process is gone, whatever its shim says");
    kill(shim, Signal::SIGCONT).unwrap();
    assert_eq!(env.coracle(&["wait", "c"]).ok(), "137");
    env.coracle(&["start", "c"]).ok();
    kill(Pid::from_raw(pid(&env, &id, "watcher")), Signal::SIGSTOP).unwrap();
    env.coracle(&["rm", "-f", "c"]).ok();
}

/// A shim that is stopped makes the moment long between an end and what was written before it.
#[test]
fn logs_are_followed_to_the_last_line_that_a_container_wrote() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let place = env.path("place");
    fs_err::create_dir(&place).unwrap();
    let script = "echo first; while [ ! -e /place/go ]; do sleep 0.01; done; echo last";
    let volume = format!("{}:/place", place.display());
    let id = detached(&env, &["--name", "c", "-v", &volume, &image, "sh", "-c", script]);
    wait_until("the first line", || logged(&env, &id).len() == 1);
    let (shim, init) = (pid(&env, &id, "watcher"), pid(&env, &id, "init"));
    kill(Pid::from_raw(shim), Signal::SIGSTOP).unwrap();
    fs_err::write(place.join("go"), "").unwrap();
    wait_until("its end", || !lives(init));
    let follower = env.coracle(&["logs", "-f", "c"]).spawn();
    // Time in which one that takes this for the end would go away.
    poll(Duration::from_millis(500), || false);
    kill(Pid::from_raw(shim), Signal::SIGCONT).unwrap();
    assert_eq!(follower.wait().text(), "first\nlast");
    env.coracle(&["rm", "c"]).ok();
}

#[test]
fn f07_a_sigterm_for_the_shim_stops_its_container_for_good() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let id = detached(&env, &["--restart", "always", "--name", "c", &image, "sh", "-c", script]);
    wait_until("its trap", || logged(&env, &id).len() == 1);
    for _ in 0..3 {
        let _ = kill(Pid::from_raw(pid(&env, &id, "watcher")), Signal::SIGTERM);
    }
    wait_until("its end", || status(&env, "c") == "exited");
    assert_eq!(env.coracle(&["wait", "c"]).ok(), "3");
    env.coracle(&["rm", "c"]).ok();
}

#[test]
fn f15_after_a_reboot_policies_decide_and_nothing_runs_that_does_not() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let all = ["no", "always", "unless-stopped", "on-failure"].map(|policy| {
        let id = detached(&env, &["--restart", policy, "--name", policy, &image, "sleep", "1000"]);
        (policy, id)
    });
    let stopped = detached(&env, &["--restart", "unless-stopped", "--name", "stopped", &image, "sleep", "1000"]);
    env.coracle(&["stop", "-t", "0", "stopped"]).ok();
    // As if the machine went down: no shim lives, and the boot id is another one.
    for (_, id) in &all {
        kill(Pid::from_raw(pid(&env, id, "watcher")), Signal::SIGKILL).unwrap();
        let init = pid(&env, id, "init");
        wait_until("its end", || !lives(init));
        let path = directory(&env, id).join("state.json");
        let text = fs_err::read_to_string(&path).unwrap();
        let own = fs_err::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        fs_err::write(&path, text.replace(own.trim(), "00000000-0000-0000-0000-000000000000")).unwrap();
    }
    assert_eq!(env.coracle(&["ps", "-q"]).ok(), "");
    let mut started: Vec<String> = env.coracle(&["system", "boot"]).ok().lines().map(str::to_owned).collect();
    started.sort();
    assert_eq!(started, ["always", "on-failure", "unless-stopped"]);
    assert_eq!((status(&env, "no"), status(&env, "always")), ("exited".into(), "running".into()));
    assert!(json(&env, &all[0].1, "exit.json")["error"].as_str().unwrap().contains("machine"));
    assert_eq!(env.coracle(&["system", "boot"]).ok(), "", "once");
    let _ = stopped;
    env.coracle(&["rm", "-f", "no", "always", "unless-stopped", "on-failure", "stopped"]).ok();
}

#[test]
fn restart_policies_count_and_end() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let fails = detached(&env, &["--restart", "on-failure:2", "--name", "fails", &image, "sh", "-c", "echo x; exit 4"]);
    // Between an end and the decision about it a container is shown as exited, too.
    wait_until("the last end", || {
        status(&env, "fails") == "exited"
            && json(&env, &fails, "state.json")["restarts"] == 2
            && json(&env, &fails, "exit.json")["run"] == 3
    });
    assert_eq!((logged(&env, &fails).len(), json(&env, &fails, "state.json")["restarts"].as_u64()), (3, Some(2)));
    let works = detached(&env, &["--restart", "on-failure", "--name", "works", &image, "true"]);
    wait_until("its end", || status(&env, "works") == "exited");
    assert_eq!(json(&env, &works, "state.json")["run"], 1);
    let always = detached(&env, &["--restart", "always", "--name", "always", &image, "sh", "-c", "exit 0"]);
    wait_until("some starts", || json(&env, &always, "state.json")["run"].as_u64().unwrap() > 2);
    env.coracle(&["stop", "always"]).ok();
    assert_eq!(status(&env, "always"), "exited");
    let runs = json(&env, &always, "state.json")["run"].as_u64();
    env.coracle(&["start", "always"]).ok();
    wait_until("it to go on", || json(&env, &always, "state.json")["run"].as_u64() > runs);
    env.coracle(&["rm", "-f", "always", "works", "fails"]).ok();
}

#[test]
fn health_checks_change_the_status() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let check = ["--health-cmd", "cat /tmp/well", "--health-interval", "50ms", "--health-retries", "2"];
    let id = detached(&env, &[&["--name", "c"][..], &check, &[&image, "sleep", "1000"]].concat());
    let health = || json(&env, &id, "health.json")["status"].as_str().unwrap().to_owned();
    wait_until("two failures", || health() == "unhealthy");
    let log = json(&env, &id, "health.json");
    assert!(log["log"][0]["output"].as_str().unwrap().contains("well"), "{log}");
    env.coracle(&["exec", "c", "touch", "/tmp/well"]).ok();
    wait_until("a success", || health() == "healthy");
    env.coracle(&["rm", "-f", "c"]).ok();
    let slow = ["--health-cmd", "sleep 100", "--health-interval", "50ms", "--health-timeout", "100ms"];
    let id =
        detached(&env, &[&["--name", "s"][..], &slow, &["--health-retries", "1", &image, "sleep", "1000"]].concat());
    wait_until("a check that is too slow", || json(&env, &id, "health.json")["status"] == "unhealthy");
    assert_eq!(json(&env, &id, "health.json")["log"][0]["exit_code"], -1);
    env.coracle(&["rm", "-f", "s"]).ok();
}

#[test]
fn a_container_in_the_foreground_can_be_reached_by_others() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let mut run = env.coracle(&["run", "--network", "none", "--name", "fore", &image]);
    run = run.args(&["sh", "-c", "trap 'exit 6' TERM; echo up; while :; do sleep 0.05; done"]);
    let mut run = run.spawn();
    run.wait_for("up");
    assert_eq!(status(&env, "fore"), "running");
    assert_eq!(env.coracle(&["exec", "fore", "hostname"]).ok().len(), 12);
    env.coracle(&["attach", "--no-stdin", "fore"]).outcome().refused(1).says("foreground");
    env.coracle(&["stop", "fore"]).ok();
    run.wait().code(6);
    assert_eq!(env.coracle(&["wait", "fore"]).ok(), "6");
    // It gets a shim when it is started again.
    env.coracle(&["start", "fore"]).ok();
    env.coracle(&["rm", "-f", "fore"]).ok();
}

#[test]
fn f41_a_record_of_a_newer_coracle_is_refused_and_not_harmed() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let id = env.coracle(&["create", "--name", "new", "--network", "none", &image, "true"]).ok();
    let path = directory(&env, &id).join("container.json");
    let text = fs_err::read_to_string(&path).unwrap();
    let newer = text.replacen("\"version\":1", "\"version\":2,\"surprise\":[]", 1);
    fs_err::write(&path, &newer).unwrap();
    for command in ["start", "stop", "kill", "rm", "wait"] {
        env.coracle(&[command, &id]).outcome().refused(1).says("newer");
    }
    assert_eq!(env.coracle(&["ps", "-aq"]).ok(), "");
    assert_eq!(fs_err::read_to_string(&path).unwrap(), newer);
    fs_err::write(&path, text).unwrap();
    env.coracle(&["rm", "new"]).ok();
}

#[test]
fn f42_the_state_goes_away_under_a_container_that_runs() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let id = detached(&env, &[&image, "sh", "-c", "sleep 0.5"]);
    let (shim, init) = (pid(&env, &id, "watcher"), pid(&env, &id, "init"));
    // Another root knows nothing of it.
    env.coracle(&["--root"]).args(&[env.path("other")]).args(&["stop", &id]).outcome().refused(1).says("no such");
    fs_err::rename(env.root().join("containers"), env.path("gone")).unwrap();
    wait_until("both to end", || !lives(init) && !lives(shim));
    assert_eq!(env.coracle(&["ps", "-aq"]).ok(), "");
    crate::env::leak::remove_tree(&env.path("gone"));
}

#[test]
fn exec_codes_users_and_environment() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    detached(&env, &["--name", "c", "-e", "GIVEN=1", "-w", "/tmp", &image, "sleep", "1000"]);
    let exec = |args: &[&str]| env.coracle(&["exec"]).args(args).outcome();
    exec(&["c", "sh", "-c", "exit 42"]).code(42);
    exec(&["c", "nosuch"]).refused(127);
    exec(&["c", "/etc/passwd"]).refused(126);
    exec(&["--privileged", "c", "true"]).refused(1).says("--privileged");
    exec(&["nosuch", "true"]).refused(1).says("no such container");
    assert_eq!(exec(&["c", "sh", "-c", "echo $GIVEN; pwd"]).ok(), "1\n/tmp");
    // The image gives root another group, which nobody with one id has.
    assert_eq!(exec(&["-u", "0", "c", "id", "-u"]).ok(), "0");
    assert_eq!(
        exec(&["-e", "GIVEN=2", "-e", "B=3", "-w", "/etc", "c", "sh", "-c", "echo $GIVEN$B; pwd"]).ok(),
        "23\n/etc"
    );
    if env.who() != crate::env::Who::Single {
        assert_eq!(exec(&["-u", "1000:1000", "c", "id", "-u"]).ok(), "1000");
        let caps = exec(&["-u", "1000", "c", "grep", "CapEff", "/proc/self/status"]).ok();
        assert!(caps.ends_with("0000000000000000"), "{caps}");
    }
    assert_eq!(exec(&["-d", "c", "touch", "/tmp/made"]).ok(), "");
    wait_until("the detached one to have run", || exec(&["c", "test", "-e", "/tmp/made"]).code == 0);
    let kept = exec(&["-i", "c", "cat"]);
    assert_eq!(kept.ok(), "", "an input that is at its end is one inside too");
    assert_eq!(env.coracle(&["exec", "-i", "c", "sh", "-c", "cat; echo end"]).stdin("bytes\n").ok(), "bytes\nend");
    env.coracle(&["rm", "-f", "c"]).ok();
}

#[test]
fn flags_that_docker_users_type() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let labels = env.write("labels", "# a comment\nfrom=file\nboth=file\n").display().to_string();
    let script =
        "trap 'echo asked >>/log; exit 5' USR1; trap 'exit 6' TERM; touch /ready; while :; do sleep 0.05; done";
    let flags = ["-q", "--name", "c", "--label-file", &labels, "--label", "both=flag"];
    // The image is not here yet: its pull would be told.
    let started = env.coracle(&["run", "-d", "--network", "none"]).args(&flags).args(&[&image, "sh", "-c", script]);
    let started = started.outcome();
    started.code(0);
    assert_eq!(started.stderr, "");
    let shown = env.coracle(&["inspect", "--format", "{{.Config.Labels.from}} {{.Config.Labels.both}}", "c"]).ok();
    assert_eq!(shown, "file flag");
    let ready = || wait_until("its traps", || env.coracle(&["exec", "c", "test", "-e", "/ready"]).outcome().code == 0);
    ready();
    env.coracle(&["exec", "c", "rm", "/ready"]).ok();
    env.coracle(&["restart", "-s", "USR1", "c"]).ok();
    ready();
    assert_eq!(env.coracle(&["exec", "c", "cat", "/log"]).ok(), "asked", "the restart asked with its own signal");
    env.coracle(&["stop", "--signal", "SIGUSR1", "c"]).ok();
    assert_eq!(env.coracle(&["wait", "c"]).ok(), "5");
    env.coracle(&["stop", "-s", "NONE", "c"]).outcome().refused(1).says("unknown signal");
    assert!(env.coracle(&["system", "events", "--since", "1h", "--until", "0s"]).ok().contains("restart"));
    assert_eq!(env.coracle(&["system", "info"]).ok(), env.coracle(&["info"]).ok());
    env.coracle(&["rm", "c"]).ok();
}
