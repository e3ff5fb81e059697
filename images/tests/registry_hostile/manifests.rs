//! Manifests that can be read in two ways, digests that are paths, layers that live elsewhere.

use std::time::{Duration, Instant};

use coracle_images::registry::RegistryError;
use coracle_images::registry::manifest::ManifestError;
use coracle_images::{Digest, PullError};
use serde_json::{Value, json};

use crate::server::{Manner, Reply, Server};
use crate::site::{
    Content, DOCKER_MANIFEST, Made, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Place, Site, descriptor, noise,
};

/// Serves `bytes` as the manifest `x:t` beside the blobs of a good image and pulls it.
fn refused_as(media_type: &str, bytes: impl Into<Vec<u8>>) -> PullError {
    let mut content = Made::small().content("good");
    content.add_manifest("t", media_type, bytes.into());
    let site = Site::new(content);
    let place = Place::new();
    let error = place.refused(&site.image("x:t"));
    // The same registry still gives a good image afterwards.
    place.pull(&site.image("x:good")).expect("good image");
    error
}

fn manifest_error(media_type: &str, bytes: impl Into<Vec<u8>>) -> ManifestError {
    match refused_as(media_type, bytes) {
        PullError::Manifest { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a50_index_and_image_at_once() {
    let mut both = Made::small().manifest;
    both["manifests"] = json!([]);
    for media_type in [OCI_MANIFEST, OCI_INDEX] {
        both["mediaType"] = json!(media_type);
        let error = manifest_error(media_type, both.to_string());
        assert!(matches!(error, ManifestError::Confused), "{error}");
    }
    both.as_object_mut().expect("object").remove("mediaType");
    let error = manifest_error(OCI_MANIFEST, both.to_string());
    assert!(matches!(error, ManifestError::Confused), "{error}");
    // An image that is called an index, and the reverse.
    let mut image = Made::small().manifest;
    image.as_object_mut().expect("object").remove("mediaType");
    let error = manifest_error(OCI_INDEX, image.to_string());
    assert!(matches!(error, ManifestError::Confused), "{error}");
    let index = json!({"schemaVersion": 2, "manifests": []});
    let error = manifest_error(OCI_MANIFEST, index.to_string());
    assert!(matches!(error, ManifestError::Confused), "{error}");
}

#[test]
fn a50_header_field_and_descriptor_disagree() {
    let image = Made::small();
    let error = manifest_error(DOCKER_MANIFEST, image.manifest_bytes());
    assert!(matches!(error, ManifestError::TypeMismatch { .. }), "{error}");
    // The entry of an index calls it something else.
    let mut content = image.content("good");
    let mut entry = descriptor(DOCKER_MANIFEST, &image.manifest_bytes());
    entry["platform"] = json!({"os": "linux", "architecture": crate::site::host_architecture()});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]});
    content.add_manifest("t", OCI_INDEX, index.to_string().into_bytes());
    let site = Site::new(content);
    let error = Place::new().refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Manifest { source: ManifestError::TypeMismatch { .. }, .. }), "{error}");
}

#[test]
fn a50_schema1_doubled_keys_bom_and_junk() {
    let schema1 = r#"{"schemaVersion":1,"name":"x","tag":"t","fsLayers":[],"history":[]}"#;
    for media_type in ["application/vnd.docker.distribution.manifest.v1+prettyjws", "application/json", OCI_MANIFEST] {
        let error = manifest_error(media_type, schema1);
        assert!(matches!(error, ManifestError::Schema1), "{media_type}: {error}");
    }
    let good = String::from_utf8(Made::small().manifest_bytes()).expect("text");
    let doubled = good.replacen('{', r#"{"layers":[],"#, 1);
    let spelled = good.replacen('{', r#"{"Layers":[],"#, 1);
    let with_bom = format!("\u{feff}{good}");
    let trailing = format!("{good}{good}");
    for bad in [doubled, spelled, with_bom, trailing, "<html>".to_owned(), String::new(), "null".to_owned()] {
        let error = manifest_error(OCI_MANIFEST, bad.clone());
        assert!(matches!(error, ManifestError::Json(_)), "{bad}: {error}");
    }
    let error = manifest_error("text/html", good);
    assert!(matches!(error, ManifestError::TypeMismatch { .. }), "{error}");
    let helm = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
        "config": descriptor("application/vnd.cncf.helm.config.v1+json", b"{}")});
    let error = manifest_error(OCI_MANIFEST, helm.to_string());
    assert!(matches!(error, ManifestError::NotAnImage { .. }), "{error}");
}

#[test]
fn a50_the_digest_is_over_the_bytes_received() {
    // The same JSON with other white space is another manifest, and is stored as what came.
    let made = Made::small();
    let spaced = serde_json::to_vec_pretty(&made.manifest).expect("json");
    let mut content = made.content("good");
    content.add_manifest("t", OCI_MANIFEST, spaced.clone());
    let site = Site::new(content);
    let place = Place::new();
    let image = place.pull(&site.image("x:t")).expect("pull");
    assert_eq!(image.manifest, Digest::of(&spaced));
    let stored = place.dir.path().join("store/images/blobs/sha256").join(image.manifest.hex());
    assert_eq!(fs_err::read(stored).expect("stored"), spaced);
    // A registry whose header names another digest than its body has.
    let lying = Site::with(made.content("t"), |seen, mut reply| {
        if seen.path.contains("/manifests/") {
            reply.headers.retain(|(name, _)| name != "Docker-Content-Digest");
            return reply.header("Docker-Content-Digest", Digest::of(b"other").to_string());
        }
        reply
    });
    let error = Place::new().refused(&lying.image("x:t"));
    assert!(matches!(error, PullError::Registry(RegistryError::WrongDigest { .. })), "{error}");
}

#[test]
fn a51_digests_never_become_paths() {
    let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let bad = [
        "sha256:../../../../etc/passwd".to_owned(),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{}", &hex[1..]),
        format!("sha512:{hex}"),
        format!("sha256:{}\0", &hex[1..]),
        format!("sha256:{hex}?x=/../y"),
        format!("md5:{}", &hex[..32]),
        "..".to_owned(),
        String::new(),
    ];
    for digest in bad {
        let good = Made::small().manifest;
        let mut in_config = good.clone();
        in_config["config"]["digest"] = json!(digest);
        let mut in_layer = good.clone();
        in_layer["layers"][0]["digest"] = json!(digest);
        let mut entry = json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 5});
        entry["platform"] = json!({"os": "linux", "architecture": crate::site::host_architecture()});
        let in_index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]});
        for (media_type, document) in [(OCI_MANIFEST, in_config), (OCI_MANIFEST, in_layer), (OCI_INDEX, in_index)] {
            let error = manifest_error(media_type, document.to_string());
            assert!(matches!(error, ManifestError::Invalid { field: "digest" }), "{digest}: {error}");
        }
    }
    let mut config = Made::small().config;
    config["rootfs"]["diff_ids"] = json!(["sha256:../../x"]);
    let error = refused_with_config(config);
    assert!(
        matches!(error, PullError::Manifest { source: ManifestError::Invalid { field: "diff_id" }, .. }),
        "{error}"
    );
}

/// Pulls an image of one layer whose configuration is `config`.
fn refused_with_config(config: Value) -> PullError {
    let mut made = Made::small();
    made.manifest["config"] = descriptor(OCI_CONFIG, config.to_string().as_bytes());
    made.config = config;
    let site = Site::new(made.content("t"));
    Place::new().refused(&site.image("x:t"))
}

#[test]
fn a51_negative_sizes_and_other_counts() {
    let mut negative = Made::small().manifest;
    negative["layers"][0]["size"] = json!(-1);
    let error = manifest_error(OCI_MANIFEST, negative.to_string());
    assert!(matches!(error, ManifestError::Invalid { field: "size" }), "{error}");
    let mut config = Made::small().config;
    config["rootfs"]["diff_ids"] = json!([]);
    let error = refused_with_config(config);
    assert!(matches!(error, PullError::LayerCount { layers: 1, described: 0, .. }), "{error}");
}

#[test]
fn a53_a_manifest_of_a_gibibyte() {
    let made = Made::small();
    for manner in [Manner::Endless, Manner::Length(1 << 30), Manner::Unmarked(5 << 20)] {
        let site = Site::with(made.content("t"), move |seen, reply| match seen.path.contains("/manifests/") {
            true => Reply::new(200).header("Content-Type", OCI_MANIFEST).body(vec![b' '; 5 << 20]).manner(manner),
            false => reply,
        });
        let start = Instant::now();
        let error = Place::new().refused(&site.image("x:t"));
        assert!(matches!(error, PullError::Registry(RegistryError::TooLarge { .. })), "{manner:?}: {error}");
        assert!(start.elapsed() < Duration::from_secs(60), "{manner:?}");
    }
    // A configuration that says it is larger than any.
    let mut large = made.manifest.clone();
    large["config"]["size"] = json!(5 << 20);
    let error = manifest_error(OCI_MANIFEST, large.to_string());
    assert!(matches!(error, ManifestError::TooMuch { .. }), "{error}");
}

#[test]
fn a53_at_the_limit_and_one_above() {
    let annotated = |length: usize| {
        let mut manifest = Made::small().manifest;
        manifest["annotations"] = json!({"k": "v".repeat(length - 1)});
        manifest.to_string()
    };
    let mut content = Made::small().content("good");
    content.add_manifest("fits", OCI_MANIFEST, annotated(64 << 10).into_bytes());
    let padded = |length: usize| {
        let mut bytes = Made::small().manifest_bytes();
        bytes.resize(length, b' ');
        bytes
    };
    content.add_manifest("padded", OCI_MANIFEST, padded(4 << 20));
    content.add_manifest("over", OCI_MANIFEST, padded((4 << 20) + 1));
    let site = Site::new(content);
    let place = Place::new();
    let error = place.refused(&site.image("x:over"));
    assert!(matches!(error, PullError::Registry(RegistryError::TooLarge { .. })), "{error}");
    place.pull(&site.image("x:fits")).expect("64 KiB of annotations");
    place.pull(&site.image("x:padded")).expect("4 MiB of manifest");
    let error = manifest_error(OCI_MANIFEST, annotated((64 << 10) + 1));
    assert!(matches!(error, ManifestError::TooMuch { what: "annotations" }), "{error}");
    let mut many = Made::small().manifest;
    many["layers"] = Value::Array(vec![many["layers"][0].clone(); 501]);
    let error = manifest_error(OCI_MANIFEST, many.to_string());
    assert!(matches!(error, ManifestError::TooMuch { what: "layers" }), "{error}");
    let entry = descriptor(OCI_MANIFEST, b"x");
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": vec![entry; 1025]});
    let error = manifest_error(OCI_INDEX, index.to_string());
    assert!(matches!(error, ManifestError::TooMuch { what: "entries" }), "{error}");
}

#[test]
fn a53_layers_that_are_no_archives() {
    let junk = [noise(1 << 20, 7), [b"\xfd7zXZ\0".to_vec(), noise(1 << 10, 8)].concat(), b"x".to_vec()];
    for bytes in junk {
        let site = Site::new(Made::new(vec![bytes.clone()]).content("t"));
        let place = Place::new();
        let start = Instant::now();
        let error = place.refused(&site.image("x:t"));
        assert!(matches!(error, PullError::Ingest(_) | PullError::Store(_)), "{error}");
        assert!(start.elapsed() < Duration::from_secs(60));
        site.replace(Made::small().content("t"));
        place.pull(&site.image("x:t")).expect("the store still works");
    }
}

#[test]
fn a54_a_pin_decides_whatever_the_registry_serves() {
    let (one, other) = (Made::small(), Made::new(vec![crate::site::layer("other", b"other")]));
    let pin = Digest::of(&one.manifest_bytes());
    let honest = Site::new(one.content("t"));
    let mut content = other.content("t");
    // The second registry serves other content under the pinned digest.
    content.manifests.insert(pin.to_string(), (OCI_MANIFEST.to_owned(), other.manifest_bytes()));
    let lying = Site::with(content, |_, mut reply| {
        reply.headers.retain(|(name, _)| name != "Docker-Content-Digest");
        reply
    });
    let place = Place::new();
    let error = place.refused(&lying.image(&format!("x@{pin}")));
    assert!(matches!(error, PullError::Registry(RegistryError::WrongDigest { .. })), "{error}");
    let error = place.refused(&lying.image(&format!("x:t@{pin}")));
    assert!(matches!(error, PullError::Registry(RegistryError::WrongDigest { .. })), "{error}");
    let image = place.pull(&honest.image(&format!("x@{pin}"))).expect("honest");
    assert_eq!(image.manifest, pin);
    assert_eq!(place.read(&image, "hello"), b"hello\n");
    // The same tag on the lying registry is another image and takes nothing from the first.
    let image = place.pull(&lying.image("x:t")).expect("tag");
    assert_eq!(place.read(&image, "other"), b"other");
}

#[test]
fn a54_a_layer_with_other_content_is_not_stored() {
    let made = Made::small();
    let real = Digest::of(&made.layers[0]);
    let site = Site::with(made.content("t"), {
        let path = format!("/blobs/{real}");
        move |seen, reply| match seen.path.ends_with(&path) {
            true => Reply::new(200).body(crate::site::layer("hello", b"evil!\n")),
            false => reply,
        }
    });
    let place = Place::new();
    let error = place.refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Ingest(coracle_images::IngestError::WrongDigest { .. })), "{error}");
    let blobs = place.dir.path().join("store/images/blobs/sha256");
    assert!(!blobs.join(real.hex()).exists());
}

#[test]
fn a60_foreign_layers_are_refused_and_nobody_is_asked() {
    let evil = Server::plain(|_| Reply::new(200));
    let port = evil.port;
    let urls = [
        format!("http://127.0.0.1:{port}/layer"),
        format!("http://[::1]:{port}/layer"),
        "file:///etc/passwd".to_owned(),
        "http://169.254.169.254/latest".to_owned(),
        "https://example.invalid/".to_owned(),
        String::new(),
    ];
    for url in urls {
        for media_type in [OCI_LAYER, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"] {
            let made = Made::small();
            let mut manifest = made.manifest.clone();
            manifest["layers"][0]["urls"] = json!([url]);
            manifest["layers"][0]["mediaType"] = json!(media_type);
            let mut content = made.content("good");
            content.add_manifest("t", OCI_MANIFEST, manifest.to_string().into_bytes());
            let site = Site::new(content);
            let mut place = Place::new();
            place.log_in(&[&format!("localhost:{}", site.server.port)]);
            let error = place.refused(&site.image("x:t"));
            assert!(matches!(error, PullError::Manifest { source: ManifestError::Foreign { .. }, .. }), "{error}");
        }
    }
    assert_eq!(evil.connections(), 0);
}

#[test]
fn unsupported_layers_are_named() {
    let mut manifest = Made::small().manifest;
    manifest["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
    let error = manifest_error(OCI_MANIFEST, manifest.to_string());
    assert!(matches!(error, ManifestError::LayerType { .. }), "{error}");
}

#[test]
fn an_unknown_image_is_told_apart() {
    let site = Site::new(Content::default());
    let error = Place::new().refused(&site.image("x:t"));
    match error {
        PullError::Registry(RegistryError::UnknownImage { code, .. }) => {
            assert_eq!(code.as_deref(), Some("MANIFEST_UNKNOWN"));
        }
        other => panic!("{other:?}"),
    }
}
