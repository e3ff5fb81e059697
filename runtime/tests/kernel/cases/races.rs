//! Somebody who shares a directory with the container exchanges what is in it while containers start
//! (security.md 1.1). How a launch ends may depend on the moment; where it reaches must not.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use coracle_runtime::Stage;
use serde_json::json;

use crate::container::Container;
use crate::place::Place;
use crate::runner::{ALL, Case, HELPER};

pub const CASES: &[Case] = &[
    Case { name: "a04_mount_target_exchanged_for_a_link", users: ALL, run: target_exchanged },
    Case { name: "a10_proc_is_no_procfs", users: ALL, run: proc_is_no_procfs },
    Case { name: "a11_mount_points_made_behind_a_link", users: ALL, run: made_behind_a_link },
    Case { name: "a13_long_configuration_keeps_every_namespace", users: ALL, run: long_configuration },
    Case { name: "c07_volume_source_exchanged", users: ALL, run: source_exchanged },
];

/// Starts enough to meet the exchange many times over, few enough for seconds.
const STARTS: u32 = 120;
/// A size that no other mount has.
const MARK: &str = "size=4324k";

/// Exchanges two names until it is dropped.
struct Racer(Child);

impl Racer {
    fn start(one: &Path, other: &Path) -> Self {
        let program = std::env::current_exe().expect("own path");
        let mut command = Command::new(program);
        command.args([HELPER, "exchange"]).args([one, other]).stdin(Stdio::piped());
        Self(command.spawn().expect("started"))
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("reaped");
    }
}

fn mounts_of_the_host() -> String {
    fs_err::read_to_string("/proc/self/mountinfo").expect("read")
}

/// A volume in which `a` is a directory and `b` a link, by turns.
fn shared(place: &Place, target: &Path) -> (std::path::PathBuf, Racer) {
    let volume = place.make(&format!("vol{}", target.display().to_string().len()));
    fs_err::create_dir(volume.join("a")).expect("made");
    symlink(target, volume.join("b")).expect("linked");
    let racer = Racer::start(&volume.join("a"), &volume.join("b"));
    (volume, racer)
}

fn target_exchanged(place: &Place) {
    let before = mounts_of_the_host();
    let outside = place.canary();
    for target in [outside.as_path(), Path::new("/"), Path::new("../../../../../..")] {
        let (volume, _racer) = shared(place, target);
        let mut container = Container::new(place, &format!("grep {MARK} /proc/self/mountinfo | cut -d' ' -f5"));
        container.mount("/vol", "bind", volume.to_str().expect("text"), &["rbind", "rw"]);
        container.mount("/vol/a", "tmpfs", "tmpfs", &[MARK]);
        let mut good = 0;
        place.untouched(|| {
            for _ in 0..STARTS / 3 {
                match container.try_run() {
                    // It was mounted, and is inside: the link's target counts from the container's root.
                    Ok(output) if output.status == 0 => {
                        assert!(output.stdout.starts_with('/') && output.stdout.lines().count() == 1, "{output:?}");
                        good += 1;
                    }
                    Ok(output) => panic!("{output:?}"),
                    // The root itself was covered, or the link was met.
                    Err(failure) => assert!(
                        matches!(failure.stage, Stage::Mounts | Stage::Exec | Stage::Rootfs | Stage::Confine),
                        "{failure:?}"
                    ),
                }
            }
        });
        assert!(good > 0, "no start ever met the directory");
    }
    assert_eq!(before, mounts_of_the_host(), "a mount reached the host");
}

fn made_behind_a_link(place: &Place) {
    let outside = place.canary();
    for target in [outside.as_path(), Path::new("../../canary"), Path::new("../canary")] {
        let (volume, _racer) = shared(place, target);
        place.untouched(|| {
            for number in 0..STARTS / 3 {
                let mut container = Container::new(place, "true");
                container.mount("/vol", "bind", volume.to_str().expect("text"), &["rbind", "rw"]);
                container.mount(&format!("/vol/a/x{number}/y/z"), "tmpfs", "tmpfs", &[MARK]);
                // Made or refused; the canary tells whether it was made outside.
                let _ = container.try_run();
            }
        });
    }
}

fn source_exchanged(place: &Place) {
    let volume = place.make("sources");
    for name in ["A", "B"] {
        fs_err::create_dir(volume.join(name)).expect("made");
        fs_err::write(volume.join(name).join("mark"), name).expect("written");
    }
    symlink("A", volume.join("source")).expect("linked");
    symlink("B", volume.join("other")).expect("linked");
    let _racer = Racer::start(&volume.join("source"), &volume.join("other"));
    let source = volume.join("source");
    let script = "cat /m/mark /m/mark; echo x > /m/new && echo written; true";
    let mut container = Container::new(place, script);
    container.mount("/m", "bind", source.to_str().expect("text"), &["bind", "ro"]);
    for _ in 0..STARTS {
        let output = container.run();
        // One directory throughout, and what was checked and made read-only is what is mounted.
        assert!(matches!(output.stdout.as_str(), "AA" | "BB"), "{output:?}");
    }
}

fn proc_is_no_procfs(place: &Place) {
    let with_sysctl = |destination: Option<&str>| {
        let mut container = Container::new(place, "true");
        container.spec["linux"]["sysctl"] = json!({ "kernel.shmmni": "4000" });
        let mounts = container.spec["mounts"].as_array_mut().expect("mounts");
        if destination != Some("/proc/sys") {
            mounts.retain(|mount| mount["destination"] != "/proc");
        }
        if let Some(destination) = destination {
            mounts.push(json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs" }));
        }
        place.untouched(|| {
            let failure = container.fails();
            assert!(matches!(failure.stage, Stage::Mounts | Stage::Confine | Stage::Plan), "{failure:?}");
        });
    };
    // The image's own /proc, with links where the runtime would write.
    let proc = place.rootfs().join("proc");
    fs_err::create_dir_all(proc.join("sys/kernel")).expect("made");
    fs_err::create_dir_all(proc.join("self")).expect("made");
    symlink(place.canary().join("file"), proc.join("sys/kernel/shmmni")).expect("linked");
    symlink(place.canary().join("file"), proc.join("self/oom_score_adj")).expect("linked");
    with_sysctl(None);
    with_sysctl(Some("/proc"));
    with_sysctl(Some("/proc/sys"));
    let mut container = Container::new(place, "cat /proc/self/oom_score_adj /proc/sys/kernel/shmmni");
    container.spec["process"]["oomScoreAdj"] = json!(321);
    container.spec["linux"]["sysctl"] = json!({ "kernel.shmmni": "4000" });
    place.untouched(|| assert_eq!(container.says(), "321\n4000", "a procfs of its own covers the image's"));
}

fn long_configuration(place: &Place) {
    // More than 65535 bytes in each thing whose length somebody might keep in 16 bits (CVE-2021-43784).
    let script = "for n in ipc mnt net pid uts user cgroup; do readlink /proc/self/ns/$n; done";
    let mut container = Container::new(place, script);
    let env: Vec<String> = (0..700).map(|number| format!("V{number}={}", "x".repeat(100))).collect();
    container.spec["process"]["env"].as_array_mut().expect("env").extend(env.into_iter().map(|one| json!(one)));
    container.spec["annotations"] = json!({ "long": "x".repeat(70_000) });
    let masked: Vec<String> = (0..700).map(|number| format!("/nowhere/{number}/{}", "y".repeat(100))).collect();
    container.spec["linux"]["maskedPaths"].as_array_mut().expect("paths").extend(masked.iter().map(|one| json!(one)));
    let names = container.says();
    let own = ["ipc", "mnt", "net", "pid", "uts", "user", "cgroup"]
        .map(|name| fs_err::read_link(format!("/proc/self/ns/{name}")).expect("read").display().to_string());
    assert_eq!(names.lines().count(), own.len(), "{names}");
    for (inside, outside) in names.lines().zip(&own) {
        assert_ne!(inside, outside, "a namespace of the host");
    }
    let long = format!("/{}", "z".repeat(70_000));
    let mut refused = Container::new(place, "true");
    refused.mount(&long, "tmpfs", "tmpfs", &[]);
    assert_eq!(refused.fails().stage, Stage::Mounts);
    let mut refused = Container::new(place, "true");
    refused.spec["hostname"] = json!("h".repeat(70_000));
    refused.fails();
    // The kernel takes 340 lines; more of them is an error and never a smaller map.
    let mut refused = Container::new(place, "true");
    let base = refused.idmap.uids[0];
    refused.idmap.uids =
        (0..4000).map(|number| coracle_runtime::IdRange { container: number * 2, host: base.host, size: 1 }).collect();
    assert!(matches!(refused.fails().stage, Stage::Ids | Stage::Plan));
}
