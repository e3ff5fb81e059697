//! Registries that lie about what they serve (security.md A50, A51, F28, T24), each test named by its id.

use serde_json::{Value, json};

use crate::env::image::{self, Image, Layer, media};
use crate::env::mock::{Mock, Response};
use crate::env::{TestEnv, tree};
use crate::require;

pub fn honest() -> Image {
    Image::new(vec![Layer::busybox().bytes()], &json!({}))
}

/// Demands that a pull fails clearly and stores nothing.
#[track_caller]
fn refuse(env: &TestEnv, name: &str, image: &Image) {
    let registry = Mock::serving(&[("evil", image.clone())]);
    let outcome = env.coracle(&["pull", &registry.image("evil")]).time_limit(20).outcome();
    assert_eq!(outcome.code, 1, "{name}: {outcome}");
    outcome.refused(1);
    assert_eq!(env.coracle(&["images", "-q"]).ok(), "", "{name}");
}

#[test]
fn the_mock_serves_honest_images() {
    require!();
    let env = TestEnv::new();
    let registry = Mock::serving(&[("good", honest())]);
    assert_eq!(env.container(&[&registry.image("good"), "echo", "good"]).ok(), "good");
}

#[test]
fn a50_index_and_manifest_confusion() {
    require!();
    let env = TestEnv::new();
    let index_too = honest().edit(|manifest| manifest["manifests"] = json!([]));
    refuse(&env, "both layers and manifests", &index_too);
    let mut other_header = honest();
    other_header.media_type = media::INDEX.to_owned();
    refuse(&env, "served as an index", &other_header);
    refuse(&env, "mediaType says index", &honest().edit(|manifest| manifest["mediaType"] = json!(media::INDEX)));
    let mut schema1 = honest();
    schema1.media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws".to_owned();
    schema1.manifest = br#"{"schemaVersion":1,"name":"x","tag":"y","fsLayers":[],"history":[]}"#.to_vec();
    refuse(&env, "schema 1", &schema1);
    let mut twice = honest();
    let text = String::from_utf8(twice.manifest.clone()).unwrap();
    twice.manifest = text.replacen('{', r#"{"layers":[],"#, 1).into_bytes();
    refuse(&env, "a key twice", &twice);
    let mut marked = honest();
    marked.manifest = [b"\xef\xbb\xbf".to_vec(), marked.manifest].concat();
    refuse(&env, "a byte order mark", &marked);
    let mut html = honest();
    html.manifest = b"<html>welcome to the hotel wifi</html>".to_vec();
    refuse(&env, "a captive portal", &html);
    refuse(&env, "schemaVersion 3", &honest().edit(|manifest| manifest["schemaVersion"] = json!(3)));
    refuse(&env, "no config", &honest().edit(|manifest| drop(manifest.as_object_mut().unwrap().remove("config"))));
}

#[test]
fn a51_digests_are_checked_before_use() {
    require!();
    let env = TestEnv::new();
    let hex = "a".repeat(64);
    let digests = [
        "sha256:../../../../etc/passwd".to_owned(),
        format!("sha256:{}", hex.to_uppercase()),
        "sha256:abc".to_owned(),
        "sha512:".to_owned(),
        format!("sha256:{hex}\u{0}"),
        format!("md5:{hex}"),
        format!("SHA256:{hex}"),
        hex.clone(),
        String::new(),
        format!("sha256:{hex}/../{hex}"),
    ];
    for digest in digests {
        let config = honest().edit(|manifest| manifest["config"]["digest"] = json!(digest));
        refuse(&env, &format!("config {digest:?}"), &config);
        let layer = honest().edit(|manifest| manifest["layers"][0]["digest"] = json!(digest));
        refuse(&env, &format!("layer {digest:?}"), &layer);
    }
    assert_eq!(fs_err::read_dir(env.root().join("images/blobs/sha256")).map(|dir| dir.count()).unwrap_or(0), 0);
}

#[test]
fn a51_content_that_is_not_its_digest_is_never_visible() {
    require!();
    let env = TestEnv::new();
    for which in ["config", "layer"] {
        let mut image = honest();
        let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        let descriptor = if which == "config" { &manifest["config"] } else { &manifest["layers"][0] };
        let blob = image.blobs.get_mut(descriptor["digest"].as_str().unwrap()).unwrap();
        let middle = blob.len() / 2;
        blob[middle] ^= 1;
        refuse(&env, which, &image);
        // What was wrong is not kept: the same digests from an honest registry are complete.
        let registry = Mock::serving(&[("good", honest())]);
        env.container(&[&registry.image("good"), "true"]).ok();
        env.coracle(&["rmi", &registry.image("good")]).ok();
    }
    // The compressed bytes are as announced, but what is in them is not what the configuration says (T16).
    let configuration = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [image::digest(b"something else")]},
    });
    refuse(&env, "diff id", &Image::of(vec![image::gzip(&Layer::busybox().bytes())], &configuration));
    let mut short = honest();
    let manifest: Value = serde_json::from_slice(&short.manifest).unwrap();
    let size = manifest["layers"][0]["size"].as_u64().unwrap();
    short = short.edit(|manifest| manifest["layers"][0]["size"] = json!(size - 1));
    refuse(&env, "size smaller than the body", &short);
    refuse(
        &env,
        "size larger than the body",
        &honest().edit(|manifest| manifest["layers"][0]["size"] = json!(size + 1)),
    );
    let left = env.root().join("layers");
    let layers = fs_err::read_dir(left)
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|space| fs_err::read_dir(space.path()).into_iter().flatten());
    assert_eq!(layers.count(), 0, "a refused layer is left unpacked");
}

#[test]
fn f28_a_broken_download_is_resumed_by_range() {
    require!();
    let env = TestEnv::new();
    let image = honest();
    let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    let bytes = image.blobs[&layer].clone();
    let registry = Mock::with(&[("good", image)], move |request| {
        if !request.path.ends_with(&layer) || request.method != "GET" {
            return None;
        }
        let half = bytes.len() / 2;
        let length = bytes.len();
        match request
            .headers
            .get("range")
            .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok())
        {
            // The first answer announces everything and breaks off in the middle.
            None | Some(0) => Some(
                Response::new(200, "application/octet-stream", bytes[..half].to_vec())
                    .header("Content-Length", length.to_string())
                    .header("Accept-Ranges", "bytes"),
            ),
            Some(from) => Some(
                Response::new(206, "application/octet-stream", bytes[from..].to_vec())
                    .header("Content-Range", format!("bytes {from}-{}/{length}", length - 1)),
            ),
        }
    });
    env.container(&[&registry.image("good"), "true"]).ok();
    let ranges: Vec<String> =
        registry.seen().iter().filter_map(|request| request.headers.get("range").cloned()).collect();
    assert!(!ranges.is_empty(), "the second half was not asked for by Range");
}

#[test]
fn t24_planted_overlay_marks_have_no_meaning() {
    require!();
    let env = TestEnv::new();
    // A lower layer that marks a directory opaque would hide what lies below it.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    header.set_path("bin/").unwrap();
    header.set_cksum();
    let marks = [
        ("SCHILY.xattr.user.overlay.opaque", b"y".as_slice()),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y".as_slice()),
        ("SCHILY.xattr.user.overlay.redirect", b"/etc".as_slice()),
        ("SCHILY.xattr.user.overlay.metacopy", b"".as_slice()),
    ];
    builder.append_pax_extensions(marks).unwrap();
    builder.append(&header, std::io::empty()).unwrap();
    let marked = builder.into_inner().unwrap();
    let image =
        Image::new(vec![Layer::busybox().bytes(), marked, Layer::new().file("top", 0o644, b"x").bytes()], &json!({}));
    let registry = Mock::serving(&[("marked", image)]);
    assert_eq!(env.container(&[&registry.image("marked"), "ls", "/bin/cat"]).ok(), "/bin/cat");
}

#[test]
fn limits_of_manifests_hold() {
    require!();
    let env = TestEnv::new();
    // A53, T34: a manifest larger than 4 MiB, deep JSON, more layers than anything needs.
    let huge = honest().edit(|manifest| manifest["annotations"] = json!({"x": "y".repeat(5 << 20)}));
    refuse(&env, "5 MiB manifest", &huge);
    let mut deep = honest();
    deep.manifest =
        format!("{{\"schemaVersion\":2,\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes();
    refuse(&env, "deep JSON", &deep);
    let many = honest().edit(|manifest| {
        let layer = manifest["layers"][0].clone();
        manifest["layers"] = Value::Array(vec![layer; 600]);
    });
    refuse(&env, "600 layers", &many);
    let not_tar = Image::of(
        vec![image::gzip(&vec![7_u8; 4096])],
        &json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [image::digest(&vec![7_u8; 4096])]},
        }),
    );
    refuse(&env, "a layer that is no tar", &not_tar);
    assert_eq!(tree::hex(&[0, 255]), "00ff");
}
