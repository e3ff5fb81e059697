//! Registries that lie, steal or loop (security.md A50 to A63), each test named by its id.

use serde_json::{Value, json};

use crate::env::image::{self, Image, Layer, media};
use crate::env::mock::{Mock, Request, Response};
use crate::env::registry::{PASSWORD, USER};
use crate::env::{TestEnv, tree};
use crate::pull::base64;
use crate::require;

fn honest() -> Image {
    Image::new(vec![Layer::busybox().bytes()], &json!({}))
}

/// Logs in to each of these addresses.
fn log_in(env: &TestEnv, addresses: &[&str]) {
    let token = base64(format!("{USER}:{PASSWORD}").as_bytes());
    let auths: serde_json::Map<String, Value> = addresses
        .iter()
        .map(|address| ((*address).to_owned(), json!({"auth": token})))
        .collect();
    env.write(
        "home/.docker/config.json",
        json!({"auths": auths}).to_string(),
    );
}

/// Demands that a pull fails clearly and stores nothing.
#[track_caller]
fn refuse(env: &TestEnv, name: &str, image: &Image) {
    let registry = Mock::serving(&[("evil", image.clone())]);
    let outcome = env
        .coracle(&["pull", &registry.image("evil")])
        .time_limit(20)
        .outcome();
    assert_eq!(outcome.code, 1, "{name}: {outcome}");
    outcome.refused(1);
    assert_eq!(env.coracle(&["images", "-q"]).ok(), "", "{name}");
}

#[test]
fn the_mock_serves_honest_images() {
    require!();
    let env = TestEnv::new();
    let registry = Mock::serving(&[("good", honest())]);
    assert_eq!(
        env.container(&[&registry.image("good"), "echo", "good"])
            .ok(),
        "good"
    );
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
    refuse(
        &env,
        "mediaType says index",
        &honest().edit(|manifest| manifest["mediaType"] = json!(media::INDEX)),
    );
    let mut schema1 = honest();
    schema1.media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws".to_owned();
    schema1.manifest =
        br#"{"schemaVersion":1,"name":"x","tag":"y","fsLayers":[],"history":[]}"#.to_vec();
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
    refuse(
        &env,
        "schemaVersion 3",
        &honest().edit(|manifest| manifest["schemaVersion"] = json!(3)),
    );
    refuse(
        &env,
        "no config",
        &honest().edit(|manifest| drop(manifest.as_object_mut().unwrap().remove("config"))),
    );
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
    assert_eq!(
        fs_err::read_dir(env.root().join("images/blobs/sha256"))
            .map(|dir| dir.count())
            .unwrap_or(0),
        0
    );
}

#[test]
fn a51_content_that_is_not_its_digest_is_never_visible() {
    require!();
    let env = TestEnv::new();
    for which in ["config", "layer"] {
        let mut image = honest();
        let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        let descriptor = if which == "config" {
            &manifest["config"]
        } else {
            &manifest["layers"][0]
        };
        let blob = image
            .blobs
            .get_mut(descriptor["digest"].as_str().unwrap())
            .unwrap();
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
    refuse(
        &env,
        "diff id",
        &Image::of(vec![image::gzip(&Layer::busybox().bytes())], &configuration),
    );
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
fn a60_foreign_layers_are_refused_and_nobody_else_is_asked() {
    require!();
    let env = TestEnv::new();
    let evil = Mock::start(|_| Some(Response::new(200, "application/octet-stream", "x")));
    let url = format!("http://{}/layer", evil.address());
    for target in [url.as_str(), "file:///etc/passwd", "http://[::1]:1/x"] {
        for media_type in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ] {
            let image = honest().edit(|manifest| {
                manifest["layers"][0]["mediaType"] = json!(media_type);
                manifest["layers"][0]["urls"] = json!([target]);
            });
            let registry = Mock::with(&[("evil", image)], |request| {
                // The registry itself does not have the layer.
                (request.path.contains("/blobs/") && request.path.len() < 4)
                    .then(Response::not_found)
            });
            log_in(&env, &[registry.address(), evil.address()]);
            let outcome = env.coracle(&["pull", &registry.image("evil")]).outcome();
            outcome.refused(1);
        }
    }
    assert_eq!(evil.seen().len(), 0, "{:?}", evil.seen());
    // urls on an ordinary layer are no reason to go there either.
    let image = honest().edit(|manifest| manifest["layers"][0]["urls"] = json!([url]));
    let registry = Mock::serving(&[("good", image)]);
    env.coracle(&["pull", &registry.image("good")]).outcome();
    assert_eq!(evil.seen().len(), 0, "{:?}", evil.seen());
}

#[test]
fn a61_credentials_do_not_follow_a_realm_to_another_place() {
    require!();
    let env = TestEnv::new();
    let evil = Mock::start(|_| {
        Some(Response::new(
            200,
            "application/json",
            r#"{"token":"stolen"}"#,
        ))
    });
    let port = evil.address().rsplit(':').next().unwrap().to_owned();
    let realms = [
        format!("http://{}/token", evil.address()),
        format!("http://localhost:{port}/token"),
        format!("http://user:pw@{}/token", evil.address()),
        format!("http://[::ffff:127.0.0.1]:{port}/token"),
        format!("http://0x7f000001:{port}/token"),
        "file:///etc/passwd".to_owned(),
        "gopher://x/".to_owned(),
        "not a url".to_owned(),
        String::new(),
    ];
    for realm in realms {
        let challenge = format!("Bearer realm=\"{realm}\",service=\"x\"");
        let registry = Mock::start(move |request| {
            let answer = Response::new(401, "application/json", "{}")
                .header("WWW-Authenticate", challenge.clone());
            request.path.starts_with("/v2/").then_some(answer)
        });
        log_in(&env, &[registry.address()]);
        let outcome = env
            .coracle(&["pull", &registry.image("private")])
            .time_limit(20)
            .outcome();
        outcome.refused(1);
        assert_eq!(evil.credentials(), Vec::<String>::new(), "realm {realm}");
        let secret = base64(format!("{USER}:{PASSWORD}").as_bytes());
        assert!(
            !evil
                .seen()
                .iter()
                .any(|request| request.path.contains(&secret) || request.path.contains(USER)),
            "{:?}",
            evil.seen()
        );
    }
}

#[test]
fn a61_the_registrys_own_realm_gets_them_in_header_with_encoded_scope() {
    require!();
    let env = TestEnv::new();
    let image = honest();
    let address = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let own = std::sync::Arc::clone(&address);
    let registry = Mock::with(&[("team/good", image)], move |request| {
        let authorised = request
            .headers
            .get("authorization")
            .is_some_and(|value| value == "Bearer right");
        if request.path.starts_with("/token") {
            let basic = format!("Basic {}", base64(format!("{USER}:{PASSWORD}").as_bytes()));
            let known = request
                .headers
                .get("authorization")
                .is_some_and(|value| *value == basic);
            let body = if known {
                r#"{"token":"right","expires_in":300}"#
            } else {
                r#"{"token":"anonymous"}"#
            };
            return Some(Response::new(200, "application/json", body));
        }
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"a b&c\",scope=\"repository:team/good:pull\"",
            own.get()?
        );
        (!authorised).then(|| {
            Response::new(401, "application/json", "{}").header("WWW-Authenticate", challenge)
        })
    });
    address.set(registry.address().to_owned()).unwrap();
    log_in(&env, &[registry.address()]);
    env.coracle(&["pull", &registry.image("team/good")]).ok();
    let token_requests: Vec<Request> = registry
        .seen()
        .into_iter()
        .filter(|request| request.path.starts_with("/token"))
        .collect();
    assert!(!token_requests.is_empty());
    for request in token_requests {
        assert!(
            !request.path.contains(' ') && !request.path.contains("a b"),
            "{}",
            request.path
        );
        assert!(
            request.path.contains("service=a%20b%26c") || request.path.contains("service=a+b%26c"),
            "{}",
            request.path
        );
    }
}

#[test]
fn a62_credentials_are_dropped_at_the_first_redirect_to_elsewhere() {
    require!();
    let env = TestEnv::new();
    let image = honest();
    let blobs = image.blobs.clone();
    // Another origin holds the blobs, as with every big registry.
    let storage = Mock::start(move |request| {
        let digest = request.path.rsplit('/').next()?;
        blobs
            .get(digest)
            .map(|blob| Response::new(200, "application/octet-stream", blob.clone()))
    });
    let elsewhere = storage.address().to_owned();
    let registry = Mock::with(&[("good", image)], move |request| {
        if !request.headers.contains_key("authorization") {
            return Some(
                Response::new(401, "application/json", "{}")
                    .header("WWW-Authenticate", "Basic realm=\"x\""),
            );
        }
        let digest = request.path.split_once("/blobs/")?.1;
        Some(
            Response::new(307, "text/plain", "")
                .header("Location", format!("http://{elsewhere}/data/{digest}")),
        )
    });
    log_in(&env, &[registry.address(), storage.address()]);
    env.coracle(&["pull", &registry.image("good")]).ok();
    assert!(storage.seen().len() >= 2);
    assert_eq!(storage.credentials(), Vec::<String>::new());
    assert!(
        storage
            .seen()
            .iter()
            .all(|request| !request.headers.contains_key("cookie"))
    );
}

#[test]
fn a62_endless_and_hostile_redirects_end() {
    require!();
    let env = TestEnv::new();
    let image = honest();
    for location in [
        "SELF",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://",
        "//",
        "http://127.0.0.1:1/x",
    ] {
        let location = location.to_owned();
        let registry = Mock::with(&[("evil", image.clone())], move |request| {
            request.path.contains("/blobs/").then(|| {
                let target = if location == "SELF" {
                    request.path.clone()
                } else {
                    location.clone()
                };
                Response::new(307, "text/plain", "").header("Location", target)
            })
        });
        env.coracle(&["pull", &registry.image("evil")])
            .time_limit(40)
            .outcome()
            .refused(1);
        assert!(
            registry.seen().len() < 200,
            "{} requests",
            registry.seen().len()
        );
    }
}

#[test]
fn a63_credentials_are_for_exactly_their_registry() {
    require!();
    let env = TestEnv::new();
    let asks = |request: &Request| {
        let challenge = Response::new(401, "application/json", "{}")
            .header("WWW-Authenticate", "Basic realm=\"x\"");
        request.path.starts_with("/v2/").then_some(challenge)
    };
    let registry = Mock::start(asks);
    let address = registry.address().to_owned();
    let port = address.rsplit(':').next().unwrap().to_owned();
    let others = [
        "127.0.0.1".to_owned(),
        "https://index.docker.io/v1/".to_owned(),
        "docker.io".to_owned(),
        format!("localhost:{port}"),
        format!("{address}0"),
        format!("{address}.evil"),
        format!("x{address}"),
        format!("{address}/private"),
        "127.0.0.1:1".to_owned(),
    ];
    let names: Vec<&str> = others.iter().map(String::as_str).collect();
    // An entry for a repository path is not Docker's grammar; it must not be taken for the host either.
    log_in(&env, &names);
    env.coracle(&["pull", &registry.image("public")])
        .outcome()
        .refused(1);
    assert_eq!(registry.credentials(), Vec::<String>::new());
    // A broken helper gives no credentials, and those of others are not a fallback.
    env.write("home/.docker/config.json", json!({"credHelpers": {&address: "no-such-helper"}, "auths": {"docker.io": {"auth": base64(b"a:b")}}}).to_string());
    env.coracle(&["pull", &registry.image("public")])
        .outcome()
        .refused(1);
    assert_eq!(registry.credentials(), Vec::<String>::new());
    log_in(&env, &[&address]);
    env.coracle(&["pull", &registry.image("public")])
        .outcome()
        .refused(1);
    assert_ne!(
        registry.credentials(),
        Vec::<String>::new(),
        "the test would pass without any credentials"
    );
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
        match request.headers.get("range").and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .split('-')
                .next()?
                .parse::<usize>()
                .ok()
        }) {
            // The first answer announces everything and breaks off in the middle.
            None | Some(0) => Some(
                Response::new(200, "application/octet-stream", bytes[..half].to_vec())
                    .header("Content-Length", length.to_string())
                    .header("Accept-Ranges", "bytes"),
            ),
            Some(from) => Some(
                Response::new(206, "application/octet-stream", bytes[from..].to_vec()).header(
                    "Content-Range",
                    format!("bytes {from}-{}/{length}", length - 1),
                ),
            ),
        }
    });
    env.container(&[&registry.image("good"), "true"]).ok();
    let ranges: Vec<String> = registry
        .seen()
        .iter()
        .filter_map(|request| request.headers.get("range").cloned())
        .collect();
    assert!(
        !ranges.is_empty(),
        "the second half was not asked for by Range"
    );
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
    let image = Image::new(
        vec![
            Layer::busybox().bytes(),
            marked,
            Layer::new().file("top", 0o644, b"x").bytes(),
        ],
        &json!({}),
    );
    let registry = Mock::serving(&[("marked", image)]);
    assert_eq!(
        env.container(&[&registry.image("marked"), "ls", "/bin/cat"])
            .ok(),
        "/bin/cat"
    );
}

#[test]
fn limits_of_manifests_hold() {
    require!();
    let env = TestEnv::new();
    // A53, T34: a manifest larger than 4 MiB, deep JSON, more layers than anything needs.
    let huge =
        honest().edit(|manifest| manifest["annotations"] = json!({"x": "y".repeat(5 << 20)}));
    refuse(&env, "5 MiB manifest", &huge);
    let mut deep = honest();
    deep.manifest = format!(
        "{{\"schemaVersion\":2,\"x\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    )
    .into_bytes();
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
