//! Images by name and id, and taking them away.

use coracle_images::{Compression, Digest, NoProgress, Reference, Store, StoreError};

use crate::evil_tar::{EvilTar, Head};
use crate::fixture::{DOCKER_MANIFEST, FakeImage, FakeLayer, Scratch, squashed};

fn never(_: &Digest) -> bool {
    false
}

#[test]
fn find_by_every_name() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let fake = FakeImage::new(&[FakeLayer::with_file("a", "1"), FakeLayer::with_file("b", "2")]);
    let image = fake.add(store, Some("busybox:1"));
    let other = FakeImage::new(&[FakeLayer::with_file("c", "3")]).add(store, Some("other"));
    let (id, manifest) = (fake.id().to_string(), Digest::of(&fake.manifest).to_string());
    let pins = [format!("busybox@{manifest}"), format!("busybox:1@{manifest}"), manifest.clone()];
    for name in ["busybox:1", "docker.io/library/busybox:1", &id, &id[7..], &id[..20], &id[7..13]]
        .into_iter()
        .chain(pins.iter().map(String::as_str))
    {
        let found = store.find(name).expect(name).expect(name);
        assert_eq!((found.id.to_string(), found.manifest.to_string()), (id.clone(), manifest.clone()), "{name}");
        assert_eq!(found.names.iter().map(Reference::familiar).collect::<Vec<_>>(), ["busybox:1"]);
    }
    let absent = "a".repeat(64);
    let wrong_pin = format!("busybox:1@sha256:{absent}");
    for name in ["busybox", "busybox:2", "quay.io/busybox:1", &id[7..10], &absent, "../x", "", &wrong_pin] {
        assert!(store.find(name).expect(name).is_none(), "{name}");
    }
    assert_eq!((image.layers.len(), image.platform.to_string()), (2, "linux/amd64".to_owned()));
    let listed: Vec<_> = store.list().expect("list").into_iter().map(|image| image.id).collect();
    assert_eq!(listed, [image.id.clone(), other.id]);
    let layers = store.layers(&image, &squashed()).expect("layers").expect("unpacked");
    assert_eq!(layers, [fake.layers[0].directory(&scratch.root()), fake.layers[1].directory(&scratch.root())]);
    let elsewhere = coracle_images::LayerSpace { name: "elsewhere".into(), ..squashed() };
    assert!(store.layers(&image, &elsewhere).expect("layers").is_none());
    let history = image.history();
    assert_eq!(history.iter().filter_map(|step| step.layer.as_ref()).count(), 2);
}

#[test]
fn nothing_is_visible_before_all_is_here() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let fake = FakeImage::new(&[FakeLayer::with_file("a", "1")]);
    let publish = || fake.publish(store, Some("x"));
    assert!(matches!(publish(), Err(StoreError::BlobMissing { .. })));
    crate::fixture::ingest_blob(store, &fake.manifest).expect("manifest");
    assert!(matches!(publish(), Err(StoreError::BlobMissing { .. })));
    crate::fixture::ingest_blob(store, &fake.config).expect("config");
    assert!(matches!(publish(), Err(StoreError::BlobMissing { .. })));
    assert!(store.find("x").expect("find").is_none() && store.list().expect("list").is_empty());
    fake.layers[0].ingest(store).expect("layer");
    publish().expect("now");
    // T34: a configuration for another number of layers.
    let mut liar = FakeImage::new(&[FakeLayer::with_file("a", "1")]);
    liar.config = FakeImage::new(&[]).config;
    let text = String::from_utf8(liar.manifest.clone()).expect("text");
    let text = text.replace(&fake.id().to_string(), &liar.id().to_string());
    let text = text.replace(&format!("\"size\": {}", fake.config.len()), &format!("\"size\": {}", liar.config.len()));
    liar.manifest = text.into_bytes();
    for blob in [&liar.config, &liar.manifest] {
        crate::fixture::ingest_blob(store, blob).expect("blob");
    }
    assert!(matches!(liar.publish(store, Some("liar")), Err(StoreError::LayerCount { diff_ids: 0, layers: 1, .. })));
    assert!(store.find("liar").expect("find").is_none());
}

#[test]
fn a_new_image_takes_the_name() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let old = FakeImage::new(&[FakeLayer::with_file("a", "1")]).add(store, Some("app"));
    let new = FakeImage::new(&[FakeLayer::with_file("a", "2")]).add(store, Some("app"));
    assert_eq!(store.find("app").expect("find").expect("image").id, new.id);
    let old = store.find(&old.id.to_string()).expect("find").expect("the old one stays");
    assert!(old.names.is_empty());
    store.tag(&old, &"app:old".parse().expect("name")).expect("tag");
    assert_eq!(store.find("app:old").expect("find").expect("image").id, old.id);
    assert_eq!(store.list().expect("list").len(), 2);
}

#[test]
fn removing() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let shared = FakeLayer::with_file("base", "0");
    let one = FakeImage::new(&[shared.clone(), FakeLayer::with_file("one", "1")]).add(store, Some("one"));
    FakeImage::new(&[shared.clone(), FakeLayer::with_file("two", "2")]).add(store, Some("two"));
    store.tag(&one, &"uno".parse().expect("name")).expect("tag");
    let id = one.id.to_string();
    assert!(matches!(store.remove("absent", true, &never), Err(StoreError::NoSuchImage { .. })));
    assert!(matches!(store.remove(&id, false, &never), Err(StoreError::SeveralNames { count: 2, .. })));
    let removed = store.remove("uno", false, &never).expect("only the name");
    assert_eq!((removed.untagged.len(), removed.deleted.len()), (1, 0));
    assert!(matches!(store.remove("one", false, &|digest| *digest == one.id), Err(StoreError::InUse { .. })));
    assert!(store.find("one").expect("find").is_some());
    let forced = store.remove("one", true, &|digest| *digest == one.id).expect("forced");
    assert_eq!((forced.untagged.len(), forced.deleted.len()), (1, 0));
    let nameless = store.find(&id).expect("find").expect("stays while in use");
    assert!(store.layers(&nameless, &squashed()).expect("layers").is_some());
    let removed = store.remove(&id, false, &never).expect("gone");
    assert_eq!(removed.deleted, [one.id]);
    assert!(removed.freed_bytes > 0 && removed.failures.is_empty() && !removed.postponed);
    // Manifest, configuration and two layers of the other image.
    assert_eq!(scratch.list("images/blobs/sha256").len(), 4);
    assert_eq!(scratch.layers().len(), 2);
    assert!(shared.directory(&scratch.root()).join("base").is_file());
    store.remove("two", false, &never).expect("the last");
    assert_eq!(scratch.list("images/blobs/sha256"), [""; 0]);
    assert_eq!(scratch.list("layers/squashed"), [""; 0]);
    scratch.check_clean();
}

#[test]
fn collecting_waits_for_pulls() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    FakeImage::new(&[FakeLayer::with_file("a", "1")]).add(store, Some("gone"));
    let pulled = FakeLayer::with_file("coming", "1");
    let keep = store.keep().expect("keep");
    pulled.ingest(store).expect("layer");
    let removed = store.remove("gone", false, &never).expect("name and image go at once");
    assert!(removed.postponed);
    assert!(store.find("gone").expect("find").is_none());
    assert!(pulled.directory(&scratch.root()).exists());
    drop(keep);
    assert!(!store.collect().expect("collect").postponed);
    assert_eq!(scratch.list("images/blobs/sha256"), [""; 0]);
}

#[test]
fn unlisted_directories_are_those_below() {
    use std::os::unix::fs::MetadataExt;
    let base = EvilTar::new()
        .entry(Head::new(b'5', b".").mode(0o711).mtime(5), b"")
        .entry(Head::new(b'5', b"tmp").mode(0o1777).mtime(6), b"")
        .pax(&[("SCHILY.xattr.user.kept", b"1")])
        .entry(Head::new(b'5', b"a").mode(0o750).mtime(7), b"")
        .entry(Head::new(b'5', b"a/b").mode(0o700).mtime(8), b"")
        .entry(Head::new(b'5', b"gone").mode(0o700).mtime(9), b"");
    let middle = EvilTar::new().file("tmp/one", "1").file("a/b/two", "2").file("new/x", "3").file(".wh.gone", "");
    let top = EvilTar::new().file("tmp/three", "1").file("gone/x", "1").file("a/x", "4").file("a/b/y", "5");
    let top = top.entry(Head::new(b'5', b"a/b").mode(0o711).mtime(10), b"");
    let layers = [base, middle, top].map(|tar| FakeLayer::new(&tar.end(), Compression::Gzip));
    let scratch = Scratch::new();
    FakeImage::new(&layers).add(&scratch.store, Some("x"));
    let check = |layer: usize, path: &str, mode: u32, mtime: i64| {
        let found = fs_err::metadata(layers[layer].directory(&scratch.root()).join(path)).expect(path);
        assert_eq!((found.mode() & 0o7777, found.mtime()), (mode, mtime), "{path} of layer {layer}");
    };
    for layer in [1, 2] {
        check(layer, "", 0o711, 5);
        check(layer, "tmp", 0o1777, 6);
        check(layer, "a", 0o750, 7);
    }
    check(1, "a/b", 0o700, 8);
    check(2, "a/b", 0o711, 10);
    check(1, "new", 0o755, 0);
    check(2, "gone", 0o755, 0);
    let tree = crate::canary::picture(&layers[2].directory(&scratch.root()));
    assert_eq!(tree[std::path::Path::new("a")].xattrs, [(b"user.kept".to_vec(), b"1".to_vec())]);
    // In a space where the image is unpacked later, too.
    let elsewhere = coracle_images::LayerSpace { name: "elsewhere".into(), ..squashed() };
    let image = scratch.store.find("x").expect("find").expect("image");
    let unpacked = scratch.store.unpack(&image, &elsewhere, &NoProgress).expect("unpack");
    assert_eq!(fs_err::metadata(unpacked[2].join("tmp")).expect("tmp").mode() & 0o7777, 0o1777);
    scratch.store.collect().expect("collect");
    assert_eq!(scratch.list("layers/elsewhere").len(), 6, "layers and their lists");
}

#[test]
fn damaged_images_are_told_and_can_go() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let fake = FakeImage::new(&[FakeLayer::with_file("a", "1")]);
    fake.add(store, Some("x"));
    let path = scratch.root().join("images/blobs/sha256").join(fake.id().hex());
    fs_err::write(&path, "{}").expect("write");
    assert!(matches!(store.find("x"), Err(StoreError::BlobDamaged { .. })));
    store.remove("x", false, &never).expect("removal needs no configuration");
    assert!(store.find("x").expect("find").is_none());
}

#[test]
fn docker_manifests_are_converted_and_pinned() {
    let scratch = Scratch::new();
    let fake = FakeImage::of_kind(&[FakeLayer::with_file("a", "1")], DOCKER_MANIFEST);
    let image = fake.add(&scratch.store, Some("docker"));
    let original = Digest::of(&fake.manifest);
    assert_eq!(image.manifest, original);
    assert!(scratch.store.find(&format!("docker@{original}")).expect("find").is_some());
    let index = fs_err::read_to_string(scratch.root().join("images/index.json")).expect("index");
    assert!(index.contains("vnd.oci.image.manifest") && !index.contains("vnd.docker"), "{index}");
    scratch.store.collect().expect("collect");
    assert!(scratch.store.find("docker").expect("find").is_some());
    assert_eq!(scratch.store.read_blob(&original).expect("the original stays"), fake.manifest);
}

#[test]
fn a32_nobody_else_may_enter() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    FakeImage::new(&[FakeLayer::with_file("a", "1")]).add(&scratch.store, Some("x"));
    for (path, node) in crate::canary::picture(&scratch.root()) {
        let is_layer = path.starts_with("layers/squashed") && path.components().count() > 2;
        assert!(is_layer || node.mode & 0o077 == 0, "{} is open: {:o}", path.display(), node.mode);
    }
    // Opening an existing store does not change it, and another version is refused.
    fs_err::set_permissions(scratch.root(), PermissionsExt::from_mode(0o700)).expect("chmod");
    Store::open(&scratch.root()).expect("again");
    fs_err::write(scratch.root().join("images/oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).expect("write");
    assert!(matches!(Store::open(&scratch.root()), Err(StoreError::LayoutVersion { .. })));
}
