//! Root filesystems and configurations made to lead the runtime outside (security.md 1.1, 3).

use std::os::unix::fs::symlink;
use std::path::Path;

use coracle_runtime::Stage;
use serde_json::json;

use crate::container::Container;
use crate::place::Place;
use crate::runner::{ALL, Case};

pub const CASES: &[Case] = &[
    Case { name: "a02_cwd_through_a_descriptor", users: ALL, run: cwd_through_descriptor },
    Case { name: "a05_proc_and_sys_are_links", users: ALL, run: proc_is_a_link },
    Case { name: "a06_dev_null_of_the_image", users: ALL, run: dev_null_of_the_image },
    Case { name: "a08_no_dev_mount", users: ALL, run: no_dev_mount },
    Case { name: "a09_dev_symlink", users: ALL, run: dev_is_a_link },
    Case { name: "a15_mounts_over_proc", users: ALL, run: mounts_over_proc },
    Case { name: "a17_hostile_resolv_conf", users: ALL, run: hostile_resolv_conf },
    Case { name: "a18_hostile_destinations", users: ALL, run: hostile_destinations },
    Case { name: "a18_hostile_workdir", users: ALL, run: hostile_workdir },
];

fn remove(path: &Path) {
    let is_dir = fs_err::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let _ = if is_dir { fs_err::remove_dir_all(path) } else { fs_err::remove_file(path) };
}

fn cwd_through_descriptor(place: &Place) {
    let _held: Vec<fs_err::File> = (0..30).map(|_| fs_err::File::open("/").expect("opened")).collect();
    for number in (3..48).chain([1023]) {
        let mut container = Container::new(place, "pwd; ls");
        container.spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let failure = container.fails();
        assert_eq!(failure.stage, Stage::WorkingDirectory, "{number}: {failure}");
        let link = place.rootfs().join("cwd");
        remove(&link);
        symlink(format!("/proc/self/fd/{number}"), &link).expect("linked");
        container.spec["process"]["cwd"] = json!("/cwd");
        assert_eq!(container.fails().stage, Stage::WorkingDirectory, "{number}");
        container.spec["process"]["cwd"] = json!(format!("/proc/1/fd/{number}/.."));
        assert_eq!(container.fails().stage, Stage::WorkingDirectory, "{number}");
    }
}

fn proc_is_a_link(place: &Place) {
    for name in ["proc", "sys"] {
        let path = place.rootfs().join(name);
        for target in ["/canary", "../../../canary", "../..", "/bin", "nowhere"] {
            remove(&path);
            symlink(target.replace("/canary", place.canary().to_str().expect("text")), &path).expect("linked");
            place.untouched(|| {
                let said = Container::new(place, "true").fails().to_string();
                assert_eq!(said, format!("/{name}: must be an ordinary directory"), "-> {target}");
            });
        }
        remove(&path);
        fs_err::write(&path, "a file").expect("written");
        let said = Container::new(place, "true").fails().to_string();
        assert_eq!(said, format!("/{name}: must be an ordinary directory"));
        remove(&path);
        fs_err::create_dir(&path).expect("made");
    }
}

fn dev_null_of_the_image(place: &Place) {
    let pattern = fs_err::read_to_string("/proc/sys/kernel/core_pattern").expect("read");
    let null = place.rootfs().join("dev/null");
    let script = "cat /proc/keys /proc/timer_list /proc/interrupts | wc -c; stat -L -c %t:%T /dev/null; echo x > /dev/null && cat /dev/null";
    let check = |what: &str| {
        assert_eq!(Container::new(place, script).says(), "0\n1:3", "{what}");
    };
    symlink("/proc/sys/kernel/core_pattern", &null).expect("linked");
    check("link to core_pattern");
    remove(&null);
    fs_err::create_dir(&null).expect("made");
    check("directory");
    remove(&null);
    fs_err::write(&null, "data").expect("written");
    check("file");
    remove(&null);
    rustix::fs::mkfifoat(rustix::fs::CWD, &null, rustix::fs::Mode::from_raw_mode(0o666)).expect("made");
    check("fifo");
    assert_eq!(pattern, fs_err::read_to_string("/proc/sys/kernel/core_pattern").expect("read"));
}

fn no_dev_mount(place: &Place) {
    let dev = place.rootfs().join("dev");
    for name in ["console", "null", "ptmx", "fd"] {
        symlink(place.canary().join("file"), dev.join(name)).expect("linked");
    }
    for readonly in [false, true] {
        place.untouched(|| {
            let mut container =
                Container::new(place, "echo x > /dev/null; stat -c %t:%T /dev/null; ls /dev | tr '\\n' ' '");
            container.spec["root"]["readonly"] = json!(readonly);
            let mounts = container.spec["mounts"].as_array_mut().expect("mounts");
            mounts.retain(|mount| !mount["destination"].as_str().expect("text").starts_with("/dev"));
            let said = container.says();
            assert_eq!(said, "1:3\nfd full null ptmx random stderr stdin stdout tty urandom zero");
        });
    }
}

fn dev_is_a_link(place: &Place) {
    let dev = place.rootfs().join("dev");
    for target in
        [place.canary().display().to_string(), "../../canary".to_owned(), "../../../../..".to_owned(), "bin".to_owned()]
    {
        remove(&dev);
        symlink(&target, &dev).expect("linked");
        place.untouched(|| {
            let failure = Container::new(place, "true").fails();
            assert_eq!(failure.to_string(), "/dev: must be an ordinary directory", "-> {target}");
            let mut created = Container::new(place, "true");
            created.gate = coracle_runtime::Gate::Wait;
            assert_eq!(created.fails(), failure);
        });
    }
    assert_eq!(fs_err::read_dir(place.rootfs().join("bin")).expect("listed").count(), 41, "nothing appeared in /bin");
}

fn mounts_over_proc(place: &Place) {
    let source = place.make("source");
    let source = source.to_str().expect("text");
    symlink("/proc", place.rootfs().join("p")).expect("linked");
    symlink("proc/self", place.rootfs().join("q")).expect("linked");
    for destination in [
        "/proc",
        "/proc/self",
        "/proc/sys",
        "/dev/../proc",
        "//proc/.",
        "/sys",
        "/dev",
        "/p/self",
        "/p/sys",
        "/q",
        "/q/ns",
        "/",
    ] {
        let mut container = Container::new(place, "true");
        container.mount(destination, "bind", source, &["rbind"]);
        let failure = container.fails();
        assert!(failure.stage <= Stage::Mounts, "{destination}: {failure}");
    }
    let mut container = Container::new(place, "true");
    container.mount("/p", "bind", source, &["rbind"]);
    assert!(container.try_run().is_err(), "through a link to /proc itself");
    // What lxcfs does stays possible.
    fs_err::write(place.dir.join("meminfo"), "MemTotal: 1 kB\n").expect("written");
    let mut container = Container::new(place, "cat /proc/meminfo");
    container.mount("/proc/meminfo", "bind", place.dir.join("meminfo").to_str().expect("text"), &["bind"]);
    assert_eq!(container.says(), "MemTotal: 1 kB");
}

/// Puts something hostile at a path. `depth` is how many `..` lead out of the root from there.
fn plant(place: &Place, path: &Path, kind: &str) {
    remove(path);
    let canary = place.canary();
    let link = |target: &str| symlink(target, path).expect("linked");
    match kind {
        "absent" => {}
        "file" => fs_err::write(path, "image's own").expect("written"),
        "absolute link" => link(canary.join("file").to_str().expect("text")),
        "absolute link to a directory" => link(canary.to_str().expect("text")),
        "relative link" => link("../../../../../../../../../../../../../../../../canary-outside"),
        "link that climbs" => link("../../../canary/file"),
        "dangling link outside" => link(canary.join("new").to_str().expect("text")),
        "dangling link inside" => link("/run/made/here"),
        "loop" => link(path.file_name().expect("a name").to_str().expect("text")),
        "magic link" => link("/proc/self/root/etc/hostile"),
        "magic link to cwd" => link("/proc/self/cwd/hostile"),
        "fifo" => rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::from_raw_mode(0o666)).expect("made"),
        "directory" => fs_err::create_dir(path).expect("made"),
        kind => panic!("unknown kind {kind}"),
    }
}

/// Removes what links made appear inside the root.
fn clean_up(place: &Place) {
    remove(&place.rootfs().join("run"));
    remove(&place.rootfs().join("canary-outside"));
    remove(&place.rootfs().join("canary"));
    remove(&place.rootfs().join(place.dir.strip_prefix("/").expect("absolute")));
}

const KINDS: [&str; 13] = [
    "absent",
    "file",
    "absolute link",
    "absolute link to a directory",
    "relative link",
    "link that climbs",
    "dangling link outside",
    "dangling link inside",
    "loop",
    "magic link",
    "magic link to cwd",
    "fifo",
    "directory",
];

fn hostile_resolv_conf(place: &Place) {
    let source = place.dir.join("resolv.conf");
    fs_err::write(&source, "nameserver 10.0.2.3\n").expect("written");
    for name in ["etc/resolv.conf", "etc/hosts", "etc/hostname"] {
        for kind in KINDS {
            plant(place, &place.rootfs().join(name), kind);
            place.untouched(|| {
                let mut container = Container::new(place, &format!("cat /{name}"));
                container.mount(&format!("/{name}"), "bind", source.to_str().expect("text"), &["rbind", "ro"]);
                let works = matches!(
                    kind,
                    "absent"
                        | "file"
                        | "absolute link"
                        | "dangling link outside"
                        | "dangling link inside"
                        | "relative link"
                        | "link that climbs"
                        | "fifo"
                        | "absolute link to a directory"
                );
                match container.try_run() {
                    Ok(output) => {
                        assert!(works, "{name} as {kind} was mounted");
                        assert_eq!(output.stdout, "nameserver 10.0.2.3\n", "{name} as {kind}");
                    }
                    Err(failure) => {
                        assert!(!works, "{name} as {kind}: {failure}");
                        assert_eq!(failure.stage, Stage::Mounts, "{name} as {kind}");
                    }
                }
            });
            remove(&place.rootfs().join(name));
            clean_up(place);
        }
    }
}

fn hostile_destinations(place: &Place) {
    let source = place.make("volume");
    fs_err::write(source.join("mark"), "volume\n").expect("written");
    for (parent, below) in [("data", ""), ("data", "/below/it"), ("etc/data", "/x")] {
        for kind in KINDS {
            for mount_kind in ["bind", "tmpfs"] {
                plant(place, &place.rootfs().join(parent), kind);
                place.untouched(|| {
                    let mut container = Container::new(place, "true");
                    container.mount(
                        &format!("/{parent}{below}"),
                        mount_kind,
                        source.to_str().expect("text"),
                        if mount_kind == "bind" { &["rbind"] } else { &[] },
                    );
                    if let Err(failure) = container.try_run() {
                        assert_eq!(failure.stage, Stage::Mounts, "{parent}{below} as {kind}: {failure}");
                    }
                });
                remove(&place.rootfs().join(parent));
                clean_up(place);
            }
        }
    }
    assert!(!place.dir.join("canary-outside").exists());
}

fn hostile_workdir(place: &Place) {
    for kind in KINDS {
        for below in ["", "/below"] {
            plant(place, &place.rootfs().join("work"), kind);
            place.untouched(|| {
                let mut container = Container::new(place, "pwd -P");
                container.spec["process"]["cwd"] = json!(format!("/work{below}"));
                match container.try_run() {
                    Ok(output) => assert!(output.stdout.starts_with('/'), "{kind}: {output:?}"),
                    Err(failure) => {
                        assert_eq!(failure.stage, Stage::WorkingDirectory, "{kind}: {failure}")
                    }
                }
            });
            remove(&place.rootfs().join("work"));
            clean_up(place);
        }
    }
}
