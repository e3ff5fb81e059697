//! Broken, slow, lying and overloaded transfers (F27, F28, F29), and many at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coracle_images::registry::RegistryError;
use coracle_images::{Digest, IngestError, PullError, Store};

use crate::server::{Manner, Reply, Seen};
use crate::site::{Made, Place, Site, layer, noise};

/// An image whose one layer is large enough to be cut into pieces.
fn large() -> Made {
    Made::new(vec![layer("big", &noise(3 << 20, 1))])
}

fn is_layer(seen: &Seen, made: &Made) -> bool {
    made.layers.iter().any(|layer| seen.path.contains(&Digest::of(layer).to_string()))
}

/// Bends the `n`th answer for the layer by `bend(n, reply)`, counting from 0.
fn bent(made: &Made, bend: impl Fn(usize, &Seen, Reply) -> Reply + Send + Sync + 'static) -> Site {
    let count = AtomicUsize::new(0);
    let own = made.clone();
    Site::with(made.content("t"), move |seen, reply| match is_layer(seen, &own) {
        true => bend(count.fetch_add(1, Ordering::SeqCst), seen, reply),
        false => reply,
    })
}

fn ranges(site: &Site) -> Vec<Option<String>> {
    let blobs = site.server.seen_at("/blobs/");
    // The first is the configuration.
    blobs.iter().skip(1).map(|seen| seen.header("range").map(str::to_owned)).collect()
}

#[test]
fn f28_a_cut_download_goes_on_where_it_stopped() {
    let made = large();
    let quarter = made.layers[0].len() / 4;
    let site = bent(&made, move |_, _, reply| match reply.body.len() > quarter {
        true => reply.manner(Manner::Cut(quarter)),
        false => reply,
    });
    let place = Place::new();
    let image = place.pull(&site.image("x:t")).expect("pull");
    assert_eq!(place.read(&image, "big"), noise(3 << 20, 1));
    let ranges = ranges(&site);
    // A reset also throws away what was sent and not read yet, so the number of pieces varies.
    assert!((4..=60).contains(&ranges.len()), "{ranges:?}");
    assert_eq!(ranges[0], None);
    assert!(ranges[1..].iter().all(Option::is_some), "every further request is for the rest: {ranges:?}");
}

#[test]
fn f28_a_clean_early_end_is_not_the_end() {
    let made = large();
    let half = made.layers[0].len() / 2;
    let site = bent(&made, move |count, _, reply| match count {
        0 => reply.manner(Manner::Unmarked(half)),
        _ => reply,
    });
    Place::new().pull(&site.image("x:t")).expect("pull");
    assert_eq!(ranges(&site), [None, Some(format!("bytes={half}-"))]);
}

#[test]
fn f28_a_download_that_always_breaks_ends() {
    let made = large();
    for manner in [Manner::Cut(0), Manner::Cut(100), Manner::Reset] {
        let site = bent(&made, move |_, _, reply| reply.manner(manner));
        let start = Instant::now();
        let error = Place::new().refused(&site.image("x:t"));
        assert!(matches!(error, PullError::Registry(_) | PullError::Ingest(_)), "{manner:?}: {error:?}");
        assert!(start.elapsed() < Duration::from_secs(60), "{manner:?}");
        assert!(site.server.seen().len() < 60, "{manner:?}: {} requests", site.server.seen().len());
    }
}

#[test]
fn f29_servers_that_ignore_or_garble_ranges() {
    let made = large();
    let whole = made.layers[0].clone();
    let half = whole.len() / 2;
    type Answer = fn(Reply, Vec<u8>) -> Reply;
    let answers: [(&str, Answer); 6] = [
        ("ignored", |_, whole| Reply::new(200).body(whole)),
        ("wrong start", |_, whole| Reply::new(206).header("Content-Range", "bytes 5-9/10").body(whole[5..10].to_vec())),
        ("no Content-Range", |reply, _| Reply::new(206).body(reply.body)),
        ("nonsense", |reply, _| Reply::new(206).header("Content-Range", "bytes -1-x/y").body(reply.body)),
        ("416", |_, _| Reply::new(416)),
        ("400", |_, _| Reply::new(400)),
    ];
    for (what, answer) in answers {
        let whole = whole.clone();
        let site = bent(&made, move |count, seen, reply| match (count, seen.header("range")) {
            (0, _) => reply.manner(Manner::Cut(half)),
            (_, Some(_)) => answer(reply, whole.clone()),
            (_, None) => reply,
        });
        let place = Place::new();
        let image = place.pull(&site.image("x:t")).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(place.read(&image, "big").len(), 3 << 20, "{what}");
    }
}

#[test]
fn f29_starting_over_is_bounded() {
    // Each download breaks at nine tenths and can only be started over.
    let made = large();
    let most = made.layers[0].len() / 10 * 9;
    let whole = made.layers[0].clone();
    let site = bent(&made, move |_, _, _| Reply::new(200).body(whole.clone()).manner(Manner::Cut(most)));
    let error = Place::new().refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Registry(RegistryError::Unsteady { .. })), "{error:?}");
    assert!(ranges(&site).len() <= 6, "{:?}", ranges(&site));
}

#[test]
fn f29_another_blob_after_the_break_is_not_stored() {
    let made = large();
    let half = made.layers[0].len() / 2;
    let site = bent(&made, move |count, _, mut reply| match count {
        0 => reply.manner(Manner::Cut(half)),
        _ => {
            reply.body.iter_mut().for_each(|byte| *byte ^= 1);
            reply
        }
    });
    let error = Place::new().refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Ingest(_)), "{error:?}");
}

#[test]
fn a_broken_pull_is_continued_by_the_next_one() {
    let made = large();
    let half = made.layers[0].len() / 2;
    let site = bent(&made, move |count, seen, reply| match (count, seen.header("range")) {
        (0, _) => reply.manner(Manner::Cut(half)),
        (1..=4, _) => Reply::new(403),
        _ => reply,
    });
    let place = Place::new();
    place.refused(&site.image("x:t"));
    site.server.forget();
    place.pull(&site.image("x:t")).ok();
    // Whichever pull got through, it asked for the rest only.
    let blobs: Vec<_> = site.server.seen().into_iter().filter(|seen| is_layer(seen, &large())).collect();
    assert!(!blobs.is_empty());
    for seen in blobs {
        let range = seen.header("range").expect("a range").to_owned();
        let from: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("offset");
        assert!(from > 0 && from <= half, "{range}");
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let made = large();
    let length = made.layers[0].len() as u64;
    for wrong in [length - 1, length + 1, 1 << 40, 0] {
        let site = bent(&made, move |_, _, reply| reply.manner(Manner::Length(wrong)));
        let error = Place::new().refused(&site.image("x:t"));
        assert!(matches!(error, PullError::Registry(RegistryError::WrongLength { .. })), "{wrong}: {error:?}");
    }
    // Without a length, more than announced.
    let site = bent(&made, |_, _, reply| reply.manner(Manner::Endless));
    let error = Place::new().refused(&site.image("x:t"));
    assert!(
        matches!(error, PullError::Ingest(IngestError::TooLong { .. } | IngestError::WrongDigest { .. })),
        "{error:?}"
    );
}

#[test]
fn f27_passing_errors_are_tried_again() {
    for status in [500, 502, 503, 504, 429, 408] {
        for part in ["/manifests/", "/blobs/"] {
            let count = AtomicUsize::new(0);
            let site = Site::with(Made::small().content("t"), move |seen, reply| {
                match seen.path.contains(part) && count.fetch_add(1, Ordering::SeqCst) < 2 {
                    true => Reply::new(status),
                    false => reply,
                }
            });
            Place::new().pull(&site.image("x:t")).unwrap_or_else(|error| panic!("{status} {part}: {error:?}"));
        }
    }
}

#[test]
fn f27_lasting_errors_are_reported_with_bounded_tries() {
    for (status, tries) in [(500, 5), (503, 5), (403, 1), (451, 1), (418, 1), (204, 1), (302, 1)] {
        let site = Site::with(Made::small().content("t"), move |seen, reply| match seen.path.contains("/manifests/") {
            true => Reply::new(status).body(r#"{"errors":[{"code":"SAYS_WHO"}]}"#),
            false => reply,
        });
        let error = Place::new().refused(&site.image("x:t"));
        let right = match (status, &error) {
            (403, PullError::Registry(RegistryError::Denied { code, .. })) => code.as_deref() == Some("SAYS_WHO"),
            (302, PullError::Registry(RegistryError::Redirect { .. })) => true,
            (204, PullError::Manifest { .. } | PullError::Registry(_)) => true,
            (_, PullError::Registry(RegistryError::Status { status: said, code, .. })) => {
                *said == status && code.as_deref() == Some("SAYS_WHO")
            }
            _ => false,
        };
        assert!(right, "{status}: {error:?}");
        assert_eq!(site.server.seen_at("/manifests/").len(), tries, "{status}");
    }
}

#[test]
fn f27_rate_limits() {
    let table = [
        ("Retry-After", "1000000000", 1, Some(1_000_000_000)),
        ("Retry-After", "601", 1, Some(601)),
        ("ratelimit-remaining", "0;w=21600", 1, None),
        ("Retry-After", "-5", 5, None),
    ];
    for (header, value, tries, seconds) in table {
        let site = Site::with(Made::small().content("t"), move |seen, reply| match seen.path.contains("/manifests/") {
            true => Reply::new(429).header(header, value),
            false => reply,
        });
        match Place::new().refused(&site.image("x:t")) {
            PullError::Registry(RegistryError::RateLimited { retry_after_seconds, .. }) => {
                assert_eq!(retry_after_seconds, seconds);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(site.server.seen_at("/manifests/").len(), tries, "{seconds:?}");
    }
    // A short wait is waited for.
    let count = AtomicUsize::new(0);
    let site = Site::with(Made::small().content("t"), move |seen, reply| {
        match seen.path.contains("/manifests/") && count.fetch_add(1, Ordering::SeqCst) == 0 {
            true => Reply::new(429).header("Retry-After", "1"),
            false => reply,
        }
    });
    let start = Instant::now();
    Place::new().pull(&site.image("x:t")).expect("after a second");
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn f28_silence_and_drips_end_in_time() {
    for part in ["/manifests/", "/blobs/"] {
        for manner in [Manner::Silent, Manner::Stall(10), Manner::Drip(150)] {
            let made = Made::small();
            let site = Site::with(made.content("t"), move |seen, reply| match seen.path.contains(part) {
                true => reply.manner(manner),
                false => reply,
            });
            let mut place = Place::new();
            place.options.timeouts.headers = Duration::from_millis(200);
            place.options.timeouts.connect = Duration::from_millis(300);
            place.options.timeouts.idle = Duration::from_millis(300);
            place.options.timeouts.rate_window = Duration::from_millis(900);
            let start = Instant::now();
            let error = place.refused(&site.image("x:t"));
            let right = matches!(
                error,
                PullError::Registry(
                    RegistryError::Stalled { .. } | RegistryError::Unreachable { .. } | RegistryError::Unsteady { .. }
                ) | PullError::Ingest(IngestError::Source { .. })
            );
            assert!(right, "{part} {manner:?}: {error:?}");
            assert!(start.elapsed() < Duration::from_secs(60), "{part} {manner:?}: {:?}", start.elapsed());
        }
    }
}

#[test]
fn blobs_come_in_parallel_up_to_the_limit() {
    for parallel in [1, 3] {
        let layers = (0..6).map(|n| layer(&format!("f{n}"), &noise(256 << 10, n))).collect();
        let made = Made::new(layers);
        let own = made.clone();
        let site = Site::with(made.content("t"), move |seen, reply| {
            if is_layer(seen, &own) {
                // Long enough for the others to arrive, were they allowed to.
                std::thread::sleep(Duration::from_millis(60));
            }
            reply
        });
        let mut place = Place::new();
        place.options.parallel = parallel;
        let image = place.pull(&site.image("x:t")).expect("pull");
        assert_eq!(image.layers.len(), 6);
        assert_eq!(site.server.busiest(), parallel);
    }
}

#[test]
fn one_failure_ends_the_other_downloads() {
    let layers = vec![layer("slow", &noise(4 << 20, 1)), layer("bad", &noise(1 << 20, 2))];
    let made = Made::new(layers);
    let (slow, bad) = (Digest::of(&made.layers[0]).to_string(), Digest::of(&made.layers[1]).to_string());
    let site = Site::with(made.content("t"), move |seen, reply| {
        if seen.path.contains(&slow) {
            return reply.manner(Manner::Drip(100));
        }
        if seen.path.contains(&bad) { Reply::new(403) } else { reply }
    });
    let mut place = Place::new();
    place.options.timeouts.rate_window = Duration::from_secs(600);
    let start = Instant::now();
    let error = place.refused(&site.image("x:t"));
    assert!(matches!(error, PullError::Registry(RegistryError::Denied { .. })), "{error:?}");
    // At its pace the slow one would take more than an hour.
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn f24_pulls_of_one_image_share_each_blob() {
    let layers = (0..3).map(|n| layer(&format!("f{n}"), &noise(512 << 10, n))).collect();
    let made = Made::new(layers);
    let site = Arc::new(Site::new(made.content("t")));
    let place = Place::new();
    let root = place.dir.path().join("store");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let store = Store::open(&root).expect("store");
                coracle_images::pull(&store, &site.image("x:t"), &place.options, &coracle_images::NoProgress)
                    .expect("pull");
            });
        }
    });
    for layer in &made.layers {
        let digest = Digest::of(layer).to_string();
        assert_eq!(site.server.seen_at(&digest).len(), 1, "{digest} was fetched more than once");
    }
}

#[test]
fn a_second_pull_asks_one_free_question() {
    let made = Made::small();
    let site = Site::new(made.content("t"));
    let place = Place::new();
    let first = place.pull(&site.image("x:t")).expect("first");
    site.server.forget();
    let again = place.pull(&site.image("x:t")).expect("again");
    assert_eq!(first.id, again.id);
    let asked: Vec<_> = site.server.seen().iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect();
    assert_eq!(asked, ["HEAD /v2/x/manifests/t"]);
    // The tag moves on: the new image is fetched, what did not change is not.
    let mut layers = made.layers.clone();
    layers.push(layer("more", b"more"));
    site.replace(Made::new(layers).content("t"));
    site.server.forget();
    let moved = place.pull(&site.image("x:t")).expect("moved");
    assert_ne!(moved.id, first.id);
    assert_eq!(site.server.seen_at("/blobs/").len(), 2, "configuration and the new layer");
    assert_eq!(moved.names, [site.image("x:t")]);
    // A pin that is here asks nobody.
    let pinned = site.image("x:t").pinned(moved.manifest.clone());
    site.server.forget();
    place.pull(&pinned).expect("pinned");
    assert!(site.server.seen().is_empty());
}
