//! The flags of `coracle run`, with Docker's meanings.

use crate::env::{TestEnv, Who, command};
use crate::require;

/// Runs a shell script in busybox with flags.
pub fn sh(env: &TestEnv, flags: &[&str], script: &str) -> String {
    env.container(flags).args(&[&env.image("busybox"), "sh", "-c", script]).ok()
}

#[test]
fn environment_is_the_images_and_the_flags_and_nothing_else() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let run =
        env.container(&["-e", "A=1", "-e", "B", "-e", "GONE", "--env", "C=x y=z", "--hostname", "box", &image, "env"]);
    let output = run.env("B", "from caller").env("SECRET", "of the host").ok();
    let mut lines: Vec<&str> = output.lines().collect();
    lines.sort_unstable();
    let expected =
        ["A=1", "B=from caller", "C=x y=z", "HOME=/root", "HOSTNAME=box", "PATH=/bin:/sbin:/usr/bin:/usr/sbin"];
    assert_eq!(lines, expected);
}

#[test]
fn env_files_come_before_flags() {
    require!();
    let env = TestEnv::new();
    let file = env.write("vars", "# a comment\n\nONE=file\nTWO=file two\nFROM_CALLER\nQUOTED=\"kept\"\n");
    let file = file.display().to_string();
    let image = env.image("busybox");
    let run = env.container(&[
        "-e",
        "ONE=flag",
        "--env-file",
        &file,
        &image,
        "sh",
        "-c",
        "echo $ONE/$TWO/$FROM_CALLER/$QUOTED",
    ]);
    assert_eq!(run.env("FROM_CALLER", "caller").ok(), "flag/file two/caller/\"kept\"");
    let missing = env.container(&["--env-file", "/no/such/file", &image, "true"]).outcome();
    missing.refused(125).says("/no/such/file");
    let bad = env.write("bad", "HAS SPACE=x\n").display().to_string();
    env.container(&["--env-file", &bad, &image, "true"]).outcome().refused(125).says("HAS SPACE");
}

#[test]
fn working_directory_exists_or_is_made() {
    require!();
    let env = TestEnv::new();
    assert_eq!(sh(&env, &["-w", "/etc"], "pwd"), "/etc");
    assert_eq!(sh(&env, &["-w", "/not/there/yet"], "pwd; ls -A | wc -l"), "/not/there/yet\n0");
    let image = env.image("busybox");
    env.container(&["-w", "relative", &image, "pwd"]).outcome().refused(125).says("relative");
    env.container(&["-w", "/etc/passwd", &image, "pwd"]).outcome().is_clear().says("/etc/passwd");
}

#[test]
fn init_reaps_orphans_and_is_pid_one() {
    require!();
    let env = TestEnv::new();
    let script = "(sleep 0.01 &) ; i=0; while [ $i -lt 500 ] && grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do i=$((i+1)); done >/dev/null; \
                  echo $$; cat /proc/1/comm; ls /proc | grep -c '^[0-9]'";
    let output = sh(&env, &["--init"], script);
    let lines: Vec<&str> = output.lines().collect();
    assert_ne!(lines[0], "1", "the command is a child of init");
    assert_ne!(lines[1], "sh");
    assert_eq!(sh(&env, &[], "echo $$"), "1", "without --init the command itself is pid 1");
}

#[test]
fn host_names() {
    require!();
    let env = TestEnv::new();
    assert_eq!(
        sh(&env, &["--hostname", "boat"], "hostname; cat /etc/hostname; cat /proc/sys/kernel/hostname"),
        "boat\nboat\nboat"
    );
    assert_eq!(sh(&env, &["-h", "boat"], "hostname"), "boat");
    let hosts = sh(&env, &["--hostname", "boat"], "cat /etc/hosts");
    assert!(hosts.contains("localhost") && hosts.contains("boat"), "{hosts}");
    let default = sh(&env, &[], "hostname");
    assert!(default.len() == 12 && default.bytes().all(|b| b.is_ascii_hexdigit()), "{default}");
    let image = env.image("busybox");
    for bad in ["new\nline", "a b", "", &"x".repeat(65), "-dash"] {
        env.container(&["--hostname", bad, &image, "true"]).outcome().refused(125);
    }
}

#[test]
fn hosts_and_name_servers_are_written() {
    require!();
    let env = TestEnv::new();
    let flags =
        ["--add-host", "db:10.1.2.3", "--add-host", "six:[::1]", "--dns", "192.0.2.53", "--dns-search", "lab.example"];
    let output = sh(&env, &flags, "cat /etc/hosts /etc/resolv.conf");
    for line in ["10.1.2.3\tdb", "::1\tsix", "nameserver 192.0.2.53", "search lab.example"] {
        assert!(output.contains(line) || output.contains(&line.replace('\t', " ")), "no {line:?} in\n{output}");
    }
    let image = env.image("busybox");
    env.container(&["--add-host", "nonsense", &image, "true"]).outcome().refused(125).says("nonsense");
    env.container(&["--dns", "not-an-ip", &image, "true"]).outcome().code(125);
    // Generated files are the container's own: writing them changes nothing outside.
    sh(&env, &[], "echo 1.2.3.4 mine >>/etc/hosts; echo x >/etc/hostname");
}

#[test]
fn resource_limits() {
    require!();
    let env = TestEnv::new();
    assert_eq!(sh(&env, &["--ulimit", "nofile=100:200"], "ulimit -Sn; ulimit -Hn"), "100\n200");
    assert_eq!(sh(&env, &["--ulimit", "core=0", "--ulimit", "nofile=64"], "ulimit -Sn; ulimit -Hc"), "64\n0");
    assert_eq!(sh(&env, &[], "ulimit -Hc"), "0", "no core dumps unless asked for");
    let image = env.image("busybox");
    for bad in ["nofile", "nofile=x", "nofile=5:4", "nosuch=1"] {
        let outcome = env.container(&["--ulimit", bad, &image, "true"]).outcome();
        outcome.code(125).says(bad.split('=').next().unwrap());
    }
}

#[test]
fn shared_memory_has_its_size() {
    require!();
    let env = TestEnv::new();
    let size = "stat -f -c '%b %S' /dev/shm | { read b s; echo $((b * s / 1024)); }";
    assert_eq!(sh(&env, &[], size), "65536");
    assert_eq!(sh(&env, &["--shm-size", "2m"], size), "2048");
    let image = env.image("busybox");
    env.container(&["--shm-size", "lots", &image, "true"]).outcome().refused(125).says("lots");
}

/// CapEff of section 7: Podman's eleven.
const DEFAULT_CAPS: u64 =
    1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31;

fn effective(env: &TestEnv, flags: &[&str]) -> u64 {
    let output = sh(env, flags, "grep CapEff /proc/self/status");
    u64::from_str_radix(output.split_whitespace().last().unwrap(), 16).unwrap()
}

#[test]
fn capabilities_are_added_and_dropped() {
    require!();
    let env = TestEnv::new();
    assert_eq!(effective(&env, &[]), DEFAULT_CAPS, "{:x}", effective(&env, &[]));
    assert_eq!(effective(&env, &["--cap-drop", "ALL"]), 0);
    assert_eq!(effective(&env, &["--cap-drop", "ALL", "--cap-add", "net_bind_service"]), 1 << 10);
    assert_eq!(effective(&env, &["--cap-add", "CAP_SYS_PTRACE"]), DEFAULT_CAPS | 1 << 19);
    assert_eq!(effective(&env, &["--cap-drop", "chown"]), DEFAULT_CAPS & !1);
    let image = env.image("busybox");
    env.container(&["--cap-add", "CAP_FOO", &image, "true"]).outcome().refused(125).says("FOO");
}

#[test]
fn security_options() {
    require!();
    let env = TestEnv::new();
    let status = "grep -E 'NoNewPrivs|^Seccomp:' /proc/self/status | tr -d '\\t\\n'";
    assert_eq!(sh(&env, &[], status), "NoNewPrivs:1Seccomp:2");
    assert_eq!(sh(&env, &["--security-opt", "no-new-privileges"], status), "NoNewPrivs:1Seccomp:2");
    assert_eq!(sh(&env, &["--security-opt", "seccomp=unconfined"], status), "NoNewPrivs:1Seccomp:0");
    let image = env.image("busybox");
    // A34: what cannot be applied is an error, never a warning.
    for bad in ["label=type:x_t", "apparmor=x", "seccomp=/no/such/file", "nonsense"] {
        env.container(&["--security-opt", bad, &image, "true"]).outcome().refused(125);
    }
}

#[test]
fn a_seccomp_profile_from_a_file() {
    require!();
    let env = TestEnv::new();
    let profile = env.write(
        "profile.json",
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#,
    );
    let option = format!("seccomp={}", profile.display());
    let output = sh(&env, &["--security-opt", &option], "mkdir /tmp/x 2>&1; echo fine");
    assert!(output.contains("Function not implemented") && output.ends_with("fine"), "{output}");
}

/// Docker's own form: its conditions are decided for this container.
#[test]
fn a_seccomp_profile_in_dockers_form() {
    require!();
    let env = TestEnv::new();
    let profile = env.write(
        "docker.json",
        r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
            "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"args":[],"comment":"",
            "includes":{},"excludes":{"caps":["CAP_NET_RAW"]}}]}"#,
    );
    let option = format!("seccomp={}", profile.display());
    let script = "mkdir /tmp/x 2>&1; echo fine";
    let output = sh(&env, &["--security-opt", &option], script);
    assert!(output.contains("Function not implemented") && output.ends_with("fine"), "{output}");
    assert_eq!(sh(&env, &["--security-opt", &option, "--cap-add", "NET_RAW"], script), "fine");
    let unknown = env.write("unknown.json", r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","includes":{"moon":true}}]}"#);
    let option = format!("seccomp={}", unknown.display());
    let image = env.image("busybox");
    env.container(&["--security-opt", &option, &image, "true"])
        .outcome()
        .refused(125)
        .says("unknown condition \"moon\"");
}

#[test]
fn pull_policies() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.container(&["--pull", "never", &image, "true"]).outcome().refused(125);
    env.container(&["--pull", "missing", &image, "true"]).ok();
    env.container(&["--pull", "never", &image, "true"]).ok();
    let before = env.registry().requests("HEAD", "/manifests/") + env.registry().requests("GET", "/manifests/");
    env.container(&["--pull", "always", &image, "true"]).ok();
    let after = env.registry().requests("HEAD", "/manifests/") + env.registry().requests("GET", "/manifests/");
    assert!(after > before, "--pull=always asked nobody");
    env.container(&["--pull", "sometimes", &image, "true"]).outcome().code(125);
}

#[test]
fn user_namespace_modes() {
    require!();
    let env = TestEnv::new();
    let uid = nix::unistd::getuid().as_raw();
    let map = "cat /proc/self/uid_map | while read a b c; do echo $a $b $c; done";
    assert_eq!(sh(&env, &["--userns", "single"], map), format!("0 {uid} 1"));
    let single_groups = sh(&env, &["--userns", "single"], "cat /proc/self/setgroups");
    if env.who() != Who::Root {
        assert_eq!(single_groups, "deny", "A24");
    }
    let auto = sh(&env, &[], map);
    match env.who() {
        Who::Ranges => {
            let first = auto.lines().next().unwrap().to_owned();
            assert_eq!(first, format!("0 {uid} 1"));
            assert_eq!(auto.lines().count(), 2, "{auto}");
            assert_eq!(sh(&env, &["--userns", "keep-id"], "id -u; id -g"), format!("{uid}\n{}", nix::unistd::getgid()));
            env.write("shared/in", "x");
            let volume = format!("{}:/shared", env.path("shared").display());
            assert_eq!(
                sh(&env, &["--userns", "keep-id", "-v", &volume], "stat -c %u /shared/in; touch /shared/mine"),
                uid.to_string()
            );
        }
        Who::Single => assert_eq!(auto, format!("0 {uid} 1")),
        Who::Root => assert!(auto.starts_with("0 0 "), "{auto}"),
    }
}

#[test]
fn flags_that_are_not_implemented_are_refused_by_name() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    for flag in ["--privileged", "--kernel-memory=1g", "--blkio=1", "--gpus=all"] {
        let name = flag.split('=').next().unwrap();
        env.container(&[flag, &image, "true"]).outcome().refused(125).says(name);
    }
    // --rm is among the flags.
    env.container(&["--restart=always", &image, "true"]).outcome().refused(125).says("restart");
}

#[test]
fn arguments_after_the_image_belong_to_the_command() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let output = env.container(&[&image, "echo", "--rm", "-v", "--help", "-e", "x=y", "--", "-"]).ok();
    assert_eq!(output, "--rm -v --help -e x=y -- -");
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes("ümlaut\u{1F6A3}".as_ref() as &std::ffi::OsStr);
    let output = env.container(&command::args([&image, &"echo", &String::from_utf8_lossy(bytes).into_owned()])).ok();
    assert_eq!(output, "ümlaut\u{1F6A3}");
}
