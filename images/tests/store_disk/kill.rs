//! kill -9 at any moment: the store is usable, what was whole is used, nothing is left in the end.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_images::{Compression, Store};

use crate::canary::{Tree, picture};
use crate::evil_tar::EvilTar;
use crate::fixture::{FakeImage, FakeLayer, Scratch, from, ingest_blob, noise, squashed};

const ROOT: &str = "CORACLE_TEST_KILL_ROOT";
const ROUNDS: u32 = 30;

fn image() -> FakeImage {
    let layer = |seed: usize| {
        let mut archive = EvilTar::new().dir("d");
        for at in 0..200 {
            archive = archive.file_bytes(format!("d/{at}").as_bytes(), &noise(seed + at * 50));
        }
        FakeLayer::new(&archive.file("d/.wh.gone", "").end(), Compression::Gzip)
    };
    FakeImage::new(&[layer(1000), layer(2000)])
}

fn pull(store: &Store, image: &FakeImage) {
    let _keep = store.keep().expect("keep");
    for layer in &image.layers {
        layer.ingest_from(store, &mut |offset| Ok(from(&layer.blob, offset))).expect("layer");
    }
    for blob in [&image.config, &image.manifest] {
        ingest_blob(store, blob).expect("blob");
    }
    image.publish(store, Some("victim")).expect("publish");
}

/// The child: pulls, removes, and again, until it is killed.
#[test]
fn kill_victim() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let image = image();
    println!("ready");
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        let store = Store::open(root.as_ref()).expect("store");
        pull(&store, &image);
        store.remove("victim", true, &|_| false).expect("remove");
    }
}

fn spawn(scratch: &Scratch) -> Child {
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "kill::kill_victim", "--nocapture"])
        .env(ROOT, scratch.root())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("child");
    let mut seen = Vec::new();
    let mut byte = [0];
    let stdout = child.stdout.as_mut().expect("piped");
    while !seen.ends_with(b"ready") {
        stdout.read_exact(&mut byte).expect("the child lives");
        seen.push(byte[0]);
    }
    child
}

#[test]
fn f12_kill_at_any_moment() {
    let reference = Scratch::new();
    let image = image();
    pull(&reference.store, &image);
    let whole: Vec<Tree> = image.layers.iter().map(|layer| picture(&layer.directory(&reference.root()))).collect();
    let scratch = Scratch::new();
    let mut seen = [0u32; 3];
    for round in 0..ROUNDS {
        let mut child = spawn(&scratch);
        // Moments spread over several pulls and removals; the seed is the round.
        std::thread::sleep(Duration::from_micros(u64::from(round * 7919 % 60_000)));
        child.kill().expect("kill");
        let status = child.wait().expect("wait");
        assert_eq!(status.signal(), Some(9), "the child failed by itself: {status}");
        let store = Store::open(&scratch.root()).expect("usable");
        let visible = store.list().expect("readable");
        for (layer, tree) in image.layers.iter().zip(&whole) {
            let directory = layer.directory(&scratch.root());
            if directory.exists() {
                assert_eq!(picture(&directory), *tree, "round {round}: a layer is visible and not whole");
                seen[0] += 1;
            }
        }
        for image in &visible {
            assert!(store.layers(image, &squashed()).expect("layers").is_some(), "round {round}");
            seen[1] += 1;
        }
        seen[2] += u32::from(scratch.list("layers/squashed").iter().any(|name| name.starts_with('.')));
        if round % 4 == 0 {
            pull(&store, &image);
            assert!(store.find("victim").expect("find").is_some());
            scratch.check_clean();
        }
    }
    // If the kills never hit in the middle of something this test says nothing.
    assert!(seen[0] > 0 && seen[2] > 0, "whole layers, images, unfinished layers seen: {seen:?}");
    pull(&scratch.store, &image);
    scratch.store.remove("victim", true, &|_| false).expect("remove");
    assert_eq!(scratch.list("images/blobs/sha256"), [""; 0]);
    assert_eq!(scratch.list("layers/squashed"), [""; 0]);
    scratch.check_clean();
}
