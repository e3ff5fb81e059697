//! Who the container's process is: users, groups, capabilities (A22, A23, A24, A26, A30).

use serde_json::json;

use crate::env::image::{Image, Layer};
use crate::env::mock::Mock;
use crate::env::{TestEnv, Who, fixtures};
use crate::require;

const SHOW: &str = "echo $(id -u) $(id -g) $(grep ^Groups: /proc/self/status | cut -f2)";

fn ids(env: &TestEnv, flags: &[&str]) -> String {
    env.container(flags).args(&[&env.image("busybox"), "sh", "-c", SHOW]).ok()
}

#[test]
fn users_by_name_and_number() {
    require!();
    let env = TestEnv::new();
    if env.who() == Who::Single {
        assert_eq!(ids(&env, &["-u", "0"]).split(' ').take(2).collect::<Vec<_>>(), ["0", "0"]);
        assert_eq!(ids(&env, &["-u", "root"]).split(' ').take(2).collect::<Vec<_>>(), ["0", "0"]);
        let image = env.image("busybox");
        env.container(&["-u", "tester", &image, "true"]).outcome().refused(125).says("1000");
        return;
    }
    for (user, expected) in [
        // User, group, all groups: the primary one is among them (CVE-2022-36109).
        ("0", "0 0 0 3000"),
        ("root", "0 0 0 3000"),
        ("tester", "1000 1000 1000 2000 3000"),
        ("1000", "1000 1000 1000 2000 3000"),
        ("1000:1000", "1000 1000 1000"),
        ("tester:second", "1000 2000 2000"),
        ("7:9", "7 9 9"),
        ("7", "7 0 0"),
        ("0:second", "0 2000 2000"),
        // A25: a number is a number even where a user has that name.
        ("4711", "4711 0 0"),
    ] {
        assert_eq!(ids(&env, &["-u", user]).trim(), expected, "-u {user}");
    }
}

#[test]
fn a23_groups_are_the_images_and_never_the_hosts() {
    require!();
    let env = TestEnv::new();
    if env.who() == Who::Single {
        // One id: the kernel refuses setgroups, so nothing but the primary group may show as ours.
        let groups = ids(&env, &[]);
        assert!(!groups.split(' ').skip(2).any(|group| group == "2000" || group == "3000"), "{groups}");
        return;
    }
    let read = |user: &str| {
        let image = env.image("busybox");
        env.container(&["-u", user, &image, "cat", "/srv/second-only"]).outcome()
    };
    assert_eq!(read("tester").ok(), "secret", "the second group reads it");
    assert_eq!(read("1000").ok(), "secret");
    assert_eq!(read("7:second").ok(), "secret", "primary group included");
    read("1000:1000").code(1);
    read("7").code(1);
    assert_eq!(ids(&env, &["-u", "7:9", "--group-add", "second"]).trim(), "7 9 9 2000");
    assert_eq!(ids(&env, &["-u", "7:9", "--group-add", "5"]).trim(), "7 9 5 9");
}

#[test]
fn a22_nothing_is_inheritable_and_a30_a_user_has_no_capabilities() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let mut cases = vec![vec![], vec!["--cap-add", "SYS_PTRACE"], vec!["--init"]];
    if env.who() != Who::Single {
        cases.push(vec!["-u", "1000"]);
        cases.push(vec!["-u", "tester", "--cap-add", "NET_BIND_SERVICE"]);
    }
    for flags in cases {
        let output = env.container(&flags).args(&[&image, "grep", "Cap", "/proc/self/status"]).ok();
        let value = |name: &str| {
            let line = output.lines().find(|line| line.starts_with(name)).unwrap();
            u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap()
        };
        assert_eq!(value("CapInh"), 0, "{flags:?}\n{output}");
        assert_eq!(value("CapAmb"), 0, "{flags:?}\n{output}");
        if flags.contains(&"-u") {
            assert_eq!(value("CapEff") | value("CapPrm"), 0, "{flags:?}\n{output}");
        } else {
            assert_eq!(value("CapEff") & !value("CapBnd"), 0, "{flags:?}\n{output}");
        }
        assert_ne!(value("CapBnd"), 0);
    }
}

#[test]
fn no_new_privs_makes_setuid_powerless() {
    require!();
    let env = TestEnv::new();
    if env.who() == Who::Single {
        return fixtures::elsewhere("with one id there is nobody to become");
    }
    let image = env.image("debian");
    assert_eq!(env.container(&["-u", "1000", &image, "setuid-id", "-u"]).ok(), "1000");
    let allowed =
        env.container(&["-u", "1000", "--security-opt", "no-new-privileges=false", &image, "setuid-id", "-u"]);
    assert_eq!(allowed.ok(), "0", "the file is setuid: without the flag the test would show nothing");
}

#[test]
fn a26_a_user_that_is_no_plain_id_is_never_root() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    for user in [
        "4294967295",
        "4294967296",
        "2147483648",
        "-1",
        "0x0",
        "+0",
        "00",
        "1000:99999999999",
        " 0",
        "a:b:c",
        "root\n",
        "",
        ":",
        "0:",
        "root:",
        "no-such-user",
        "0:no-such-group",
        "1e3",
        "٠",
    ] {
        let flag = format!("--user={user}");
        let outcome = env.container(&[&flag, &image, "id", "-u"]).outcome();
        if user.is_empty() {
            continue; // An empty user is no user, as in Docker.
        }
        outcome.refused(125);
    }
}

#[test]
fn a26_a_hostile_user_in_the_image_config_is_refused() {
    require!();
    let env = TestEnv::new();
    let passwd = "root:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n-1:x:0:0::/:/bin/sh\n0x0:x:0:0::/:/bin/sh\n+0:x:0:0::/:/bin/sh\n";
    let users = ["4294967295", "4294967296", "-1", "0x0", "+0", "00", "1000:99999999999", " 0", "a:b:c", "root\n"];
    let images: Vec<(String, Image)> = users
        .iter()
        .enumerate()
        .map(|(number, user)| {
            let layer = Layer::new().file("etc/passwd", 0o644, passwd.as_bytes());
            (format!("user{number}"), Image::hostile(layer, &json!({"User": user})))
        })
        .collect();
    let named: Vec<(&str, Image)> = images.iter().map(|(name, image)| (name.as_str(), image.clone())).collect();
    let registry = Mock::serving(&named);
    for (number, user) in users.iter().enumerate() {
        let outcome = env.container(&[&registry.image(&format!("user{number}")), "id", "-u"]).outcome();
        assert_eq!(outcome.code, 125, "USER {user:?}: {outcome}");
        outcome.refused(125);
    }
}

#[test]
fn accounts_of_an_image_may_be_anything_but_a_trap() {
    require!();
    let env = TestEnv::new();
    // A28: passwd as link out of the image, fifo, directory, huge, garbage: data, bounded, no hang.
    let huge = format!("root:x:0:0::/:/bin/sh\n{}", "x".repeat(3 << 20));
    let layers = [
        ("link", Layer::new().symlink("etc/passwd", "../../../../../../etc/shadow")),
        ("zero", Layer::new().symlink("etc/passwd", "/dev/zero")),
        ("fifo", Layer::new().special("etc/passwd", tar::EntryType::Fifo, 0, 0)),
        ("dir", Layer::new().dir("etc/passwd", 0o755)),
        ("huge", Layer::new().file("etc/passwd", 0o644, huge.as_bytes())),
        ("garbage", Layer::new().file("etc/passwd", 0o644, b"\xff\xfe:::::\nroot\n:x:0:0::/:\nroot:x:0x0:0::/:\n")),
    ];
    let images: Vec<(&str, Image)> =
        layers.into_iter().map(|(name, layer)| (name, Image::hostile(layer, &json!({})))).collect();
    let registry = Mock::serving(&images);
    for (name, _) in &images {
        let outcome = env.container(&["-u", "ghost", &registry.image(name), "true"]).time_limit(10).outcome();
        outcome.refused(125);
        // `id` itself would read the endless file: ask the kernel instead.
        let run = env.container(&["-u", "0", &registry.image(name), "grep", "^Uid:", "/proc/self/status"]);
        let number = run.time_limit(10).outcome();
        if *name == "huge" && number.code != 0 {
            number.refused(125);
        } else {
            assert_eq!(number.ok(), "Uid:\t0\t0\t0\t0", "{name}");
        }
    }
}
