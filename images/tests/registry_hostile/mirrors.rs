//! A mirror has no say: whatever it does wrong, the image is the registry's, and it gets nothing of the registry's.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use coracle_images::registry::MirrorAccess;
use coracle_images::{Image, Progress, PullError, Reference, pull};

use crate::server::{Manner, Reply, Seen};
use crate::site::{Made, Place, Site, layer, noise};

/// Keeps what was told.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Progress for Told {
    fn begin(&self, _what: &str, _total_bytes: u64) {}
    fn advance(&self, _what: &str, _bytes: u64) {}
    fn phase(&self, _what: &str, _text: &str) {}
    fn finish(&self, _what: &str, _text: &str) {}
    fn notice(&self, text: &str) {
        self.0.lock().expect("told").push(text.to_owned());
    }
}

fn place(mirror: &Site) -> Place {
    let mut place = Place::new();
    place.options.mirror = Some(MirrorAccess {
        host: format!("localhost:{}", mirror.server.port),
        plain: true,
        authorities: Vec::new(),
        own: None,
        token: "the-mirrors-own".to_owned(),
        path: place.dir.path().to_owned(),
        names_tags: true,
    });
    place
}

fn go(place: &Place, reference: &Reference) -> (Result<Image, PullError>, String) {
    let told = Told::default();
    let pulled = pull(&place.store, reference, &place.options, &told);
    (pulled, told.0.into_inner().expect("told").join("\n"))
}

fn made() -> Made {
    Made::new(vec![layer("a", &noise(200_000, 1)), layer("b", &noise(150_000, 2))])
}

fn asked(site: &Site, part: &str) -> usize {
    site.server.seen().iter().filter(|seen| seen.method == "GET" && seen.path.contains(part)).count()
}

#[test]
fn what_has_a_digest_comes_from_the_mirror_and_what_a_tag_means_from_the_registry() {
    let made = made();
    let (origin, mirror) = (Site::new(made.content("1")), Site::new(made.content("1")));
    let (place, reference) = (place(&mirror), origin.image("app:1"));
    let (pulled, told) = go(&place, &reference);
    pulled.expect("pulled");
    assert_eq!(told, "");
    assert_eq!((asked(&origin, "/manifests/"), asked(&origin, "/blobs/")), (0, 0));
    assert_eq!((asked(&mirror, "/manifests/"), asked(&mirror, "/blobs/")), (1, 3));
    let namespace = format!("?ns=localhost%3A{}", origin.server.port);
    for seen in mirror.server.seen() {
        assert!(seen.path.ends_with(&namespace), "{}", seen.path);
        assert_eq!(seen.header("authorization"), Some("Bearer the-mirrors-own"));
    }
    assert!(origin.server.seen().iter().all(|seen| seen.header("authorization").is_none()));
}

#[test]
fn whatever_a_mirror_does_wrong_the_registry_is_asked_and_somebody_is_told() {
    type Bend = fn(&Seen, Reply) -> Reply;
    let table: [(&str, Bend, &str); 8] = [
        ("other blobs", |seen, reply| if is(seen, "/blobs/") { flipped(reply) } else { reply }, "different content"),
        ("another manifest", |seen, reply| if is(seen, "/manifests/") { flipped(reply) } else { reply }, "has digest"),
        ("half blobs", |seen, reply| if is(seen, "/blobs/") { half(reply) } else { reply }, "passed over"),
        ("no blobs", |seen, reply| if is(seen, "/blobs/") { Reply::new(404) } else { reply }, "404"),
        ("errors", |_, _| Reply::new(500), "500"),
        ("put off", |_, _| Reply::new(429).header("Retry-After", "3600"), "limits the rate"),
        ("refused", |_, _| Reply::new(401).header("WWW-Authenticate", "Bearer"), "refuses the credentials"),
        (
            "lured away",
            |seen, reply| if is(seen, "/blobs/") { Reply::redirect(307, "http://10.0.0.1/") } else { reply },
            "redirects",
        ),
    ];
    for (name, bend, expect) in table {
        let made = made();
        let (origin, mirror) = (Site::new(made.content("1")), Site::with(made.content("1"), bend));
        let place = place(&mirror);
        let (pulled, told) = go(&place, &origin.image("app:1"));
        let image = pulled.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(told.contains(expect), "{name}: {told}");
        let layers = place.store.layers(&image, &place.options.space).expect("layers").expect("unpacked");
        assert_eq!(fs_err::read(layers[0].join("a")).expect("a"), noise(200_000, 1), "{name}");
    }
}

fn is(seen: &Seen, part: &str) -> bool {
    seen.path.contains(part)
}

fn flipped(mut reply: Reply) -> Reply {
    reply.body.iter_mut().for_each(|byte| *byte ^= 1);
    reply.headers.retain(|(name, _)| name != "Docker-Content-Digest");
    reply
}

fn half(reply: Reply) -> Reply {
    let bytes = reply.body.len() / 2;
    reply.manner(Manner::Cut(bytes))
}

#[test]
fn a_tag_is_the_mirrors_word_only_where_that_is_allowed_and_the_registry_is_silent() {
    let made = made();
    let mirror = Site::new(made.content("1"));
    let gone: Reference = "localhost:1/app:1".parse().expect("name");
    let mut place = place(&mirror);
    let (pulled, told) = go(&place, &gone);
    pulled.expect("pulled");
    assert!(told.contains("is the mirror's word"), "{told}");
    // Where names are what somebody goes by, nobody else says what they mean.
    let mut strict = self::place(&mirror);
    strict.options.mirror.as_mut().expect("mirror").names_tags = false;
    assert!(matches!(go(&strict, &gone).0, Err(PullError::Registry(_))));
    // A registry that says no has answered.
    let origin = Site::new(Default::default());
    let (pulled, told) = go(&place, &origin.image("app:1"));
    assert!(pulled.is_err() && told.is_empty(), "{told}");
    // A mirror that is not there is a detour, and one that is not of this registry is none.
    place.options.mirror.as_mut().expect("mirror").host = "localhost:1".to_owned();
    let origin = Site::new(made.content("1"));
    let (pulled, told) = go(&place, &origin.image("app:1"));
    assert!(pulled.is_ok() && told.contains("connection refused"), "{told}");
    let none = Site::with(Default::default(), |_, _| Reply::new(404));
    let (pulled, told) = go(&self::place(&none), &origin.image("other:1"));
    assert!(pulled.is_ok() && told.is_empty(), "{told}");
    assert_eq!(none.server.seen().len(), 1, "it is asked whether it mirrors the registry, once");
}

/// Bends the first answers to requests for some part.
fn first(count: usize, part: &'static str, bent: Reply) -> impl Fn(&Seen, Reply) -> Reply + Send + Sync {
    let left = AtomicUsize::new(count);
    move |seen, reply| {
        let bends =
            is(seen, part) && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if bends { bent.clone() } else { reply }
    }
}

#[test]
fn a_registry_that_stumbles_is_asked_again_beside_a_mirror_too() {
    let made = made();
    let mirror = Site::new(made.content("1"));
    // Nobody else's word counts: it is waited for as long as without a mirror.
    for bent in [Reply::new(503), Reply::new(429).header("Retry-After", "0"), Reply::new(200).manner(Manner::Reset)] {
        let mut strict = place(&mirror);
        strict.options.mirror.as_mut().expect("mirror").names_tags = false;
        let origin = Site::with(made.content("1"), first(3, "/manifests/", bent.clone()));
        let (pulled, told) = go(&strict, &origin.image("app:1"));
        assert!(pulled.is_ok() && told.is_empty(), "{bent:?}: {:?} {told}", pulled.err());
        // Where the mirror's word counts, once is not silence yet.
        let origin = Site::with(made.content("1"), first(1, "/manifests/", bent.clone()));
        let (pulled, told) = go(&place(&mirror), &origin.image("app:1"));
        assert!(pulled.is_ok() && told.is_empty(), "{bent:?}: {:?} {told}", pulled.err());
    }
    // A mirror that cannot say either is no reason to end.
    let mirror =
        Site::with(
            made.content("1"),
            |seen, reply| {
                if seen.path.contains("/manifests/1") { Reply::new(504) } else { reply }
            },
        );
    let origin = Site::with(made.content("1"), first(3, "/manifests/", Reply::new(503)));
    let (pulled, told) = go(&place(&mirror), &origin.image("app:1"));
    pulled.expect("pulled");
    assert!(told.contains("504") && !told.contains("is the mirror's word"), "{told}");
}

#[test]
fn a_token_server_that_fails_is_a_registry_that_says_nothing() {
    let made = made();
    let mirror = Site::new(made.content("1"));
    let origin = Site::with(made.content("1"), |seen, _| match seen.path.starts_with("/token") {
        true => Reply::new(502),
        false => {
            let host = seen.header("host").expect("host");
            Reply::new(401).header("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\""))
        }
    });
    let (pulled, told) = go(&place(&mirror), &origin.image("app:1"));
    pulled.expect("pulled");
    assert!(told.contains("is the mirror's word"), "{told}");
    assert_eq!(asked(&origin, "/token"), 2, "it is tried once more");
}

#[test]
fn a_mirror_that_gives_no_answer_is_not_asked_again() {
    for manner in [Manner::Reset, Manner::Stall(100)] {
        let made = made();
        let origin = Site::new(made.content("1"));
        let mirror = Site::with(made.content("1"), move |seen, reply| match is(seen, "/blobs/") {
            true => reply.manner(manner),
            false => reply,
        });
        let (pulled, told) = go(&place(&mirror), &origin.image("app:1"));
        pulled.expect("pulled");
        assert_eq!(asked(&mirror, "/blobs/"), 1, "{manner:?}");
        assert_eq!(told.matches("passed over").count(), 1, "{manner:?}: {told}");
    }
}

#[test]
fn a_mirror_that_asks_for_a_moment_gets_it() {
    let made = made();
    let origin = Site::new(made.content("1"));
    let mirror = Site::with(made.content("1"), first(1, "/manifests/", Reply::new(429).header("Retry-After", "1")));
    let (pulled, told) = go(&place(&mirror), &origin.image("app:1"));
    pulled.expect("pulled");
    assert_eq!((told.as_str(), asked(&origin, "/manifests/"), asked(&mirror, "/manifests/")), ("", 0, 2));
    // An error is another matter: the registry is there to be asked instead.
    let mirror = Site::with(made.content("1"), first(1, "/manifests/", Reply::new(503)));
    let (pulled, told) = go(&place(&mirror), &origin.image("app:1"));
    pulled.expect("pulled");
    assert!(told.contains("503"), "{told}");
    assert_eq!(asked(&mirror, "/manifests/"), 1);
}
