//! Every way to write that F39 of the security notes names. Whoever shows that a disk limit holds tries them all: on this
//! host (`tests/quota.rs`) and in the guest (`tests/guest/quota.rs`).

/// Tries them, in a container: `SCRIPT MIB [NAME...]`.
pub const SCRIPT: &str = include_str!("vectors.py");

/// Each fills the disk, and after it there is room again.
pub const FILLING: [&str; 20] = [
    "sequential",
    "parallel",
    "random_pages",
    "fallocate",
    "fallocate_at_once",
    "sparse_to_dense",
    "mapped",
    "hard_links",
    "deleted_open",
    "rename_over",
    "attributes",
    "empty_files",
    "deep_directories",
    "copy_file_range",
    "core_dump",
    "other_user",
    "project_id",
    "by_descriptor",
    "nested_namespaces",
    "log_flood",
];
/// Where else a container writes.
pub const PLACES: [&str; 3] = ["/tmp", "/dev/shm", VOLUME];
pub const VOLUME: &str = "/volume";
/// What they copy up stays.
pub const COPYING_UP: [&str; 2] = ["chmod_image", "chown_image"];

/// Lists all of them but some, in the order in which they are tried.
pub fn all_but(left_out: &[&str]) -> Vec<&'static str> {
    let all = FILLING.into_iter().chain(PLACES).chain(COPYING_UP);
    all.filter(|name| !left_out.contains(name)).collect()
}

/// Demands that the script tried these and no others, that each ended for want of room, and that there was room again.
#[track_caller]
pub fn judge(tried: &[&str], text: &str) {
    let mut lines = text.lines();
    for name in tried {
        let line = lines.next().unwrap_or_default();
        let result = line.strip_prefix(name).map(str::trim_start);
        assert!(matches!(result, Some("ENOSPC" | "EDQUOT")), "{name}: {line:?} in\n{text}");
        assert!(!FILLING.contains(name) || lines.next() == Some("again"), "no room after {name} in\n{text}");
    }
    assert_eq!(lines.next(), None, "more than was asked for: {text}");
}
