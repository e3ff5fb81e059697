//! Images that want out (security.md A01 to A33), each test named by its id, with a canary outside (O1).

use serde_json::{Value, json};
use tar::EntryType;

use crate::env::image::{Image, Layer};
use crate::env::mock::Mock;
use crate::env::{Canary, Outcome, TestEnv, fixtures, leak, tree};
use crate::require;

/// Runs a command in an image made of busybox and one hostile layer.
pub fn run_hostile(env: &TestEnv, flags: &[&str], layer: Layer, config: &Value, command: &[&str]) -> Outcome {
    let registry = Mock::serving(&[("hostile", Image::hostile(layer, config))]);
    env.container(flags).args(&[&registry.image("hostile")]).args(command).time_limit(20).outcome()
}

/// The ways in which a path of an image can lead elsewhere.
fn lures(canary: &Canary, name: &str) -> Vec<(String, String)> {
    let inside = canary.dir().join(name).display().to_string();
    vec![
        ("absolute".into(), inside.clone()),
        ("relative".into(), format!("../../../../../../../../..{inside}")),
        ("dangling".into(), format!("{inside}-missing")),
        ("directory".into(), canary.dir().display().to_string()),
        ("magic".into(), format!("/proc/self/root{inside}")),
        ("cwd".into(), "/proc/self/cwd/../canary/file".into()),
        ("fd".into(), "/proc/self/fd/3".into()),
    ]
}

#[test]
fn a01_the_runtime_cannot_be_overwritten_by_its_container() {
    require!();
    let env = TestEnv::new();
    // A copy that container root owns and may write: only the runtime's own care protects it.
    let binary = env.path("coracle");
    fs_err::copy(fixtures::coracle(), &binary).unwrap();
    crate::env::set_mode(&binary, 0o755);
    let sum = tree::sha256_file(&binary);
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let program = binary.display().to_string();
    let coracle = |args: &[&str]| {
        env.program(&program).args(&["run", "--rm", "--network", "none"]).args(args).time_limit(20).outcome()
    };
    // The entry point is the runtime itself: whatever that gives, the file stays.
    coracle(&[&image, "/proc/self/exe", "--version"]);
    coracle(&["--entrypoint", "/proc/1/exe", &image]);
    let script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); for exe in /proc/[0-9]*/exe; do \
                  (echo overwritten >$exe) 2>/dev/null && echo wrote $exe; done; done; echo tried";
    for flags in [&[][..], &["--init"]] {
        let outcome = coracle(&[flags, &[&image, "sh", "-c", script]].concat());
        let text = outcome.ok();
        let foreign: Vec<&str> = text.lines().filter(|line| line.starts_with("wrote /proc/1/")).collect();
        assert!(text.ends_with("tried") && (flags.is_empty() || foreign.is_empty()), "{outcome}");
    }
    assert_eq!(tree::sha256_file(&binary), sum, "the binary was changed");
}

#[test]
fn a01_init_runs_from_a_sealed_copy() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let mut run = env.container(&["--init", &image, "sh", "-c", "echo ready; exec sleep 1000"]).spawn();
    run.wait_for("ready");
    let family = leak::below(run.pid());
    let init = family.iter().find(|pid| {
        let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
    });
    let init = init.expect("pid 1 of the container");
    if let Ok(file) = fs_err::File::open(format!("/proc/{init}/exe")) {
        let seals = rustix::fs::fcntl_get_seals(&file).expect("a memfd");
        assert!(seals.contains(rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SEAL), "{seals:?}");
    } else {
        // Not even the owner may look: the process is not dumpable for us.
        let link = fs_err::read_link(format!("/proc/{init}/exe"));
        assert!(link.is_err() || link.unwrap().to_string_lossy().contains("memfd"));
    }
    run.signal(nix::sys::signal::Signal::SIGTERM);
    run.wait();
}

#[test]
fn a02_no_working_directory_outside_of_the_root() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let script = r#"exec 3<"$1" 4<"$1" 5<"$1" 20<"$1"; shift; exec "$@""#;
    let coracle = fixtures::coracle().display().to_string();
    for number in (0..32).chain([63, 64, 127, 255, 1023]) {
        let dir = format!("/proc/self/fd/{number}");
        // The caller leaks descriptors of the host too: they must not be a way out.
        let run = env.program("bash").args(&["-c", script, "bash"]).args(&[canary.dir()]);
        let outcome = run
            .args(&[
                &coracle,
                "run",
                "--rm",
                "--network",
                "none",
                "-w",
                &dir,
                &image,
                "sh",
                "-c",
                "pwd -P; ls; cat file",
            ])
            .time_limit(20)
            .outcome();
        let text = outcome.text();
        assert!(!text.contains("canary") && !text.contains("unreachable"), "{outcome}");
        assert_ne!(outcome.code, 0, "{outcome}");
    }
    canary.assert_untouched();
}

#[test]
fn a02_a_workdir_of_the_image_that_is_a_descriptor() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    for number in 0..16 {
        let target = format!("/proc/self/fd/{number}");
        for workdir in [target.as_str(), "/work", "/work/../.."] {
            let outcome = run_hostile(
                &env,
                &[],
                Layer::new().symlink("work", &target),
                &json!({"WorkingDir": workdir}),
                &["sh", "-c", "pwd -P; ls -d ../../../../etc/shadow"],
            );
            assert!(!outcome.text().contains("unreachable"), "{outcome}");
            let inside = outcome.text().starts_with('/') || outcome.code != 0;
            assert!(inside, "{outcome}");
        }
    }
    canary.assert_untouched();
}

#[test]
fn a05_proc_and_sys_must_be_directories() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    let canary_dir = canary.dir().display().to_string();
    for name in ["proc", "sys"] {
        for target in [canary_dir.as_str(), "../..", "/etc", "bin", "/nowhere"] {
            let layer = Layer::new().symlink(name, target);
            let outcome = run_hostile(&env, &[], layer, &json!({}), &["sh", "-c", "cat /proc/1/comm; mount"]);
            refused_or_own(&outcome, name);
        }
        let outcome = run_hostile(&env, &[], Layer::new().file(name, 0o644, b"x"), &json!({}), &["true"]);
        refused_or_own(&outcome, name);
    }
    canary.assert_untouched();
}

/// Either a clear error that names the path, or a container whose /proc is a real one.
#[track_caller]
fn refused_or_own(outcome: &Outcome, name: &str) {
    if outcome.code == 0 {
        let text = outcome.text();
        assert!(text.contains("proc on /proc type proc") || text.is_empty(), "{outcome}");
    } else {
        outcome.refused(125).says(name);
    }
}

#[test]
fn a06_masks_do_not_use_the_images_null_device() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    let pattern = fs_err::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let planted = canary.dir().join("core_pattern").display().to_string();
    let layers = [
        Layer::new().symlink("dev/null", "/proc/sys/kernel/core_pattern"),
        Layer::new().symlink("dev/null", &planted),
        Layer::new().special("dev/null", EntryType::Char, 1, 5),
        Layer::new().special("dev/null", EntryType::Fifo, 0, 0),
        Layer::new().dir("dev/null", 0o777),
    ];
    let script =
        "head -c 8 /proc/kcore | wc -c; stat -c %t:%T /dev/null; echo x >/dev/null; head -c 4 /dev/null | wc -c";
    for layer in layers {
        let outcome = run_hostile(&env, &[], layer, &json!({}), &["sh", "-c", script]);
        assert_eq!(outcome.ok(), "0\n1:3\n0", "{outcome}");
    }
    assert_eq!(fs_err::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    canary.assert_untouched();
}

#[test]
fn a09_dev_symlink() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    let absolute = canary.dir().display().to_string();
    for target in
        [absolute.clone(), format!("../../../../../../../..{absolute}"), "/etc".into(), "/proc/self/root/etc".into()]
    {
        for flags in [&[][..], &["--read-only"]] {
            let layer = Layer::new().symlink("dev", &target);
            let outcome = run_hostile(
                &env,
                flags,
                layer,
                &json!({}),
                &["sh", "-c", "echo x >/dev/null; stat -c %t:%T /dev/null"],
            );
            if outcome.code == 0 {
                assert_eq!(outcome.text(), "1:3", "{outcome}");
            } else {
                outcome.refused(125).says("dev");
            }
        }
    }
    canary.assert_untouched();
}

#[test]
fn a17_files_that_coracle_provides_are_never_written_through_links() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    for path in [
        "etc/resolv.conf",
        "etc/hosts",
        "etc/hostname",
        "etc/mtab",
        ".dockerenv",
        "run/.containerenv",
        "etc/passwd",
        "run",
        "dev/shm",
        "init",
        "tmp",
    ] {
        let mut layers: Vec<(String, Layer)> = lures(&canary, "resolv.conf")
            .into_iter()
            .map(|(kind, target)| (kind, Layer::new().symlink(path, &target)))
            .collect();
        layers.push(("loop".into(), Layer::new().symlink(path, &format!("/{path}"))));
        layers.push(("fifo".into(), Layer::new().special(path, EntryType::Fifo, 0, 0)));
        layers.push(("directory".into(), Layer::new().dir(path, 0o777)));
        layers.push(("device".into(), Layer::new().special(path, EntryType::Char, 1, 3)));
        for (kind, layer) in layers {
            let outcome = run_hostile(
                &env,
                &["--hostname", "boat", "--add-host", "a:1.2.3.4", "--dns", "192.0.2.1"],
                layer,
                &json!({}),
                &["true"],
            );
            if outcome.code != 0 {
                assert!([125, 126].contains(&outcome.code), "{path} as {kind}: {outcome}");
                outcome.is_clear();
            }
        }
        canary.assert_untouched();
    }
}

#[test]
fn a18_paths_that_coracle_makes_stay_inside() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    env.write("volume/file", "v");
    let volume = env.path("volume").display().to_string();
    let uses: [(&str, Vec<String>, Value); 6] = [
        ("workdir", vec!["-w".into(), "/lure/new".into()], json!({})),
        ("image workdir", vec![], json!({"WorkingDir": "/lure/new"})),
        ("volume", vec!["-v".into(), format!("{volume}:/lure/new")], json!({})),
        ("volume on it", vec!["-v".into(), format!("{volume}:/lure")], json!({})),
        ("tmpfs", vec!["--tmpfs".into(), "/lure/new".into()], json!({})),
        ("image volume", vec![], json!({"Volumes": {"/lure/new": {}, "/../../lure": {}}})),
    ];
    for (what, flags, config) in &uses {
        for (kind, target) in lures(&canary, "dir") {
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            let outcome = run_hostile(
                &env,
                &flags,
                Layer::new().symlink("lure", &target),
                config,
                &["sh", "-c", "touch /lure/touched /lure/new/touched 2>/dev/null; true"],
            );
            if outcome.code != 0 {
                assert!([125, 126].contains(&outcome.code), "{what} through {kind}: {outcome}");
                outcome.is_clear();
            }
            canary.assert_untouched();
        }
    }
    assert_eq!(fs_err::read_to_string(env.path("volume/file")).unwrap(), "v");
}

#[test]
fn a15_volumes_over_proc_and_sys_are_refused() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.write("volume/file", "v");
    let volume = env.path("volume").display().to_string();
    for target in ["/proc", "/proc/self", "/sys", "/sys/fs/cgroup", "/dev/../proc", "/proc/sys/kernel", "/"] {
        env.container(&["-v", &format!("{volume}:{target}"), &image, "true"]).outcome().refused(125);
    }
    let link = Layer::new().symlink("lure", "/proc");
    run_hostile(&env, &["-v", &format!("{volume}:/lure")], link, &json!({}), &["true"]).refused(125);
}

#[test]
fn c06_coracles_own_state_is_never_a_volume() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    for source in [env.root(), env.root().join("images"), env.root().join("containers")] {
        let volume = format!("{}:/x", source.display());
        env.container(&["-v", &volume, &image, "true"]).outcome().refused(125);
    }
}
