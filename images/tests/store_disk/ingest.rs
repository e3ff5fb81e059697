//! Blobs on their way in: T16, T31, T33, resuming, bounds.

use std::cell::Cell;

use coracle_images::limits::Limits;
use coracle_images::store::Ingested;
use coracle_images::{Compression, Digest, IngestError, LayerIngest, NoProgress, Store, StoreError};

use crate::evil_tar::EvilTar;
use crate::fixture::{FakeImage, FakeLayer, Scratch, breaking, forbidden, from, gzip, ingest_blob, noise, squashed};

/// A layer of several pieces of the pipeline.
fn large_layer(compression: Compression) -> FakeLayer {
    let noise = noise(3 << 20);
    let archive = EvilTar::new().dir("d").file_bytes(b"d/noise", &noise).file_bytes(b"zeros", &vec![0; 2 << 20]);
    FakeLayer::new(&archive.file("last", "1").end(), compression)
}

#[test]
fn three_compressions() {
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let scratch = Scratch::new();
        let layer = large_layer(compression);
        let done = layer.ingest(&scratch.store).expect("ingest");
        let Ingested::Unpacked(report) = done else { panic!("{done:?}") };
        assert_eq!((report.entries, report.bytes), (4, (5 << 20) + 1));
        let directory = layer.directory(&scratch.root());
        assert!(fs_err::read(directory.join("d/noise")).expect("read") == noise(3 << 20));
        assert_eq!(fs_err::read(directory.join("last")).expect("read"), b"1");
        assert_eq!(layer.ingest(&scratch.store).expect("again"), Ingested::Present);
        scratch.check_clean();
    }
}

#[test]
fn t15_gzip_members_are_one_layer() {
    let archive = EvilTar::new().file("a", "1").file("b", &"2".repeat(2000)).end();
    let blob = [gzip(&archive[..700]), gzip(b""), gzip(&archive[700..])].concat();
    let layer =
        FakeLayer { digest: Digest::of(&blob), diff_id: Digest::of(&archive), blob, compression: Compression::Gzip };
    let scratch = Scratch::new();
    layer.ingest(&scratch.store).expect("ingest");
    assert!(layer.directory(&scratch.root()).join("b").is_file());
}

#[test]
fn whole_blob_is_unpacked_without_the_source() {
    let scratch = Scratch::new();
    let layer = FakeLayer::with_file("f", "1");
    layer.ingest(&scratch.store).expect("ingest");
    coracle_images::remove_tree(&layer.directory(&scratch.root())).expect("remove");
    let calls = Cell::new(0);
    let done = layer.ingest_from(&scratch.store, &mut forbidden(&calls)).expect("from the blob");
    assert!(matches!(done, Ingested::Unpacked(_)) && calls.get() == 0);
    assert_eq!(layer.ingest_from(&scratch.store, &mut forbidden(&calls)).expect("again"), Ingested::Present);
    assert_eq!(calls.get(), 0);
    // A damaged blob of the right size is noticed and fetched again.
    coracle_images::remove_tree(&layer.directory(&scratch.root())).expect("remove");
    let path = scratch.root().join("images/blobs/sha256").join(layer.digest.hex());
    let mut damaged = layer.blob.clone();
    *damaged.last_mut().expect("bytes") ^= 1;
    fs_err::write(&path, damaged).expect("write");
    assert!(matches!(layer.ingest(&scratch.store).expect("fetched"), Ingested::Unpacked(_)));
    assert!(fs_err::read(&path).expect("read") == layer.blob);
    // And a missing blob is fetched although the layer is there.
    fs_err::remove_file(&path).expect("remove");
    assert_eq!(layer.ingest(&scratch.store).expect("fetched"), Ingested::BlobOnly);
    scratch.check_clean();
}

fn check_nothing_visible(scratch: &Scratch) {
    scratch.check_clean();
    assert_eq!(scratch.list("images/blobs/sha256"), [""; 0]);
    assert_eq!(scratch.list("layers/squashed"), [""; 0]);
}

#[test]
fn t16_wrong_content() {
    let good = large_layer(Compression::Gzip);
    let other = FakeLayer::with_file("other", "evil");
    let scratch = Scratch::new();
    let store = &scratch.store;
    let wrong_diff_id = FakeLayer { diff_id: other.diff_id.clone(), ..good.clone() };
    assert!(matches!(wrong_diff_id.ingest(store), Err(IngestError::WrongDiffId { .. })));
    check_nothing_visible(&scratch);
    let wrong_digest = FakeLayer { digest: other.digest.clone(), ..good.clone() };
    assert!(matches!(wrong_digest.ingest(store), Err(IngestError::WrongDigest { .. })));
    check_nothing_visible(&scratch);
    for at in [0, 5, good.blob.len() / 2, good.blob.len() - 1] {
        let mut damaged = good.blob.clone();
        damaged[at] ^= 0x40;
        let result = good.ingest_from(store, &mut |offset| Ok(from(&damaged, offset)));
        assert!(matches!(result, Err(IngestError::WrongDigest { .. })), "byte {at}: {result:?}");
        check_nothing_visible(&scratch);
    }
    let longer = [&good.blob[..], b"x"].concat();
    let result = good.ingest_from(store, &mut |offset| Ok(from(&longer, offset)));
    assert!(matches!(result, Err(IngestError::TooLong { .. })), "{result:?}");
    check_nothing_visible(&scratch);
    assert!(matches!(
        store.ingest_blob(&Digest::of(b"a"), 1, 10, &mut |offset| Ok(from(b"b", offset))),
        Err(IngestError::WrongDigest { .. })
    ));
    assert!(matches!(
        store.ingest_blob(&Digest::of(b"a"), 1, 10, &mut |offset| Ok(from(b"ab", offset))),
        Err(IngestError::TooLong { .. })
    ));
    assert!(matches!(
        store.ingest_blob(&Digest::of(b"a"), 11, 10, &mut |_| panic!("must not ask")),
        Err(IngestError::TooLarge { .. })
    ));
    check_nothing_visible(&scratch);
}

#[test]
fn t16_shorter_than_announced() {
    let good = large_layer(Compression::Gzip);
    let scratch = Scratch::new();
    let short = &good.blob[..good.blob.len() - 10];
    let mut opened = Vec::new();
    let result = good.ingest_from(&scratch.store, &mut |offset| {
        opened.push(offset);
        Ok(from(short, offset))
    });
    assert!(matches!(result, Err(IngestError::Source { .. })), "{result:?}");
    // Once, and then as often as the bound allows, always where it broke off.
    assert_eq!(opened.len(), 1 + coracle_images::limits::SOURCE_REOPENS_MAX as usize);
    assert!(opened[1..].iter().all(|offset| *offset == short.len() as u64));
    assert_eq!(scratch.list("layers/squashed"), [""; 0]);
    assert_eq!(scratch.list("images/blobs/sha256"), [""; 0]);
}

#[test]
fn t31_compression_must_be_as_announced() {
    let layers = [Compression::Plain, Compression::Gzip, Compression::Zstd]
        .map(|kind| FakeLayer::new(&EvilTar::new().file("f", "1").end(), kind));
    for layer in &layers {
        for declared in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
            let scratch = Scratch::new();
            let result = FakeLayer { compression: declared, ..layer.clone() }.ingest(&scratch.store);
            if declared == layer.compression {
                result.expect("agrees");
            } else {
                assert!(matches!(result, Err(IngestError::WrongCompression { .. })), "{result:?}");
                check_nothing_visible(&scratch);
            }
        }
    }
    let garbage = FakeLayer { diff_id: Digest::of(b"x"), ..FakeLayer::new(&noise(100_000), Compression::Plain) };
    let scratch = Scratch::new();
    assert!(matches!(garbage.ingest(&scratch.store), Err(IngestError::Unpack { .. })));
    check_nothing_visible(&scratch);
}

#[test]
fn broken_download_goes_on() {
    let layer = large_layer(Compression::Gzip);
    let scratch = Scratch::new();
    // Within one ingest.
    let mut opened = Vec::new();
    layer
        .ingest_from(&scratch.store, &mut |offset| {
            opened.push(offset);
            Ok(breaking(&layer.blob, offset, 400_000))
        })
        .expect("many pieces make a whole");
    assert!(opened.len() > 5 && opened.is_sorted() && opened[1] == 400_000, "{opened:?}");
    scratch.check_clean();
    // Across two.
    let scratch = Scratch::new();
    let result = layer.ingest_from(&scratch.store, &mut |offset| match offset {
        0 => Ok(breaking(&layer.blob, 0, 1_000_000)),
        _ => Err("the network is gone".into()),
    });
    assert!(matches!(result, Err(IngestError::Source { .. })));
    assert_eq!(scratch.list("layers/squashed"), [""; 0]);
    let mut opened = Vec::new();
    layer
        .ingest_from(&scratch.store, &mut |offset| {
            opened.push(offset);
            Ok(from(&layer.blob, offset))
        })
        .expect("goes on");
    assert_eq!(opened, [1_000_000]);
    scratch.check_clean();
}

#[test]
fn damaged_partial_is_fetched_again() {
    let layer = large_layer(Compression::Gzip);
    for damage in [0, 1_000, 900_000] {
        let scratch = Scratch::new();
        let mut kept = layer.blob[..1_000_000].to_vec();
        // What a crash leaves of pages that never reached the disk.
        kept[damage..].fill(0);
        let partial = scratch.root().join("images/partial").join(format!("sha256-{}", layer.digest.hex()));
        fs_err::write(&partial, kept).expect("write");
        let mut opened = Vec::new();
        layer
            .ingest_from(&scratch.store, &mut |offset| {
                opened.push(offset);
                Ok(from(&layer.blob, offset))
            })
            .expect("from the start");
        assert_eq!(opened.last(), Some(&0), "{opened:?}");
        scratch.check_clean();
    }
    let scratch = Scratch::new();
    let partial = scratch.root().join("images/partial").join(format!("sha256-{}", layer.digest.hex()));
    fs_err::write(&partial, vec![1; layer.blob.len() + 1]).expect("write");
    layer.ingest(&scratch.store).expect("too long a partial is no use");
    scratch.check_clean();
}

#[test]
fn t17_bomb_stops_at_the_bound() {
    let limits = Limits { layer_unpacked_bytes_max: 10 << 20, ..Limits::default() };
    let scratch = Scratch::new();
    let store = Store::open_with(&scratch.root(), limits).expect("store");
    let bomb = FakeLayer::new(&EvilTar::new().file_bytes(b"zeros", &vec![0; 64 << 20]).end(), Compression::Gzip);
    let result = bomb.ingest(&store);
    assert!(matches!(result, Err(IngestError::Unpack { .. })), "{result:?}");
    check_nothing_visible(&scratch);
    let limits = Limits { blob_bytes_max: 10, ..Limits::default() };
    let store = Store::open_with(&scratch.root(), limits).expect("store");
    assert!(matches!(bomb.ingest(&store), Err(IngestError::TooLarge { .. })));
}

#[test]
fn hostile_layer_leaves_nothing() {
    let scratch = Scratch::new();
    let evil = FakeLayer::new(&EvilTar::new().file("fine", "1").file("../x", "evil").end(), Compression::Gzip);
    assert!(matches!(evil.ingest(&scratch.store), Err(IngestError::Unpack { .. })));
    check_nothing_visible(&scratch);
    assert_eq!(scratch.list("layers"), ["squashed"]);
}

#[test]
fn space_names_are_no_paths() {
    let scratch = Scratch::new();
    let layer = FakeLayer::with_file("f", "1");
    for name in ["..", "../x", "a/b", "", ".hidden"] {
        let space = coracle_images::LayerSpace { name: name.into(), ..squashed() };
        let ingest = LayerIngest {
            blob: &layer.digest,
            size_bytes: layer.blob.len() as u64,
            diff_id: &layer.diff_id,
            compression: layer.compression,
            space: &space,
        };
        let result = scratch.store.ingest_layer(&ingest, &mut |_| panic!("must not ask"), &NoProgress);
        assert!(matches!(result, Err(IngestError::Store(StoreError::SpaceName { .. }))), "{name}");
    }
}

#[test]
fn one_blob_for_two_spaces_is_fetched_once() {
    let scratch = Scratch::new();
    let layer = large_layer(Compression::Gzip);
    let fetched = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for name in ["one", "two"] {
            let (store, layer, fetched) = (&scratch.store, &layer, &fetched);
            scope.spawn(move || {
                let space = coracle_images::LayerSpace { name: name.into(), ..squashed() };
                let ingest = LayerIngest {
                    blob: &layer.digest,
                    size_bytes: layer.blob.len() as u64,
                    diff_id: &layer.diff_id,
                    compression: layer.compression,
                    space: &space,
                };
                let mut open = |offset| {
                    fetched.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    Ok(from(&layer.blob, offset))
                };
                store.ingest_layer(&ingest, &mut open, &NoProgress).expect("layer");
            });
        }
    });
    assert_eq!(fetched.into_inner(), 1);
    for space in ["one", "two"] {
        assert!(scratch.root().join("layers").join(space).join(layer.diff_id.hex()).join("last").is_file());
    }
}

#[test]
fn t33_one_winner_and_a_collector() {
    let scratch = Scratch::new();
    let layer = large_layer(Compression::Gzip);
    let image = FakeImage::new(std::slice::from_ref(&layer));
    let fetched = std::sync::atomic::AtomicU32::new(0);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let store = Store::open(&scratch.root()).expect("store");
                    let _keep = store.keep().expect("keep");
                    layer
                        .ingest_from(&store, &mut |offset| {
                            fetched.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            Ok(from(&layer.blob, offset))
                        })
                        .expect("layer");
                    for blob in [&image.config, &image.manifest] {
                        ingest_blob(&store, blob).expect("blob");
                    }
                    let image = image.publish(&store, Some("busy")).expect("publish");
                    assert!(store.layers(&image, &squashed()).expect("layers").is_some());
                })
            })
            .collect();
        scope.spawn(|| {
            let store = Store::open(&scratch.root()).expect("store");
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let collected = store.collect().expect("collect");
                assert!(collected.failures.is_empty(), "{collected:?}");
            }
        });
        let results: Vec<_> = pulls.into_iter().map(|pull| pull.join()).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    assert_eq!(fetched.load(std::sync::atomic::Ordering::Relaxed), 1, "the blob was fetched more than once");
    let found = scratch.store.find("busy").expect("find").expect("image");
    assert_eq!(found.id, image.id());
    assert!(layer.directory(&scratch.root()).join("last").is_file());
    scratch.check_clean();
}
