//! Disk limits that filesystems keep: ext4, XFS and btrfs in files, set up by `coracle quota setup` as root.

use crate::host::{CORACLE, Guest, IMAGE, Output, User};

#[path = "../quota/ways.rs"]
mod ways;

/// Where the filesystem under test is mounted; tests of the guest follow each other.
const PLACE: &str = "/mnt/quota";
const STATE: &str = "/mnt/quota/alice";
const LIMIT_KIB: u64 = 16 << 10;
/// More of them take minutes here.
const INODES: u64 = 1000;
/// The debian image's python is another one, and this image has none: the guest's own, with its libraries.
const PYTHON: &str = "-v /usr:/host:ro -e PYTHONHOME=/host big /host/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 \
                      --library-path /host/lib/x86_64-linux-gnu /host/bin/python3 -u /vectors.py 16";

struct Filesystem {
    make: &'static str,
    options: &'static str,
    backend: &'static str,
    /// The limit of inodes, where none is set up.
    inodes: &'static str,
    /// Which ways to write do not end there, and are not tried.
    left_out: &'static [&'static str],
    /// The image's own lines.
    df: bool,
}

const EXT4: Filesystem = Filesystem {
    make: "mke2fs -q -t ext4 -O quota,project -E quotatype=prjquota",
    options: "loop,prjquota",
    backend: "project",
    inodes: "",
    left_out: &[],
    df: true,
};
const XFS: Filesystem = Filesystem { make: "cp --sparse=always /payload/xfs.img", ..EXT4 };
const BTRFS: Filesystem = Filesystem {
    make: "cp --sparse=always /payload/btrfs.img",
    options: "loop",
    backend: "btrfs",
    inodes: "",
    // btrfs limits no inodes, and 16 MiB of empty ones take minutes here; what is copied by the kernel, a range or a file
    // of the image, shares its extents and takes no room until it is written; an anonymous volume is refused, because
    // subvolumes could be made in it that do not count.
    left_out: &["empty_files", "deep_directories", "copy_file_range", ways::VOLUME, "chmod_image", "chown_image"],
    df: false,
};

/// Nothing that an administrator set up: a filesystem as it is. The kernel is 6.1, which has no way to send requests again.
const PLAIN: Filesystem =
    Filesystem { make: "mke2fs -q -t ext4", options: "loop", backend: "fuse", inodes: ",inodes=1000", ..EXT4 };

struct Bed<'a> {
    guest: &'a Guest,
    image: String,
}

impl<'a> Bed<'a> {
    /// Mounts a fresh filesystem of this kind, with the image in alice's state directory.
    fn new(guest: &'a Guest, filesystem: &Filesystem) -> Self {
        let Filesystem { make, options, .. } = filesystem;
        let line = format!(
            "umount -l {PLACE} 2>/dev/null; rm -rf /etc/coracle /var/lib/coracle /var/tmp/quota.img
             set -e; truncate -s 320M /var/tmp/quota.img; {make} /var/tmp/quota.img; mkdir -p {PLACE}
             mount -o {options} /var/tmp/quota.img {PLACE}; install -d -m 700 -o alice -g alice {STATE}"
        );
        guest.sh(User::Root, &line).ok();
        guest.sh(User::Alice, &format!("cat >/tmp/vectors.py <<'END'\n{}\nEND", ways::SCRIPT)).ok();
        let load = format!("{CORACLE} --root {STATE} load -q -i /var/lib/guest/busybox | sed 's/.*sha256://'");
        let image = guest.sh(User::Alice, &load).ok().to_owned();
        Self { guest, image }
    }

    fn setup(&self) {
        let size = format!("--size {LIMIT_KIB}k,inodes={INODES} --slots 2");
        self.guest.sh(User::Root, &format!("{CORACLE} quota setup --path {STATE} --user alice {size}")).ok();
    }

    /// Runs coracle as alice on the filesystem; IMAGE is its image.
    fn coracle(&self, line: &str) -> Output {
        let line = line.replace("IMAGE", &self.image);
        self.guest.sh(User::Alice, &format!("{CORACLE} --root {STATE} {line}"))
    }
}

impl Bed<'_> {
    /// Makes an image of files for copying up: with one that is smaller than the limit nothing would be shown.
    fn make_big_image(&self) {
        let fill = "mkdir /usr; for n in $(seq 24); do dd if=/dev/urandom of=/usr/$n bs=1M count=1; done";
        self.coracle(&format!("run --network none --name big IMAGE sh -c '{fill}'")).ok();
        self.coracle("commit big big").ok();
        self.coracle("rm big").ok();
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        let line = format!("umount -l {PLACE}; rm -rf /etc/coracle /var/lib/coracle /var/tmp/quota.img");
        self.guest.sh(User::Root, &line);
    }
}

fn limits_hold(test: &str, filesystem: &Filesystem) {
    let Some(guest) = Guest::find(test) else { return };
    let bed = Bed::new(&guest, filesystem);
    let backend = filesystem.backend;
    let run = "run --rm --network none";
    let asked = format!("{run} --disk {LIMIT_KIB}k,backend={backend} IMAGE true");
    assert!(bed.coracle(&asked).failed().contains("coracle quota setup"), "before it is set up");
    bed.setup();
    // Twice is no harm.
    bed.setup();
    assert!(bed.coracle("quota ls").ok().contains(STATE));
    let other = bed.coracle(&format!("{run} --disk 32m,backend={backend} IMAGE true"));
    assert!(other.failed().contains("set up for other sizes"), "{other:?}");

    // It is the first choice, whatever else there is.
    bed.coracle(&format!("create --name box --network none --disk {LIMIT_KIB}k IMAGE df -k /")).ok();
    let disk = "'{{.Disk.Backend}} {{.Disk.Hard}} {{.Disk.LimitBytes}}'";
    assert_eq!(bed.coracle(&format!("inspect -f {disk} box")).ok(), format!("{backend} true {}", LIMIT_KIB << 10));
    let shown = bed.coracle("start -a box");
    assert_eq!(shown.ok().contains(&format!(" {LIMIT_KIB} ")), filesystem.df, "{shown:?}");
    bed.coracle("rm box").ok();
    every_way(&bed, filesystem);
}

/// Runs the script beside somebody who looks how much the filesystem holds. A look that lasts counts what goes and what
/// comes into its place; what stays is there at the next one.
fn every_way(bed: &Bed<'_>, filesystem: &Filesystem) {
    bed.make_big_image();
    let tried = ways::all_but(filesystem.left_out);
    let volume = if tried.contains(&ways::VOLUME) { format!("-v {}", ways::VOLUME) } else { String::new() };
    let Filesystem { inodes, backend, .. } = filesystem;
    let flags = format!(
        "--disk {LIMIT_KIB}k{inodes},backend={backend} --security-opt seccomp=unconfined --shm-size=8m {volume} \
         --log-opt max-size=128k --log-opt max-file=2"
    );
    // The dots say to whoever waits that it goes on.
    let line = format!(
        "sync; used() {{ du -skc {STATE}/containers {STATE}/volumes 2>/dev/null | tail -1 | cut -f1; }}; before=$(used); most=$before; last=$before
         ( {CORACLE} --root {STATE} run --rm --network none {flags} -v /tmp/vectors.py:/vectors.py:ro {PYTHON} {} \
             >/tmp/vectors.out 2>/tmp/vectors.err; echo $? >/tmp/vectors.status ) &
         while kill -0 $! 2>/dev/null; do now=$(used); [ $now -le $last ] && low=$now || low=$last; [ $low -le $most ] || most=$low; last=$now; printf . >&2; sleep 0.1; done
         echo $((most - before)) $(cat /tmp/vectors.status); cat /tmp/vectors.out; tail -n 5 /tmp/vectors.err >&2",
        tried.join(" ")
    );
    let output = bed.guest.sh(User::Alice, &line);
    let (first, text) = output.ok().split_once('\n').unwrap_or((output.ok(), ""));
    let (grown_kib, status) = first.split_once(' ').unwrap();
    assert_eq!(status, "0", "{output:?}");
    ways::judge(&tried, text);
    let grown_kib: u64 = grown_kib.parse().unwrap();
    assert!(grown_kib <= LIMIT_KIB + 1024, "the host had {grown_kib} KiB more");
    assert!(grown_kib > LIMIT_KIB / 2, "the host was not watched: {grown_kib} KiB more");
}

#[test]
fn f39_fuse_on_a_plain_ext4_holds() {
    let Some(guest) = Guest::find("f39_fuse_on_a_plain_ext4_holds") else { return };
    let bed = Bed::new(&guest, &PLAIN);
    guest.sh(User::Root, "chmod 666 /dev/fuse").ok();
    let shown = bed.coracle(&format!("run --rm --network none --disk {LIMIT_KIB}k,backend=fuse IMAGE df -k /"));
    assert!(shown.ok().contains(&format!(" {LIMIT_KIB} ")), "{shown:?}");
    every_way(&bed, &PLAIN);
}

#[test]
fn f39_project_quota_of_ext4_holds() {
    limits_hold("f39_project_quota_of_ext4_holds", &EXT4);
}

#[test]
fn f39_project_quota_of_xfs_holds() {
    limits_hold("f39_project_quota_of_xfs_holds", &XFS);
}

#[test]
fn f39_quota_group_of_btrfs_holds() {
    limits_hold("f39_quota_group_of_btrfs_holds", &BTRFS);
}

/// On btrfs a file that is copied up shares its extents with the image: it takes no room until it is written.
#[test]
fn f39_copies_up_on_btrfs_take_no_room() {
    let Some(guest) = Guest::find("f39_copies_up_on_btrfs_take_no_room") else { return };
    let bed = Bed::new(&guest, &BTRFS);
    bed.setup();
    bed.make_big_image();
    let used = || {
        let line = format!("sync; btrfs filesystem sync {PLACE} >&2; df -k --output=used {PLACE} | tail -n 1");
        guest.sh(User::Root, &line).ok().trim().parse::<u64>().unwrap()
    };
    let flags = format!("--disk {LIMIT_KIB}k,backend=btrfs --network none");
    let before = used();
    bed.coracle(&format!("run --name copies {flags} big sh -c 'chmod 700 /usr/*'")).ok();
    let grown = used().saturating_sub(before);
    assert!(grown < LIMIT_KIB / 2, "copies of 24 MiB take {grown} KiB");
    bed.coracle("rm copies").ok();
    let write = "for f in /usr/*; do dd if=/dev/urandom of=$f bs=1M count=1 conv=notrunc,fsync || exit 4; done";
    let before = used();
    let output = bed.coracle(&format!("run --name copies {flags} big sh -c 'chmod 700 /usr/* && {write}'"));
    assert!(output.failed().contains("uota exceeded"), "{output:?}");
    let grown = used().saturating_sub(before);
    assert!(grown <= LIMIT_KIB + 1024, "the filesystem holds {grown} KiB more");
    bed.coracle("rm copies").ok();
}

#[test]
fn a_slot_is_one_containers_until_it_is_removed() {
    let Some(guest) = Guest::find("a_slot_is_one_containers_until_it_is_removed") else { return };
    let bed = Bed::new(&guest, &EXT4);
    bed.setup();
    let create = |name: &str| {
        let disk = format!("--disk {LIMIT_KIB}k,backend=project");
        bed.coracle(&format!("create --name {name} --network none {disk} IMAGE dd if=/dev/zero of=/f bs=1M count=10"))
    };
    create("one").ok();
    create("two").ok();
    assert!(create("three").failed().contains("every slot of this size is in use"));
    // Each has the whole limit: 20 of twice 16 MiB.
    bed.coracle("start -a one").ok();
    bed.coracle("start -a two").ok();
    bed.coracle("rm one").ok();
    create("three").ok();
    bed.coracle("start -a three").ok();
    // A volume takes one too.
    bed.coracle("rm two three").ok();
    bed.coracle(&format!("volume create --size {LIMIT_KIB}k,backend=project data")).ok();
    let full = bed.coracle("run --rm --network none -v data:/data IMAGE dd if=/dev/zero of=/data/f bs=1M count=20");
    assert!(full.failed().contains("quota exceeded") || full.stderr.contains("No space left"), "{full:?}");
    assert_eq!(bed.coracle("volume inspect -f '{{.Disk.Backend}}' data").ok(), "project");
    bed.coracle("volume rm data").ok();
}

/// On Linux 6.1 overlayfs mounts on tmpfs and then nothing of the image can be removed: so it is not chosen.
#[test]
fn memory_is_not_trusted_where_it_does_not_hold() {
    let Some(guest) = Guest::find("memory_is_not_trusted_where_it_does_not_hold") else { return };
    guest.prepare(User::Alice);
    guest.sh(User::Root, "chmod 666 /dev/fuse").ok();
    let run = |backend: &str| {
        let disk = format!("--disk=16m,backend={backend}");
        guest.run(User::Alice, &[CORACLE, "run", "--rm", "--network", "none", &disk, "busybox", "df", "-k", "/"])
    };
    assert!(run("tmpfs").failed().contains("cannot be kept by tmpfs"));
    // Most else about the fuse backend is shown outside.
    assert!(run("fuse").ok().contains(" 16384 "));
    assert!(run("auto").ok().contains(" 16384 "));
}

/// This kernel sends no request again, so a killed server ends the filesystem. That must not wait for the teller, which may
/// itself wait in the kernel, for a directory that somebody has whom only the server could answer.
#[test]
fn a_killed_server_is_an_error_inside_whatever_the_teller_waits_for() {
    let Some(guest) = Guest::find("a_killed_server_is_an_error_inside_whatever_the_teller_waits_for") else { return };
    guest.prepare(User::Alice);
    guest.sh(User::Root, "chmod 666 /dev/fuse").ok();
    let root = |line: &str| guest.sh(User::Root, line);
    let alice = |argv: &[&str]| guest.run(User::Alice, &[&[CORACLE], argv].concat());
    alice(&["run", "-d", "--network", "none", "--name", "stuck", "--disk=16m,backend=fuse", IMAGE, "sleep", "1000"])
        .ok();
    // Overlayfs knows the file by its first name.
    alice(&["exec", "stuck", "sh", "-c", "mkdir /d && touch /d/a && ln /d/a /d/b && ls -l /d/b"]).ok();
    let pids = root(
        "guard=$(pgrep -of __serve-disk); pgrep -P $guard | while read one; do \
                     case $(cat /proc/$one/comm) in disk-teller) echo teller=$one;; *) echo server=$one;; esac; done",
    );
    let pids = pids.ok().replace('\n', " ");
    assert!(pids.contains("teller=") && pids.contains("server="), "{pids}");
    let signal = |line: &str| root(&format!("{pids}; {line}"));
    signal("kill -STOP $teller").ok();
    // The server asks the teller to have that name let go, and goes on without it after a while.
    alice(&["exec", "stuck", "sh", "-c", "rm /d/a; ls -ld /d"]);
    signal("kill -STOP $server").ok();
    let makes = guest.start(User::Alice, &[CORACLE, "exec", "stuck", "mkdir", "/d/e"]);
    guest.wait_for(User::Root, "grep -l request_wait_answer /proc/[0-9]*/wchan", "somebody to have the directory");
    signal("kill -CONT $teller").ok();
    guest.wait_for(User::Root, &format!("{pids}; grep -q '^State:.D' /proc/$teller/status"), "the teller to wait");
    signal("kill -KILL $server").ok();
    makes.wait().failed();
    guest.wait_for(User::Root, &format!("{pids}; ! kill -0 $teller"), "the teller to end");
    assert_eq!(alice(&["inspect", "-f", "{{.Disk.Lost}}", "stuck"]).ok(), "true");
    alice(&["rm", "-f", "stuck"]).ok();
}
