//! What the users of a pool do: ask, stop, start again, copy, remove, look at.

use nix::sys::signal::Signal;

use crate::env::lent::Lent;
use crate::env::wait_until;
use crate::require;

const SLEEPER: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; echo up; sleep 1000 & wait"];

#[test]
fn what_is_stopped_keeps_its_data_and_starts_again() {
    require!();
    let mut lent = Lent::new(&[]);
    lent.lend("one", &["--network", "none"]);
    let flags = ["run", "--stop-timeout", "1", "-e", "A=b c", "-w", "/tmp", "--hostname", "host"];
    let name = lent.pool(&flags).args(&["--tmpfs", "/mem", &lent.image]).args(&SLEEPER).ok();
    assert!(name.ends_with("-one-1"), "user, provider, number: {name}");
    let second = lent.pool(&["run", "--stop-timeout", "1", &lent.image]).args(&SLEEPER).ok();
    assert!(second.ends_with("-one-2"), "{second}");
    let inside = |command: &str| lent.inside("one", &name, &["sh", "-c", command]).ok();
    assert_eq!(
        inside("echo \"$A\"; pwd; hostname; echo data > /kept; grep -c ' /mem ' /proc/mounts"),
        "b c\n/tmp\nhost\n1"
    );

    lent.pool(&["stop", &name]).ok();
    assert_eq!(lent.state(&name), "halted");
    assert_eq!(lent.pool(&["ps", "--format", "{{.Name}} {{.State}}"]).ok(), format!("{name} halted\n{second} running"));
    assert_eq!(lent.containers("one").len(), 2, "it is still there");
    lent.pool(&["logs", &name]).outcome().error(1, "error: the scheduler refuses: the instance does not run");

    // Neither an agent nor a scheduler that were killed meanwhile change anything.
    lent.end_agent("one", Signal::SIGKILL);
    lent.start("one");
    lent.pool(&["start", "--no-wait", &name]).ok();
    lent.end_agent("one", Signal::SIGKILL);
    lent.kill_scheduler();
    lent.start_scheduler(&[]);
    lent.start("one");
    lent.wait_state(&name, "running");
    let inside = |command: &str| lent.inside("one", &name, &["sh", "-c", command]).ok();
    assert_eq!(inside("cat /kept; echo $A"), "data\nb c");
    lent.pool(&["rm", &name]).outcome().refused(1).says("stop it first, or remove it with --force");

    lent.pool(&["stop", &name]).ok();
    lent.pool(&["rm", &name]).ok();
    wait_until("its data is gone", || lent.containers("one").len() == 1);
    lent.pool(&["start", &name]).outcome().refused(1).says("only a new instance can be started");
    assert!(
        lent.pool(&["run", "--stop-timeout", "1", &lent.image]).args(&SLEEPER).ok().ends_with("-one-1"),
        "the number is free again"
    );
    lent.end();
}

#[test]
fn events_are_numbered_and_followed_over_a_scheduler_that_dies() {
    require!();
    let mut lent = Lent::new(&[]);
    lent.lend("one", &["--network", "none"]);
    lent.pool(&["run", "--name", "a", "--stop-timeout", "1", &lent.image]).args(&SLEEPER).ok();
    let id = lent.inspect("a")["id"].as_str().unwrap().to_owned();
    let all = lent.pool(&["events", "--format", "{{.Number}} {{.Kind}} {{.Subject}}"]).ok();
    let of_a: Vec<&str> = all.lines().filter(|line| line.ends_with(&id)).collect();
    let kinds: Vec<&str> = of_a.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(kinds[..2], ["instance.pending", "instance.placed"], "{all}");
    assert_eq!(kinds.last(), Some(&"instance.running"), "{all}");
    let last = all.lines().last().unwrap().split(' ').next().unwrap().to_owned();

    let mut follow = lent.pool(&["events", "-f", "--after", &last, "--format", "{{.Kind}} {{.Subject}}"]).spawn();
    lent.pool(&["stop", "a"]).ok();
    follow.wait_for(&format!("instance.halted {id}"));
    lent.kill_scheduler();
    lent.start_scheduler(&[]);
    lent.pool(&["rm", "a"]).ok();
    follow.wait_for(&format!("instance.stopped {id}"));
    let said = follow.stdout_so_far();
    assert_eq!(said.matches("instance.halted").count(), 1, "none twice: {said}");
    follow.signal(Signal::SIGTERM);
    follow.wait();
    lent.end();
}

#[test]
fn keys_of_the_account() {
    require!("ssh-keygen");
    let lent = Lent::new(&[]);
    let key = lent.env.path("home/id");
    lent.env.program("ssh-keygen").args(&["-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f"]).args(&[&key]).ok();
    let public = fs_err::read_to_string(key.with_extension("pub")).unwrap();
    let add = || lent.pool(&["keys", "add"]).args(&[key.with_extension("pub")]);
    add().ok();
    add().ok();
    assert_eq!(lent.pool(&["keys", "ls"]).ok(), public.trim(), "once");
    lent.pool(&["keys", "rm", "nobody"]).outcome().error(1, "error: there is no key \"nobody\"");
    let nonsense = lent.env.write("nonsense", "ssh-ed25519 nonsense me\n");
    lent.pool(&["keys", "add"]).args(&[nonsense]).outcome().refused(1);
    lent.pool(&["keys", "rm", "me@here"]).ok();
    assert_eq!(lent.pool(&["keys", "ls"]).ok(), "");
    lent.end();
}

/// A flag of `coracle run` is known here too, or refused by its name; none is taken and forgotten.
#[test]
fn a_flag_of_run_is_taken_or_refused_by_name() {
    require!();
    let lent = Lent::new(&[]);
    let flags = |args: &[&str]| -> Vec<String> {
        let help = lent.env.coracle(args).ok();
        let words = help.lines().filter_map(|line| line.trim_start().strip_prefix('-'));
        let long = words.filter_map(|line| line.split("--").nth(1).or_else(|| line.strip_prefix('-')));
        let name = long.map(|text| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect());
        name.collect()
    };
    let (run, pool) = (flags(&["run", "--help"]), flags(&["pool", "run", "--help"]));
    assert!(run.len() > 60 && pool.len() > 30, "{run:?} {pool:?}");
    for flag in run.iter().filter(|flag| !pool.contains(flag)) {
        let flag = format!("--{flag}");
        lent.pool(&["run", &flag, "x", "busybox"]).outcome().refused(125).says(&flag);
    }
    lent.end();
}

/// The same table as of `coracle cp`, through the scheduler; then owners, much, and an instance that stands still.
#[test]
fn files_are_copied_into_an_instance_and_out_of_it() {
    require!();
    let mut lent = Lent::new(&[]);
    lent.lend("one", &["--network", "none"]);
    let script = "mkdir /d; echo old > /f; mkfifo /d/pipe; trap 'exit 0' TERM; echo up; sleep 1000 & wait";
    lent.pool(&["run", "--name", "c", "--stop-timeout", "1", &lent.image, "sh", "-c", script]).ok();
    wait_until("it has begun", || lent.pool(&["logs", "c"]).outcome().text().ends_with("up"));
    crate::copy::path_rules(&lent.env, &["pool", "cp"], "c", "there is no instance \"absent\"");

    let big: Vec<u8> = (0..2_000_000_u32).flat_map(|number| number.to_le_bytes()).collect();
    let (there, back) = (lent.env.write("big", &big), lent.env.path("back"));
    crate::env::set_mode(&there, 0o640);
    let host = |path: &std::path::Path| path.display().to_string();
    lent.pool(&["cp", &host(&there), "c:/big"]).ok();
    assert_eq!(lent.inside("one", "c", &["stat", "-c", "%a %u %g", "/big"]).ok(), "640 0 0", "root's, as docker does");
    lent.pool(&["cp", "c:/big", &host(&back)]).ok();
    assert!(fs_err::read(&back).unwrap() == big, "every byte came back");
    // What one half refuses is said once, by that half; a lost instance is no success.
    lent.pool(&["cp", "c:/big", "/proc/nowhere/at/all"]).outcome().refused(1).says("/proc/nowhere/at");
    lent.pool(&["cp", &host(&there), "c:/proc/1/comm"]).outcome().refused(1).says("made up by the kernel");

    // One that stands still has files too; a program it cannot run.
    lent.pool(&["stop", "c"]).ok();
    fs_err::remove_file(&back).unwrap();
    lent.pool(&["cp", "c:/big", &host(&back)]).ok();
    assert!(fs_err::read(&back).unwrap() == big, "every byte came back");
    lent.pool(&["cp", "-q", &host(&back), "c:/again"]).ok();
    lent.pool(&["exec", "c", "true"]).outcome().refused(1).says("the instance does not run");
    lent.pool(&["start", "c"]).ok();
    assert_eq!(lent.inside("one", "c", &["sh", "-c", "cmp /big /again && echo same"]).ok(), "same");
    // Who may not enter copies nothing; another of the same group sees it, and is refused.
    let home = lent.env.path("paula");
    fs_err::create_dir(&home).unwrap();
    let token = lent.pool(&["user-add", "paula"]).ok();
    let paula = |args: &[&str]| lent.env.coracle(&["pool"]).env("HOME", &home).args(args);
    paula(&["login", "--scheduler", &lent.url, "--ca"]).args(&[lent.authority()]).stdin(token).ok();
    paula(&["cp", "c:/big", "-"]).outcome().refused(1).says("only its owner and administrators");
    lent.end();
}
