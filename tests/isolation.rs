//! Docker's flags about namespaces, devices and streams: what is seen from inside, and what is refused in docker's words.

use nix::unistd::gethostname;
use serde_json::Value;

use crate::env::{TestEnv, wait_until};
use crate::life::{detached, json};
use crate::network_outside::said;
use crate::options::sh;
use crate::require;

/// Gives what inspect says about a container.
fn inspected(env: &TestEnv, name: &str, template: &str) -> String {
    env.coracle(&["inspect", "--format", template, name]).ok()
}

/// Runs with flags that are refused before anything is made.
fn refused(env: &TestEnv, flags: &[&str], words: &str) {
    let network: &[&str] = if flags.contains(&"--network=host") { &[] } else { &["--network=none"] };
    env.coracle(&["run", "--rm"])
        .args(network)
        .args(flags)
        .args(&[&env.image("busybox"), "true"])
        .outcome()
        .refused(125)
        .says(words);
    assert_eq!(env.coracle(&["ps", "-aq"]).ok(), "", "{flags:?}: nothing is left");
}

/// Names a namespace of this process.
fn own(namespace: &str) -> String {
    fs_err::read_link(format!("/proc/self/ns/{namespace}")).unwrap().display().to_string()
}

#[test]
fn a19_sysctls_are_set_in_own_namespaces_only() {
    require!();
    let env = TestEnv::new();
    let set =
        ["--sysctl", "kernel.msgmax=4321", "--sysctl", "net.ipv4.ip_default_ttl=77", "--sysctl=fs.mqueue.msg_max=11"];
    let read = "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_default_ttl /proc/sys/fs/mqueue/msg_max";
    let host = |path: &str| fs_err::read_to_string(path).unwrap();
    let before = host("/proc/sys/kernel/msgmax");
    assert_eq!(sh(&env, &set, read), "4321\n77\n11");
    assert_eq!(host("/proc/sys/kernel/msgmax"), before, "the host's own is as it was");
    for bad in ["kernel.panic=1", "vm.swappiness=1", "kernel.msgmax", "kernel.hostname=x", "net..x=1"] {
        refused(&env, &["--sysctl", bad], &format!("sysctl \"{bad}\" is not allowed"));
    }
    refused(&env, &["--network=host", "--sysctl=net.ipv4.ip_default_ttl=7"], "in the network namespace of the host");
    refused(&env, &["--ipc=host", "--sysctl=kernel.msgmax=7"], "in the IPC namespace of the host");
}

#[test]
fn names_of_the_machine() {
    require!();
    let env = TestEnv::new();
    let read =
        "cat /proc/sys/kernel/domainname; readlink /proc/self/ns/uts; hostname; cat /etc/hostname; echo $HOSTNAME";
    let host = gethostname().unwrap().into_string().unwrap();
    let lines = |flags: &[&str]| sh(&env, flags, read).lines().map(str::to_owned).collect::<Vec<_>>();
    let own_names = lines(&["--domainname", "lab.example", "--hostname", "box"]);
    assert_eq!([&own_names[0], &own_names[2], &own_names[3]], ["lab.example", "box", "box"]);
    assert_ne!(own_names[1], own("uts"));
    let shared = lines(&["--uts", "host"]);
    assert_eq!(shared[1..], [own("uts"), host.clone(), host.clone(), host]);
    refused(&env, &["--uts=host", "--hostname=x"], "conflicting options: hostname and the UTS mode");
    refused(&env, &["--uts=host", "--domainname=x"], "conflicting options: domainname and the UTS mode");
    refused(&env, &["--uts=wat"], "--uts: invalid UTS mode");
    refused(&env, &["--domainname", "a b"], "invalid domain name \"a b\"");
}

#[test]
fn memory_and_queues_are_shared_by_word_only() {
    require!();
    let env = TestEnv::new();
    let read = "readlink /proc/self/ns/ipc; ls /dev/shm";
    let name = format!("coracle-test-{}", std::process::id());
    let seen = |flags: &[&str]| sh(&env, flags, read);
    let file = std::path::Path::new("/dev/shm").join(&name);
    fs_err::write(&file, "x").unwrap();
    let (private, shareable, shared) = (seen(&["--ipc=private"]), seen(&["--ipc=shareable"]), seen(&["--ipc=host"]));
    fs_err::remove_file(&file).unwrap();
    for own_memory in [private, shareable] {
        assert!(!own_memory.contains(&own("ipc")) && !own_memory.contains(&name), "{own_memory}");
    }
    assert!(shared.contains(&own("ipc")) && shared.contains(&name), "{shared}");
    let without = "grep -c ' /dev/shm ' /proc/self/mounts; grep -c ' /dev/mqueue ' /proc/self/mounts";
    assert_eq!(sh(&env, &["--ipc=none"], &format!("{without}; true")), "0\n1");
    refused(&env, &["--ipc=wat"], "--ipc: invalid IPC mode");
    refused(&env, &["--ipc=container:x"], "-v DIRECTORY:/dev/shm");
    refused(&env, &["--ipc=host", "--shm-size=1m"], "conflicting options: --shm-size and the IPC mode");
}

#[test]
fn cgroups_and_processes() {
    require!();
    let env = TestEnv::new();
    let read = "readlink /proc/self/ns/cgroup";
    assert_ne!(sh(&env, &["--cgroupns=private"], read), own("cgroup"));
    assert_eq!(sh(&env, &["--cgroupns=host"], read), own("cgroup"));
    assert_eq!(sh(&env, &["--pid=private"], "echo $$"), "1");
    refused(&env, &["--cgroupns=wat"], "--cgroupns: invalid CGROUP mode");
    refused(&env, &["--pid=wat"], "--pid: invalid PID mode");
    refused(&env, &["--pid=host"], "--pid=host is not implemented");
    refused(&env, &["--pid=container:x"], "--pid=container:x is not implemented");
}

#[test]
fn devices_of_the_host() {
    require!();
    let env = TestEnv::new();
    let devices = ["--device", "/dev/full:/dev/brim", "--device", "/dev/zero:/srv/zero:rw"];
    let script = "stat -c '%F %t:%T' /dev/brim; echo x > /dev/brim || echo full; head -c 3 /srv/zero | od -An -c; \
                  chmod 0 /dev/brim 2>/dev/null || echo kept";
    let seen = sh(&env, &devices, &format!("{{ {script}; }} 2>/dev/null"));
    assert_eq!(seen, "character special file 1:7\nfull\n  \\0  \\0  \\0\nkept");
    for (bad, words) in [
        ("/etc/passwd", "not a device node"),
        ("/dev/no-such-device", "no such file or directory"),
        ("zero", "not an absolute path"),
        ("/dev/zero:/dev/x:rwx", "bad mode specified: rwx"),
        ("/dev/zero:/dev/x:r", "fewer rights need root"),
        ("a:b:c:d", "bad format for path"),
    ] {
        refused(&env, &["--device", bad], words);
    }
}

#[test]
fn what_was_asked_is_in_inspect() {
    require!();
    let env = TestEnv::new();
    let flags = ["--name", "c", "--annotation", "run.oci.x=y=z", "--expose", "7000-7001", "--expose", "53/udp"];
    let more =
        ["--device=/dev/zero:/dev/z", "--sysctl=kernel.msgmax=99", "--uts=host", "--cgroupns=host", "--ipc=none"];
    let image = env.image("busybox");
    let id = env.coracle(&["create", "--network=none"]).args(&flags).args(&more).args(&[&image, "true"]).ok();
    env.containers_may_stay();
    let host = |key: &str| inspected(&env, "c", &format!("{{{{json .HostConfig.{key}}}}}"));
    assert_eq!(host("Annotations"), r#"{"run.oci.x":"y=z"}"#);
    assert_eq!(json(&env, &id, "config.json")["annotations"]["run.oci.x"], "y=z", "hooks and tools read it there");
    assert_eq!(host("Sysctls"), r#"{"kernel.msgmax":"99"}"#);
    assert_eq!([host("UTSMode"), host("CgroupnsMode"), host("IpcMode")], [r#""host""#, r#""host""#, r#""none""#]);
    let device: Value = serde_json::from_str(&host("Devices")).unwrap();
    assert_eq!(device[0]["PathInContainer"], "/dev/z");
    let ports = inspected(&env, "c", "{{json .Config.ExposedPorts}}");
    assert_eq!(ports, r#"{"53/udp":{},"7000/tcp":{},"7001/tcp":{}}"#);
    env.coracle(&["rm", "c"]).ok();
    refused(&env, &["--annotation", "x"], "invalid annotation \"x\"");
    refused(&env, &["--expose", "80:80"], "an exposed port has no port of the host");
    refused(&env, &["--expose", "x"], "invalid port mapping \"x\"");
    refused(&env, &["--volume-driver=nfs"], "volume driver \"nfs\" is not implemented");
    assert_eq!(sh(&env, &["--volume-driver=local"], "echo on"), "on");
}

#[test]
fn options_of_the_resolver() {
    require!();
    let env = TestEnv::new();
    let text = sh(&env, &["--dns-option", "ndots:3", "--dns-opt=rotate", "--dns=192.0.2.1"], "cat /etc/resolv.conf");
    assert!(text.lines().any(|line| line == "options ndots:3 rotate"), "{text}");
    refused(&env, &["--dns-option", "a b"], "invalid DNS option \"a b\"");
}

#[test]
fn attached_streams_are_the_named_ones() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let script = "echo out; echo err >&2; cat; exit 3";
    let run = |flags: &[&str]| {
        let run = env.coracle(&["run", "--rm", "--network=none"]).args(flags).args(&[&image, "sh", "-c", script]);
        run.stdin("in\n").outcome()
    };
    let outcome = run(&["-a", "stdout"]);
    assert_eq!((outcome.text().as_str(), outcome.stderr.as_str()), ("out", ""));
    outcome.code(3);
    let outcome = run(&["-a", "STDERR", "-i"]);
    assert_eq!((outcome.text().as_str(), outcome.stderr.trim()), ("", "err"));
    let outcome = run(&["-a", "stdin", "-a", "stdout", "-a", "stderr", "-i"]);
    assert_eq!((outcome.text().as_str(), outcome.stderr.trim()), ("out\nin", "err"));
    let outcome = run(&["-a", "stdin", "-i"]);
    assert_eq!((outcome.text().len(), outcome.stderr.as_str()), (64, ""), "nothing but the id is shown");
    outcome.code(3);
    refused(&env, &["-a", "stdfoo"], "stdin, stdout, stderr");
    refused(&env, &["-a", "stdout", "-d"], "conflicting options: cannot specify both --attach and --detach");
}

#[test]
fn checks_come_faster_until_the_first_that_succeeds() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let slow = ["--health-interval=1h", "--health-start-period=1h", "--health-start-interval=50ms"];
    let id = detached(
        &env,
        &[&["--name", "c", "--health-cmd=cat /tmp/well"][..], &slow, &[&image, "sleep", "1000"]].concat(),
    );
    let health = || json(&env, &id, "health.json");
    wait_until("checks in the start period", || health()["log"].as_array().is_some_and(|log| log.len() >= 2));
    assert_eq!(health()["status"], "starting", "failures do not count yet");
    env.coracle(&["exec", "c", "touch", "/tmp/well"]).ok();
    wait_until("the first success", || health()["status"] == "healthy");
    let last = health()["log"].clone();
    env.coracle(&["exec", "c", "true"]).ok();
    assert_eq!(health()["log"], last, "the next one is an hour away");
    assert_eq!(inspected(&env, "c", "{{.Config.Healthcheck.StartInterval}}"), "50000000");
    env.coracle(&["rm", "-f", "c"]).ok();
    refused(&env, &["--health-start-interval=x"], "invalid duration \"x\"");
    refused(&env, &["--health-start-interval=10us"], "--health-start-interval cannot be shorter than 1 ms");
}

#[test]
fn flags_that_cannot_be_kept_say_why() {
    let env = TestEnv::new();
    for (flag, reason) in [
        ("--gpus=all", "--device"),
        ("--link=x", "coracle network create"),
        ("--mac-address=02:00:00:00:00:01", "chooses the address"),
        ("--privileged", "--cap-add"),
        ("--runtime=runc", "its own runtime"),
        ("--cgroup-parent=/x", "start coracle there"),
        ("--device-cgroup-rule=c 1:3 rwm", "--device"),
    ] {
        let name = flag.split('=').next().unwrap();
        for command in ["run", "create"] {
            let outcome = env.coracle(&[command, flag, "image"]).outcome();
            outcome.refused(125).says(&format!("flag {name} is not implemented\nhint: ")).says(reason);
        }
    }
}

#[test]
fn ports_that_are_exposed_by_word_are_published_by_a_capital_p() {
    require!("pasta");
    let env = TestEnv::new();
    let script = "while :; do echo hello | nc -l -p 7777; done";
    let flags = ["run", "-d", "--name", "c", "-P", "--expose", "7777", "--network", "pasta"];
    env.coracle(&flags).args(&[&env.image("busybox"), "sh", "-c", script]).ok();
    let port: u16 = env.coracle(&["port", "c", "7777/tcp"]).ok().rsplit_once(':').unwrap().1.parse().unwrap();
    wait_until("the exposed port", || said(port, b"\n").starts_with(b"hello"));
    env.coracle(&["rm", "-f", "c"]).ok();
}
