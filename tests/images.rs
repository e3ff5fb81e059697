//! Commands about images that are here, and archives in both directions, checked against skopeo.

use serde_json::Value;

use crate::env::{TestEnv, fixtures};
use crate::require;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn list(env: &TestEnv) -> Vec<(String, String)> {
    let rows = env.coracle(&["images", "--format", "json"]).ok();
    let mut names: Vec<_> = rows
        .lines()
        .map(json)
        .map(|row| (row["Repository"].as_str().unwrap().to_owned(), row["Tag"].as_str().unwrap().to_owned()))
        .collect();
    names.sort();
    names
}

/// Gives what `skopeo inspect` says.
fn skopeo(env: &TestEnv, flags: &[&str], image: &str) -> Value {
    json(&env.program("skopeo").args(&["inspect"]).args(flags).args(&[image]).ok())
}

#[test]
fn an_empty_store_lists_nothing() {
    let env = TestEnv::new();
    assert_eq!(env.coracle(&["images", "--format", "json"]).ok(), "");
    let table = env.coracle(&["images"]).ok();
    assert_eq!(table.split_whitespace().collect::<Vec<_>>(), ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]);
    assert_eq!(env.coracle(&["images", "-q"]).ok(), "");
}

#[test]
fn tag_and_rmi() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let repository = format!("{}/busybox", env.registry().address());
    env.coracle(&["tag", &image, "mine"]).ok();
    env.coracle(&["tag", "mine", "some.example/team/box:v1"]).ok();
    let names = list(&env);
    assert_eq!(
        names,
        [
            (repository.clone(), "latest".to_owned()),
            ("mine".to_owned(), "latest".to_owned()),
            ("some.example/team/box".to_owned(), "v1".to_owned()),
        ]
    );
    assert_eq!(env.container(&["mine", "echo", "short name"]).ok(), "short name");
    let id = env.coracle(&["images", "-q", "mine"]).ok();
    assert_eq!(env.container(&[&id, "echo", "id"]).ok(), "id");
    assert_eq!(env.container(&[&id[..6], "echo", "prefix"]).ok(), "prefix");

    let removed = env.coracle(&["rmi", "mine"]).ok();
    assert!(removed.contains("Untagged: ") && !removed.contains("Deleted: "), "{removed}");
    env.coracle(&["rmi", &image]).ok();
    let removed = env.coracle(&["rmi", "some.example/team/box:v1"]).ok();
    assert!(removed.contains("Deleted: sha256:"), "{removed}");
    assert_eq!(list(&env), []);
    let blobs = fs_err::read_dir(env.root().join("images/blobs/sha256")).unwrap().count();
    assert_eq!(blobs, 0, "blobs of a removed image are left");
    let layers: Vec<_> = walk_layers(&env);
    assert!(layers.is_empty(), "layers of a removed image are left: {layers:?}");
    env.coracle(&["rmi", "mine"]).outcome().refused(1).says("mine");
    env.coracle(&["rmi", "-f", "mine"]).outcome().code(0);
    env.coracle(&["rmi", "mine", "yours"]).outcome().code(1).says("mine").says("yours");
}

/// Lists unpacked layers in every space.
fn walk_layers(env: &TestEnv) -> Vec<std::path::PathBuf> {
    let Ok(spaces) = fs_err::read_dir(env.root().join("layers")) else {
        return Vec::new();
    };
    let dirs = spaces.flatten().filter(|entry| entry.path().is_dir());
    dirs.flat_map(|space| fs_err::read_dir(space.path()).unwrap().flatten()).map(|entry| entry.path()).collect()
}

#[test]
fn removing_one_image_keeps_what_another_shares() {
    require!();
    let env = TestEnv::new();
    env.coracle(&["pull", &env.image("python3")]).ok();
    env.coracle(&["pull", &env.image("nginx")]).ok();
    env.coracle(&["rmi", &env.image("python3")]).ok();
    let layers =
        walk_layers(&env).into_iter().filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'));
    assert_eq!(layers.count(), 2);
    env.container(&[&env.image("nginx"), "nginx", "-v"]).ok();
}

#[test]
fn an_image_with_several_names_is_not_removed_by_id_without_force() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let id = env.coracle(&["pull", &image]).ok();
    env.coracle(&["tag", &image, "mine"]).ok();
    env.coracle(&["rmi", &id]).outcome().refused(1);
    assert_eq!(list(&env).len(), 2);
    env.coracle(&["rmi", "--force", &id]).ok();
    assert_eq!(list(&env), []);
}

#[test]
fn an_image_in_use_is_not_removed() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let mut run = env.container(&["--init", &image, "sh", "-c", "echo ready; sleep 1000"]).spawn();
    run.wait_for("ready");
    env.coracle(&["rmi", &image]).outcome().refused(1);
    run.signal(nix::sys::signal::Signal::SIGTERM);
    run.wait();
    env.coracle(&["rmi", &image]).ok();
}

#[test]
fn inspect_and_history_say_what_the_image_says() {
    require!("skopeo");
    let env = TestEnv::new();
    let image = env.image("config");
    let id = env.coracle(&["pull", &image]).ok();
    let all = json(&env.coracle(&["inspect", &image]).ok());
    let info = &all[0];
    assert_eq!(info["Id"], id);
    assert_eq!(info["Os"], "linux");
    assert_eq!(info["Architecture"], "amd64");
    assert_eq!(info["Config"]["Cmd"], serde_json::json!(["one", "two"]));
    assert_eq!(info["Config"]["Entrypoint"], serde_json::json!(["/bin/echo", "entry"]));
    assert_eq!(info["Config"]["User"], "tester");
    let theirs = skopeo(&env, &["--config", "--tls-verify=false"], &format!("docker://{image}"));
    assert_eq!(info["RootFS"]["Layers"], theirs["rootfs"]["diff_ids"]);
    assert_eq!(info["Config"]["Labels"], theirs["config"]["Labels"]);
    let history = env.coracle(&["history", "--format", "json", &image]).ok();
    assert_eq!(history.lines().map(json).count(), theirs["history"].as_array().unwrap().len());
    assert!(env.coracle(&["history", &image]).ok().starts_with("IMAGE"), "docker's table");
    let nothing = env.coracle(&["inspect", "nothing-here"]).outcome();
    assert_eq!(nothing.code(1).is_clear().says("no such object: nothing-here").text(), "[]", "as docker");
    env.coracle(&["history", "nothing-here"]).outcome().refused(1).says("nothing-here");
}

/// Finds the name under which index.json lists an image.
fn name_in_layout(env: &TestEnv) -> String {
    let index = json(&fs_err::read_to_string(env.root().join("images/index.json")).unwrap());
    let names: Vec<&Value> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|manifest| &manifest["annotations"]["org.opencontainers.image.ref.name"])
        .collect();
    names.iter().find_map(|name| name.as_str()).unwrap_or_else(|| panic!("{index}")).to_owned()
}

#[test]
fn the_store_is_a_layout_that_skopeo_and_umoci_read() {
    require!("skopeo", "umoci");
    let env = TestEnv::new();
    for name in ["python3", "busybox:schema2", "busybox:zstd"] {
        let image = env.image(name);
        env.coracle(&["pull", &image]).ok();
        let layout = env.root().join("images");
        let name = name_in_layout(&env);
        let inspected = skopeo(&env, &[], &format!("oci:{}:{name}", layout.display()));
        assert_eq!(inspected["Architecture"], "amd64");
        let validated = env.path("copied");
        let copy = ["--insecure-policy", "copy", "-q"];
        let (from, to) = (format!("oci:{}:{name}", layout.display()), format!("dir:{}", validated.display()));
        env.program("skopeo").args(&copy).args(&[from, to]).ok();
        if !image.ends_with("schema2") && !image.ends_with("zstd") {
            let tags = env.program("umoci").args(&["ls", "--layout"]).args(&[&layout]).ok();
            assert!(tags.contains(&name), "{tags}");
            let stat =
                env.program("umoci").args(&["stat", "--json", "--image", &format!("{}:{name}", layout.display())]).ok();
            assert!(json(&stat)["history"].is_array());
        }
        env.coracle(&["rmi", &image]).ok();
        fs_err::remove_dir_all(validated).unwrap();
    }
}

#[test]
fn save_is_what_skopeo_expects() {
    require!("skopeo");
    let env = TestEnv::new();
    let image = env.image("python3");
    let id = env.coracle(&["pull", &image]).ok();
    for (format, transport) in
        [("docker-archive", "docker-archive"), ("oci-archive", "oci-archive"), ("oci-dir", "oci")]
    {
        let file = env.path(format);
        let output = file.display().to_string();
        env.coracle(&["save", "--format", format, "-o", &output, &image]).ok();
        let raw =
            env.program("skopeo").args(&["inspect", "--config", "--raw", &format!("{transport}:{output}")]).outcome();
        raw.code(0);
        assert_eq!(crate::env::image::digest(&raw.stdout), id, "{format}: another configuration");
        let copy = env.path("copy");
        let target = format!("dir:{}", copy.display());
        env.program("skopeo")
            .args(&["--insecure-policy", "copy", "-q", &format!("{transport}:{output}"), &target])
            .ok();
        fs_err::remove_dir_all(copy).unwrap();
        // And back, into a store that has nothing.
        let other = env.path("other-root").display().to_string();
        let loaded = env.coracle(&["--root", &other, "load", "-i", &output]).ok();
        assert!(loaded.starts_with("Loaded image"), "{format}: {loaded}");
        assert_eq!(env.coracle(&["--root", &other, "images", "-q", "--no-trunc"]).ok(), id, "{format}");
        let ran =
            env.container(&["--pull", "never", &id, "python3", "-c", "print(1)"]).env("CORACLE_ROOT", &other).ok();
        assert_eq!(ran, "1", "{format}");
        crate::env::leak::remove_tree(other.as_ref());
    }
}

#[test]
fn save_goes_to_a_pipe_but_not_to_a_terminal() {
    require!("skopeo");
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let archive = env.coracle(&["save", &image]).outcome();
    archive.code(0);
    assert!(archive.stdout.len() > 1 << 20, "{}", archive.stdout.len());
    let other = env.path("other-root");
    let loaded = env.coracle(&["load"]).stdin(archive.stdout.clone()).env("CORACLE_ROOT", &other).ok();
    assert!(loaded.contains("busybox:latest"), "{loaded}");
    crate::env::leak::remove_tree(&other);
    let coracle = fixtures::coracle().display().to_string();
    let mut terminal = crate::env::terminal::Terminal::start(&env, 80, 24, &coracle, &["save", &image]);
    assert_eq!(terminal.exit_code(), 1);
    terminal.expect("error: ");
}

#[test]
fn load_takes_what_skopeo_writes() {
    require!("skopeo");
    let env = TestEnv::new();
    let layout = fixtures::images().unwrap().join("layout");
    for (transport, tag) in [("docker-archive", ":loaded:v1"), ("oci-archive", ":v1"), ("oci", ":v1")] {
        let file = env.path(format!("made-{transport}"));
        let target = format!("{transport}:{}{tag}", file.display());
        let from = format!("oci:{}:python3", layout.display());
        env.program("skopeo").args(&["--insecure-policy", "copy", "-q", &from, &target]).ok();
        let loaded = env.coracle(&["load", "-i", &file.display().to_string(), "--tag", "loaded:v1"]).ok();
        assert!(loaded.contains("loaded:v1"), "{transport}: {loaded}");
        assert_eq!(env.container(&["--pull", "never", "loaded:v1", "python3", "-c", "print(2)"]).ok(), "2");
        env.coracle(&["rmi", "loaded:v1"]).ok();
    }
    let garbage = env.write("garbage.tar", vec![7_u8; 4096]);
    env.coracle(&["load", "-i", &garbage.display().to_string()]).outcome().refused(1).says("garbage.tar");
    env.coracle(&["load", "-i", "/no/such/file"]).outcome().refused(1).says("/no/such/file");
}

#[test]
fn bad_names_are_refused_everywhere() {
    let env = TestEnv::new();
    for bad in [
        "",
        "UPPER",
        "a//b",
        "a:b:c",
        "-x/y",
        "x@sha256:bad",
        "http://x/y",
        "a/../b",
        &"x".repeat(300),
        "x:..",
        "host:99999/x",
    ] {
        for command in [&["pull", "--"][..], &["tag", "--", "x"], &["run", "--rm", "--"]] {
            let outcome = env.coracle(command).args(&[bad]).outcome();
            assert_ne!(outcome.code, 0, "{outcome}");
            outcome.is_clear();
        }
    }
}
