//! Loading and saving, against skopeo and umoci in both directions.

use coracle_images::{
    Compression, Digest, Image, LoadError, LoadOptions, NoProgress, Reference, SaveError, SaveFormat, load, save,
};

use crate::canary::picture;
use crate::evil_tar::EvilTar;
use crate::fixture::{DOCKER_MANIFEST, FakeImage, FakeLayer, Scratch, squashed};
use crate::tools::{have, run, skopeo};

fn sample(kind: &'static str) -> FakeImage {
    let base = EvilTar::new().dir("etc").file("etc/passwd", "root:x:0:0::/:/bin/sh\n").symlink("bin", "usr/bin");
    let base = FakeLayer::new(&base.end(), Compression::Gzip);
    let top = FakeLayer::new(&EvilTar::new().file("etc/.wh.passwd", "").file("new", "2").end(), Compression::Gzip);
    FakeImage::of_kind(&[base, top], kind)
}

fn options(tag: Option<&str>) -> LoadOptions {
    LoadOptions { tag: tag.map(|tag| tag.parse().expect("name")), space: squashed() }
}

fn names(image: &Image) -> Vec<String> {
    image.names.iter().map(Reference::familiar).collect()
}

fn item(image: &Image, name: &str) -> (Image, Option<Reference>) {
    (image.clone(), Some(name.parse().expect("name")))
}

#[test]
fn other_tools_read_the_store() {
    if !have("other_tools_read_the_store", &["skopeo", "umoci"]) {
        return;
    }
    for kind in [crate::fixture::OCI_MANIFEST, DOCKER_MANIFEST] {
        let scratch = Scratch::new();
        sample(kind).add(&scratch.store, Some("busybox:1.36"));
        FakeImage::new(&[FakeLayer::with_file("x", "1")]).add(&scratch.store, Some("quay.io/a/b:c"));
        let layout = "oci:root/images:docker.io/library/busybox:1.36";
        let output = skopeo(&scratch.top, &["inspect", layout]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("\"Architecture\": \"amd64\""), "{text}");
        skopeo(&scratch.top, &["inspect", "oci:root/images:quay.io/a/b:c"]);
        skopeo(&scratch.top, &["copy", layout, "dir:copied"]);
        let image = "root/images:docker.io/library/busybox:1.36";
        run(&scratch.top, "umoci", &["stat", "--image", image]);
        run(&scratch.top, "umoci", &["unpack", "--rootless", "--image", image, "bundle"]);
        assert!(scratch.top.join("bundle/rootfs/new").is_file());
        assert!(!scratch.top.join("bundle/rootfs/etc/passwd").exists());
    }
}

#[test]
fn skopeo_reads_what_we_save() {
    if !have("skopeo_reads_what_we_save", &["skopeo"]) {
        return;
    }
    for kind in [crate::fixture::OCI_MANIFEST, DOCKER_MANIFEST] {
        let scratch = Scratch::new();
        let fake = sample(kind);
        let image = fake.add(&scratch.store, Some("busybox:1"));
        for (format, name, source) in [
            (SaveFormat::DockerArchive, "docker.tar", "docker-archive:docker.tar:busybox:1"),
            (SaveFormat::OciArchive, "oci.tar", "oci-archive:oci.tar"),
            (SaveFormat::OciDir, "oci", "oci:oci:docker.io/library/busybox:1"),
        ] {
            save(&scratch.store, &[item(&image, "busybox:1")], format, Some(&scratch.top.join(name))).expect(name);
            skopeo(&scratch.top, &["copy", "--dest-decompress", source, &format!("dir:from-{name}")]);
            let copied = scratch.top.join(format!("from-{name}"));
            for layer in &fake.layers {
                let bytes = fs_err::read(copied.join(layer.diff_id.hex())).expect("layer");
                assert_eq!(Digest::of(&bytes), layer.diff_id);
            }
            assert_eq!(fs_err::read(copied.join(fake.id().hex())).expect("configuration"), fake.config, "{name}");
        }
    }
}

#[test]
fn we_load_what_skopeo_saves() {
    if !have("we_load_what_skopeo_saves", &["skopeo"]) {
        return;
    }
    let origin = Scratch::new();
    let fake = sample(crate::fixture::OCI_MANIFEST);
    fake.add(&origin.store, Some("busybox:1"));
    let source = "oci:root/images:docker.io/library/busybox:1";
    for (target, file, named) in [
        ("docker-archive:d.tar:busybox:9", "d.tar", true),
        ("oci-archive:o.tar:busybox:9", "o.tar", true),
        ("oci-archive:t.tar:latest", "t.tar", false),
        ("oci:dir:busybox:9", "dir", true),
    ] {
        skopeo(&origin.top, &["copy", source, target]);
        let scratch = Scratch::new();
        let images = load(&scratch.store, &origin.top.join(file), &options(None), &NoProgress).expect(target);
        assert_eq!(images.len(), 1);
        assert_eq!(names(&images[0]), if named { vec!["busybox:9"] } else { vec![] }, "{target}");
        assert_eq!(images[0].id, fake.id(), "{target}");
        for layer in &fake.layers {
            let (ours, origin) = (layer.directory(&scratch.root()), layer.directory(&origin.root()));
            assert_eq!(picture(&ours), picture(&origin), "{target}");
        }
        scratch.check_clean();
    }
    // Compressed as a whole, which needs a copy.
    run(&origin.top, "gzip", &["-k", "o.tar"]);
    let scratch = Scratch::new();
    let images = load(&scratch.store, &origin.top.join("o.tar.gz"), &options(Some("mine")), &NoProgress).expect("gz");
    assert_eq!(names(&images[0]), ["mine:latest"]);
}

#[test]
fn round_trips() {
    for format in [SaveFormat::DockerArchive, SaveFormat::OciArchive, SaveFormat::OciDir] {
        let origin = Scratch::new();
        let one = sample(DOCKER_MANIFEST).add(&origin.store, Some("one"));
        let two = FakeImage::new(&[FakeLayer::with_file("x", "1")]).add(&origin.store, Some("quay.io/a/two:2"));
        origin.store.tag(&one, &"uno".parse().expect("name")).expect("tag");
        let items = [item(&one, "one"), item(&two, "quay.io/a/two:2"), item(&one, "uno")];
        let path = origin.top.join("saved");
        save(&origin.store, &items, format, Some(&path)).expect("save");
        let scratch = Scratch::new();
        let images = load(&scratch.store, &path, &options(None), &NoProgress).expect("load");
        let ids: Vec<_> = images.iter().map(|image| image.id.clone()).collect();
        assert_eq!(ids, [one.id.clone(), two.id.clone()]);
        assert_eq!(names(&images[0]), ["one:latest", "uno:latest"], "{format:?}");
        assert!(scratch.store.find("quay.io/a/two:2").expect("find").is_some());
        let result = load(&scratch.store, &path, &options(Some("x")), &NoProgress);
        assert!(matches!(result, Err(LoadError::SeveralImages { count: 2 })));
        if format != SaveFormat::OciDir {
            let again = origin.top.join("again");
            save(&origin.store, &items, format, Some(&again)).expect("save");
            assert!(fs_err::read(&path).expect("read") == fs_err::read(&again).expect("read"), "not reproducible");
        } else {
            assert!(matches!(save(&origin.store, &items, format, Some(&path)), Err(SaveError::Exists { .. })));
        }
    }
}

#[test]
fn a_failed_save_leaves_nothing() {
    let scratch = Scratch::new();
    let fake = sample(crate::fixture::OCI_MANIFEST);
    let image = fake.add(&scratch.store, Some("one"));
    let blob = scratch.root().join("images/blobs/sha256").join(fake.layers[1].digest.hex());
    let mut damaged = fake.layers[1].blob.clone();
    *damaged.last_mut().expect("bytes") ^= 1;
    fs_err::write(blob, damaged).expect("write");
    for format in [SaveFormat::DockerArchive, SaveFormat::OciArchive, SaveFormat::OciDir] {
        let target = scratch.top.join("out/saved");
        fs_err::create_dir_all(scratch.top.join("out")).expect("mkdir");
        save(&scratch.store, &[item(&image, "one")], format, Some(&target)).expect_err("damaged");
        assert_eq!(fs_err::read_dir(scratch.top.join("out")).expect("dir").count(), 0, "{format:?}");
    }
}

/// A docker-archive with any manifest.
fn docker_archive(manifest: &str, members: &[(&str, &[u8])]) -> Vec<u8> {
    let tar = members.iter().fold(EvilTar::new(), |tar, (name, content)| tar.file_bytes(name.as_bytes(), content));
    tar.file("manifest.json", manifest).end()
}

#[test]
fn a51_hostile_archives() {
    let scratch = Scratch::new();
    let attempt = |archive: &[u8]| {
        let path = scratch.top.join("evil.tar");
        fs_err::write(&path, archive).expect("write");
        let result = load(&scratch.store, &path, &options(None), &NoProgress);
        assert!(scratch.store.list().expect("list").is_empty());
        result.expect_err("is refused")
    };
    let layer = FakeLayer::new(&EvilTar::new().file("f", "1").end(), Compression::Plain);
    let config = FakeImage::new(std::slice::from_ref(&layer)).config;
    let good: [(&str, &[u8]); 2] = [("c.json", &config), ("l.tar", &layer.blob)];
    let error = attempt(&docker_archive(r#"[{"Config":"../../../etc/passwd","Layers":[]}]"#, &[]));
    assert!(matches!(error, LoadError::Missing { .. }), "{error:?}");
    let error = attempt(&docker_archive(r#"[{"Config":"c.json","Layers":["/etc/passwd"]}]"#, &good));
    assert!(matches!(error, LoadError::Missing { .. }), "{error:?}");
    let error = attempt(&docker_archive(r#"[{"Config":"c.json","RepoTags":["../x"],"Layers":["l.tar"]}]"#, &good));
    assert!(matches!(error, LoadError::Name { .. }), "{error:?}");
    let error = attempt(&docker_archive(r#"[{"Config":"c.json","Layers":[]}]"#, &good));
    assert!(matches!(error, LoadError::LayerCount { diff_ids: 1, layers: 0 }), "{error:?}");
    let error = attempt(&docker_archive("[{]", &good));
    assert!(matches!(error, LoadError::Json { .. }), "{error:?}");
    let liar = String::from_utf8(config.clone()).expect("text").replace(layer.diff_id.hex(), "../../../../x");
    let manifest = r#"[{"Config":"c.json","Layers":["l.tar"]}]"#;
    let error = attempt(&docker_archive(manifest, &[("c.json", liar.as_bytes()), ("l.tar", &layer.blob)]));
    assert!(matches!(error, LoadError::DiffId { .. }), "{error:?}");
    let other = FakeLayer::new(&EvilTar::new().file("f", "2").end(), Compression::Plain);
    let error = attempt(&docker_archive(manifest, &[("c.json", &config), ("l.tar", &other.blob)]));
    assert!(matches!(error, LoadError::Ingest(_)), "{error:?}");
    let looping = EvilTar::new().symlink("l.tar", "m.tar").symlink("m.tar", "l.tar").file_bytes(b"c.json", &config);
    let error = attempt(&looping.file("manifest.json", manifest).end());
    assert!(matches!(error, LoadError::Missing { .. }), "{error:?}");
    let error = attempt(&EvilTar::new().file("x", "1").end());
    assert!(matches!(error, LoadError::NoImages { .. }), "{error:?}");
    let error = attempt(b"this is no archive".repeat(100).as_slice());
    assert!(matches!(error, LoadError::Archive { .. }), "{error:?}");
    let confused = EvilTar::new()
        .file("oci-layout", "{}")
        .file("index.json", r#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}"#);
    let error = attempt(&confused.end());
    assert!(matches!(error, LoadError::Manifest { .. }), "{error:?}");
    // Equal layers were links in old archives.
    let linked = EvilTar::new()
        .file_bytes(b"a/layer.tar", &layer.blob)
        .symlink("b/layer.tar", "../a/layer.tar")
        .file_bytes(b"c.json", &config);
    let path = scratch.top.join("linked.tar");
    fs_err::write(&path, linked.file("manifest.json", r#"[{"Config":"c.json","Layers":["b/layer.tar"]}]"#).end())
        .expect("write");
    assert_eq!(load(&scratch.store, &path, &options(None), &NoProgress).expect("links are followed").len(), 1);
}
