//! The tree that we unpack is the tree that umoci unpacks, for every test image.

use std::path::PathBuf;

use serde_json::Value;

use crate::env::tree::{self, Look};
use crate::env::{TestEnv, Who, fixtures};
use crate::require;

/// Finds the unpacked layers of an image, bottom to top, behind names that an overlay option can hold.
fn layers(env: &TestEnv, image: &str) -> Vec<PathBuf> {
    let info: Value = serde_json::from_str(&env.coracle(&["inspect", image]).ok()).unwrap();
    let spaces: Vec<PathBuf> = fs_err::read_dir(env.root().join("layers"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    let diff_ids = info[0]["RootFS"]["Layers"].as_array().unwrap();
    let mut found = Vec::new();
    for (number, diff_id) in diff_ids.iter().enumerate() {
        let hex = diff_id.as_str().unwrap().trim_start_matches("sha256:");
        let path = spaces.iter().map(|space| space.join(hex)).find(|path| path.exists());
        let path = path.unwrap_or_else(|| panic!("layer {hex} in {spaces:?}"));
        let link = env.path(format!("layer{number}"));
        let _ = fs_err::remove_file(&link);
        fs_err::os::unix::fs::symlink(path, &link).unwrap();
        found.push(link);
    }
    found
}

/// Compares our tree with umoci's.
fn same(name: &str, tag_in_layout: &str) {
    let env = TestEnv::new();
    let image = env.image(name);
    env.coracle(&["pull", &image]).ok();
    let ours = tree::describe(&env, &Look::Layers(layers(&env, &image)));

    let bundle = env.path("bundle");
    let layout = fixtures::images().unwrap().join("layout");
    let rootless: &[&str] = if env.who() == Who::Root { &[] } else { &["--rootless"] };
    let from = format!("{}:{tag_in_layout}", layout.display());
    env.program("umoci")
        .args(&["unpack"])
        .args(rootless)
        .args(&["--image", &from])
        .args(&[&bundle])
        .time_limit(180)
        .ok();
    let theirs = tree::describe(&env, &Look::Directory(bundle.join("rootfs")));

    assert!(theirs.len() > 100, "nothing to compare: {}", theirs.len());
    assert!(ours == theirs, "- ours, + umoci's:\n{}", tree::difference(&ours, &theirs));
}

#[test]
fn busybox_is_umocis() {
    require!("umoci");
    same("busybox", "busybox");
}

#[test]
fn busybox_schema2_is_umocis() {
    require!("umoci");
    same("busybox:schema2", "busybox");
}

#[test]
fn busybox_plain_is_umocis() {
    require!("umoci");
    same("busybox:plain", "busybox");
}

#[test]
fn busybox_zstd_is_umocis() {
    require!("umoci");
    same("busybox:zstd", "busybox");
}

#[test]
fn odd_is_umocis() {
    require!("umoci");
    same("odd", "odd");
}

#[test]
fn debian_is_umocis() {
    require!("umoci");
    same("debian", "debian");
}

#[test]
fn python3_is_umocis() {
    require!("umoci");
    same("python3", "python3");
}

#[test]
fn nginx_is_umocis() {
    require!("umoci");
    same("nginx", "nginx");
}
