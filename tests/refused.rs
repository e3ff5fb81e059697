//! Bad input and hosts that lack something: each has its own error and hint (golden), and leaves nothing.

use std::path::PathBuf;

use crate::env::registry::RegistryOptions;
use crate::env::{Registry, TestEnv, Who, fixtures};
use crate::require;

#[test]
fn unknown_image() {
    require!();
    let env = TestEnv::new();
    let image = env.image("no-such-image");
    env.coracle(&["pull", &image]).outcome().error(1, "error: [REGISTRY]/no-such-image:latest is not on the registry (MANIFEST_UNKNOWN)\nhint: check the name and the tag");
    env.container(&[&image, "true"]).outcome().refused(125);
}

#[test]
fn unknown_tag() {
    require!();
    let env = TestEnv::new();
    env.coracle(&["pull", &env.image("busybox:no-such-tag")])
        .outcome()
        .error(1, "error: [REGISTRY]/busybox:no-such-tag is not on the registry (MANIFEST_UNKNOWN)\nhint: check the name and the tag");
}

#[test]
fn unauthorised() {
    require!();
    let env = TestEnv::new();
    let registry = Registry::start(&env, RegistryOptions { password: true, ..RegistryOptions::default() });
    let outcome = env.coracle(&["pull", &registry.image("busybox")]).outcome();
    outcome.error_at(registry.address(), 1, "error: [ADDRESS] asks for credentials\nhint: coracle login [ADDRESS]");
}

#[test]
fn registry_down() {
    require!();
    let env = TestEnv::new();
    let address = Registry::start(&env, RegistryOptions::default()).stop();
    let outcome = env.coracle(&["pull", &format!("{address}/busybox")]).time_limit(60).outcome();
    outcome.error_at(&address, 1, "error: cannot reach [ADDRESS]: connection refused\nhint: check the name of the registry, the network and the proxy settings");
}

#[test]
fn tls_failure() {
    require!();
    let env = TestEnv::new();
    let registry = Registry::start(&env, RegistryOptions { tls: true, ..RegistryOptions::default() });
    let outcome = env.coracle(&["pull", &registry.image("busybox")]).outcome();
    outcome.error_at(registry.address(), 1, "error: cannot make a safe connection to [ADDRESS]: its certificate is signed by an unknown authority\nhint: put its authority's certificate into ~/.config/containers/certs.d/[ADDRESS]/ca.crt");
}

#[test]
fn wrong_architecture() {
    require!();
    let env = TestEnv::new();
    env.container(&[&env.image("busybox:arm64"), "true"])
        .outcome()
        .error(125, "error: [REGISTRY]/busybox:arm64 has no image for linux/amd64; there is linux/arm64");
}

#[test]
fn no_such_platform_in_the_index() {
    require!();
    let env = TestEnv::new();
    env.coracle(&["pull", "--platform", "linux/riscv64", &env.image("multi")])
        .outcome()
        .error(1, "error: [REGISTRY]/multi:latest has no image for linux/riscv64; there is linux/arm64, linux/amd64");
}

#[test]
fn an_unknown_flag() {
    let env = TestEnv::new();
    env.coracle(&["run", "--frobnicate", "x"])
        .outcome()
        .error(125, "error: flag --frobnicate is not implemented\nhint: add --help to see the flags that are");
}

#[test]
fn an_unknown_command() {
    let env = TestEnv::new();
    env.coracle(&["frobnicate"])
        .outcome()
        .error(125, "error: command frobnicate is not implemented\nhint: add --help to see the commands that are");
}

#[test]
fn no_image_given() {
    let env = TestEnv::new();
    env.coracle(&["run", "--rm"])
        .outcome()
        .error(125, "error: no image given\nhint: add --help to see what the command needs");
}

#[test]
fn a_bad_name() {
    let env = TestEnv::new();
    env.coracle(&["pull", "Busybox:a:b"]).outcome().error(1, "error: image name \"Busybox:a:b\" has an invalid tag");
}

#[test]
fn command_not_found() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    env.container(&["--name", "web", &image, "no-such-command"]).outcome().error(
        127,
        "error: cannot start container [ID]: find in PATH and execute no-such-command: no such file or directory",
    );
    env.container(&["--name", "web", &image, "/etc/passwd"])
        .outcome()
        .error(126, "error: cannot start container [ID]: execute /etc/passwd: permission denied");
}

/// Search path with some programs only.
fn path_with(env: &TestEnv, programs: &[&str]) -> PathBuf {
    let dir = env.path("few-programs");
    fs_err::create_dir_all(&dir).unwrap();
    for program in programs {
        let target = crate::env::fixtures::find_program(program).unwrap();
        fs_err::os::unix::fs::symlink(target, dir.join(program)).unwrap();
    }
    dir
}

#[test]
fn newuidmap_missing() {
    require!();
    let env = TestEnv::new();
    if env.who() != Who::Root {
        return fixtures::elsewhere("only root can hide the system's own helpers, for one command");
    }
    let image = env.image("busybox");
    let coracle = crate::env::fixtures::coracle().display().to_string();
    let script = r#"
        for helper in /usr/bin/newuidmap /usr/bin/newgidmap; do mount --bind /dev/null $helper || exit 99; done
        chown -R alice: "$HOME" "$XDG_RUNTIME_DIR" "$TMPDIR" && chmod 755 "$HOME/.." || exit 99
        export CORACLE_ROOT="$HOME/store"
        as="setpriv --reuid=alice --regid=alice --init-groups"
        $as "$0" run --rm --network none "$1" true; echo "code $?"
        $as "$0" run --rm --network none --userns single "$1" echo "one id works"
    "#;
    let run =
        env.program("unshare").args(&["--mount", "--propagation", "private", "sh", "-c", script, &coracle, &image]);
    let outcome = run.outcome();
    assert_eq!(outcome.text(), "code 125\none id works", "{outcome}");
    assert_eq!(
        outcome.golden(),
        "error: subordinate ids are granted, but newuidmap is not installed\nhint: apt install uidmap, or run with --userns=single",
        "{outcome}"
    );
}

#[test]
fn pasta_missing() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let mut programs = vec![];
    if env.who() == Who::Ranges {
        programs.extend(["newuidmap", "newgidmap"]);
    }
    let path = path_with(&env, &programs);
    env.coracle(&["pull", &image]).ok();
    let run =
        |flags: &[&str]| env.coracle(&["run", "--rm"]).args(flags).args(&[&image, "true"]).env("PATH", &path).outcome();
    run(&["--network", "pasta"])
        .error(125, "error: pasta is not installed\nhint: apt install passt, or use --network=host or --network=none");
    run(&["-p", "8080:80"]).refused(125);
}

/// Runs `coracle` in a user namespace of its own in which user namespaces are used up.
#[test]
fn user_namespaces_switched_off() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let coracle = crate::env::fixtures::coracle().display().to_string();
    let script = r#"echo 0 >/proc/sys/user/max_user_namespaces; exec "$0" run --rm --network none "$1" true"#;
    let run = env.program("unshare").args(&["--user", "--map-root-user", "sh", "-c", script, &coracle, &image]);
    run.outcome().error(125, "error: cannot start container [ID]: create namespaces: no space left on device\nhint: user namespaces are switched off or used up; an administrator can set user.max_user_namespaces=10000");
}

/// Runs `coracle` with its state on a file system that is too small.
#[test]
fn disk_full() {
    require!();
    let env = TestEnv::new();
    let (large, small) = (env.image("python3"), env.image("busybox"));
    let coracle = crate::env::fixtures::coracle().display().to_string();
    let script = r#"
        mkdir -p "$CORACLE_ROOT" && mount -t tmpfs -o size=24m,mode=700 tmpfs "$CORACLE_ROOT" || exit 99
        "$0" pull "$1"; echo "code $?"
        "$0" images -q; ls -A "$CORACLE_ROOT"/layers/* 2>/dev/null | grep -v '^/' | grep -v '^$'
        "$0" run --rm --network none "$2" echo "still works"
    "#;
    let mut run = env.program("unshare").args(&["--user", "--map-root-user", "--mount"]);
    if env.who() == Who::Ranges {
        run = run.args(&["--map-auto"]);
    }
    let outcome = run.args(&["sh", "-c", script, &coracle, &large, &small]).outcome();
    assert_eq!(outcome.text(), "code 1\nstill works", "{outcome}");
    let text = outcome.golden().to_lowercase();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("error: ") && lines[1].starts_with("hint: "), "{outcome}");
    assert!(lines[0].ends_with("no space left on device"), "{outcome}");
    // In the layer's own terms, or once as a path of this host: it depends on which file was the last.
    assert!(lines[0].matches("[dir]").count() <= 1, "the path is said once: {outcome}");
}

#[test]
fn inode_exhaustion() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let coracle = crate::env::fixtures::coracle().display().to_string();
    let script = r#"
        mkdir -p "$CORACLE_ROOT" && mount -t tmpfs -o nr_inodes=60,mode=700 tmpfs "$CORACLE_ROOT" || exit 99
        exec "$0" pull "$1"
    "#;
    let run =
        env.program("unshare").args(&["--user", "--map-root-user", "--mount", "sh", "-c", script, &coracle, &image]);
    run.outcome().refused(1).says("space");
}

#[test]
fn a_state_directory_that_cannot_be_made() {
    let env = TestEnv::new();
    let file = env.write("a-file", "x");
    let root = file.join("root").display().to_string();
    env.coracle(&["--root", &root, "images"])
        .outcome()
        .error(1, "error: cannot use the state directory: failed to create directory `[DIR]/a-file`: file exists");
}

#[test]
fn no_home_at_all() {
    let env = TestEnv::new();
    let run = env.coracle(&["images"]).env_remove("HOME").env_remove("CORACLE_ROOT");
    run.outcome().error(1, "error: no home directory: neither --root, CORACLE_ROOT, XDG_DATA_HOME nor HOME is set");
}
