//! Choosing among the images of an index.

use coracle_images::{Platform, PullError, Reference};
use serde_json::{Value, json};

use crate::site::{Content, Made, OCI_INDEX, OCI_MANIFEST, Place, Site, descriptor, host_architecture, layer};

fn entry(made: &Made, platform: Value) -> Value {
    let mut entry = descriptor(OCI_MANIFEST, &made.manifest_bytes());
    if !platform.is_null() {
        entry["platform"] = platform;
    }
    entry
}

fn index(entries: &[Value]) -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string().into_bytes()
}

fn image_for(architecture: &str) -> Made {
    Made::for_architecture(architecture, vec![layer("arch", architecture.as_bytes())])
}

/// A site with one image per architecture behind the tag `t`.
fn multi(architectures: &[&str]) -> Site {
    let mut content = Content::default();
    let mut entries = Vec::new();
    // What BuildKit adds beside every image.
    entries.push(entry(&image_for("unknown"), json!({"os": "unknown", "architecture": "unknown"})));
    for architecture in architectures {
        let made = image_for(architecture);
        content.add(architecture, &made);
        entries.push(entry(&made, json!({"os": "linux", "architecture": architecture})));
    }
    content.add_manifest("t", OCI_INDEX, index(&entries));
    Site::new(content)
}

fn pull_for(place: &mut Place, reference: &Reference, platform: &str) -> Result<Vec<u8>, PullError> {
    place.options.platform = Some(platform.parse().expect(platform));
    let image = place.pull(reference)?;
    Ok(place.read(&image, "arch"))
}

#[test]
fn this_host_is_the_default_and_others_can_be_asked_for() {
    let site = multi(&["s390x", host_architecture(), "riscv64"]);
    let mut place = Place::new();
    let image = place.pull(&site.image("x:t")).expect("host");
    assert_eq!(place.read(&image, "arch"), host_architecture().as_bytes());
    for wanted in ["riscv64", "s390x", host_architecture()] {
        let got = pull_for(&mut place, &site.image("x:t"), &format!("linux/{wanted}")).expect(wanted);
        assert_eq!(got, wanted.as_bytes());
    }
}

#[test]
fn a_missing_platform_lists_what_there_is() {
    let site = multi(&["s390x", "riscv64"]);
    match Place::new().refused(&site.image("x:t")) {
        PullError::WrongPlatform { wanted, available, .. } => {
            assert_eq!(wanted, Platform::host());
            let available: Vec<_> = available.iter().map(Platform::to_string).collect();
            assert_eq!(available, ["linux/s390x", "linux/riscv64"]);
        }
        other => panic!("{other:?}"),
    }
    // A single image for another machine is refused as well, unless it is asked for.
    let mut content = Content::default();
    content.add("t", &image_for("s390x"));
    let site = Site::new(content);
    let mut place = Place::new();
    let error = place.refused(&site.image("x:t"));
    assert_eq!(
        error.to_string(),
        format!("{} has no image for {}; there is linux/s390x", site.image("x:t"), Platform::host())
    );
    pull_for(&mut place, &site.image("x:t"), "linux/s390x").expect("asked for");
}

#[test]
fn variants_take_the_best_that_runs() {
    let mut content = Content::default();
    let mut entries = Vec::new();
    for variant in ["v5", "v7", "v6"] {
        let made = Made::for_architecture("arm", vec![layer("arch", variant.as_bytes())]);
        let mut config = made.config.clone();
        config["variant"] = json!(variant);
        let mut made = made;
        made.manifest["config"] = descriptor(crate::site::OCI_CONFIG, config.to_string().as_bytes());
        made.config = config;
        content.add(variant, &made);
        entries.push(entry(&made, json!({"os": "linux", "architecture": "arm", "variant": variant})));
    }
    content.add_manifest("t", OCI_INDEX, index(&entries));
    let site = Site::new(content);
    for (wanted, got) in [("linux/arm/v7", "v7"), ("linux/arm/v6", "v6"), ("linux/arm/v8", "v7"), ("linux/arm", "v7")] {
        let mut place = Place::new();
        assert_eq!(pull_for(&mut place, &site.image("x:t"), wanted).expect(wanted), got.as_bytes());
    }
}

#[test]
fn indexes_may_nest_four_deep() {
    let nested = |levels: usize| {
        let made = image_for(host_architecture());
        let mut content = made.content("image");
        let mut document = index(&[entry(&made, Value::Null)]);
        for level in 1..levels {
            content.add_manifest(&format!("level{level}"), OCI_INDEX, document.clone());
            document = index(&[descriptor(OCI_INDEX, &document)]);
        }
        content.add_manifest("t", OCI_INDEX, document);
        Site::new(content)
    };
    let site = nested(4);
    Place::new().pull(&site.image("x:t")).expect("four");
    let site = nested(5);
    let error = Place::new().refused(&site.image("x:t"));
    assert!(matches!(error, PullError::TooNested { .. }), "{error:?}");
}

#[test]
fn a_wide_search_is_bounded() {
    // Forty inner indexes, none of which has anything for us.
    let mut content = Content::default();
    let mut entries = Vec::new();
    for number in 0..40 {
        let inner = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [],
            "annotations": {"n": number.to_string()}});
        let inner = inner.to_string().into_bytes();
        entries.push(descriptor(OCI_INDEX, &inner));
        content.add_manifest(&format!("n{number}"), OCI_INDEX, inner);
    }
    content.add_manifest("t", OCI_INDEX, index(&entries));
    let site = Site::new(content);
    let error = Place::new().refused(&site.image("x:t"));
    assert!(matches!(error, PullError::TooNested { .. }), "{error:?}");
    assert!(site.server.seen_at("/manifests/").len() <= 20);
}

#[test]
fn a_pin_on_the_index_finds_the_image_again() {
    let site = multi(&[host_architecture()]);
    let place = Place::new();
    let first = place.pull(&site.image("x:t")).expect("first");
    site.server.forget();
    let again = place.pull(&site.image("x:t")).expect("again");
    assert_eq!(first.id, again.id);
    let asked: Vec<_> = site.server.seen_at("/manifests/").iter().map(|seen| seen.method.clone()).collect();
    assert_eq!(asked, ["HEAD"]);
}
