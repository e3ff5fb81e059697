//! `coracle-oci` where there are real cgroups, devices and filesystems: what crun's suite does not show.

use serde_json::{Value, json};

use crate::host::{Guest, Output, User};

const OCI: &str = "/payload/coracle-oci";

/// A bundle in the guest, of the busybox that is there.
struct Bundle<'a> {
    guest: &'a Guest,
    user: User,
    directory: String,
}

impl<'a> Bundle<'a> {
    fn new(guest: &'a Guest, user: User, name: &str, edit: impl FnOnce(&mut Value)) -> Self {
        let directory = format!("/tmp/bundle-{user:?}-{name}");
        let rootless = if user == User::Root { "" } else { "--rootless" };
        let make = format!(
            "rm -rf {directory} && mkdir -p {directory}/rootfs && cd {directory}/rootfs && mkdir bin dev etc proc sys tmp &&
             cp /bin/busybox bin && for i in sh cat sleep dd stat mknod touch; do ln -s busybox bin/$i; done &&
             cd .. && {OCI} spec {rootless} && cat config.json"
        );
        let mut config: Value = serde_json::from_str(guest.sh(user, &make).ok()).unwrap();
        config["root"]["readonly"] = json!(false);
        config["process"]["terminal"] = json!(false);
        edit(&mut config);
        let write = format!("cat >{directory}/config.json <<'END'\n{config}\nEND");
        guest.sh(user, &write).ok();
        Self { guest, user, directory }
    }

    /// A command of the runtime, with the manager of cgroups that the user has.
    fn oci(&self, command: &str) -> Output {
        let manager = if self.user == User::Root { "cgroupfs" } else { "systemd" };
        self.guest.sh(self.user, &format!("cd {} && {OCI} --cgroup-manager {manager} {command}", self.directory))
    }
}

/// Without detaching, because the container would keep the agent's pipes.
const QUIETLY: &str = "</dev/null >/dev/null 2>&1";

#[test]
fn pause_update_events_and_stats_of_a_bundle() {
    let Some(guest) = Guest::find("pause_update_events_and_stats_of_a_bundle") else { return };
    for user in [User::Root, User::Alice] {
        let bundle = Bundle::new(&guest, user, "events", |config| {
            config["process"]["args"] = json!(["sh", "-c", "sleep 1000; true"]);
            config["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 20 } });
        });
        bundle.oci("delete -f events");
        bundle.oci(&format!("run -d events {QUIETLY}")).ok();
        let stats = |field: &str| {
            let line: Value = serde_json::from_str(bundle.oci("events --stats events").ok()).unwrap();
            line.pointer(&format!("/data/{field}")).unwrap().clone()
        };
        assert_eq!(stats("memory/usage/limit"), json!(64 << 20));
        assert_eq!(stats("pids"), json!({ "current": 2, "limit": 20 }));
        bundle.oci("update --memory 32m --memory-swap 32m --pids-limit 10 events").ok();
        assert_eq!(stats("memory/usage/limit"), json!(32 << 20));
        assert_eq!(bundle.oci("exec events cat /sys/fs/cgroup/pids.max").ok(), "10");

        // A file, the standard input, and a sub-cgroup for one more process.
        let file = r#"{"memory":{"limit":41943040,"swap":41943040},"pids":{"limit":15}}"#;
        guest.sh(user, &format!("echo '{file}' >{}/limits.json", bundle.directory)).ok();
        bundle.oci("update -r limits.json events").ok();
        assert_eq!((stats("memory/usage/limit"), stats("pids/limit")), (json!(40 << 20), json!(15)));
        bundle
            .oci(
                r#"update --resources - events <<'END'
{"pids":{"limit":12}}
END"#,
            )
            .ok();
        assert_eq!((stats("memory/usage/limit"), stats("pids/limit")), (json!(40 << 20), json!(12)));
        let every = "--cpu-period 50000 --cpu-quota 25000 --cpu-share 512 --memory-reservation 8m";
        bundle.oci(&format!("update {every} events")).ok();
        let read = |file: &str| bundle.oci(&format!("exec events cat /sys/fs/cgroup/{file}")).ok().to_owned();
        assert_eq!((read("cpu.max").as_str(), read("memory.low").as_str()), ("25000 50000", "8388608"));
        assert_eq!(read("cpu.weight"), "20");
        bundle.oci("update --cpu-quota -1 events").ok();
        assert_eq!(read("cpu.max"), "max 100000");
        let refused = bundle.oci("update --cpu-rt-runtime 1000 events");
        assert!(refused.failed().contains("--cpu-rt-runtime"), "{refused:?}");
        bundle.oci("update --memory 32m --memory-swap 32m events").ok();

        let state = || {
            let state: Value = serde_json::from_str(bundle.oci("state events").ok()).unwrap();
            state["status"].as_str().unwrap().to_owned()
        };
        bundle.oci("pause events").ok();
        assert_eq!(state(), "paused");
        let pid: Value = serde_json::from_str(bundle.oci("state events").ok()).unwrap();
        let frozen =
            format!("grep 'frozen 1' /sys/fs/cgroup$(sed 's/^0:://' /proc/{}/cgroup)/cgroup.events", pid["pid"]);
        guest.sh(User::Root, &frozen).ok();
        let refused = bundle.oci("exec events true");
        assert!(refused.failed().contains("--ignore-paused"), "{refused:?}");
        // One that is started all the same stands still with the others, and goes on with them.
        let manager = if user == User::Root { "cgroupfs" } else { "systemd" };
        let patient = [OCI, "--cgroup-manager", manager, "exec", "--ignore-paused", "events", "cat", "/proc/1/comm"];
        let patient = guest.start(user, &patient);
        guest.wait_for(user, &format!("[ $({OCI} ps events | wc -l) -gt 3 ]"), "one more process");
        assert_eq!(state(), "paused");
        bundle.oci("resume events").ok();
        assert_eq!(patient.wait().ok(), "sh");
        assert_eq!(state(), "running");

        // The watcher tells of memory that ran out, and ends with the container.
        let directory = &bundle.directory;
        let watch = format!("cd {directory} && exec {OCI} events --interval 1h events >seen");
        let watcher = guest.start(user, &["sh", "-c", &watch]);
        guest.wait_for(user, &format!("[ -s {directory}/seen ]"), "the watcher's first line");
        assert_ne!(bundle.oci("exec events dd if=/dev/zero of=/dev/null bs=100M count=1").status, 0);
        bundle.oci("kill events KILL");
        watcher.wait().ok();
        let seen = guest.sh(user, &format!("cat {directory}/seen"));
        let kinds: Vec<Value> =
            seen.ok().lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].clone()).collect();
        assert_eq!(kinds, [json!("stats"), json!("oom")], "{user:?}: {seen:?}");
        bundle.oci("delete -f events").ok();
    }
}

/// One more process in a cgroup of the container's that is there already, and in none that is not its own (A21).
#[test]
fn a21_exec_begins_in_a_cgroup_below_the_containers_own() {
    let Some(guest) = Guest::find("a21_exec_begins_in_a_cgroup_below_the_containers_own") else { return };
    for user in [User::Root, User::Alice] {
        let bundle = Bundle::new(&guest, user, "below", |config| config["process"]["args"] = json!(["sleep", "1000"]));
        bundle.oci("delete -f below");
        bundle.oci(&format!("run -d below {QUIETLY}")).ok();
        let sh = |command: &str| guest.sh(user, command).ok().trim().to_owned();
        let state: Value = serde_json::from_str(bundle.oci("state below").ok()).unwrap();
        let own = sh(&format!("echo /sys/fs/cgroup$(sed 's/^0:://' /proc/{}/cgroup)", state["pid"]));
        sh(&format!("mkdir -p {own}/inner/most"));
        for (given, seen) in [("inner", "0::/inner"), ("/inner/most", "0::/inner/most"), ("/", "0::/")] {
            assert_eq!(bundle.oci(&format!("exec --cgroup {given} below cat /proc/self/cgroup")).ok().trim(), seen);
        }
        for elsewhere in ["../..", "inner/../..", "missing"] {
            let refused = bundle.oci(&format!("exec --cgroup {elsewhere} below true"));
            assert!(refused.failed().contains("open cgroup"), "{elsewhere}: {refused:?}");
        }
        // One that lives on there belongs to the container like every other, and ends with it.
        bundle.oci(&format!("exec -d --cgroup inner/most below sleep 1000 {QUIETLY}")).ok();
        let inside: Value = sh(&format!("cat {own}/inner/most/cgroup.procs")).parse().unwrap();
        let pids: Vec<Value> = serde_json::from_str(bundle.oci("ps -f json below").ok()).unwrap();
        assert!(pids.len() == 2 && pids.contains(&inside), "{user:?}: {inside} in {pids:?}");
        bundle.oci("delete -f below").ok();
        sh(&format!("[ ! -e {own} ] && [ ! -e /proc/{inside} ]"));
    }
}

/// What `coracle run` has no flag for.
#[test]
fn root_sets_every_controller() {
    let Some(guest) = Guest::find("root_sets_every_controller") else { return };
    let bundle = Bundle::new(&guest, User::Root, "every", |config| {
        config["process"]["args"] = json!(["sleep", "1000"]);
        config["linux"]["resources"] = json!({
            "cpu": { "quota": 30_000, "period": 60_000, "burst": 10_000 },
            "memory": { "limit": 64 << 20, "swap": 64 << 20 },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 << 20 }],
            "unified": { "memory.oom.group": "1", "memory.high": "60000000" },
        });
    });
    bundle.oci("delete -f every");
    bundle.oci(&format!("run -d every {QUIETLY}")).ok();
    for (file, wanted) in [
        ("cpu.max", "30000 60000"),
        ("cpu.max.burst", "10000"),
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("hugetlb.2MB.max", "4194304"),
        ("memory.oom.group", "1"),
        ("memory.high", "59998208"),
    ] {
        assert_eq!(bundle.oci(&format!("exec every cat /sys/fs/cgroup/{file}")).ok(), wanted, "{file}");
    }
    bundle.oci("update --cpu-idle 1 every").ok();
    assert_eq!(bundle.oci("exec every cat /sys/fs/cgroup/cpu.idle").ok(), "1");
    // With memory.oom.group no process outlives the one that asked for too much.
    bundle.oci("exec every dd if=/dev/zero of=/dev/null bs=200M count=1").failed();
    let stopped = format!("cd {} && {OCI} state every | grep '\"stopped\"'", bundle.directory);
    guest.wait_for(User::Root, &stopped, "its first process was killed too");
    bundle.oci("delete every").ok();
    let unknown = Bundle::new(&guest, User::Root, "unknown", |config| {
        config["linux"]["resources"] = json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 4 << 20 }] });
    });
    let refused = unknown.oci("run unknown");
    assert!(refused.failed().contains("hugepage"), "{refused:?}");
}

/// The rules of `linux.resources.devices` are a BPF program on the cgroup, which real root may put there.
#[test]
fn root_gets_its_device_rules_as_a_program() {
    let Some(guest) = Guest::find("root_gets_its_device_rules_as_a_program") else { return };
    let run = |rules: Value| {
        let bundle = Bundle::new(&guest, User::Root, "rules", |config| {
            // 1:5 is /dev/zero, which is always allowed; 1:11 is /dev/kmsg, which is not.
            let script = "mknod /kmsg c 1 11 && for i in /dev/zero /kmsg; do
                          dd if=/dev/null of=$i 2>/dev/null && echo yes || echo no; done";
            config["process"]["args"] = json!(["sh", "-c", script]);
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
            }
            config["linux"]["resources"] = json!({ "devices": rules });
        });
        bundle.oci("delete -f rules");
        bundle.oci("run rules").ok().to_owned()
    };
    assert_eq!(run(json!([{ "allow": false, "access": "rwm" }])), "yes\nno");
    let allowed = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw" },
    ]);
    assert_eq!(run(allowed), "yes\nyes");
}

/// A mount whose owners are shown through a map: on ext4, which Linux 6.1 lets root map.
#[test]
fn root_maps_the_owners_of_a_mount() {
    let Some(guest) = Guest::find("root_maps_the_owners_of_a_mount") else { return };
    guest
        .sh(User::Root, "mkdir -p /var/tmp/mapped && touch /var/tmp/mapped/file && chown 5:6 /var/tmp/mapped/file")
        .ok();
    let run = |mount: Value, userns: bool| {
        let bundle = Bundle::new(&guest, User::Root, "mapped", |config| {
            config["process"]["args"] = json!(["stat", "-c", "%u:%g", "/mapped/file"]);
            config["mounts"].as_array_mut().unwrap().push(mount);
            if userns {
                config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
                let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
                (config["linux"]["uidMappings"], config["linux"]["gidMappings"]) = (map.clone(), map);
            }
        });
        if userns {
            guest.sh(User::Root, &format!("chown -R 100000:100000 {}/rootfs", bundle.directory)).ok();
        }
        bundle.oci("delete -f mapped");
        bundle.oci("run mapped").ok().to_owned()
    };
    let mount = |more: Value| {
        let mut mount =
            json!({ "destination": "/mapped", "source": "/var/tmp/mapped", "type": "bind", "options": ["bind"] });
        mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        mount
    };
    assert_eq!(run(mount(json!({})), false), "5:6");
    let one = |container: u32, host: u32| json!([{ "containerID": container, "hostID": host, "size": 10 }]);
    // Owner 5 of the disk is 1005 of the mount, and so on.
    let mapped = json!({ "uidMappings": one(0, 1000), "gidMappings": one(0, 2000) });
    assert_eq!(run(mount(mapped), false), "1005:2006");
    // The container's own map: what the disk calls 5 is the container's 5.
    assert_eq!(run(mount(json!({})), true), "65534:65534");
    assert_eq!(run(mount(json!({ "options": ["bind", "idmap"] })), true), "5:6");
}

/// On the guest's older kernel too: a root of its own in a mount namespace of others.
#[test]
fn a_bundle_lives_in_a_mount_namespace_of_others() {
    let Some(guest) = Guest::find("a_bundle_lives_in_a_mount_namespace_of_others") else { return };
    let line = "echo $$ >/run/others.new && mv /run/others.new /run/others && exec sleep 1000";
    let others = guest.start(User::Root, &["unshare", "--mount", "sh", "-c", line]);
    let pid = guest.wait_for(User::Root, "cat /run/others", "the others are there");
    let bundle = Bundle::new(&guest, User::Root, "joins", |config| {
        let script = "readlink /proc/self/ns/mnt; cat /proc/self/comm; ls /";
        config["process"]["args"] = json!(["sh", "-c", script]);
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "mount" {
                namespace["path"] = json!(format!("/proc/{pid}/ns/mnt"));
            }
        }
    });
    guest
        .sh(
            User::Root,
            &format!("ln -sf busybox {0}/rootfs/bin/readlink; ln -sf busybox {0}/rootfs/bin/ls", bundle.directory),
        )
        .ok();
    let mounts = || guest.run(User::Root, &["cat", &format!("/proc/{pid}/mountinfo")]).ok().to_owned();
    let before = mounts();
    bundle.oci("delete -f joins");
    let wanted = guest.run(User::Root, &["readlink", &format!("/proc/{pid}/ns/mnt")]).ok().to_owned();
    assert_eq!(bundle.oci("run joins").ok(), format!("{wanted}\ncat\nbin\ndev\netc\nproc\nsys\ntmp"));
    assert_eq!(mounts(), before);
    drop(others);
    guest.sh(User::Root, "rm -f /run/others");
}
