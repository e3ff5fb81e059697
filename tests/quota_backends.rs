//! Who keeps a disk limit: by name, by configuration, for volumes, softly, and what is said when nobody can.

use serde_json::Value;

use crate::env::{Outcome, TestEnv, Who, fixtures, wait_until};
use crate::quota::inspect;
use crate::require;

const SHOW: &str = "df -k / | tail -1";

/// Demands that a program failed for want of room.
#[track_caller]
fn full(outcome: &Outcome) {
    assert!(outcome.code(1).stderr.contains("No space left on device"), "{outcome}");
}

#[test]
fn a_default_of_the_configuration_holds_until_it_is_lifted() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let file = env.write("home/.config/coracle/config.json", r#"{"disk": "16m"}"#);
    let show = |flags: &[&str]| env.container(flags).args(&[&image, "sh", "-c", SHOW]).outcome();
    assert!(show(&[]).ok().contains(" 16384 "));
    assert!(show(&["--disk=32m"]).ok().contains(" 32768 "));
    assert!(!show(&["--disk=none"]).ok().contains(" 16384 "));
    for (text, word) in [("{", "invalid"), (r#"{"dusk": "1g"}"#, "dusk"), (r#"{"disk": "much"}"#, "is not a size")] {
        fs_err::write(&file, text).unwrap();
        show(&[]).refused(125).says("config.json").says(word);
    }
}

#[test]
fn a_soft_limit_needs_its_word_and_kills() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    let run = |flags: &[&str]| {
        let script = "dd if=/dev/zero of=/file bs=1M count=100; sleep 1000";
        let run = env.coracle(&["run", "--network", "none", "--name", "box", "--disk=16m,backend=watch"]);
        run.args(flags).args(&[&image, "sh", "-c", script]).time_limit(120).outcome()
    };
    run(&[]).refused(125).says("--limits=best-effort");
    assert_eq!(run(&["--limits=best-effort"]).code, 137);
    let disk = inspect(&env, "box")["Disk"].take();
    assert_eq!((&disk["Backend"], &disk["Hard"]), (&"watch".into(), &false.into()), "{disk}");
    assert_eq!(disk["Exceeded"], true, "{disk}");
    assert!(disk["UsedBytes"].as_u64().unwrap() > 16 << 20, "{disk}");
    env.coracle(&["rm", "box"]).ok();
    // Somebody who stays below is left alone, and a hard backend is taken where there is one.
    let below =
        ["--disk=16m", "--limits=best-effort", &image, "sh", "-c", "dd if=/dev/zero of=/f bs=1M count=8 && df -k /"];
    assert!(env.container(&below).ok().contains(" 16384 "));
}

#[test]
fn a_named_volume_keeps_its_size_for_one_container_at_a_time() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    env.coracle(&["volume", "create", "--size", "16m", "data"]).ok();
    env.coracle(&["volume", "create", "--size", "16m", "data"]).ok();
    env.coracle(&["volume", "create", "--size", "32m", "data"]).outcome().code(1).says("another size");
    let run = |script: &str| env.container(&["-v", "data:/data", &image, "sh", "-c", script]).outcome();
    full(&run("dd if=/dev/zero of=/data/file bs=1M count=20"));
    let volume = |key: &str| {
        let text = env.coracle(&["volume", "inspect", "data"]).ok();
        serde_json::from_str::<Value>(&text).unwrap()[0]["Disk"][key].take()
    };
    assert_eq!((volume("Backend"), volume("Hard")), ("fuse".into(), true.into()));
    let used = volume("UsedBytes").as_u64().unwrap();
    assert!(used > 15 << 20 && used <= 16 << 20, "{used}");
    // The next container has what is there, and no more room.
    full(&run("test -s /data/file && dd if=/dev/zero of=/data/more bs=1M count=3"));
    let holder = ["run", "-d", "--network", "none", "--name", "box", "-v", "data:/data", &image, "sleep", "1000"];
    env.coracle(&holder).ok();
    run("true").refused(125).says("one container at a time");
    env.coracle(&["rm", "-f", "box"]).ok();
    run("rm /data/file /data/more; dd if=/dev/zero of=/data/file bs=1M count=12").ok();
    env.coracle(&["volume", "rm", "data"]).ok();
}

#[test]
fn what_is_in_memory_is_measured_and_not_compared() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let script = "dd if=/dev/zero of=/file bs=1M count=8; touch /ready; sleep 1000";
    let start = ["run", "-d", "--rm", "--network", "none", "--name", "box", "--disk=16m,inodes=500,backend=tmpfs"];
    env.coracle(&start).args(&[&image, "sh", "-c", script]).ok();
    wait_until("it is written", || env.coracle(&["exec", "box", "test", "-e", "/ready"]).outcome().code == 0);
    let disk = inspect(&env, "box")["Disk"].take();
    assert_eq!((&disk["Backend"], &disk["Hard"]), (&"tmpfs".into(), &true.into()), "{disk}");
    assert!((8 << 20..9 << 20).contains(&disk["UsedBytes"].as_u64().unwrap()), "{disk}");
    env.coracle(&["diff", "box"]).outcome().code(1).says("in memory that only it has");
    env.coracle(&["commit", "box", "made"]).outcome().code(1).says("in memory that only it has");
    assert_eq!(env.coracle(&["cp", "box:/ready", "-"]).outcome().code, 0);
    full(&env.coracle(&["exec", "box", "sh", "-c", "dd if=/dev/zero of=/more bs=1M count=9"]).outcome());
    env.coracle(&["kill", "box"]).ok();
    wait_until("it is gone", || env.coracle(&["inspect", "box"]).outcome().code != 0);
}

#[test]
fn backends_that_cannot_are_refused_by_name() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    for (flag, word) in [
        ("--disk=16m,backend=zfs", "invalid disk limit"),
        ("--disk=16m,backend=project", "cannot be kept by project"),
        ("--disk=16m,backend=btrfs", "cannot be kept by btrfs"),
        ("--disk=100t,backend=tmpfs", "of memory is too much"),
    ] {
        env.container(&[flag, &image, "true"]).outcome().refused(125).says(word);
    }
    let kept = ["run", "--network", "none", "--disk=16m,backend=tmpfs", &image, "true"];
    env.coracle(&kept).outcome().refused(125).says("only with --rm");
    let volume = ["-v", "/data", "--disk=16m,backend=tmpfs", &image, "true"];
    env.container(&volume).outcome().refused(125).says("anonymous volumes");
    let info: Value = serde_json::from_str(&env.coracle(&["info", "-f", "json"]).ok()).unwrap();
    let fuse = info["DiskLimits"].as_array().unwrap().iter().find(|one| one["Backend"] == "fuse").unwrap();
    assert_eq!((&fuse["Works"], &fuse["Hard"]), (&true.into(), &true.into()), "{info}");
}

#[test]
fn without_a_backend_the_error_says_what_would_give_one() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    // The image is there before the devices are taken away.
    env.coracle(&["pull", &image]).ok();
    let script = "mkdir d; for n in null zero urandom random; do touch d/$n; mount --bind /dev/$n d/$n; done; \
                  mount --rbind d /dev; exec \"$0\" run --network none --disk=16m \"$1\" true";
    let program = fixtures::coracle();
    let argv = ["-Urm".as_ref(), "sh".as_ref(), "-c".as_ref(), script.as_ref(), program.as_os_str(), image.as_ref()];
    let outcome = env.program("unshare").args(&argv).outcome();
    outcome.code(125).says("nothing on this host holds that disk limit").says("fuse: ").says("coracle quota setup");
    outcome.says("--limits=best-effort");
}

#[test]
fn quota_setup_tells_a_person_what_root_has_to_do() {
    require!();
    let env = TestEnv::new();
    let path = env.root().display().to_string();
    fs_err::create_dir_all(env.root()).unwrap();
    let setup = env.coracle(&["quota", "setup", "--path", &path, "--size", "1g", "--slots", "4"]).outcome();
    if setup.stderr.contains("disk limits are set up on") {
        // Not one of the three filesystems.
        setup.code(1);
    } else if env.who() == Who::Root {
        // Nobody switched project quotas on here.
        setup.code(1).says("prjquota");
    } else {
        let text = setup.ok();
        assert!(text.starts_with("once, as root:\n    coracle quota setup --path /"), "{text}");
        assert!(text.contains("--size 1073741824,inodes=262144 --slots 4"), "{text}");
    }
    env.coracle(&["quota", "ls"]).ok();
}
