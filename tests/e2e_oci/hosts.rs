//! What the host withholds from `coracle-oci`: helpers that fail, namespaces that are switched off.

use std::path::PathBuf;

use serde_json::json;

use super::{Oci, unique};
use crate::env::{Run, TestEnv, Who, fixtures, set_mode};

/// Puts programs of these names and this script first on the path.
fn shims(env: &TestEnv, names: &[&str], script: &str) -> PathBuf {
    let directory = env.path("shims");
    fs_err::create_dir_all(&directory).unwrap();
    for name in names {
        fs_err::write(directory.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        set_mode(&directory.join(name), 0o755);
    }
    directory
}

#[test]
fn f18_helpers_that_fail_lie_or_hang() {
    let env = TestEnv::new();
    if env.who() != Who::Ranges {
        return fixtures::elsewhere("only a user with ranges of ids needs newuidmap");
    }
    let oci = Oci::new(&env, &["true"]);
    // The caller's own ranges are chosen where a bundle names none.
    oci.change(|config| {
        let linux = config["linux"].as_object_mut().unwrap();
        linux.remove("uidMappings");
        linux.remove("gidMappings");
    });
    let with = |path: &str| oci.with_bundle(&["run", &unique("f18")]).env("PATH", path).time_limit(30).outcome();
    let both = ["newuidmap", "newgidmap"];
    for (script, words) in [
        ("printf 'newuidmap: \\033[2Jgarbage\\n' >&2; exit 1", "garbage"),
        ("exit 3", "failed without a word"),
        ("yes | head -c 100000 >&2; exit 1", "newuidmap: y"),
        ("exit 0", "has mapped nothing"),
        ("exec sleep 1000", "has not ended within 5 seconds"),
    ] {
        let directory = shims(&env, &both, script);
        let outcome = with(&format!("{}:{}", directory.display(), fixtures::SEARCH_PATH));
        outcome.refused(1).says(words).says("newuidmap");
        assert!(!outcome.stderr.contains('\u{1b}'), "{outcome}");
    }
    let nothing = env.path("nothing");
    fs_err::create_dir(&nothing).unwrap();
    with(nothing.to_str().unwrap()).refused(1).says("newuidmap").says("apt install uidmap");
    oci.is_empty();
}

#[test]
fn f19_user_namespaces_that_are_switched_off() {
    let env = TestEnv::new();
    if env.who() == Who::Root {
        return fixtures::elsewhere("root needs no user namespace");
    }
    let oci = Oci::new(&env, &["true"]);
    // Own ids, so that the namespace that is refused is the first thing that is asked for.
    let run = |wrapper: &[&str]| {
        let state = format!("--root={}", env.path("f19").display());
        let command = Run::new(&env, &fixtures::find_program(wrapper[0]).unwrap());
        let program = oci.program.to_str().unwrap();
        let bundle = oci.bundle.to_str().unwrap();
        command.args(&wrapper[1..]).args(&[program, &state, "run", "--bundle", bundle, &unique("f19")]).outcome()
    };
    let switched_off = "echo 0 >/proc/sys/user/max_user_namespaces && exec \"$@\"";
    let outcome = run(&["unshare", "--user", "--map-root-user", "sh", "-c", switched_off, "sh"]);
    outcome.refused(1).says("create namespaces").says("user.max_user_namespaces=10000");
    // kernel.unprivileged_userns_clone=0, a filter of the caller's, AppArmor: the kernel refuses.
    let log = env.path("trace");
    let log = log.to_str().unwrap();
    for (errno, words) in [
        ("EPERM", "does not let ordinary users make namespaces"),
        ("EACCES", "does not let ordinary users make namespaces"),
        ("ENOSPC", "user.max_user_namespaces=10000"),
        ("ENOSYS", "function not implemented"),
    ] {
        let inject = format!("inject=clone3:error={errno}:when=1");
        run(&["strace", "-o", log, "-e", "trace=clone3", "-e", &inject])
            .refused(1)
            .says("create namespaces")
            .says(words);
    }
}

#[test]
fn a29_variables_and_names_do_not_reach_the_passwd_file() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["cat", "/etc/passwd"]);
    let passwd = "root:x:0:0::/root:/bin/sh\n";
    fs_err::write(oci.bundle.join("rootfs/etc/passwd"), passwd).unwrap();
    let hostile = "/root\nevil:x:0:0::/:/bin/sh";
    oci.change(|config| {
        config["process"]["env"] = json!([format!("HOME={hostile}"), format!("USER={hostile}"), "PATH=/bin"]);
    });
    // Nothing is written into a bundle's files: what was there is all there is.
    assert_eq!(oci.with_bundle(&["run", &unique("a29")]).ok(), passwd.trim_end());
    assert_eq!(fs_err::read_to_string(oci.bundle.join("rootfs/etc/passwd")).unwrap(), passwd);
    for name in ["a\nb", "a b", "a/b", "a\u{0}"] {
        oci.change(|config| config["hostname"] = json!(name));
        oci.with_bundle(&["run", &unique("a29")]).outcome().refused(1).says("hostname");
    }
    oci.is_empty();
}

#[test]
fn device_rules_that_nobody_keeps_are_said() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    let id = &unique("rules");
    oci.change(|config| {
        config["linux"]["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    });
    let log = env.path("log");
    let flag = format!("--log={}", log.display());
    oci.run(&[&flag, "create", "--bundle", oci.bundle.to_str().unwrap(), id])
        .stdout_to(std::process::Stdio::null())
        .stderr_to(std::process::Stdio::null())
        .ok();
    if env.who() != Who::Root {
        let said = fs_err::read_to_string(&log).unwrap();
        assert!(said.contains("linux.resources.devices is not enforced"), "{said}");
    }
    let rules = env.path("rules.json");
    fs_err::write(&rules, r#"{"devices": [{"allow": true, "access": "rwm"}]}"#).unwrap();
    let refused = oci.run(&["update", "--resources", rules.to_str().unwrap(), id]).outcome();
    refused.refused(1).says("linux.resources.devices cannot be changed");
    oci.run(&["delete", "--force", id]).ok();
}
