//! The scheduler's pull-through mirror: a pool pulls an image from its registry once, and a mirror that is gone, rotten
//! or a liar costs nobody more than a detour.

use std::collections::BTreeMap;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use crate::env::image::{Image, Layer};
use crate::env::lent::Lent;
use crate::env::mock::{Mock, Response};
use crate::env::registry::Registry;
use crate::env::{TestEnv, wait_until};
use crate::require;

const SLEEPER: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; echo up; sleep 100000 & wait"];

/// A pool with a mirror of a registry.
fn pool(env: TestEnv, registry: &str) -> Lent {
    Lent::among(env, "127.0.0.1", BTreeMap::new(), &[&format!("--mirror={registry}")])
}

/// Lends a machine that asks for an image, and waits until it runs there.
fn pull(lent: &mut Lent, machine: &str, image: &str) {
    lent.lend(machine, &["--network", "none"]);
    ask(lent, machine, machine, image);
    lent.wait_state(machine, "running");
}

/// The files that the mirror keeps under digests, the largest first.
fn kept(lent: &Lent) -> Vec<PathBuf> {
    let folder = lent.env.root().join("central/scheduler/mirror/blobs/sha256");
    let mut files: Vec<_> = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort_by_key(|path| std::cmp::Reverse(fs_err::metadata(path).unwrap().len()));
    files
}

/// What is on its way into the mirror.
fn incoming(lent: &Lent) -> usize {
    fs_err::read_dir(lent.env.root().join("central/scheduler/mirror/incoming")).unwrap().count()
}

/// Asks for a path as a machine's agent does, without its certificate or as somebody else; gives status, head and body.
fn curl(lent: &Lent, who: &str, path: &str, more: &[&str]) -> (u16, String, String) {
    let (header, head) = (lent.env.path("header"), lent.env.path("head"));
    let token = match who {
        "nobody" => String::new(),
        "person" => fs_err::read_to_string(lent.env.path("admin")).unwrap().trim().to_owned(),
        machine => {
            let text = fs_err::read(lent.root(machine).join("provider/membership.json")).unwrap();
            serde_json::from_slice::<serde_json::Value>(&text).unwrap()["token"].as_str().unwrap().to_owned()
        }
    };
    fs_err::write(&header, format!("Authorization: Bearer {token}\n")).unwrap();
    let url = format!("{}{path}", lent.url);
    let run = lent.env.program("curl").args(&["-sS", "--path-as-is", "--max-time", "60", "-w", "\n%{http_code}"]);
    let run = run.args(&["-H", &format!("@{}", header.display()), "-D", &head.display().to_string(), &url, "--cacert"]);
    let said = run.args(&[lent.authority()]).args(more).ok();
    let (body, status) = said.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), fs_err::read_to_string(&head).unwrap().to_lowercase(), body.to_owned())
}

/// Asks for an instance on a machine.
fn ask(lent: &Lent, name: &str, machine: &str, image: &str) {
    let run =
        lent.pool(&["run", "-d", "--name", name, "--stop-timeout", "0", "--constraint", &format!("node=={machine}")]);
    run.args(&[image]).args(&SLEEPER).ok();
}

/// What the mirror has counted.
fn counted(lent: &Lent, name: &str) -> u64 {
    let token = fs_err::read_to_string(lent.env.path("admin")).unwrap();
    let header = format!("Authorization: Bearer {}", token.trim());
    let url = format!("{}/metrics", lent.url);
    let text = lent.env.program("curl").args(&["-sS", "-H", &header, &url, "--cacert"]).args(&[lent.authority()]).ok();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("coracle_mirror_{name} ")).map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// What a machine's owner is told about the mirror.
fn told(lent: &Lent, machine: &str) -> String {
    let log = lent.root(machine).join("events.jsonl");
    let events = fs_err::read_to_string(log).unwrap_or_default();
    events.lines().filter(|line| line.contains("\"action\":\"mirror\"")).collect()
}

#[test]
fn three_providers_pull_an_image_from_its_registry_once() {
    require!("curl");
    let env = TestEnv::new();
    let registry = Registry::anonymous(&env);
    let image = registry.image("busybox");
    let mut lent = pool(env, registry.address());
    let machines = ["one", "two", "three"];
    for machine in machines {
        lent.lend(machine, &["--network", "none"]);
    }
    for machine in machines {
        ask(&lent, machine, machine, &image);
    }
    for machine in machines {
        lent.wait_state(machine, "running");
        assert_eq!(told(&lent, machine), "", "nothing went another way");
    }
    let blobs = registry.requests("GET", "/blobs/");
    assert_eq!(blobs, 2, "configuration and layer, each once: {}", registry.log());
    assert_eq!(registry.requests("GET", "/manifests/"), 1, "{}", registry.log());
    assert!(counted(&lent, "served_bytes_total") > 2 * counted(&lent, "fetched_bytes_total"));
    lent.end_with(|| drop(registry.stop()));
}

#[test]
fn what_was_pulled_outlives_its_registry_its_scheduler_and_rot_on_the_mirrors_disk() {
    require!("curl");
    let env = TestEnv::new();
    let registry = Registry::anonymous(&env);
    let (image, address) = (registry.image("busybox"), registry.address().to_owned());
    let mut lent = pool(env, &address);
    pull(&mut lent, "one", &image);

    // The layer rots: who asks is not given it, asks the registry, and says so; the next one gets a fresh copy.
    let layer = kept(&lent)[0].clone();
    let good = fs_err::read(&layer).unwrap();
    let mut rotten = good.clone();
    rotten[good.len() / 2] ^= 1;
    fs_err::write(&layer, &rotten).unwrap();
    pull(&mut lent, "two", &image);
    assert!(told(&lent, "two").contains("broke off"), "{}", told(&lent, "two"));
    assert!(!layer.exists() && counted(&lent, "damaged_total") == 1);
    pull(&mut lent, "three", &image);
    assert_eq!((told(&lent, "three").as_str(), fs_err::read(&layer).unwrap() == good), ("", true));

    // An owner who says no does not ask.
    let hits = counted(&lent, "hits_total");
    lent.lend("own", &["--network", "none", "--no-mirror"]);
    ask(&lent, "own", "own", &image);
    lent.wait_state("own", "running");
    assert_eq!((counted(&lent, "hits_total"), told(&lent, "own").as_str()), (hits, ""));

    // The registry is gone, the scheduler was killed, and it is a long time ago that the tag was asked for.
    registry.stop();
    lent.kill_scheduler();
    for tag in fs_err::read_dir(lent.env.root().join("central/scheduler/mirror/tags")).unwrap() {
        let path = tag.unwrap().path();
        let mut record: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        record["asked_ms"] = 1.into();
        fs_err::write(&path, record.to_string()).unwrap();
    }
    lent.start_scheduler(&[&format!("--mirror={address}")]);
    pull(&mut lent, "four", &image);
    assert!(told(&lent, "four").contains("is the mirror's word"), "{}", told(&lent, "four"));

    // An owner who goes by names does not take the mirror's word for what one means.
    lent.lend("strict", &["--network", "none", "--allow-image", &address]);
    ask(&lent, "strict", "strict", &image);
    wait_until("the pull fails", || lent.inspect("strict")["reason"].to_string().contains("cannot reach"));
    lent.end();
}

#[test]
fn s12_the_mirror_is_for_members_and_for_the_registries_on_its_list() {
    require!("curl");
    let env = TestEnv::new();
    let registry = Registry::anonymous(&env);
    let address = registry.address().to_owned();
    let mut lent = pool(env, &address);
    lent.lend("one", &["--network", "none"]);
    let identity = lent.root("one").join("provider");
    let (cert, key) =
        (identity.join("agent.crt").display().to_string(), identity.join("agent.key").display().to_string());
    let own = ["--cert", &cert, "--key", &key];
    let of = |path: &str| format!("/v2/{path}?ns={address}");
    let manifest = of("busybox/manifests/latest");

    for (who, more, expect, code) in
        [("nobody", &[][..], 401, "UNAUTHORIZED"), ("person", &[][..], 403, "DENIED"), ("one", &[][..], 403, "DENIED")]
    {
        for path in [manifest.as_str(), "/v2/"] {
            let (status, head, body) = curl(&lent, who, path, more);
            let errors: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!((status, &errors["errors"][0]["code"]), (expect, &code.into()), "{who} {path}: {body}");
            assert!(
                head.contains("content-type: application/json") && (status != 401 || head.contains("www-authenticate"))
            );
        }
    }
    let (status, head, body) = curl(&lent, "one", &manifest, &own);
    assert_eq!(status, 200, "{body}");
    let digest = head.lines().find_map(|line| line.strip_prefix("docker-content-digest: ")).unwrap().trim().to_owned();
    assert_eq!(curl(&lent, "one", &of(&format!("busybox/manifests/{digest}")), &own).2, body);
    let (status, head, _) = curl(&lent, "one", &manifest, &[&own[..], &["-I"]].concat());
    assert!(status == 200 && head.contains(&format!("content-length: {}", body.len())), "{head}");
    let config: serde_json::Value = serde_json::from_str(&body).unwrap();
    let blob = of(&format!("busybox/blobs/{}", config["config"]["digest"].as_str().unwrap()));
    let (_, _, whole) = curl(&lent, "one", &blob, &own);
    let (status, head, part) = curl(&lent, "one", &blob, &[&own[..], &["-r", "5-9"]].concat());
    assert_eq!((status, part.as_str()), (206, &whole[5..10]), "{head}");
    assert_eq!(curl(&lent, "one", &blob, &[&own[..], &["-r", "9999999-"]].concat()).0, 416);

    // Registries that are not on the list are not asked, whatever they are called.
    for other in ["docker.io", "127.0.0.1:1", "169.254.169.254", "localhost", "", "user@127.0.0.1", "..%2F"] {
        let (status, _, body) = curl(&lent, "one", &format!("/v2/busybox/manifests/latest?ns={other}"), &own);
        assert!(status == 404 && body.contains("NAME_UNKNOWN") && body.contains("not among the registries"), "{body}");
    }
    assert!(curl(&lent, "one", "/v2/?ns=docker.io", &own).0 == 404 && curl(&lent, "one", &of(""), &own).0 == 200);
    // Names that are paths lead nowhere.
    let asked = registry.requests("GET", "/v2/");
    let hex = "0".repeat(64);
    for bad in [
        "../manifests/latest".to_owned(),
        "a/../../b/manifests/latest".to_owned(),
        "a%2f..%2fb/manifests/latest".to_owned(),
        "%2e%2e/manifests/latest".to_owned(),
        "busybox/manifests/..".to_owned(),
        "busybox/manifests/%2e%2e".to_owned(),
        "busybox/blobs/sha256:..%2f..%2ftags".to_owned(),
        format!("busybox/blobs/sha256%3A{hex}"),
        format!("busybox/blobs/sha256:{}", &hex[1..]),
        "Busybox/manifests/latest".to_owned(),
        "/busybox/manifests/latest".to_owned(),
        "busybox/tags/list".to_owned(),
        "_catalog".to_owned(),
    ] {
        let (status, _, body) = curl(&lent, "one", &of(&bad), &own);
        assert!([400, 404].contains(&status) && body.contains("errors"), "{bad}: {status} {body}");
    }
    assert_eq!(registry.requests("GET", "/v2/"), asked, "nothing of it was passed on");
    assert_eq!(curl(&lent, "one", &of("busybox/blobs/uploads/"), &[&own[..], &["-X", "POST"]].concat()).0, 405);
    lent.end_with(|| drop(registry.stop()));
}

#[test]
fn f05_a_scheduler_killed_in_the_middle_of_a_fetch_leaves_no_half_blob() {
    require!("curl");
    let env = TestEnv::new();
    let image = Image::new(vec![Layer::busybox().bytes()], &serde_json::json!({}));
    let (blobs, gate) = (image.blobs.clone(), Arc::new((Mutex::new(false), Condvar::new())));
    let opened = Arc::clone(&gate);
    // Half of each large blob comes, and the rest when the gate is open.
    let registry = Mock::with(&[("app", image)], move |request| {
        let (_, digest) = request.path.split_once("/blobs/")?;
        let blob = blobs.get(digest).filter(|blob| blob.len() > 100_000 && request.method == "GET")?;
        let open = opened.0.lock().unwrap();
        let Some(range) = request.headers.get("range").filter(|_| !*open) else {
            let half = if *open { blob.len() } else { blob.len() / 2 };
            let answer = Response::new(200, "application/octet-stream", &blob[..half]);
            return Some(answer.header("Content-Length", blob.len().to_string()));
        };
        drop(opened.1.wait_while(open, |open| !*open).unwrap());
        let from: usize = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
        let part = Response::new(206, "application/octet-stream", &blob[from..]);
        Some(part.header("Content-Range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())))
    });
    let mut lent = pool(env, registry.address());
    lent.lend("one", &["--network", "none"]);
    ask(&lent, "app", "one", &registry.image("app"));
    wait_until("half of the layer is here", || incoming(&lent) == 1);
    lent.kill_scheduler();
    assert_eq!(incoming(&lent), 1, "this is what a kill leaves");
    let whole = |lent: &Lent| {
        let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        kept(lent).iter().all(|path| crate::env::image::digest(&fs_err::read(path).unwrap()).ends_with(&named(path)))
    };
    assert!(whole(&lent), "what has a name is whole");
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    lent.start_scheduler(&[&format!("--mirror={}", registry.address())]);
    assert_eq!(incoming(&lent), 0);
    lent.wait_state("app", "running");
    lent.lend("two", &["--network", "none"]);
    ask(&lent, "again", "two", &registry.image("app"));
    lent.wait_state("again", "running");
    assert_eq!((told(&lent, "two").as_str(), kept(&lent).len(), whole(&lent)), ("", 3, true));
    lent.end_with(|| drop(registry));
}
