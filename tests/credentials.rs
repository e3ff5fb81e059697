//! Registries that want credentials or requests that are not for them (security.md A60 to A63).

use serde_json::{Value, json};

use crate::env::TestEnv;
use crate::env::mock::{Mock, Request, Response};
use crate::env::registry::{PASSWORD, USER};
use crate::hostile_registry::honest;
use crate::pull::base64;
use crate::require;

/// Logs in to each of these addresses.
fn log_in(env: &TestEnv, addresses: &[&str]) {
    let token = base64(format!("{USER}:{PASSWORD}").as_bytes());
    let auths: serde_json::Map<String, Value> =
        addresses.iter().map(|address| ((*address).to_owned(), json!({"auth": token}))).collect();
    env.write("home/.docker/config.json", json!({"auths": auths}).to_string());
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
                (request.path.contains("/blobs/") && request.path.len() < 4).then(Response::not_found)
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
    let evil = Mock::start(|_| Some(Response::new(200, "application/json", r#"{"token":"stolen"}"#)));
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
            let answer = Response::new(401, "application/json", "{}").header("WWW-Authenticate", challenge.clone());
            request.path.starts_with("/v2/").then_some(answer)
        });
        log_in(&env, &[registry.address()]);
        let outcome = env.coracle(&["pull", &registry.image("private")]).time_limit(20).outcome();
        outcome.refused(1);
        assert_eq!(evil.credentials(), Vec::<String>::new(), "realm {realm}");
        let secret = base64(format!("{USER}:{PASSWORD}").as_bytes());
        assert!(
            !evil.seen().iter().any(|request| request.path.contains(&secret) || request.path.contains(USER)),
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
        let authorised = request.headers.get("authorization").is_some_and(|value| value == "Bearer right");
        if request.path.starts_with("/token") {
            let basic = format!("Basic {}", base64(format!("{USER}:{PASSWORD}").as_bytes()));
            let known = request.headers.get("authorization").is_some_and(|value| *value == basic);
            let body = if known { r#"{"token":"right","expires_in":300}"# } else { r#"{"token":"anonymous"}"# };
            return Some(Response::new(200, "application/json", body));
        }
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"a b&c\",scope=\"repository:team/good:pull\"",
            own.get()?
        );
        (!authorised).then(|| Response::new(401, "application/json", "{}").header("WWW-Authenticate", challenge))
    });
    address.set(registry.address().to_owned()).unwrap();
    log_in(&env, &[registry.address()]);
    env.coracle(&["pull", &registry.image("team/good")]).ok();
    let token_requests: Vec<Request> =
        registry.seen().into_iter().filter(|request| request.path.starts_with("/token")).collect();
    assert!(!token_requests.is_empty());
    for request in token_requests {
        assert!(!request.path.contains(' ') && !request.path.contains("a b"), "{}", request.path);
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
        blobs.get(digest).map(|blob| Response::new(200, "application/octet-stream", blob.clone()))
    });
    let elsewhere = storage.address().to_owned();
    let registry = Mock::with(&[("good", image)], move |request| {
        if !request.headers.contains_key("authorization") {
            return Some(Response::new(401, "application/json", "{}").header("WWW-Authenticate", "Basic realm=\"x\""));
        }
        let digest = request.path.split_once("/blobs/")?.1;
        Some(Response::new(307, "text/plain", "").header("Location", format!("http://{elsewhere}/data/{digest}")))
    });
    log_in(&env, &[registry.address(), storage.address()]);
    env.coracle(&["pull", &registry.image("good")]).ok();
    assert!(storage.seen().len() >= 2);
    assert_eq!(storage.credentials(), Vec::<String>::new());
    assert!(storage.seen().iter().all(|request| !request.headers.contains_key("cookie")));
}

#[test]
fn a62_endless_and_hostile_redirects_end() {
    require!();
    let env = TestEnv::new();
    let image = honest();
    for location in ["SELF", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://", "//", "http://127.0.0.1:1/x"] {
        let location = location.to_owned();
        let registry = Mock::with(&[("evil", image.clone())], move |request| {
            request.path.contains("/blobs/").then(|| {
                let target = if location == "SELF" { request.path.clone() } else { location.clone() };
                Response::new(307, "text/plain", "").header("Location", target)
            })
        });
        env.coracle(&["pull", &registry.image("evil")]).time_limit(40).outcome().refused(1);
        assert!(registry.seen().len() < 200, "{} requests", registry.seen().len());
    }
}

#[test]
fn a63_credentials_are_for_exactly_their_registry() {
    require!();
    let env = TestEnv::new();
    let asks = |request: &Request| {
        let challenge = Response::new(401, "application/json", "{}").header("WWW-Authenticate", "Basic realm=\"x\"");
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
    env.coracle(&["pull", &registry.image("public")]).outcome().refused(1);
    assert_eq!(registry.credentials(), Vec::<String>::new());
    // A broken helper gives no credentials, and those of others are not a fallback.
    env.write(
        "home/.docker/config.json",
        json!({"credHelpers": {&address: "no-such-helper"}, "auths": {"docker.io": {"auth": base64(b"a:b")}}})
            .to_string(),
    );
    env.coracle(&["pull", &registry.image("public")]).outcome().refused(1);
    assert_eq!(registry.credentials(), Vec::<String>::new());
    log_in(&env, &[&address]);
    env.coracle(&["pull", &registry.image("public")]).outcome().refused(1);
    assert_ne!(registry.credentials(), Vec::<String>::new(), "the test would pass without any credentials");
}
