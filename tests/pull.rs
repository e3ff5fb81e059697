//! `coracle pull` from real registries: open, with a password, with TLS; side by side; by digest.

use serde_json::Value;

use crate::env::registry::{PASSWORD, RegistryOptions, USER};
use crate::env::{Registry, TestEnv, fixtures, tree};
use crate::require;

/// Writes a Docker `config.json` with credentials for a registry.
fn log_in(env: &TestEnv, address: &str, user: &str, password: &str) {
    let token = base64(format!("{user}:{password}").as_bytes());
    env.write("home/.docker/config.json", serde_json::json!({"auths": {address: {"auth": token}}}).to_string());
}

/// Encodes as RFC 4648 says.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let index = word >> (18 - 6 * position) & 63;
            text.push(if position <= chunk.len() { ALPHABET[index as usize] as char } else { '=' });
        }
    }
    text
}

#[test]
fn base64_is_right() {
    assert_eq!(base64(b"tester:correct horse"), "dGVzdGVyOmNvcnJlY3QgaG9yc2U=");
    assert_eq!(
        (base64(b""), base64(b"a"), base64(b"ab"), base64(b"abc")),
        (String::new(), "YQ==".into(), "YWI=".into(), "YWJj".into())
    );
}

fn ids(env: &TestEnv) -> Vec<String> {
    let list = env.coracle(&["images", "--format", "json", "--no-trunc"]).ok();
    let rows = list.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| row["ID"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn pull_prints_the_id_and_the_image_is_here() {
    require!();
    let env = TestEnv::new();
    let id = env.coracle(&["pull", &env.image("busybox")]).ok();
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    assert_eq!(ids(&env), [id]);
}

#[test]
fn pulling_again_fetches_no_blob() {
    require!();
    let env = TestEnv::new();
    let image = env.image("python3");
    env.coracle(&["pull", &image]).ok();
    let before = env.registry().requests("GET", "/blobs/");
    assert_eq!(before, 3, "config and two layers");
    env.coracle(&["pull", &image]).ok();
    assert_eq!(env.registry().requests("GET", "/blobs/"), before);
    // nginx shares the base layer with python3.
    env.coracle(&["pull", &env.image("nginx")]).ok();
    assert_eq!(env.registry().requests("GET", "/blobs/"), before + 2);
}

#[test]
fn two_pulls_at_once_fetch_each_blob_once() {
    require!();
    let env = TestEnv::new();
    let image = env.image("python3");
    let pulls: Vec<_> = (0..4).map(|_| env.coracle(&["pull", &image]).spawn()).collect();
    let ids: Vec<String> = pulls.into_iter().map(|pull| pull.wait().ok()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
    assert_eq!(env.registry().requests("GET", "/blobs/"), 3);
    env.container(&[&image, "python3", "-c", "pass"]).ok();
}

#[test]
fn all_kinds_of_manifests_and_layers_are_the_same_image_inside() {
    require!();
    let env = TestEnv::new();
    let list = |name: &str| {
        let script = "find / -xdev -type f ! -path '/proc/*' ! -path '/sys/*' ! -path '/etc/host*' ! -path /etc/resolv.conf | sort | xargs sha256sum";
        env.container(&[&env.image(name), "sh", "-c", script]).ok()
    };
    let plain = list("busybox:latest");
    assert!(plain.lines().count() > 3, "{plain}");
    for name in ["busybox:schema2", "busybox:plain", "busybox:zstd", "multi:latest"] {
        assert_eq!(list(name), plain, "{name}");
    }
    let version = |name: &str| env.container(&[&env.image(name), "python3", "-V"]).ok();
    assert_eq!(version("python3:zstd"), version("python3:schema2"));
}

#[test]
fn a_digest_pin_is_verified_and_stored() {
    require!();
    let env = TestEnv::new();
    env.coracle(&["pull", &env.image("busybox")]).ok();
    let info: Value = serde_json::from_str(&env.coracle(&["inspect", &env.image("busybox")]).ok()).unwrap();
    let pinned = info[0]["RepoDigests"][0].as_str().unwrap().to_owned();
    let digest = pinned.split('@').nth(1).unwrap().to_owned();
    assert_eq!(digest.len(), 71, "{pinned}");
    env.coracle(&["rmi", &env.image("busybox")]).ok();
    let repository = format!("{}/busybox", env.registry().address());
    env.coracle(&["pull", &format!("{repository}@{digest}")]).ok();
    env.container(&[&format!("{repository}@{digest}"), "true"]).ok();
    let wrong = format!("{repository}@sha256:{}", "0".repeat(64));
    env.coracle(&["pull", &wrong]).outcome().refused(1);
}

#[test]
fn platform_chooses_from_an_index() {
    require!();
    let env = TestEnv::new();
    let multi = env.image("multi");
    let architecture = |env: &TestEnv| {
        let info: Value = serde_json::from_str(&env.coracle(&["inspect", &multi]).ok()).unwrap();
        info[0]["Architecture"].as_str().unwrap().to_owned()
    };
    env.coracle(&["pull", &multi]).ok();
    assert_eq!(architecture(&env), "amd64");
    env.coracle(&["pull", "--platform", "linux/arm64", &multi]).ok();
    assert_eq!(architecture(&env), "arm64");
    env.coracle(&["pull", "--platform", "linux/s390x", &multi]).outcome().refused(1).says("s390x");
    env.coracle(&["pull", "--platform", "nonsense/x/y/z", &multi]).outcome().code(125);
}

#[test]
fn a_registry_with_a_password() {
    require!();
    let env = TestEnv::new();
    let registry = Registry::start(&env, RegistryOptions { password: true, ..RegistryOptions::default() });
    let image = registry.image("busybox:latest");
    env.coracle(&["pull", &image]).outcome().refused(1);
    log_in(&env, registry.address(), USER, "wrong");
    env.coracle(&["pull", &image]).outcome().refused(1);
    log_in(&env, registry.address(), USER, PASSWORD);
    env.coracle(&["pull", &image]).ok();
    env.container(&[&image, "true"]).ok();
}

#[test]
fn docker_config_and_a_credential_helper() {
    require!();
    let env = TestEnv::new();
    let registry = Registry::start(&env, RegistryOptions { password: true, ..RegistryOptions::default() });
    let helper = format!(
        "#!/bin/sh\nread host\necho \"$1 $host\" >>{}\necho '{{\"ServerURL\":\"x\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n",
        env.path("asked").display()
    );
    let path = env.write("bin/docker-credential-test", helper);
    crate::env::set_mode(&path, 0o755);
    let config = serde_json::json!({"credHelpers": {registry.address(): "test"}});
    env.write("docker-config/config.json", config.to_string());
    let search = format!("{}:{}", env.path("bin").display(), fixtures::SEARCH_PATH);
    let run = env.coracle(&["pull", &registry.image("busybox:latest")]);
    run.env("PATH", search).env("DOCKER_CONFIG", env.path("docker-config")).ok();
    let asked = fs_err::read_to_string(env.path("asked")).unwrap();
    assert_eq!(asked.lines().next(), Some(format!("get {}", registry.address()).as_str()));
}

#[test]
fn a_registry_with_tls_of_its_own_authority() {
    require!();
    let env = TestEnv::new();
    let registry = Registry::start(&env, RegistryOptions { tls: true, ..RegistryOptions::default() });
    let image = registry.image("busybox:latest");
    env.coracle(&["pull", &image]).outcome().refused(1);
    let tls = fixtures::images().unwrap().join("tls");
    let certificates = format!("home/.config/containers/certs.d/{}/ca.crt", registry.address());
    env.write(&certificates, fs_err::read(tls.join("other-ca.crt")).unwrap());
    env.coracle(&["pull", &image]).outcome().refused(1);
    env.write(&certificates, fs_err::read(tls.join("ca.crt")).unwrap());
    env.coracle(&["pull", &image]).ok();
}

#[test]
fn blobs_on_disk_are_what_their_names_say() {
    require!();
    let env = TestEnv::new();
    for name in ["busybox", "odd", "python3:zstd"] {
        env.coracle(&["pull", &env.image(name)]).ok();
    }
    let blobs = env.root().join("images/blobs/sha256");
    let mut count = 0;
    for entry in fs_err::read_dir(blobs).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(tree::sha256_file(&entry.path()), entry.file_name().to_str().unwrap());
        count += 1;
    }
    assert!(count >= 11, "three manifests, three configurations, five layers; found {count}");
}

#[test]
fn the_store_is_closed_to_others() {
    require!();
    let env = TestEnv::new();
    // A32: setuid files of images lie in it.
    let image = env.image("busybox");
    let coracle = fixtures::coracle().display().to_string();
    env.program("sh").args(&["-c", r#"umask 000; exec "$0" pull "$1""#, &coracle, &image]).ok();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs_err::metadata(env.root()).unwrap().mode() & 0o777, 0o700);
    for line in tree::attributes(&env.root().join("images")) {
        let mode = line.split(" mode ").nth(1).unwrap().split(' ').next().unwrap();
        let mode = u32::from_str_radix(mode, 8).unwrap();
        assert_eq!(mode & 0o022, 0, "others may write: {line}");
    }
}

#[test]
fn progress_is_for_people_only() {
    require!();
    let env = TestEnv::new();
    let outcome = env.coracle(&["pull", &env.image("python3")]).outcome();
    outcome.code(0);
    assert!(!outcome.stderr.contains(['\r', '\u{1b}']), "{outcome}");
    assert_eq!(outcome.text().lines().count(), 1);
    let mut args = vec!["pull", "--quiet"];
    let image = env.image("nginx");
    args.push(&image);
    assert_eq!(env.coracle(&args).outcome().stderr, "");
    let mut terminal = crate::env::terminal::Terminal::start(
        &env,
        100,
        30,
        &fixtures::coracle().display().to_string(),
        &["pull", &env.image("odd")],
    );
    assert_eq!(terminal.exit_code(), 0);
    terminal.expect("sha256:");
}
