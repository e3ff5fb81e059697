//! Configurations that ask for what must not be (security.md 3).

use std::os::unix::fs::symlink;

use coracle_runtime::Stage;
use serde_json::json;

use crate::container::Container;
use crate::place::Place;
use crate::runner::{ALL, Case};

pub const CASES: &[Case] = &[
    Case { name: "c04_working_directories", users: ALL, run: working_directories },
    Case { name: "c05_root_filesystems", users: ALL, run: root_filesystems },
    Case { name: "c06_mount_configurations", users: ALL, run: mount_configurations },
    Case { name: "c14_namespace_configurations", users: ALL, run: namespace_configurations },
    Case { name: "c20_masked_path_is_a_link", users: ALL, run: masked_link },
];

fn working_directories(place: &Place) {
    use std::os::unix::fs::PermissionsExt;
    let cwd = |path: &str| {
        let mut container = Container::new(place, "pwd");
        container.spec["process"]["cwd"] = json!(path);
        container
    };
    assert_eq!(cwd("/made/by/us").says(), "/made/by/us");
    assert_eq!(cwd("").says(), "/");
    for bad in ["relative", "/etc\0", "."] {
        assert_eq!(cwd(bad).fails().stage, Stage::Plan, "{bad:?}");
    }
    let failure = cwd("/etc/passwd").fails();
    assert_eq!((failure.stage, failure.errno), (Stage::WorkingDirectory, libc::ENOTDIR));
    let closed = place.rootfs().join("closed");
    fs_err::create_dir(&closed).expect("made");
    fs_err::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).expect("set");
    let mut container = cwd("/closed");
    if !container.idmap.is_single() {
        container.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        let failure = container.fails();
        assert_eq!((failure.stage, failure.errno), (Stage::WorkingDirectory, libc::EACCES), "as the user, not as root");
    }
}

fn root_filesystems(place: &Place) {
    use coracle_runtime::Rootfs;
    fs_err::write(place.dir.join("file"), "").expect("written");
    symlink("/", place.dir.join("link-to-root")).expect("linked");
    for bad in ["missing", "file", "link-to-root"] {
        let mut container = Container::new(place, "true");
        container.rootfs = Rootfs::Directory(place.dir.join(bad));
        assert_eq!(container.fails().stage, Stage::Rootfs, "{bad}");
    }
    let mut container = Container::new(place, "true");
    container.rootfs = Rootfs::Directory("/".into());
    assert_eq!(container.fails().to_string(), "/: the host's root cannot be a container's");
}

fn mount_configurations(place: &Place) {
    let source = place.make("source").display().to_string();
    let refused = |destination: &str, kind: &str, from: &str, options: &[&str]| {
        let mut container = Container::new(place, "true");
        container.mount(destination, kind, from, options);
        let failure = container.fails();
        assert!(failure.stage <= Stage::Mounts, "{destination} {kind} {from} {options:?}: {failure}");
    };
    refused("/", "bind", &source, &["rbind"]);
    refused("/..", "bind", &source, &["rbind"]);
    refused("/a\0b", "bind", &source, &["rbind"]);
    refused("", "bind", &source, &["rbind"]);
    refused("/x", "bind", &source, &["rbind", "size=1"]);
    refused("/x", "bind", &source, &["rbind", "nonsense"]);
    if !rustix::process::geteuid().is_root() {
        // Only the owner of the filesystem may show it through another map.
        refused("/x", "bind", &source, &["rbind", "idmap"]);
    }
    refused("/x", "tmpfs", "tmpfs", &["idmap"]);
    refused("/x", "bind", "/does/not/exist", &["rbind"]);
    refused("/x", "ext4", "/dev/vda", &[]);
    refused("/x", "nfs", "host:/", &[]);
    refused("/x", "proc", "proc", &[]);
    refused("/x", "sysfs", "sysfs", &[]);
    refused("/x", "tmpfs", "tmpfs", &["size=-1"]);
    refused("/x", "tmpfs", "tmpfs", &["nonsense"]);
    refused("/x", "tmpfs", "tmpfs", &["mode=99"]);
    refused("/x", "tmpfs", "tmpfs", &[&format!("mode={}", "0".repeat(5000))]);
    // A file where a directory is mounted, and the other way round.
    refused("/etc/passwd", "bind", &source, &["rbind"]);
    refused("/etc", "bind", "/etc/passwd", &["rbind"]);
    // The same destination twice: the later one is on top.
    let mut container = Container::new(place, "ls /x");
    fs_err::write(place.make("second").join("second"), "").expect("written");
    container.mount("/x", "bind", &source, &["rbind"]);
    container.mount("/x", "bind", place.dir.join("second").to_str().expect("text"), &["rbind"]);
    assert_eq!(container.says(), "second");
}

fn namespace_configurations(place: &Place) {
    let with = |change: &dyn Fn(&mut Vec<serde_json::Value>)| {
        let mut container = Container::new(place, "true");
        change(container.spec["linux"]["namespaces"].as_array_mut().expect("a list"));
        container.fails()
    };
    assert_eq!(with(&|list| list.push(json!({"type": "pid"}))).stage, Stage::Plan);
    assert_eq!(with(&|list| list.retain(|one| one["type"] != "mount")).stage, Stage::Plan);
    assert_eq!(with(&|list| list.push(json!({"type": "time", "path": "/proc/self/ns/uts"}))).stage, Stage::Namespaces);
    let replace = |path: &str| {
        with(&|list| {
            list.retain(|one| one["type"] != "network");
            list.push(json!({"type": "network", "path": path}));
        })
    };
    rustix::fs::mkfifoat(rustix::fs::CWD, place.dir.join("fifo"), rustix::fs::Mode::from_raw_mode(0o600))
        .expect("made");
    assert!(replace("/etc/passwd").to_string().contains("is not a namespace"));
    assert!(replace(place.dir.join("fifo").to_str().expect("text")).to_string().contains("is not a namespace"));
    assert_eq!(replace("/proc/self/ns/missing").errno, libc::ENOENT);
    // Of the wrong kind: the kernel says so.
    assert_eq!(replace("/proc/self/ns/uts").stage, Stage::Namespaces);
}

fn masked_link(place: &Place) {
    // Outside of /proc the link's target is what is meant to be hidden.
    fs_err::write(place.rootfs().join("secret"), "secret\n").expect("written");
    symlink("/secret", place.rootfs().join("to-secret")).expect("linked");
    symlink(place.canary().join("file"), place.rootfs().join("to-canary")).expect("linked");
    let mut container = Container::new(place, "cat /secret; ls /etc /bin | wc -l; mkdir /etc/x");
    container.spec["linux"]["maskedPaths"] =
        json!(["/to-secret", "/to-canary", "/missing", "/etc", "/bin/missing", "/secret/below", "/etc"]);
    place.untouched(|| {
        let output = container.run();
        assert_eq!(output.stdout, "44\n", "{output:?}");
        assert_ne!(output.status, 0, "a masked directory cannot be written");
    });
    container.spec["linux"]["maskedPaths"] = json!(["/proc/mounts"]);
    assert_eq!(container.fails().to_string(), "/proc/mounts: must not be a symbolic link");
}
