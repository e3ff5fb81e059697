//! The tree that we unpack equals the tree that `umoci unpack --rootless` makes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_images::{Compression, LoadOptions, NoProgress, load};

use crate::canary::{Node, Tree, picture};
use crate::fixture::{Scratch, squashed};
use crate::tools::{have, run};

const LAYOUT: &str = "CORACLE_TEST_LAYOUT";
const FILE_TYPE: u32 = 0o170_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const DIRECTORY: u32 = 0o040_000;

/// What overlayfs shows of layers, bottom to top.
fn merge(layers: &[PathBuf]) -> Tree {
    let mut merged = Tree::new();
    for layer in layers {
        for (path, node) in picture(layer) {
            let is_directory = node.mode & FILE_TYPE == DIRECTORY;
            let hides = !is_directory || node.xattrs.contains(&(b"user.overlay.opaque".to_vec(), b"y".to_vec()));
            if hides {
                merged.retain(|known, _| !known.starts_with(&path) || path.as_os_str().is_empty());
            }
            if node.mode & FILE_TYPE == CHARACTER_DEVICE {
                merged.remove(&path);
            } else {
                merged.insert(path, node);
            }
        }
    }
    merged
}

/// Mode, modification time and content by path.
type Essence = BTreeMap<PathBuf, (u32, (i64, i64), Vec<u8>)>;

/// What both tools must agree on: kind, mode, time, content. Nobody sets the mode of links.
fn essence(tree: Tree) -> Essence {
    let reduce = |node: Node| {
        let is_link = node.mode & FILE_TYPE == 0o120_000;
        (if is_link { node.mode & FILE_TYPE } else { node.mode }, node.mtime, node.content)
    };
    tree.into_iter().map(|(path, node)| (path, reduce(node))).collect()
}

fn tags(layout: &Path) -> Vec<String> {
    let bytes = fs_err::read(layout.join("index.json")).expect("index");
    let index: serde_json::Value = serde_json::from_slice(&bytes).expect("json");
    let manifests = index["manifests"].as_array().expect("manifests");
    let name = |entry: &serde_json::Value| {
        entry["annotations"]["org.opencontainers.image.ref.name"].as_str().map(str::to_owned)
    };
    // umoci unpacks images, not indexes.
    let images = manifests.iter().filter(|entry| entry["mediaType"] == crate::fixture::OCI_MANIFEST);
    images.filter_map(name).collect()
}

#[test]
fn equals_umoci() {
    let Some(layout) = std::env::var_os(LAYOUT).map(PathBuf::from) else {
        eprintln!("SKIP equals_umoci: {LAYOUT} names no layout");
        return;
    };
    if !have("equals_umoci", &["umoci", "skopeo"]) {
        return;
    }
    for tag in tags(&layout) {
        let scratch = Scratch::new();
        let source = format!("{}:{tag}", layout.display());
        run(&scratch.top, "skopeo", &["--insecure-policy", "copy", &format!("oci:{source}"), "oci-archive:one.tar"]);
        let options = LoadOptions { tag: Some("one".parse().expect("name")), space: squashed() };
        let image = load(&scratch.store, &scratch.top.join("one.tar"), &options, &NoProgress).expect("load").remove(0);
        if image.layers.iter().any(|layer| layer.compression == Compression::Zstd) {
            // umoci 0.4.7 knows no zstd; what is in it is compared under the other tags.
            continue;
        }
        let layers = scratch.store.layers(&image, &squashed()).expect("layers").expect("unpacked");
        run(&scratch.top, "umoci", &["unpack", "--rootless", "--image", &source, "bundle"]);
        let ours = essence(merge(&layers));
        let theirs = essence(picture(&scratch.top.join("bundle/rootfs")));
        let mut differences = Vec::new();
        for path in ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path))) {
            // Without privilege umoci puts empty files in place of devices, we put nothing (T20).
            let is_device =
                path.starts_with("dev") && theirs.get(path).is_some_and(|(_, _, content)| content.is_empty());
            if (ours.contains_key(path) || !is_device) && ours.get(path) != theirs.get(path) {
                let show = |tree: &Essence| {
                    tree.get(path).map(|(mode, mtime, content)| format!("{mode:o} {mtime:?} {} bytes", content.len()))
                };
                differences.push(format!("{}: ours {:?}, umoci's {:?}", path.display(), show(&ours), show(&theirs)));
            }
        }
        assert!(ours.len() > 3, "{tag} is suspiciously small");
        assert!(
            differences.is_empty(),
            "{tag}: {} of {}:\n{}",
            differences.len(),
            ours.len(),
            differences[..differences.len().min(20)].join("\n")
        );
    }
}
