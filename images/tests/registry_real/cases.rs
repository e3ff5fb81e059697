//! What must work with the registry that people run.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use coracle_images::registry::{RegistryError, TlsFault};
use coracle_images::{Compression, NoProgress, PullError, Reference, Store, pull};

use crate::proxy::Proxy;
use crate::registry::{
    Guard, PULLER_NAME, PULLER_ROOT, Place, Registry, has_tools, make_image, noise, spawn_puller, with_zstd,
};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// What the issue allows a pull, however large its layers.
const PEAK_MEMORY_KIB_MAX: u64 = 64 << 10;
/// user:password, and a wrong one.
const RIGHT: &str = "dXNlcjpwYXNzd29yZA==";
const WRONG: &str = "dXNlcjp3cm9uZw==";

fn name(registry: &Registry, rest: &str) -> Reference {
    format!("{}/{rest}", registry.host()).parse().expect("name")
}

/// The tests' own child: pulls when told to, and is nothing otherwise.
#[test]
#[ignore = "only a child process of other tests"]
fn puller() {
    let (Some(root), Ok(name)) = (std::env::var_os(PULLER_ROOT), std::env::var(PULLER_NAME)) else { return };
    let mut place = Place::new();
    place.store = Store::open(&PathBuf::from(root)).expect("store");
    pull(&place.store, &name.parse().expect("name"), &place.options, &NoProgress).expect("pull");
    let status = fs_err::read_to_string("/proc/self/status").expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    println!("\npeak {}", peak.trim().trim_end_matches(" kB"));
}

#[test]
fn every_format_that_skopeo_pushes() {
    if !has_tools("every_format_that_skopeo_pushes") {
        return;
    }
    let registry = Registry::start(Guard::Open);
    let oci = make_image(registry.dir.path(), &[300 * KIB, 10]);
    registry.push(&oci, "t", "team/app:oci", &[]);
    registry.push(&oci, "t", "team/app:docker", &["--format", "v2s2"]);
    // In a registry of its own: skopeo would not send again what is there in another compression.
    let other = Registry::start(Guard::Open);
    other.push(&with_zstd(&oci, registry.dir.path()), "t", "team/app:zstd", &[]);
    let place = Place::new();
    let table = [
        (&registry, "oci", Compression::Gzip),
        (&registry, "docker", Compression::Gzip),
        (&other, "zstd", Compression::Zstd),
    ];
    for (registry, tag, compression) in table {
        let image = pull(&place.store, &name(registry, &format!("team/app:{tag}")), &place.options, &NoProgress);
        let image = image.unwrap_or_else(|error| panic!("{tag}: {error:?}"));
        assert!(image.layers.iter().all(|layer| layer.compression == compression), "{tag}: {:?}", image.layers);
        let layers = place.store.layers(&image, &place.options.space).expect("layers").expect("unpacked");
        assert_eq!(fs_err::read(layers[0].join("file0")).expect("file0"), noise(300 * KIB, 1), "{tag}");
        assert_eq!(fs_err::read(layers[1].join("file1")).expect("file1"), noise(10, 2), "{tag}");
    }
    assert_eq!(place.store.list().expect("list").len(), 3);
    for missing in ["team/app:none", "team/nobody:t"] {
        let error = pull(&place.store, &name(&registry, missing), &place.options, &NoProgress).expect_err(missing);
        assert!(matches!(error, PullError::Registry(RegistryError::UnknownImage { .. })), "{error:?}");
    }
}

#[test]
fn passwords() {
    if !has_tools("passwords") {
        return;
    }
    let registry = Registry::start(Guard::Password);
    let oci = make_image(registry.dir.path(), &[10]);
    registry.push(&oci, "t", "app:t", &[]);
    let mut place = Place::new();
    let app = name(&registry, "app:t");
    let error = pull(&place.store, &app, &place.options, &NoProgress).expect_err("no password");
    assert!(matches!(error, PullError::Registry(RegistryError::Unauthorized { rejected: false, .. })), "{error:?}");
    place.log_in(&registry.host(), WRONG);
    let error = pull(&place.store, &app, &place.options, &NoProgress).expect_err("wrong password");
    assert!(matches!(error, PullError::Registry(RegistryError::Unauthorized { rejected: true, .. })), "{error:?}");
    place.log_in(&registry.host(), RIGHT);
    pull(&place.store, &app, &place.options, &NoProgress).expect("right password");
}

#[test]
fn tls_with_an_authority_from_certs_d() {
    if !has_tools("tls_with_an_authority_from_certs_d") {
        return;
    }
    let registry = Registry::start(Guard::Tls);
    let oci = make_image(registry.dir.path(), &[2 * MIB, 2 * MIB, 2 * MIB, 2 * MIB]);
    registry.push(&oci, "t", "app:t", &[]);
    let mut place = Place::new();
    place.log_in(&registry.host(), RIGHT);
    let app = name(&registry, "app:t");
    let error = pull(&place.store, &app, &place.options, &NoProgress).expect_err("unknown authority");
    assert!(
        matches!(error, PullError::Registry(RegistryError::Tls { fault: TlsFault::UnknownAuthority, .. })),
        "{error:?}"
    );
    let dir = place.options.certs_dirs[0].join(registry.host());
    fs_err::create_dir_all(&dir).expect("certs.d");
    fs_err::write(dir.join("ca.crt"), registry.authority_pem.as_deref().expect("authority")).expect("ca.crt");
    // Go's server speaks HTTP/2 here: four streams on one connection.
    let image = pull(&place.store, &app, &place.options, &NoProgress).expect("trusted");
    assert_eq!(image.layers.len(), 4);
}

#[test]
fn f24_two_processes_fetch_each_blob_once() {
    if !has_tools("f24_two_processes_fetch_each_blob_once") {
        return;
    }
    let registry = Registry::start(Guard::Open);
    let oci = make_image(registry.dir.path(), &[MIB, MIB, 2 * MIB]);
    registry.push(&oci, "t", "app:t", &[]);
    // Slow enough that they meet.
    let proxy = Proxy::start(registry.port, Duration::from_millis(4));
    let pushed = registry.blob_requests().len();
    let place = Place::new();
    let app = format!("localhost:{}/app:t", proxy.port);
    let children: Vec<_> = (0..2).map(|_| spawn_puller(&place.root(), &app)).collect();
    for mut child in children {
        assert!(child.wait().expect("child").success());
    }
    let mut counts = BTreeMap::new();
    for digest in registry.blob_requests().split_off(pushed) {
        *counts.entry(digest).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 4, "three layers and a configuration: {counts:?}");
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    assert_eq!(place.store.list().expect("list").len(), 1);
}

#[test]
fn kill_at_any_moment_leaves_a_usable_store_and_loses_little() {
    if !has_tools("kill_at_any_moment_leaves_a_usable_store_and_loses_little") {
        return;
    }
    const KILLS: u32 = 24;
    let registry = Registry::start(Guard::Open);
    let sizes = [3 * MIB, MIB, 5 * MIB, 100];
    let oci = make_image(registry.dir.path(), &sizes);
    registry.push(&oci, "t", "app:t", &[]);
    let proxy = Proxy::start(registry.port, Duration::from_millis(1));
    let place = Place::new();
    let app: Reference = format!("localhost:{}/app:t", proxy.port).parse().expect("name");
    let seed = std::process::id();
    eprintln!("seed {seed}");
    let mut state = seed | 1;
    let mut killed = 0;
    for _ in 0..KILLS {
        let mut child = spawn_puller(&place.root(), &app.to_string());
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // The moment is the point of the test, not a wait for something.
        std::thread::sleep(Duration::from_micros(u64::from(state >> 15)));
        child.kill().expect("kill");
        killed += u32::from(!child.wait().expect("wait").success());
        let store = Store::open(&place.root()).expect("the store opens after a kill");
        for image in store.list().expect("the store lists after a kill") {
            // Complete or absent, never between.
            assert!(store.layers(&image, &place.options.space).expect("layers").is_some());
        }
    }
    assert!(killed > 0, "no kill landed inside a pull");
    let image = pull(&place.store, &app, &place.options, &NoProgress).expect("the next pull completes");
    let layers = place.store.layers(&image, &place.options.space).expect("layers").expect("unpacked");
    for (number, size) in sizes.iter().enumerate() {
        let file = fs_err::read(layers[number].join(format!("file{number}"))).expect("file");
        assert_eq!(file, noise(*size, number as u64 + 1));
    }
    // A killed pull loses what was on the way: kernel buffers, our own, and three streams of them.
    let whole: u64 = sizes.iter().map(|size| *size as u64).sum();
    let lost_each = 3 * MIB as u64;
    assert!(
        proxy.sent_bytes() < whole + u64::from(killed) * lost_each,
        "{} bytes were sent for {whole} after {killed} kills",
        proxy.sent_bytes()
    );
}

#[test]
fn peak_memory_does_not_grow_with_the_layers() {
    if !has_tools("peak_memory_does_not_grow_with_the_layers") {
        return;
    }
    let registry = Registry::start(Guard::Open);
    let oci = make_image(registry.dir.path(), &[48 * MIB, 48 * MIB, 48 * MIB]);
    registry.push(&oci, "t", "app:t", &[]);
    let place = Place::new();
    let mut child = spawn_puller(&place.root(), &name(&registry, "app:t").to_string());
    let mut said = String::new();
    child.stdout.take().expect("stdout").read_to_string(&mut said).expect("output");
    assert!(child.wait().expect("child").success(), "{said}");
    let peak: u64 = said
        .lines()
        .find_map(|line| line.strip_prefix("peak "))
        .and_then(|peak| peak.trim().parse().ok())
        .expect("peak");
    assert!(peak < PEAK_MEMORY_KIB_MAX, "{peak} KiB");
}
