//! `cp`, `export` and `diff`, against containers that run and that have ended, honest and hostile.

use std::collections::BTreeMap;
use std::io::Read;

use crate::env::command::Running;
use crate::env::image::{Image, Layer};
use crate::env::mock::Mock;
use crate::env::{Canary, TestEnv, Who};
use crate::require;

/// Runs a script to its end in a container that stays.
fn ended(env: &TestEnv, name: &str, flags: &[&str], script: &str) {
    env.containers_may_stay();
    let busybox = env.image("busybox");
    env.coracle(&["run", "--network", "none", "--name", name])
        .args(flags)
        .args(&[busybox.as_str(), "sh", "-c", script])
        .ok();
}

/// Starts a container that runs a script and then waits to be stopped.
fn running(env: &TestEnv, name: &str, flags: &[&str], script: &str) -> Running {
    let busybox = env.image("busybox");
    let script = format!("trap 'exit 0' TERM\n{script}\necho ready\nwhile :; do sleep 0.1; done");
    let run = env.coracle(&["run", "--rm", "--network", "none", "--name", name]).args(flags);
    let mut running = run.args(&[busybox.as_str(), "sh", "-c", &script]).spawn();
    running.wait_for("ready");
    running
}

fn end(running: Running) {
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait().code(0);
}

fn read(env: &TestEnv, path: &str) -> String {
    fs_err::read_to_string(env.path(path)).unwrap()
}

/// Lists an archive: name to (kind, uid, content).
fn archive(bytes: &[u8]) -> BTreeMap<String, (tar::EntryType, u64, String)> {
    let mut listed = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_end_matches('/').to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let kind = entry.header().entry_type();
        let uid = entry.header().uid().unwrap();
        listed.insert(name, (kind, uid, String::from_utf8_lossy(&content).into_owned()));
    }
    listed
}

/// Goes through docker's table of source and destination; `c` is a container with /d (dir), /f (file), or an instance.
pub fn path_rules(env: &TestEnv, cp: &[&str], c: &str, absent: &str) {
    let cp = |args: &[&str]| env.coracle(cp).args(args);
    let at = |path: &str| format!("{c}:{path}");
    env.write("src/file", "file\n");
    env.write("src/tree/deep/leaf", "leaf\n");
    fs_err::os::unix::fs::symlink("deep/leaf", env.path("src/tree/link")).unwrap();
    let host = |path: &str| env.path(path).display().to_string();
    // Into the container and out of it again.
    cp(&[&host("src/file"), &at("/new")]).ok();
    cp(&[&at("/new"), &host("new")]).ok();
    assert_eq!(read(env, "new"), "file\n");
    cp(&[&host("src/file"), &at("/d")]).ok();
    cp(&[&at("/d/file"), &host("src/again")]).ok();
    cp(&[&host("src/file"), &at("/f")]).ok();
    cp(&[&at("f"), &host("")]).ok();
    assert_eq!(read(env, "f"), "file\n", "a relative path begins at the root");
    cp(&[&host("src/file"), &at("/absent/")]).outcome().refused(1).says("does not exist");
    cp(&[&host("src/file"), &at("/absent/x")]).outcome().refused(1).says("does not exist");
    cp(&[&host("src/file"), &at("/f/")]).outcome().refused(1).says("not a directory");
    cp(&[&host("src/tree"), &at("/f")]).outcome().refused(1).says("not a directory");
    cp(&[&host("src/absent"), &at("/f")]).outcome().refused(1).says("does not exist");
    cp(&[&at("/absent"), &host("x")]).outcome().refused(1).says("does not exist");
    cp(&[&at("/f/."), &host("x")]).outcome().refused(1).says("directory");
    // A directory: into one that is there, its content only, or under a new name.
    cp(&[&host("src/tree"), &at("/d")]).ok();
    cp(&[&host("src/tree/."), &at("/d")]).ok();
    cp(&[&host("src/tree"), &at("/fresh")]).ok();
    cp(&[&at("/d"), &host("out")]).ok();
    for path in ["out/tree/deep/leaf", "out/deep/leaf", "out/link", "out/tree/link"] {
        assert_eq!(read(env, path), "leaf\n", "{path}");
    }
    cp(&[&at("/fresh/."), &host("out2")]).ok();
    cp(&[&at("/fresh"), &host("out")]).ok();
    assert_eq!((read(env, "out2/deep/leaf"), read(env, "out/fresh/deep/leaf")), ("leaf\n".into(), "leaf\n".into()));
    // Links: copied as such, followed with -L, followed at the destination.
    cp(&[&at("/fresh/link"), &host("link")]).ok();
    assert_eq!(fs_err::read_link(env.path("link")).unwrap().to_str(), Some("deep/leaf"));
    cp(&["-L", &at("/fresh/link"), &host("followed")]).ok();
    assert_eq!(read(env, "followed"), "leaf\n");
    cp(&[&host("src/file"), &at("/fresh/link")]).ok();
    cp(&[&at("/fresh/deep/leaf"), &host("through")]).ok();
    assert_eq!(read(env, "through"), "file\n");
    // Archives.
    let bytes = cp(&[&at("/fresh"), "-"]).outcome();
    bytes.code(0);
    let listed = archive(&bytes.stdout);
    assert_eq!(listed["fresh/deep/leaf"].2, "file\n");
    assert_eq!(listed["fresh/link"].0, tar::EntryType::Symlink);
    cp(&["-", &at("/d/deep")]).stdin(bytes.stdout.clone()).ok();
    cp(&[&at("/d/deep/fresh/deep/leaf"), &host("unpacked")]).ok();
    assert_eq!(read(env, "unpacked"), "file\n");
    cp(&["-", &at("/f")]).stdin(bytes.stdout).outcome().refused(1).says("not a directory");
    cp(&["-", &at("/d")]).stdin("this is no archive at all".repeat(40)).outcome().refused(1);
    cp(&[&at("/f"), &at("/g")]).outcome().refused(1).says("not implemented");
    cp(&[&host("f"), &host("g")]).outcome().refused(1).says("not implemented");
    cp(&["absent:/f", &host("g")]).outcome().refused(1).says(absent);
}

#[test]
fn docker_s_path_rules_with_a_container_that_has_ended() {
    require!();
    let env = TestEnv::new();
    ended(&env, "c", &[], "mkdir /d; echo old >/f; mkfifo /pipe");
    path_rules(&env, &["cp"], "c", "no such container");
}

#[test]
fn docker_s_path_rules_with_a_container_that_runs() {
    require!();
    let env = TestEnv::new();
    let container = running(&env, "c", &[], "mkdir /d; echo old >/f");
    path_rules(&env, &["cp"], "c", "no such container");
    end(container);
}

#[test]
fn owners_modes_volumes_and_read_only_places() {
    require!();
    let env = TestEnv::new();
    env.write("f", "from the host\n");
    crate::env::set_mode(&env.path("f"), 0o640);
    let file = env.path("f").display().to_string();
    ended(
        &env,
        "c",
        &["-v", "data:/data", "-v", "ro:/ro:ro"],
        "cp /bin/true /suid; chmod 4755 /suid; echo in >/data/x",
    );
    env.coracle(&["cp", &file, "c:/mine"]).ok();
    env.coracle(&["cp", &file, "c:/data/given"]).ok();
    env.coracle(&["cp", &file, "c:/ro/x"]).outcome().refused(1).says("read-only file system");
    let listed = archive(&env.coracle(&["cp", "c:/mine", "-"]).outcome().stdout);
    assert_eq!(listed["mine"].1, 0, "root's, as docker does");
    env.coracle(&["cp", "c:/data", &env.path("vol").display().to_string()]).ok();
    assert_eq!((read(&env, "vol/x"), read(&env, "vol/given")), ("in\n".into(), "from the host\n".into()));
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    env.coracle(&["cp", "c:/suid", &env.path("suid").display().to_string()]).ok();
    let copy = fs_err::metadata(env.path("suid")).unwrap();
    assert_eq!(copy.permissions().mode() & 0o7777, 0o755, "a container's setuid bit does not become the caller's");
    assert_eq!(copy.uid(), nix::unistd::getuid().as_raw());
    if env.who() == Who::Ranges {
        env.coracle(&["cp", "-a", &file, "c:/kept"]).ok();
        let listed = archive(&env.coracle(&["cp", "c:/kept", "-"]).outcome().stdout);
        assert_eq!(listed["kept"].1, u64::from(nix::unistd::getuid().as_raw()));
    }
    env.coracle(&["run", "--network", "none", "--name", "frozen", "--read-only", &env.image("busybox"), "true"]).ok();
    env.coracle(&["cp", &file, "frozen:/x"]).outcome().refused(1).says("read-only file system");
}

#[test]
fn export_has_everything_but_what_is_mounted_and_diff_says_what_changed() {
    require!();
    let env = TestEnv::new();
    let script = "echo new >/new; ln /new /hard; echo x >>/etc/passwd; rm /bin/wc; rm -r /var; mkdir -p /a/b; \
                  mknod /pipe p; ln -s /new /link; echo v >/data/v; chmod 700 /tmp";
    ended(&env, "c", &["-v", "data:/data"], script);
    let changes = env.coracle(&["diff", "c"]).ok();
    let mut expect = vec![
        "A /a",
        "A /a/b",
        "A /data",
        "A /hard",
        "A /link",
        "A /new",
        "A /pipe",
        "C /bin",
        "C /etc",
        "C /etc/passwd",
        "C /tmp",
        "D /bin/wc",
        "D /var",
    ];
    // An empty mount point is no change of the container's.
    expect.retain(|line| *line != "A /data");
    let mut listed: Vec<&str> = changes.lines().collect();
    listed.sort_unstable();
    assert_eq!(listed, expect);
    let outcome = env.coracle(&["export", "c"]).outcome();
    outcome.code(0);
    let files = archive(&outcome.stdout);
    assert_eq!(files["new"].2.clone() + &files["hard"].2, "new\n", "one of them is a link to the other");
    assert_eq!(files["link"].0, tar::EntryType::Symlink);
    assert_eq!(files["pipe"].0, tar::EntryType::Fifo);
    assert!(files.contains_key("data") && !files.contains_key("data/v") && !files.contains_key("bin/wc"));
    env.coracle(&["export", "-o", &env.path("c.tar").display().to_string(), "c"]).ok();
    assert_eq!(archive(&fs_err::read(env.path("c.tar")).unwrap()).len(), files.len());
    // Debian's tar agrees about every entry.
    let list = env.program("tar").args(&["-tf", &env.path("c.tar").display().to_string()]).ok();
    assert_eq!(list.lines().filter(|line| *line != "./").count(), files.len());
    let container = running(&env, "r", &["-v", "data:/data"], "echo run >/run-file");
    let outcome = env.coracle(&["export", "r"]).outcome();
    outcome.code(0);
    let files = archive(&outcome.stdout);
    assert_eq!(files["run-file"].2, "run\n");
    assert!(files.contains_key("proc") && files.keys().all(|name| !name.starts_with("proc/") && *name != "data/v"));
    assert_eq!(env.coracle(&["diff", "r"]).ok(), "A /run-file");
    end(container);
}

#[test]
fn a41_a_process_that_swaps_directories_for_links_reaches_nothing_outside() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    let target = canary.dir().display().to_string();
    // Busybox has no rename of two: a link takes the directory's place and back again.
    let script = format!(
        "mkdir -p /d/dir /keep; echo inside >/d/file; echo inside >/d/dir/file; \
         (while :; do mv /d /keep/d; ln -s {target} /d; rm /d; mv /keep/d /d; done) & "
    );
    let container = running(&env, "c", &[], &script);
    env.write("payload/file", "payload\n");
    env.write("payload/dir/file", "payload\n");
    let payload = format!("{}/.", env.path("payload").display());
    let mut good = 0;
    for round in 0..60 {
        let out = env.path(format!("out{round}"));
        if env.coracle(&["cp", "c:/d", &out.display().to_string()]).outcome().code == 0 {
            good += 1;
        }
        let outcome = env.coracle(&["cp", "c:/d/file", "-"]).outcome();
        assert!(!String::from_utf8_lossy(&outcome.stdout).contains("canary file"), "the canary was read");
        env.coracle(&["cp", &payload, "c:/d"]).outcome();
        // A link in the container is a link here, and leads where it says.
        for file in ["file", "dir/file", "passwd"].iter().filter(|_| !out.is_symlink()) {
            let text = fs_err::read_to_string(out.join(file)).unwrap_or_default();
            assert!(!text.contains("canary"), "round {round}: {file} of the host was read");
        }
    }
    assert!(good > 0, "the test would pass without copying anything");
    canary.assert_untouched();
    end(container);
}

#[test]
fn a42_export_and_diff_under_a_process_that_swaps_files_end_and_read_nothing_outside() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    let target = canary.dir().display().to_string();
    let script = format!(
        "mkdir /s; (while :; do echo x >/s/f; rm -f /s/f; ln -s {target}/file /s/f; rm -f /s/f; mkfifo /s/f; rm -f /s/f; \
         mkdir /s/f; rmdir /s/f; ln -s {target} /s/f; rm -f /s/f; done) & "
    );
    let container = running(&env, "c", &[], &script);
    for _ in 0..25 {
        for command in [["export", "c"], ["diff", "c"]] {
            let outcome = env.coracle(&command).time_limit(30).outcome();
            outcome.code(0);
            assert!(!String::from_utf8_lossy(&outcome.stdout).contains("canary file\n"), "host content in the archive");
        }
    }
    canary.assert_untouched();
    end(container);
}

#[test]
fn a40_programs_and_libraries_of_the_image_are_not_used() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let trap = b"#!/bin/sh\ntouch /trapped\n";
    let mut layer = Layer::new().dir("usr", 0o755).dir("usr/bin", 0o755).dir("lib", 0o755);
    for name in ["usr/bin/tar", "usr/bin/gzip", "usr/bin/unpigz", "usr/bin/xz", "usr/bin/zstd", "lib/libnss_files.so.2"]
    {
        layer = layer.file(name, 0o755, trap);
    }
    let layer = layer.file("etc/ld.so.preload", 0o644, b"/lib/libnss_files.so.2\n");
    let registry = Mock::serving(&[("trojan", Image::hostile(layer, &serde_json::json!({})))]);
    env.coracle(&["run", "--network", "none", "--name", "c", &registry.image("trojan"), "true"]).ok();
    env.write("f", "x");
    env.coracle(&["cp", &env.path("f").display().to_string(), "c:/f"]).ok();
    env.coracle(&["cp", "c:/usr", &env.path("usr").display().to_string()]).ok();
    let files = archive(&env.coracle(&["export", "c"]).outcome().stdout);
    assert!(files.contains_key("f") && !files.contains_key("trapped"));
    assert_eq!(env.coracle(&["diff", "c"]).ok(), "A /f");
    assert!(!std::path::Path::new("/trapped").exists());
}
