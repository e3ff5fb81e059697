//! Who gets credentials, and what a token may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coracle_images::PullError;
use coracle_images::registry::{RealmProblem, RegistryError, TokenProblem};

use crate::server::{Manner, Reply, Seen, Server};
use crate::site::{BASIC, Made, Place, Site};

fn asks(challenge: &str) -> Reply {
    Reply::new(401).header("WWW-Authenticate", challenge).body(r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)
}

/// A registry that wants the bearer token `good` and names `realm(own port)` to get it from; what
/// its own `/token` answers is up to `grant`.
fn bearer_site(
    realm: impl Fn(&Seen) -> String + Send + Sync + 'static,
    grant: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
) -> Site {
    Site::with(Made::small().content("t"), move |seen, proper| {
        if seen.path.starts_with("/token") {
            return grant(seen);
        }
        match seen.authorization() {
            Some("Bearer good") => proper,
            _ => asks(&format!("Bearer realm=\"{}\",service=\"a b&c=d\",scope=\"repository:evil:*\"", realm(seen))),
        }
    })
}

/// The realm on the registry's own origin.
fn own(seen: &Seen) -> String {
    format!("http://{}/token?x=1", seen.header("host").expect("host"))
}

fn good_token(_: &Seen) -> Reply {
    Reply::new(200).body(r#"{"token":"good"}"#)
}

#[test]
fn anonymous_and_password_tokens() {
    let site = bearer_site(own, good_token);
    Place::new().pull(&site.image("x:t")).expect("anonymous");
    let asked = site.server.seen_at("/token");
    assert_eq!(asked.len(), 1, "one token serves the whole pull");
    assert_eq!(asked[0].authorization(), None);
    assert_eq!(asked[0].path, "/token?x=1&service=a+b%26c%3Dd&scope=repository%3Ax%3Apull");
    let mut place = Place::new();
    place.log_in(&[&format!("localhost:{}", site.server.port)]);
    site.server.forget();
    place.pull(&site.image("x:t")).expect("with a password");
    let asked = site.server.seen_at("/token");
    assert_eq!(asked[0].authorization(), Some(BASIC));
    assert!(asked[0].path.ends_with("&account=user"), "{}", asked[0].path);
    let passwords = site.server.seen().iter().filter(|seen| seen.authorization() == Some(BASIC)).count();
    assert_eq!(passwords, 1, "the password goes to the token server only");
}

#[test]
fn basic_authentication() {
    let site = Site::with(Made::small().content("t"), |seen, proper| match seen.authorization() {
        Some(BASIC) => proper,
        _ => asks("Basic realm=\"r\""),
    });
    let mut place = Place::new();
    let error = place.refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Registry(RegistryError::Unauthorized { rejected: false, .. })), "{error}");
    place.log_in(&[&format!("localhost:{}", site.server.port)]);
    place.pull(&site.image("x:t")).expect("with a password");
    let refusing = Site::with(Made::small().content("t"), |_, _| asks("Basic realm=\"r\""));
    let mut place = Place::new();
    place.log_in(&[&format!("localhost:{}", refusing.server.port)]);
    let error = place.refused(&refusing.image("x:t"));
    assert!(matches!(error, PullError::Registry(RegistryError::Unauthorized { rejected: true, .. })), "{error}");
    assert_eq!(refusing.server.seen_at("/manifests/").len(), 2, "a refused password is not tried again");
}

#[test]
fn a61_realm_on_other_host_gets_nothing() {
    let evil = Server::plain(|_| Reply::new(200).body(r#"{"token":"good"}"#));
    let port = evil.port;
    let realms = [
        format!("http://localhost:{port}/token"),
        format!("http://127.0.0.1:{port}/token"),
        format!("http://[::ffff:127.0.0.1]:{port}/token"),
        format!("https://127.0.0.1:{port}/token"),
        format!("https://evil.example:{port}/token"),
        format!("http://user:pw@localhost:{port}/token"),
        format!("http://localhost:{port}@evil.example/token"),
        "https://169.254.169.254/token".to_owned(),
        "https://[64:ff9b::7f00:1]/token".to_owned(),
        "https://auth.docker.io/token".to_owned(),
        "file:///etc/passwd".to_owned(),
        "/token".to_owned(),
        "\\\\evil".to_owned(),
    ];
    for realm in realms {
        let named = realm.clone();
        let site = bearer_site(move |_| named.replace('\\', ""), good_token);
        let mut place = Place::new();
        place.name_host("evil.example", "127.0.0.1");
        place.log_in(&[&format!("localhost:{}", site.server.port), &format!("localhost:{port}"), "docker.io"]);
        let error = place.refused(&site.image("x:t"));
        assert!(matches!(error, PullError::Registry(RegistryError::Realm { .. })), "{realm}: {error}");
        assert!(site.server.seen().iter().all(|seen| seen.authorization().is_none()), "{realm}");
    }
    assert_eq!(evil.connections(), 0, "nobody may even be asked");
}

#[test]
fn a61_token_requests_follow_no_redirect() {
    let evil = Server::plain(|_| Reply::new(200).body(r#"{"token":"good"}"#));
    let target = format!("http://localhost:{}/t", evil.port);
    let site = bearer_site(own, move |_| Reply::redirect(307, target.clone()));
    let mut place = Place::new();
    place.log_in(&[&format!("localhost:{}", site.server.port)]);
    let error = place.refused(&site.image("x:t"));
    let expected = TokenProblem::Status(307);
    assert!(matches!(error, PullError::Registry(RegistryError::Token { problem, .. }) if problem == expected));
    assert_eq!(evil.connections(), 0);
}

#[test]
fn a61_plain_realm_of_a_safe_registry_is_refused() {
    let identity = crate::server::Identity::new(&["localhost"]);
    let evil = Server::plain(|_| Reply::new(200).body(r#"{"token":"good"}"#));
    let port = evil.port;
    let server = Server::tls(&identity, move |_| asks(&format!("Bearer realm=\"http://localhost:{port}/token\"")));
    let mut place = Place::new();
    let host = format!("localhost:{}", server.port);
    place.trust(&host, &identity);
    place.log_in(&[&host]);
    let error = place.refused(&format!("{host}/x:t").parse().expect("name"));
    assert!(
        matches!(error, PullError::Registry(RegistryError::Realm { problem: RealmProblem::PlainHttp, .. })),
        "{error:?}"
    );
    assert_eq!(evil.connections(), 0);
}

#[test]
fn a63_credentials_of_other_hosts_stay_at_home() {
    let site = Site::with(Made::small().content("t"), |_, _| asks("Basic realm=\"r\""));
    let mut place = Place::new();
    let port = site.server.port;
    let near = [
        "docker.io".to_owned(),
        "https://index.docker.io/v1/".to_owned(),
        "localhost".to_owned(),
        format!("localhost:{}", port ^ 1),
        format!("LOCALHOST:{port}"),
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}/x"),
        format!("localhost:{port}.evil"),
    ];
    place.log_in(&near.iter().map(String::as_str).collect::<Vec<_>>());
    let error = place.refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Registry(RegistryError::Unauthorized { rejected: false, .. })), "{error}");
    assert!(site.server.seen().iter().all(|seen| seen.authorization().is_none()));
}

#[test]
fn a63_a_broken_helper_stops_the_pull_before_the_first_request() {
    let site = Site::new(Made::small().content("t"));
    let mut place = Place::new();
    place.log_in(&["docker.io"]);
    let broken = r#"{"auths":{"docker.io":{"auth":"dTpw"}},"credsStore":"no-such-helper"}"#;
    fs_err::write(&place.options.login_files[0], broken).expect("login file");
    let error = place.refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Credentials(_)), "{error}");
    assert!(error.to_string().contains("docker-credential-no-such-helper"), "{error}");
    assert_eq!(site.server.connections(), 0);
}

#[test]
fn a65_tokens_that_are_none() {
    use TokenProblem as P;
    let table: [(Reply, P); 9] = [
        (Reply::new(200).body(r#"{"token":""}"#), P::Missing),
        (Reply::new(200).body("{}"), P::Missing),
        (Reply::new(200).body(r#"{"token":7}"#), P::NotJson),
        (Reply::new(200).body("<html>"), P::NotJson),
        (Reply::new(200).body(r#"{"token":"a","token":"good"}"#), P::NotJson),
        (Reply::new(200).body("{\"token\":\"good\\r\\nX-Evil: 1\"}"), P::BadCharacter),
        (Reply::new(200).body("{\"token\":\"go od\"}"), P::BadCharacter),
        (Reply::new(200).body("{\"token\":\"g\\u00f6od\"}"), P::BadCharacter),
        (Reply::new(404), P::Status(404)),
    ];
    for (reply, expected) in table {
        let shown = String::from_utf8_lossy(&reply.body).into_owned();
        let site = bearer_site(own, move |_| reply.clone());
        let error = Place::new().refused(&site.image("x:t"));
        match error {
            PullError::Registry(RegistryError::Token { problem, .. }) => assert_eq!(problem, expected, "{shown}"),
            other => panic!("{shown}: {other:?}"),
        }
        assert!(site.server.seen().iter().all(|seen| seen.header("x-evil").is_none()));
    }
    let mebibyte = format!("{{\"token\":\"{}\"}}", "x".repeat(1 << 20));
    for manner in [Manner::Proper, Manner::Endless] {
        let body = mebibyte.clone();
        let site = bearer_site(own, move |_| Reply::new(200).body(body.clone()).manner(manner));
        let error = Place::new().refused(&site.image("x:t"));
        assert!(matches!(error, PullError::Registry(RegistryError::TooLarge { .. })), "{error}");
    }
}

#[test]
fn a65_what_a_token_says_about_its_life_does_not_matter() {
    for life in ["0", "-1", "1000000000000", "\"abc\"", "1e400", "null", "{}"] {
        let body = format!("{{\"access_token\":\"good\",\"expires_in\":{life},\"issued_at\":\"never\"}}");
        let site = bearer_site(own, move |_| Reply::new(200).body(body.clone()));
        Place::new().pull(&site.image("x:t")).expect(life);
    }
}

#[test]
fn a65_a_token_for_something_else_is_asked_for_once_per_request() {
    let site = bearer_site(own, |_| Reply::new(200).body(r#"{"token":"for-another-scope"}"#));
    let error = Place::new().refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Registry(RegistryError::Denied { authenticated: false, .. })), "{error}");
    assert_eq!(site.server.seen_at("/token").len(), 1);
    assert_eq!(site.server.seen_at("/manifests/").len(), 2);
}

#[test]
fn a65_a_token_that_expires_midway_is_renewed_once() {
    // Each token is good for two requests.
    let uses = Arc::new(AtomicUsize::new(0));
    let issued = Arc::new(AtomicUsize::new(0));
    let layers = (0..4).map(|n| crate::site::layer(&format!("f{n}"), b"x")).collect();
    let site = Site::with(Made::new(layers).content("t"), {
        let (uses, issued) = (uses.clone(), issued.clone());
        move |seen, proper| {
            if seen.path.starts_with("/token") {
                let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
                uses.store(0, Ordering::SeqCst);
                return Reply::new(200).body(format!("{{\"token\":\"t{number}\"}}"));
            }
            let current = format!("Bearer t{}", issued.load(Ordering::SeqCst));
            if seen.authorization() == Some(&current) && uses.fetch_add(1, Ordering::SeqCst) < 2 {
                return proper;
            }
            asks(&format!("Bearer realm=\"{}\"", own(seen)))
        }
    });
    let mut place = Place::new();
    place.options.parallel = 1;
    place.pull(&site.image("x:t")).expect("renewed as often as needed");
    assert!(issued.load(Ordering::SeqCst) >= 3);
}

#[test]
fn a65_a_registry_that_never_takes_its_tokens_for_blobs() {
    let site = Site::with(Made::small().content("t"), |seen, proper| {
        if seen.path.starts_with("/token") {
            return Reply::new(200).body(r#"{"token":"good"}"#);
        }
        match seen.authorization() {
            Some("Bearer good") if seen.path.contains("/manifests/") => proper,
            _ => asks(&format!("Bearer realm=\"{}\"", own(seen))),
        }
    });
    let error = Place::new().refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Registry(RegistryError::Denied { .. })), "{error}");
    assert_eq!(site.server.seen_at("/token").len(), 2);
}

#[test]
fn a65_identity_tokens_are_exchanged_by_post() {
    let site = bearer_site(own, |seen| match seen.body.contains("refresh_token=is%2Bsecret") {
        true => Reply::new(200).body(r#"{"access_token":"good"}"#),
        false => Reply::new(400),
    });
    let mut place = Place::new();
    let host = format!("localhost:{}", site.server.port);
    place.log_in(&[&host]);
    let login = format!(r#"{{"auths":{{"{host}":{{"identitytoken":"is+secret"}}}}}}"#);
    fs_err::write(&place.options.login_files[0], login).expect("login file");
    place.pull(&site.image("x:t")).expect("pull");
    let asked = &site.server.seen_at("/token")[0];
    assert_eq!((asked.method.as_str(), asked.authorization()), ("POST", None));
    assert!(!asked.path.contains("secret"));
}
