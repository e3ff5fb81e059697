//! `coracle push`, `login` and `logout` against Debian's docker-registry; skopeo reads what arrived.

use serde_json::{Value, json};

use crate::env::image::{Image, Layer};
use crate::env::mock::{Mock, Request, Response};
use crate::env::registry::{PASSWORD, RegistryOptions, USER};
use crate::env::{Registry, TestEnv, fixtures, poll};
use crate::require;

/// Starts an empty registry that may be written to.
fn empty(env: &TestEnv, options: RegistryOptions) -> Registry {
    Registry::start(env, RegistryOptions { empty: true, ..options })
}

/// Trusts the authority of the registry's certificate.
fn trust(env: &TestEnv, registry: &Registry) {
    let authority = fixtures::images().unwrap().join("tls/ca.crt");
    let place = format!("home/.config/containers/certs.d/{}/ca.crt", registry.address());
    env.write(&place, fs_err::read(authority).unwrap());
}

/// Gives the digest that skopeo sees at a name of a registry without TLS.
fn digest(env: &TestEnv, image: &str) -> String {
    let name = format!("docker://{image}");
    env.program("skopeo").args(&["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &name]).ok()
}

/// Gives an image with one layer of that many random bytes.
fn large(bytes: usize) -> Image {
    let mut noise = vec![0u8; bytes];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for byte in &mut noise {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[3];
    }
    Image::new(vec![Layer::busybox().file("noise", 0o644, &noise).bytes()], &json!({}))
}

#[test]
fn what_was_pulled_is_pushed_with_the_same_digest_and_skopeo_reads_it() {
    require!("skopeo");
    let env = TestEnv::new();
    let target = empty(&env, RegistryOptions::default());
    for (name, tag) in
        [("busybox:latest", "one:v1"), ("busybox:schema2", "two:v2"), ("python3:latest", "deep/er/three:v3")]
    {
        let (source, to) = (env.image(name), target.image(tag));
        env.coracle(&["pull", &source]).ok();
        let wanted = digest(&env, &source);
        let said = env.coracle(&["push", &source, &to]).ok();
        let (_, short) = tag.split_once(':').unwrap();
        assert!(said.starts_with(&format!("{short}: digest: {wanted} size: ")), "{said}");
        assert_eq!(digest(&env, &to), wanted);
        let copy = format!("oci:{}:x", env.path("copy").display());
        env.program("skopeo").args(&["copy", "--src-tls-verify=false", &format!("docker://{to}"), &copy]).ok();
    }
    // Again, nothing goes up.
    let before = target.requests("PUT", "/blobs/uploads/");
    env.coracle(&["push", "-q", &env.image("busybox"), &target.image("one:v1")]).ok();
    assert_eq!(target.requests("PUT", "/blobs/uploads/"), before);
}

#[test]
fn a_blob_of_another_repository_of_the_registry_is_mounted() {
    require!();
    let env = TestEnv::new();
    let target = empty(&env, RegistryOptions::default());
    let (first, second) = (target.image("first:1"), target.image("second:1"));
    env.coracle(&["pull", &env.image("busybox")]).ok();
    for name in [&first, &second] {
        env.coracle(&["tag", &env.image("busybox"), name]).ok();
    }
    env.coracle(&["push", &first]).ok();
    let sent = target.requests("PUT", "/blobs/uploads/");
    env.coracle(&["push", &second]).ok();
    assert_eq!(target.requests("PUT", "/blobs/uploads/"), sent, "blobs went up twice");
    env.coracle(&["rmi", &first, &second]).ok();
    assert_eq!(env.container(&[&second, "echo", "back"]).ok(), "back");
}

#[test]
fn all_tags_of_a_repository_go_up_and_no_other() {
    require!();
    let env = TestEnv::new();
    let target = empty(&env, RegistryOptions::default());
    env.coracle(&["pull", &env.image("busybox")]).ok();
    for tag in ["team/app:1", "team/app:2", "team/app2:3"] {
        env.coracle(&["tag", &env.image("busybox"), &target.image(tag)]).ok();
    }
    let repository = target.image("team/app").trim_end_matches(":latest").to_owned();
    env.coracle(&["push", "-q", "--all-tags", &repository]).ok();
    env.coracle(&["pull", "-q", &target.image("team/app:1")]).ok();
    env.coracle(&["pull", "-q", &target.image("team/app:2")]).ok();
    env.coracle(&["rmi", &target.image("team/app2:3")]).ok();
    env.coracle(&["pull", "-q", &target.image("team/app2:3")]).outcome().refused(1);
    env.coracle(&["push", "--all-tags", &target.image("team/app:1")]).outcome().refused(1);
}

#[test]
fn a_push_that_is_killed_leaves_nothing_half_and_the_next_one_works() {
    require!();
    let env = TestEnv::new();
    let source = Mock::serving(&[("large", large(24 << 20))]);
    let name = source.image("large");
    env.coracle(&["pull", "-q", &name]).ok();
    let target = empty(&env, RegistryOptions::default());
    let goal = target.image("large:1");
    let mut killed = 0;
    for round in 0..8_u64 {
        let mut push = env.coracle(&["push", "-q", &name, &goal]).spawn();
        if !poll(std::time::Duration::from_millis(round * 25), || push.has_ended()) {
            push.signal(nix::sys::signal::Signal::SIGKILL);
            killed += 1;
            // A name in the registry means a whole image.
            let pulled = env.coracle(&["pull", "-q", &goal]).outcome();
            assert!(pulled.code != 0 || !env.coracle(&["history", &goal]).ok().is_empty(), "{pulled}");
        }
        push.wait();
    }
    assert!(killed > 0, "every push was faster than its end");
    env.coracle(&["push", "-q", &name, &goal]).ok();
    env.coracle(&["rmi", "-f", &name]).ok();
    env.coracle(&["rmi", "-f", &goal]).outcome();
    assert_eq!(env.container(&[&goal, "sh", "-c", "wc -c </noise"]).ok(), (24 << 20).to_string());
}

#[test]
fn a_large_layer_is_streamed_and_in_chunks_where_the_registry_refuses_that() {
    require!("skopeo");
    let env = TestEnv::new();
    let source = Mock::serving(&[("large", large(9 << 20))]);
    let name = source.image("large");
    env.coracle(&["pull", &name]).ok();
    let target = empty(&env, RegistryOptions::default());
    env.coracle(&["push", &name, &target.image("large:1")]).ok();
    assert_eq!((target.requests("PATCH", "/uploads/"), target.requests("PUT", "/uploads/")), (0, 2));
    env.program("skopeo")
        .args(&["copy", "--src-tls-verify=false", &format!("docker://{}", target.image("large:1")), "dir:copy"])
        .ok();
    // One that takes 5 MiB at most, and checks that the pieces fit together.
    let got = std::sync::Arc::new(std::sync::Mutex::new((0u64, Vec::<String>::new())));
    let seen = got.clone();
    let picky = Mock::start(move |request: &Request| {
        let length: u64 = request.headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut got = seen.lock().unwrap();
        let answer = |status| Response::new(status, "application/json", "{}");
        match request.method.as_str() {
            "HEAD" => Some(Response::not_found()),
            "POST" => {
                got.0 = 0;
                Some(answer(202).header("Location", "/upload/here?state=1"))
            }
            _ if length > 5 << 20 => Some(answer(413)),
            "PATCH" | "PUT" if request.path.starts_with("/upload") => {
                if let Some(range) = request.headers.get("content-range") {
                    let expected = format!("{}-{}", got.0, got.0 + length - 1);
                    if *range != expected {
                        return Some(answer(416));
                    }
                }
                got.0 += length;
                got.1.push(format!("{} {}", request.method, request.path));
                let status = if request.method == "PUT" { 201 } else { 202 };
                Some(answer(status).header("Location", "/upload/here?state=2"))
            }
            "PUT" => Some(answer(201)),
            _ => None,
        }
    });
    env.coracle(&["push", &name, &picky.image("large")]).ok();
    let uploads = got.lock().unwrap().1.clone();
    let patches = uploads.iter().filter(|line| line.starts_with("PATCH")).count();
    assert_eq!(patches, 2, "{uploads:?}");
    assert!(uploads.iter().any(|line| line.starts_with("PUT /upload/here?state=2&digest=sha256%3A")), "{uploads:?}");
}

#[test]
fn login_push_pull_and_logout_with_password_and_tls() {
    require!();
    let env = TestEnv::new();
    let target = empty(&env, RegistryOptions { password: true, tls: true, ..RegistryOptions::default() });
    trust(&env, &target);
    let image = target.image("mine:1");
    env.coracle(&["pull", &env.image("busybox")]).ok();
    env.coracle(&["push", &env.image("busybox"), &image]).outcome().error_at(
        target.address(),
        1,
        "error: [ADDRESS] asks for credentials\nhint: coracle login [ADDRESS]",
    );
    let login = ["login", "-u", USER, "--password-stdin", target.address()];
    env.coracle(&login).stdin("wrong").outcome().refused(1).says("refuses the credentials");
    assert!(!env.home().join(".docker/config.json").exists(), "refused credentials were kept");
    assert_eq!(env.coracle(&login).stdin(format!("{PASSWORD}\n")).ok(), "Login Succeeded");
    let file = env.home().join(".docker/config.json");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs_err::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    env.coracle(&["push", &env.image("busybox"), &image]).ok();
    env.coracle(&["pull", &image]).ok();
    // podman's tools read the same file.
    env.coracle(&["logout", target.address()]).ok();
    env.coracle(&["push", &env.image("busybox"), &image]).outcome().refused(1);
    env.coracle(&["logout", target.address()]).outcome().refused(1).says("not logged in");
}

#[test]
fn a63_a_login_goes_to_the_credential_helper_that_the_file_names() {
    require!();
    let env = TestEnv::new();
    let target = empty(&env, RegistryOptions { password: true, ..RegistryOptions::default() });
    let script = format!(
        "#!/bin/sh\ncat >{0}/$1\n[ $1 = get ] && echo '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\nexit 0\n",
        env.path("tmp").display()
    );
    let helper = env.write("bin/docker-credential-fake", script);
    crate::env::set_mode(&helper, 0o755);
    let path = format!("{}:{}", env.path("bin").display(), fixtures::SEARCH_PATH);
    env.write("home/.docker/config.json", r#"{"credsStore":"fake","other":1}"#);
    let login = ["login", "-u", USER, "--password-stdin", target.address()];
    env.coracle(&login).env("PATH", &path).stdin(PASSWORD).ok();
    let stored: Value = serde_json::from_slice(&fs_err::read(env.path("tmp/store")).unwrap()).unwrap();
    assert_eq!(stored, json!({"ServerURL": target.address(), "Username": USER, "Secret": PASSWORD}));
    let text = fs_err::read_to_string(env.home().join(".docker/config.json")).unwrap();
    assert!(text.contains("\"other\"") && !text.contains("\"auth\""), "{text}");
    env.coracle(&["pull", &env.image("busybox")]).env("PATH", &path).ok();
    env.coracle(&["push", &env.image("busybox"), &target.image("x:1")]).env("PATH", &path).ok();
    env.coracle(&["logout", target.address()]).env("PATH", &path).ok();
    assert_eq!(fs_err::read_to_string(env.path("tmp/erase")).unwrap(), target.address());
    for file in ["store", "get", "erase"] {
        fs_err::remove_file(env.path("tmp").join(file)).unwrap();
    }
}

#[test]
fn a62_an_upload_that_goes_on_elsewhere_gets_no_credentials() {
    require!();
    let env = TestEnv::new();
    let storage = Mock::start(|_| Some(Response::new(201, "text/plain", "")));
    let elsewhere = storage.address().to_owned();
    let target = Mock::start(move |request: &Request| match request.method.as_str() {
        _ if !request.headers.contains_key("authorization") => {
            Some(Response::new(401, "application/json", "{}").header("WWW-Authenticate", "Basic realm=\"x\""))
        }
        "POST" => Some(Response::new(202, "text/plain", "").header("Location", format!("http://{elsewhere}/up?x=1"))),
        "PUT" => Some(Response::new(201, "text/plain", "")),
        _ => None,
    });
    let token = crate::pull::base64(b"u:p");
    let auths = json!({"auths": {target.address(): {"auth": token}, storage.address(): {"auth": token}}});
    env.write("home/.docker/config.json", auths.to_string());
    env.coracle(&["pull", &env.image("busybox")]).ok();
    env.coracle(&["push", &env.image("busybox"), &target.image("x")]).ok();
    assert!(storage.seen().len() >= 2, "{:?}", storage.seen());
    assert_eq!(storage.credentials(), Vec::<String>::new());
    assert_ne!(target.credentials(), Vec::<String>::new());
}

#[test]
fn refusals() {
    require!();
    let env = TestEnv::new();
    env.coracle(&["push", "absent"]).outcome().refused(1).says("no such image");
    let id = env.coracle(&["pull", &env.image("busybox")]).ok();
    env.coracle(&["push", &id]).outcome().refused(1).says("say where");
    let pinned = format!("{}@{id}", env.registry().image("busybox"));
    env.coracle(&["push", &env.image("busybox"), &pinned]).outcome().refused(1).says("push to a tag");
    // A registry that may only be read.
    env.coracle(&["push", &env.image("busybox"), &env.registry().image("new:1")]).outcome().refused(1);
    env.coracle(&["login", "-u", "x", "--password-stdin", "a b"]).stdin("y").outcome().refused(1);
    env.coracle(&["login", "-u", "x"]).outcome().refused(1).says("--password-stdin");
}
