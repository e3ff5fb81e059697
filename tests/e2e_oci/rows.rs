//! Rows of security.md that a bundle alone can show.

use serde_json::{Value, json};

use super::refusals::merge;
use super::{Oci, unique};
use crate::env::{TestEnv, Who};

/// Each change of the configuration must be refused with these words, and leave nothing.
fn refused(oci: &Oci<'_>, cases: &[(Value, &str)]) {
    let good = fs_err::read_to_string(oci.config()).unwrap();
    let id = &unique("row");
    for (edit, words) in cases {
        fs_err::write(oci.config(), &good).unwrap();
        oci.change(|config| merge(config, edit));
        oci.with_bundle(&["run", id]).outcome().refused(1).says(words);
    }
    fs_err::write(oci.config(), &good).unwrap();
    oci.is_empty();
}

#[test]
fn a27_a_number_alone_is_a_user_and_never_root() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let id = &unique("a27");
    oci.quiet(&["run", "--detach", id]).ok();
    let ids =
        |user: &str| oci.run(&["exec", "--user", user, id, "grep", "-E", "^(Uid|Gid)", "/proc/self/status"]).outcome();
    if env.who() == Who::Root {
        assert_eq!(ids("1").ok(), "Uid:\t1\t1\t1\t1\nGid:\t0\t0\t0\t0");
        assert_eq!(ids("1:7").ok(), "Uid:\t1\t1\t1\t1\nGid:\t7\t7\t7\t7");
    } else {
        ids("1").refused(255).says("not in the container's id map");
    }
    ids("4294967295").refused(255).says("is not an id");
    oci.run(&["delete", "--force", id]).ok();
}

#[test]
fn a28_a_hostile_passwd_file_does_not_hold_or_fill_us() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sh", "-c", "echo $HOME"]);
    let passwd = oci.bundle.join("rootfs/etc/passwd");
    let home = || oci.with_bundle(&["run", &unique("a28")]).time_limit(30).ok();
    fs_err::write(&passwd, "root:x:0:0::/root:/bin/sh\n").unwrap();
    assert_eq!(home(), "/root");
    let makers: [&dyn Fn(); 4] = [
        &|| nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        &|| fs_err::create_dir(&passwd).unwrap(),
        &|| std::os::unix::fs::symlink("/dev/zero", &passwd).unwrap(),
        &|| fs_err::File::create(&passwd).unwrap().set_len(2 << 30).unwrap(),
    ];
    for make in makers {
        let _ = fs_err::remove_file(&passwd).or_else(|_| fs_err::remove_dir(&passwd));
        make();
        assert_eq!(home(), "/", "no home is found");
    }
}

#[test]
fn a34_what_cannot_be_applied_is_refused() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    refused(
        &oci,
        &[
            (json!({ "process": { "apparmorProfile": "docker-default" } }), "process.apparmorProfile"),
            (json!({ "process": { "selinuxLabel": "system_u:x" } }), "process.selinuxLabel"),
            (json!({ "linux": { "mountLabel": "x" } }), "linux.mountLabel"),
            (json!({ "linux": { "seccomp": { "listenerPath": "relative" } } }), "listenerPath"),
        ],
    );
}

#[test]
fn c01_users_that_do_not_exist() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    refused(
        &oci,
        &[
            (json!({ "process": { "user": { "uid": u32::MAX } } }), "is not an id"),
            (json!({ "process": { "user": { "gid": u32::MAX } } }), "is not an id"),
            (json!({ "process": { "user": { "umask": 9999 } } }), "umask"),
            (json!({ "process": { "user": { "additionalGids": [u32::MAX] } } }), "additionalGids"),
            (json!({ "process": { "user": { "uid": -1 } } }), "not a valid configuration"),
            (json!({ "process": { "user": { "uid": "root" } } }), "not a valid configuration"),
        ],
    );
    if env.who() != Who::Root {
        refused(
            &oci,
            &[(json!({ "process": { "user": { "uid": 3_000_000_000_u32 } } }), "not in the container's id map")],
        );
    }
}

#[test]
fn c02_environments() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sh", "-c", "echo $A ${#A}"]);
    oci.change(|config| config["process"]["env"] = json!(["PATH=/bin", "A=x y", "ODD", "=z", "HOME=/"]));
    let id = &unique("c02");
    assert_eq!(oci.with_bundle(&["run", id]).ok(), "x y 3");
    refused(
        &oci,
        &[
            (json!({ "process": { "env": ["A=\0"] } }), "contains a NUL byte"),
            (json!({ "process": { "env": [format!("A={}", "x".repeat(2 << 20))] } }), "argument list too long"),
        ],
    );
}

#[test]
fn c10_sysctls_of_the_host_are_refused() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    let key = |key: &str, value: &str| json!({ "linux": { "sysctl": { key: value } } });
    refused(
        &oci,
        &[
            (key("kernel.core_pattern", "|/x"), "does not belong to a namespace"),
            (key("kernel.shmmax/../core_pattern", "1"), "is not a sysctl"),
            (key("net.ipv4.x+y", "1"), "is not a sysctl"),
            (key("kernel.msgmax", "1\nkernel.x=1"), "more than one line"),
            (key("kernel.hostname", "x"), "own field hostname"),
        ],
    );
}

#[test]
fn c11_limits_that_make_no_sense() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    let limits = |list: Value| json!({ "process": { "rlimits": list } });
    refused(
        &oci,
        &[
            (limits(json!([{ "type": "RLIMIT_NOFILE", "soft": 2, "hard": 1 }])), "soft limit above its hard limit"),
            (
                limits(
                    json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]),
                ),
                "twice",
            ),
            (limits(json!([{ "type": "RLIMIT_MOON", "soft": 0, "hard": 0 }])), "not a valid configuration"),
            (limits(json!([{ "type": "RLIMIT_CORE", "soft": -1, "hard": -1 }])), "not a valid configuration"),
        ],
    );
}
