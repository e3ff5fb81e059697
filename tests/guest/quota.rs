//! Disk limits that filesystems keep: ext4, XFS and btrfs in files, set up by `coracle quota setup` as root.

use crate::host::{CORACLE, Guest, Output, User};

const VECTORS: &str = include_str!("../quota/vectors.py");
/// Where the filesystem under test is mounted; tests of the guest follow each other.
const PLACE: &str = "/mnt/quota";
const STATE: &str = "/mnt/quota/alice";
const LIMIT_KIB: u64 = 16 << 10;
/// The debian image's python is another one, and this image has none: the guest's own, with its libraries.
const PYTHON: &str = "-v /usr:/host:ro -e PYTHONHOME=/host IMAGE /host/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 \
                      --library-path /host/lib/x86_64-linux-gnu /host/bin/python3 -u /vectors.py 16";

struct Filesystem {
    make: &'static str,
    options: &'static str,
    backend: &'static str,
    /// The vectors, some for each command, because a command has its time.
    vectors: &'static [&'static str],
    /// Where else a container writes.
    others: &'static str,
    /// The image's own lines.
    df: bool,
}

const EXT4: Filesystem = Filesystem {
    make: "mke2fs -q -t ext4 -O quota,project -E quotatype=prjquota",
    options: "loop,prjquota",
    backend: "project",
    // Not: chmod_image and chown_image, because this image is smaller than the limit, and deep_directories, which its rm
    // does not remove.
    vectors: &[
        "sequential parallel fallocate fallocate_at_once sparse_to_dense",
        "random_pages mapped hard_links deleted_open",
        "rename_over attributes empty_files copy_file_range",
        "core_dump other_user project_id by_descriptor nested_namespaces places",
    ],
    others: "-v /volume",
    df: true,
};
const XFS: Filesystem = Filesystem { make: "cp --sparse=always /payload/xfs.img", ..EXT4 };
const BTRFS: Filesystem = Filesystem {
    make: "cp --sparse=always /payload/btrfs.img",
    options: "loop",
    backend: "btrfs",
    // btrfs limits no inodes, and 16 MiB of empty ones take minutes here; a copied range shares its extents.
    vectors: &[
        "sequential parallel fallocate fallocate_at_once",
        "sparse_to_dense random_pages mapped",
        "hard_links deleted_open rename_over",
        "attributes core_dump other_user",
        "project_id by_descriptor nested_namespaces places",
    ],
    others: "",
    df: false,
};

/// Nothing that an administrator set up: a filesystem as it is. The kernel is 6.1, which has no way to send requests again.
const PLAIN: Filesystem = Filesystem {
    make: "mke2fs -q -t ext4",
    options: "loop",
    backend: "fuse",
    // Those that go other ways through the server; the rest is shown outside.
    vectors: &[
        "sequential fallocate_at_once random_pages mapped hard_links",
        "rename_over attributes by_descriptor places",
    ],
    ..EXT4
};

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
        guest.sh(User::Alice, &format!("cat >/tmp/vectors.py <<'END'\n{VECTORS}\nEND")).ok();
        let load = format!("{CORACLE} --root {STATE} load -q -i /var/lib/guest/busybox | sed 's/.*sha256://'");
        let image = guest.sh(User::Alice, &load).ok().to_owned();
        Self { guest, image }
    }

    fn setup(&self) {
        let size = format!("--size {LIMIT_KIB}k,inodes=3000 --slots 2");
        self.guest.sh(User::Root, &format!("{CORACLE} quota setup --path {STATE} --user alice {size}")).ok();
    }

    /// Runs coracle as alice on the filesystem; IMAGE is its image.
    fn coracle(&self, line: &str) -> Output {
        let line = line.replace("IMAGE", &self.image);
        self.guest.sh(User::Alice, &format!("{CORACLE} --root {STATE} {line}"))
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
    for vectors in filesystem.vectors {
        every_way(&bed, filesystem, vectors);
    }
}

/// Runs the vectors beside somebody who looks how much the filesystem holds.
fn every_way(bed: &Bed<'_>, filesystem: &Filesystem, vectors: &str) {
    let Filesystem { backend, others, .. } = filesystem;
    let flags =
        format!("--disk {LIMIT_KIB}k,backend={backend} --security-opt seccomp=unconfined --shm-size=8m {others}");
    let line = format!(
        "sync; used() {{ du -skc {STATE}/containers {STATE}/volumes 2>/dev/null | tail -1 | cut -f1; }}; before=$(used); most=$before
         ( {CORACLE} --root {STATE} run --rm --network none {flags} -v /tmp/vectors.py:/vectors.py:ro {PYTHON} {vectors}
           echo \"status $?\" ) >/tmp/vectors.out 2>&1 &
         while kill -0 $! 2>/dev/null; do now=$(used); [ $now -le $most ] || most=$now; sleep 0.1; done
         cat /tmp/vectors.out; echo \"grown $((most - before))\""
    );
    let output = bed.guest.sh(User::Alice, &line.replace("IMAGE", &bed.image));
    let text = output.ok();
    let mut refused = Vec::new();
    for line in text.lines().filter(|line| *line != "again") {
        let (name, result) = line.split_once(' ').unwrap();
        match name {
            "status" => assert_eq!(result, "0", "{text}"),
            "grown" => assert!(result.parse::<u64>().unwrap() <= LIMIT_KIB + 1024, "{text}"),
            _ => {
                assert!(["ENOSPC", "EDQUOT"].contains(&result), "{name}: {result}\n{text}");
                refused.push(name);
            }
        }
    }
    let again = text.lines().filter(|line| *line == "again").count();
    let wanted: Vec<&str> = vectors.split(' ').collect();
    let found = |name: &&str| *name == "places" || refused.contains(name);
    assert!(wanted.iter().all(found) && again == wanted.iter().filter(|name| **name != "places").count(), "{text}");
    assert!(!wanted.contains(&"places") || refused.contains(&"/tmp"), "{text}");
}

#[test]
fn f39_fuse_on_a_plain_ext4_holds() {
    let Some(guest) = Guest::find("f39_fuse_on_a_plain_ext4_holds") else { return };
    let bed = Bed::new(&guest, &PLAIN);
    guest.sh(User::Root, "chmod 666 /dev/fuse").ok();
    let shown = bed.coracle(&format!("run --rm --network none --disk {LIMIT_KIB}k,backend=fuse IMAGE df -k /"));
    assert!(shown.ok().contains(&format!(" {LIMIT_KIB} ")), "{shown:?}");
    for vectors in PLAIN.vectors {
        every_way(&bed, &PLAIN, vectors);
    }
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
    // Everything else about the fuse backend is shown outside; this kernel cannot replace a killed server.
    assert!(run("fuse").ok().contains(" 16384 "));
    assert!(run("auto").ok().contains(" 16384 "));
}
