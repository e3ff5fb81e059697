//! What the owner of a lent machine says counts before what the scheduler says, with the network unplugged too.

use nix::sys::signal::Signal;

use crate::env::lent::{Lent, json, patiently};
use crate::env::{set_mode, wait_until};
use crate::require;

const SLEEPER: [&str; 3] = ["sh", "-c", "sleep 1000"];

fn run(lent: &Lent, flags: &[&str]) -> crate::env::Run {
    lent.pool(&["run", "--stop-timeout", "0"]).args(flags).args(&[&lent.image]).args(&SLEEPER)
}

#[test]
fn images_groups_and_times_are_the_owners_to_choose() {
    require!();
    let mut lent = Lent::new(&[]);
    lent.lend("one", &["--network", "none", "--allow-group", "friends"]);
    run(&lent, &[]).outcome().refused(1).says("the owner of this provider does not allow the group ops");
    lent.lend("two", &["--network", "none", "--allow-image", "registry.example/"]);
    run(&lent, &["--constraint", "node==two"]).outcome().refused(1).says("does not allow the image");

    let welcome = |expect: &str| {
        patiently(&format!("new work is {expect}"), || {
            let all = lent.pool(&["providers", "--format", "{{.Name}} {{.Accepting}}"]).ok();
            all.lines().any(|line| line == format!("two {expect}"))
        });
    };
    let status = || lent.machine("two", &["provider", "status"]).ok();
    welcome("true");
    // It is never the hour: a span of one minute that is not now.
    let now = lent.env.program("date").args(&["+%H"]).ok();
    let later = (now.trim().parse::<u32>().unwrap() + 12) % 24;
    lent.machine("two", &["provider", "admit", "--hours", &format!("{later:02}:00-{later:02}:01")]).ok();
    welcome("false");
    assert!(status().contains("new work   it is not the hour for it"), "{}", status());
    lent.machine("two", &["provider", "admit", "--hours", "00:00-24:00", "--not-on-battery"]).ok();
    welcome("true");
    lent.machine("two", &["provider", "admit", "--hours", "9-5"]).outcome().refused(125).says("9-5");
    // What the owner said cannot be read: that is no yes.
    fs_err::write(lent.root("two").join("provider/shares.json"), "{").unwrap();
    welcome("false");
    lent.end();
}

#[test]
fn a_drain_by_the_owner_works_with_the_network_unplugged() {
    require!();
    let mut lent = Lent::new(&["--heartbeat", "2"]);
    lent.lend("one", &["--network", "none"]);
    let name = run(&lent, &["--name", "moves"]).ok();
    let halted = run(&lent, &["--name", "rests"]).ok();
    lent.pool(&["stop", &halted]).ok();
    lent.lend("two", &["--network", "none"]);
    lent.signal_scheduler(Signal::SIGSTOP);
    lent.machine("one", &["provider", "drain"]).ok();
    let running = || lent.machine("one", &["ps", "-q"]).ok();
    wait_until("it is stopped", || running().is_empty());
    lent.signal_scheduler(Signal::SIGCONT);
    lent.wait_place(&name, "two running");
    lent.wait_place(&halted, "two halted");
    patiently("the machine is empty", || lent.containers("one").is_empty());
    run(&lent, &["--dry-run", "--constraint", "node==one"]).ok();
    let plan = json(run(&lent, &["--dry-run", "--constraint", "node==one"]));
    assert_eq!(plan["matched"], 0, "{plan}");
    lent.machine("one", &["provider", "drain", "--undo"]).ok();
    lent.pool(&["start", &halted]).ok();
    assert_eq!(lent.place(&halted), "two running");
    run(&lent, &["--constraint", "node==one"]).ok();
    lent.end();
}

#[test]
fn the_owners_programs_tell_facts_and_bad_ones_are_named() {
    require!();
    let mut lent = Lent::new(&["--heartbeat", "1"]);
    lent.join("one", &lent.url, &["--network", "none"]);
    let folder = lent.root("one").join("provider/facts.d");
    fs_err::create_dir(&folder).unwrap();
    let program = |name: &str, mode: u32, text: &str| {
        fs_err::write(folder.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        set_mode(&folder.join(name), mode);
    };
    program("rack", 0o755, "echo rack=7b; echo licences=3; echo cpus=9999");
    program("json", 0o700, r#"echo '{"fast": true, "has": ["avx", "gpu"]}'"#);
    program("fails", 0o755, "exit 3");
    program("floods", 0o755, "while :; do echo 0123456789abcdef; done");
    program("hangs", 0o755, "sleep 1000");
    program("loose", 0o777, "echo loose=1");
    program("plain", 0o644, "echo plain=1");
    program("nonsense", 0o755, "echo nonsense");
    lent.start("one");
    lent.wait_provider("one", "ready");
    let bad = || lent.inspect("one")["facts"]["facts_bad"]["value"].clone();
    patiently("the bad ones are known", || bad().as_array().is_some_and(|bad| bad.len() == 6));
    assert_eq!(bad(), serde_json::json!(["fails", "floods", "hangs", "loose", "nonsense", "plain"]));
    let status = lent.machine("one", &["provider", "status"]).ok();
    for line in ["fails: exit status: 3", "floods: it says more than", "hangs: it takes more than", "loose: others may"]
    {
        assert!(status.contains(&format!("bad fact   {line}")), "{line}: {status}");
    }
    let name =
        run(&lent, &["--constraint", "rack==7b", "--constraint", "licences>=3", "--constraint", "fast==true"]).ok();
    assert_eq!(lent.place(&name), "one running");
    let plan = json(run(&lent, &["--dry-run", "--constraint", "cpus>=9999"]));
    assert_eq!(plan["matched"], 0, "what coracle measures is not told otherwise");
    // How far the scheduler is, in milliseconds, is known to who asks for it.
    patiently("the way is measured", || {
        lent.inspect("one")["facts"]["network_rtt"]["value"].as_f64().is_some_and(|ms| ms > 0.0)
    });
    run(&lent, &["--constraint", "network_rtt<60000"]).ok();
    lent.end();
}

#[test]
fn limits_that_do_not_hold_are_refused_by_name() {
    require!();
    let mut lent = Lent::new(&[]);
    lent.lend("one", &["--network", "host"]);
    let facts = lent.inspect("one")["facts"].clone();
    assert_eq!(facts["limit_bandwidth"]["value"], "none", "{facts}");
    let rate = ["--net-rate", "up=1mbit,down=2mbit"];
    run(&lent, &rate).outcome().refused(1).says("this provider cannot enforce the limit of bandwidth");
    let plan = json(run(&lent, &["--dry-run", "--constraint", "limit_bandwidth==hard"]));
    assert_eq!(plan["matched"], 0, "{plan}");
    let name = run(&lent, &["--net-rate", "up=1mbit", "--limits", "best-effort"]).ok();
    lent.pool(&["rm", "-f", &name]).ok();

    assert_eq!(facts["limit_disk"]["value"], "hard", "{facts}");
    let name = run(&lent, &["--disk", "8m", "--constraint", "limit_disk==hard"]).ok();
    // Its owner sees who keeps the limit, and the guest sees it hold.
    let disk = ["provider", "status", "--format", "{{.Disk.Backend}} {{.Disk.Hard}} {{.Disk.LimitBytes}}"];
    let disk = lent.machine("one", &disk).ok();
    assert!(disk.lines().any(|line| line.ends_with(&format!(" true {}", 8 << 20))), "{disk}");
    let fill = ["sh", "-c", "dd if=/dev/zero of=/big bs=1M count=20 2>&1 || true"];
    let said = lent.inside("one", &name, &fill).ok();
    assert!(said.contains("No space left"), "{said}");
    // The scheduler is told who keeps it and how full it is.
    let report = || json(lent.pool(&["inspect", &name]))["alloc"]["disk"].take();
    wait_until("it is told that the disk is full", || report()["used_bytes"].as_u64() > Some(7 << 20));
    let told = report();
    assert_eq!((&told["hard"], &told["limit_bytes"]), (&true.into(), &(8 << 20).into()), "{told}");
    assert!(told["used_bytes"].as_u64() <= Some(8 << 20), "{told}");
    let format = "{{.Disk.Backend}} {{.Disk.Hard}} {{.Disk.LimitBytes}} {{.Disk.UsedBytes}}";
    let shown = lent.pool(&["ps", "--format", format]).ok();
    let words = format!("{} true {} {}", told["backend"].as_str().unwrap(), 8 << 20, told["used_bytes"]);
    assert_eq!(shown, words);
    lent.inside("one", &name, &["rm", "/big"]).ok();
    wait_until("it is told that there is room again", || report()["used_bytes"].as_u64() < Some(1 << 20));
    lent.end();
}

#[test]
fn a_unit_for_systemd_runs_the_agent() {
    require!();
    let lent = Lent::new(&[]);
    lent.machine("one", &["provider", "install-unit"]).outcome().error(1, "error: this machine is in no pool");
    lent.join("one", &lent.url, &[]);
    let path = lent.machine("one", &["provider", "install-unit"]).ok();
    assert!(path.ends_with("/.config/systemd/user/coracle-provider.service"), "{path}");
    let text = fs_err::read_to_string(path).unwrap();
    let root = lent.root("one").display().to_string();
    for line in ["KillMode=process", "Restart=always", &format!("--root \"{root}\" provider run\n")] {
        assert!(text.contains(line), "{line}: {text}");
    }
    lent.end();
}
