//! Where a registry may send us, and what goes with us (A62).

use std::sync::Arc;
use std::sync::Mutex;

use coracle_images::PullError;
use coracle_images::registry::{DestinationProblem, Fault, RegistryError};

use crate::server::{Identity, Reply, Server};
use crate::site::{BASIC, Content, Made, Place, Site};

/// A registry that wants a password and sends blobs to what `target(digest)` says.
fn redirecting(made: &Made, status: u16, target: impl Fn(&str) -> String + Send + Sync + 'static) -> Site {
    Site::with(made.content("t"), move |seen, proper| {
        let blob = seen.path.split_once("/blobs/").map(|(_, digest)| digest);
        match (seen.authorization(), blob) {
            (Some(BASIC), Some(digest)) => Reply::redirect(status, target(digest)).header("Set-Cookie", "c=1"),
            (Some(BASIC), None) => proper,
            _ => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
        }
    })
}

/// A server that gives a blob under its digest to anybody who asks, under any path.
fn store(made: &Made) -> Server {
    let content = made.content("t");
    Server::plain(move |seen| {
        let digest = seen.path.rsplit('/').next().unwrap_or_default();
        content.blobs.get(digest).map_or(Reply::new(404), |blob| Reply::new(200).body(blob.clone()))
    })
}

fn place_for(site: &Site) -> Place {
    let mut place = Place::new();
    place.log_in(&[&format!("localhost:{}", site.server.port)]);
    place
}

fn problem(error: PullError) -> DestinationProblem {
    match error {
        PullError::Registry(RegistryError::Redirect { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a62_authorization_is_dropped_at_another_origin() {
    for status in [301, 302, 303, 307, 308] {
        let made = Made::small();
        let away = store(&made);
        let port = away.port;
        let site = redirecting(&made, status, move |digest| format!("http://localhost:{port}/{digest}"));
        place_for(&site).pull(&site.image("x:t")).expect("pull");
        assert!(!away.seen().is_empty());
        for seen in away.seen() {
            assert_eq!((seen.authorization(), seen.header("cookie")), (None, None), "{status}");
        }
    }
}

#[test]
fn a62_authorization_does_not_come_back() {
    // Registry -> other port -> registry's own /open/ path.
    let made = Made::small();
    let home_port = Arc::new(Mutex::new(0));
    let back = home_port.clone();
    let away = Server::plain(move |seen| {
        let port = *back.lock().expect("port");
        Reply::redirect(307, format!("http://localhost:{port}/open{}", seen.path))
    });
    let away_port = away.port;
    let content = made.content("t");
    let site = Site::with(Content::default(), move |seen, _| {
        if let Some(digest) = seen.path.strip_prefix("/open/") {
            return content.blobs.get(digest).map_or(Reply::new(404), |blob| Reply::new(200).body(blob.clone()));
        }
        match (seen.authorization(), seen.path.split_once("/blobs/")) {
            (Some(BASIC), Some((_, digest))) => Reply::redirect(307, format!("http://localhost:{away_port}/{digest}")),
            (Some(BASIC), None) => content.serve(seen),
            _ => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
        }
    });
    *home_port.lock().expect("port") = site.server.port;
    place_for(&site).pull(&site.image("x:t")).expect("pull");
    let returned = site.server.seen_at("/open/");
    assert_eq!(returned.len(), 2);
    assert!(returned.iter().all(|seen| seen.authorization().is_none()), "{returned:?}");
}

#[test]
fn a62_a_redirect_on_the_same_origin_keeps_it() {
    let made = Made::small();
    let content = made.content("t");
    let site = Site::with(Content::default(), move |seen, _| match (seen.authorization(), seen.path.as_str()) {
        (Some(BASIC), path) if path.starts_with("/moved/") => content
            .blobs
            .get(&path["/moved/".len()..])
            .map_or(Reply::new(404), |blob| Reply::new(200).body(blob.clone())),
        (Some(BASIC), path) => match path.split_once("/blobs/") {
            Some((_, digest)) => Reply::redirect(307, format!("/moved/{digest}")),
            None => content.serve(seen),
        },
        _ => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
    });
    place_for(&site).pull(&site.image("x:t")).expect("pull");
}

#[test]
fn a62_ten_hops_are_followed_and_eleven_are_not() {
    let made = Made::small();
    let hop = |limit: usize| {
        let content = made.content("t");
        Site::with(Content::default(), move |seen, _| {
            let Some((_, rest)) = seen.path.split_once("/blobs/") else { return content.serve(seen) };
            let (digest, count) = rest.split_once("?hop=").unwrap_or((rest, "0"));
            let count: usize = count.parse().expect("count");
            if count == limit {
                return content.blobs.get(digest).map_or(Reply::new(404), |blob| Reply::new(200).body(blob.clone()));
            }
            Reply::redirect(302, format!("/v2/x/blobs/{digest}?hop={}", count + 1))
        })
    };
    let site = hop(10);
    Place::new().pull(&site.image("x:t")).expect("ten");
    let site = hop(11);
    assert_eq!(problem(Place::new().refused(&site.image("x:t"))), DestinationProblem::TooMany);
    // A loop is the same thing.
    let site = hop(usize::MAX);
    assert_eq!(problem(Place::new().refused(&site.image("x:t"))), DestinationProblem::TooMany);
    assert!(site.server.seen_at("/blobs/").len() <= 11);
}

#[test]
fn a62_places_that_are_never_gone_to() {
    use DestinationProblem as P;
    let table = [
        ("https://10.0.0.1/x", P::Inside),
        ("http://169.254.169.254/latest/meta-data", P::Inside),
        ("http://192.168.1.1/", P::Inside),
        ("http://[fe80::1]/", P::Inside),
        ("http://[::ffff:169.254.169.254]/", P::Inside),
        ("http://0.0.0.0/", P::Inside),
        ("http://user:pw@localhost/x", P::UserInfo),
        ("file:///etc/passwd", P::NotHttp),
        ("gopher://localhost/", P::NotHttp),
        ("http://", P::NotHttp),
    ];
    for (target, expected) in table {
        let site = redirecting(&Made::small(), 307, |_| target.to_owned());
        assert_eq!(problem(place_for(&site).refused(&site.image("x:t"))), expected, "{target}");
    }
    let made = Made::small();
    let site = Site::with(made.content("t"), |seen, proper| match seen.path.contains("/blobs/") {
        true => Reply::new(307),
        false => proper,
    });
    assert_eq!(problem(Place::new().refused(&site.image("x:t"))), P::NoLocation);
}

#[test]
fn a62_names_that_lead_inside_are_not_gone_to() {
    // The registry is on this machine, so a name for the office network is out of bounds, and so is
    // this machine for a registry that is elsewhere (the second half is `a62` in dns.rs).
    let site = redirecting(&Made::small(), 307, |_| "http://office.example/x".to_owned());
    let place = place_for(&site);
    place.name_host("office.example", "10.0.0.1");
    let error = place.refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Registry(RegistryError::Unreachable { fault: Fault::Inside, .. })), "{error:?}");
}

#[test]
fn a62_https_is_never_left() {
    let identity = Identity::new(&["localhost"]);
    let made = Made::small();
    let away = store(&made);
    let port = away.port;
    let content = made.content("t");
    let server = Server::tls(&identity, move |seen| match seen.path.split_once("/blobs/") {
        Some((_, digest)) => Reply::redirect(307, format!("http://localhost:{port}/{digest}")),
        None => content.serve(seen),
    });
    let place = Place::new();
    let host = format!("localhost:{}", server.port);
    place.trust(&host, &identity);
    let error = place.refused(&format!("{host}/x:t").parse().expect("name"));
    assert_eq!(problem(error), DestinationProblem::Downgrade);
    assert_eq!(away.connections(), 0);
}

#[test]
fn a62_a_401_far_away_is_not_answered() {
    let made = Made::small();
    let away = Server::plain(|_| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"r\""));
    let port = away.port;
    let site = redirecting(&made, 307, move |digest| format!("http://localhost:{port}/{digest}"));
    let error = place_for(&site).refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Registry(RegistryError::Status { status: 401, .. })), "{error}");
    assert_eq!(away.seen().len(), 1);
    assert!(away.seen().iter().all(|seen| seen.authorization().is_none()));
}
