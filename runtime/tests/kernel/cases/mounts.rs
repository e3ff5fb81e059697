//! Mounts as Docker's users know them, and what is hidden or read-only.

use coracle_runtime::Rootfs;
use serde_json::json;

use crate::container::Container;
use crate::place::{Place, make_rootfs};
use crate::runner::{ALL, Case, User};

pub const CASES: &[Case] = &[
    Case { name: "bind_mounts", users: ALL, run: binds },
    Case { name: "read_only_all_the_way_down", users: ALL, run: recursive_read_only },
    Case { name: "tmpfs_options_and_copy_up", users: ALL, run: tmpfs },
    Case { name: "volume_copy_up", users: ALL, run: copy_up },
    Case { name: "read_only_root", users: ALL, run: read_only_root },
    Case { name: "masked_and_read_only_paths", users: ALL, run: masked },
    Case { name: "a12_cgroup_is_not_writable", users: ALL, run: cgroup },
    Case { name: "a14_devices_are_the_usual_ones", users: ALL, run: devices },
    Case { name: "device_nodes_of_the_host_keep_their_mode", users: ALL, run: device_mode },
    Case { name: "host_network_binds_sys", users: ALL, run: host_network },
    Case { name: "overlay_root", users: ALL, run: overlay },
    Case { name: "overlay_with_long_paths_and_many_layers", users: &[User::Alice], run: overlay_long },
    Case { name: "root_without_pivot", users: ALL, run: no_pivot },
    Case { name: "nothing_is_mounted_on_the_host", users: ALL, run: host_mounts },
];

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("text")
}

fn binds(place: &Place) {
    let dir = place.make("volume");
    fs_err::write(dir.join("file"), "content\n").expect("written");
    let mut container =
        Container::new(place, "cat /v/file; echo new > /v/new; cat /single; echo x > /ro/no; echo x > /rofile");
    container.mount("/v", "bind", text(&dir), &["rbind"]);
    container.mount("/single", "bind", text(&dir.join("file")), &["bind"]);
    container.mount("/ro", "bind", text(&dir), &["rbind", "ro"]);
    container.mount("/rofile", "bind", text(&dir.join("file")), &["bind", "ro", "nosuid", "nodev", "noexec"]);
    // A relative source starts at the bundle, a missing type means bind.
    container.spec["mounts"]
        .as_array_mut()
        .expect("mounts")
        .push(json!({"destination": "/rel", "source": "rootfs/etc", "options": ["bind"]}));
    let output = container.run();
    assert_eq!(output.stdout, "content\ncontent\n");
    assert_eq!(output.stderr.matches("Read-only file system").count(), 2, "{output:?}");
    assert_eq!(fs_err::read_to_string(dir.join("new")).expect("written from inside"), "new\n");
    assert!(!dir.join("no").exists());
}

fn recursive_read_only(place: &Place) {
    let dir = place.make("volume");
    let mut container = Container::new(place, "touch /v/no; touch /v/shm/no; touch /w/shm/yes && echo yes");
    // /dev of the host has mounts below it; its own tmpfs files need no right to be tried.
    container.mount("/v", "bind", "/dev", &["rbind", "rro"]);
    container.mount("/w", "bind", "/dev", &["rbind", "ro"]);
    let output = container.run();
    assert_eq!(output.stderr.matches("Read-only file system").count(), 2, "{output:?}");
    assert_eq!(output.stdout, "yes\n");
    let _ = fs_err::remove_file("/dev/shm/yes");
    let mut container = Container::new(place, "grep ' /v ' /proc/self/mountinfo | cut -d' ' -f6");
    container.mount("/v", "bind", text(&dir), &["rbind", "nosuid", "nodev", "noexec", "noatime"]);
    let flags = container.says();
    // noatime is taken where the kernel allows it.
    for flag in ["nosuid", "nodev", "noexec", "rw"] {
        assert!(flags.split(',').any(|one| one == flag), "{flags}");
    }
}

fn tmpfs(place: &Place) {
    fs_err::create_dir(place.rootfs().join("data")).expect("made");
    fs_err::write(place.rootfs().join("data/seed"), "seed\n").expect("written");
    let mut container = Container::new(
        place,
        "stat -c %a /t; df -k /t | tail -n 1 2>/dev/null | awk '{print $2}'; cat /data/seed; echo x > /data/more; ls /e; echo x > /r/no",
    );
    container.mount("/t", "tmpfs", "tmpfs", &["size=1m", "mode=1700", "nosuid", "nodev"]);
    container.mount("/data", "tmpfs", "tmpfs", &["tmpcopyup"]);
    container.mount("/e", "tmpfs", "tmpfs", &[]);
    container.mount("/r", "tmpfs", "tmpfs", &["ro"]);
    let output = container.run();
    assert_eq!(output.stdout.lines().next(), Some("1700"), "{output:?}");
    assert!(output.stdout.ends_with("seed\n"), "{output:?}");
    assert!(output.stderr.contains("Read-only file system"), "{output:?}");
    assert!(!place.rootfs().join("data/more").exists(), "the image is untouched");
}

fn copy_up(place: &Place) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    let image = place.rootfs().join("srv");
    fs_err::create_dir_all(image.join("sub/deep")).expect("made");
    fs_err::write(image.join("sub/file"), "content").expect("written");
    fs_err::set_permissions(image.join("sub/file"), std::fs::Permissions::from_mode(0o4751)).expect("set");
    fs_err::set_permissions(&image, std::fs::Permissions::from_mode(0o1777)).expect("set");
    symlink(place.canary().join("file"), image.join("link")).expect("linked");
    rustix::fs::mkfifoat(rustix::fs::CWD, image.join("fifo"), rustix::fs::Mode::from_raw_mode(0o640)).expect("made");
    let before = place.photograph();
    let volume = place.make("volume");
    let mut container = Container::new(place, "cat /srv/sub/file; echo changed > /srv/sub/file");
    container.mount("/srv", "bind", text(&volume), &["rbind", "copyup"]);
    assert_eq!(container.says(), "content");
    assert_eq!(fs_err::read_to_string(image.join("sub/file")).expect("read"), "content", "the image is untouched");
    assert_eq!(fs_err::read_link(volume.join("link")).expect("a link"), place.canary().join("file"));
    let mode = |path: &str| fs_err::symlink_metadata(volume.join(path)).expect("copied").mode() & 0o7777;
    assert_eq!((mode(""), mode("fifo")), (0o1777, 0o640));
    let times = |path: std::path::PathBuf| fs_err::symlink_metadata(path).expect("there").mtime_nsec();
    assert_eq!(times(volume.join("sub/deep")), times(image.join("sub/deep")));
    // The second time the volume is not empty and stays as it is.
    assert_eq!(container.says(), "changed");
    assert_eq!(before, place.photograph());
}

fn read_only_root(place: &Place) {
    let mut container =
        Container::new(place, "touch /no; touch /tmp/yes /dev/shm/yes && echo x > /dev/null && echo fine");
    container.spec["root"]["readonly"] = json!(true);
    container.mount("/tmp", "tmpfs", "tmpfs", &[]);
    container.mount("/made/for/this", "tmpfs", "tmpfs", &[]);
    let output = container.run();
    assert_eq!((output.stdout.as_str(), output.status), ("fine\n", 0), "{output:?}");
    assert!(output.stderr.contains("Read-only file system"));
}

fn masked(place: &Place) {
    let script = "cat /proc/keys /proc/timer_list /proc/interrupts | wc -c; ls -A /sys/firmware /proc/acpi /proc/scsi 2>/dev/null | grep -v : | wc -w; \
        for p in sys bus irq fs; do grep \" /proc/$p ro,\" /proc/self/mountinfo | wc -l; done; \
        umount /proc/keys; umount /proc/sys; echo 1 > /proc/sys/kernel/panic";
    let output = Container::new(place, script).run();
    assert_eq!(output.stdout, "0\n0\n1\n1\n1\n1\n", "{output:?}");
    assert_eq!(output.stderr.matches("Operation not permitted").count(), 2, "{output:?}");
    assert!(output.stderr.contains("Read-only file system"), "{output:?}");
}

fn cgroup(place: &Place) {
    let script = "mkdir /sys/fs/cgroup/x; for f in $(find /sys/fs/cgroup -name cgroup.procs); do echo 1 > $f; done; \
        echo 1 > /sys/kernel/uevent_seqnum; ls /sys/class/net; \
        grep ' /sys/fs/cgroup ' /proc/self/mountinfo | cut -d' ' -f6,9; cat /proc/self/cgroup | cut -d: -f3 | sort -u";
    let output = Container::new(place, script).run();
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines[0], "lo", "a sysfs of its own network: {output:?}");
    assert!(lines[1].starts_with("ro,nosuid,nodev,noexec,"), "{output:?}");
    assert!(lines[1].ends_with(" cgroup2") || lines[1].ends_with(" tmpfs"), "{output:?}");
    assert_eq!(lines[2..], ["/"], "a cgroup namespace of its own: {output:?}");
    assert!(output.stderr.matches("Read-only file system").count() >= 2, "{output:?}");
}

fn devices(place: &Place) {
    let script = "ls /dev | tr '\\n' ' '; mknod /tmp/sda b 8 0; mknod /tmp/null c 1 3; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; \
        echo x > /dev/full; echo x > /dev/null; test -c /dev/pts/ptmx; readlink /dev/ptmx";
    let output = Container::new(place, script).run();
    let expect = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 4\n4\npts/ptmx\n";
    assert_eq!(output.stdout, expect, "{output:?}");
    assert!(output.stderr.contains("No space left"), "{output:?}");
    assert!(!place.rootfs().join("tmp/sda").exists());
    // A device by name, and one that is not what it says.
    let mut container = Container::new(place, "stat -c %t:%T /dev/net/tun");
    container.spec["linux"]["devices"] = json!([{"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200}]);
    assert_eq!(container.says(), "a:c8");
    container.spec["linux"]["devices"] = json!([{"path": "/dev/net/tun", "type": "c", "major": 1, "minor": 1}]);
    if rustix::process::geteuid().is_root() {
        // Only root of the host makes devices, and then those that it says.
        assert_eq!(container.says(), "1:1");
    } else {
        assert_eq!(container.fails().errno, libc::ENODEV);
    }
    container.spec["linux"]["devices"] = json!([{"path": "/etc/passwd", "type": "c", "major": 1, "minor": 3}]);
    container.fails();
    container.spec["linux"]["devices"] = json!([{"path": "/dev/../etc/passwd", "type": "c", "major": 1, "minor": 3}]);
    container.fails();
}

fn device_mode(place: &Place) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    // A change that would hurt nobody if it reached the host, and that is undone then.
    let script = "chmod 667 /dev/full; chmod 667 /proc/keys; echo x > /dev/null && echo fine";
    let mode = |path: &str| fs_err::metadata(path).expect("there").mode();
    let before = [mode("/dev/full"), mode("/dev/null")];
    let output = Container::new(place, script).run();
    let after = [mode("/dev/full"), mode("/dev/null")];
    for (path, mode) in ["/dev/full", "/dev/null"].into_iter().zip(before) {
        let _ = fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o7777));
    }
    assert_eq!(output.stdout, "fine\n");
    assert_eq!(before, after, "the host's nodes have changed");
}

fn host_network(place: &Place) {
    let mut container = Container::new(
        place,
        "ls /sys/class/net | wc -l; touch /sys/x; touch /sys/fs/cgroup/x; mkdir /sys/fs/cgroup/y; ls /sys/firmware",
    );
    let namespaces = container.spec["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|one| one["type"] != "network");
    let output = container.run();
    let interfaces = fs_err::read_dir("/sys/class/net").expect("listed").count();
    assert_eq!(output.stdout, format!("{interfaces}\n"), "{output:?}");
    assert_eq!(output.stderr.matches("Read-only file system").count(), 3, "{output:?}");
}

fn layers(place: &Place) -> Rootfs {
    use std::os::unix::fs::PermissionsExt;
    let base = place.make("layers/base");
    make_rootfs(&base);
    fs_err::write(base.join("etc/gone"), "").expect("written");
    fs_err::write(base.join("etc/kept"), "base\n").expect("written");
    let top = place.make("layers/top:with,odd\\name");
    fs_err::create_dir(top.join("etc")).expect("made");
    fs_err::write(top.join("etc/kept"), "top\n").expect("written");
    let whiteout = top.join("etc/gone");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &whiteout,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .expect("a whiteout");
    let (upper, work) = (place.make("upper"), place.make("work"));
    fs_err::set_permissions(&upper, std::fs::Permissions::from_mode(0o755)).expect("set");
    Rootfs::Overlay { lower: vec![base, top], upper, work, volatile: false }
}

fn overlay(place: &Place) {
    let mut container = Container::new(
        place,
        "cat /etc/kept; test -e /etc/gone || echo hidden; echo new > /etc/new; rm /etc/passwd; chown 0:0 /etc/group; mkdir /etc/dir",
    );
    container.rootfs = layers(place);
    assert_eq!(container.says(), "top\nhidden");
    assert_eq!(fs_err::read_to_string(place.dir.join("upper/etc/new")).expect("in the upper layer"), "new\n");
    assert!(place.dir.join("layers/base/etc/passwd").exists());
    // The same layers again: what the first one left in the work directory is no obstacle.
    let again = container.run();
    assert_eq!(again.stdout, "top\nhidden\n");
    assert!(again.stderr.contains("can't remove '/etc/passwd'"), "{again:?}");
    // The writable layer must be there.
    fs_err::rename(place.dir.join("upper"), place.dir.join("elsewhere")).expect("moved");
    assert_eq!(container.fails().errno, libc::ENOENT);
}

fn overlay_long(place: &Place) {
    let Rootfs::Overlay { mut lower, .. } = layers(place) else { unreachable!() };
    let deep = place.make(&format!("{}/{}", "d".repeat(200), "e".repeat(200)));
    for number in 0..100 {
        let layer = deep.join(format!("layer-{number}"));
        fs_err::create_dir(&layer).expect("made");
        fs_err::write(layer.join("number"), format!("{number}\n")).expect("written");
        lower.push(layer);
    }
    let (upper, work) = (deep.join("upper"), deep.join("work"));
    fs_err::create_dir(&upper).expect("made");
    fs_err::create_dir(&work).expect("made");
    let mut container = Container::new(place, "cat /number /etc/kept");
    container.rootfs = Rootfs::Overlay { lower, upper, work, volatile: false };
    assert_eq!(container.says(), "99\ntop");
}

fn host_mounts(place: &Place) {
    let mounts = || fs_err::read_to_string("/proc/self/mountinfo").expect("read");
    let before = mounts();
    let mut container = Container::new(place, "true");
    container.mount("/v", "bind", text(&place.make("volume")), &["rbind", "rshared"]);
    container.mount("/t", "tmpfs", "tmpfs", &[]);
    container.says();
    assert_eq!(before, mounts());
    for word in ["private", "rslave", "shared", "rshared"] {
        let mut container = Container::new(place, "true");
        container.spec["linux"]["rootfsPropagation"] = json!(word);
        container.says();
        assert_eq!(before, mounts(), "{word}");
    }
}

fn no_pivot(place: &Place) {
    let mut container = Container::new(
        place,
        "ls /; ls /..; cat /etc/passwd | head -n 1; cut -d' ' -f5 /proc/self/mountinfo | head -n 1",
    );
    container.no_pivot = true;
    let said = container.says();
    let names = "bin\ndev\netc\nhome\nproc\nroot\nsys\ntmp\n";
    assert_eq!(said, format!("{names}{names}root:x:0:0::/root:/bin/sh\n/"));
}
