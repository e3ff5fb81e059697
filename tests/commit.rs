//! `commit` and `import`: what comes out is an image that coracle, skopeo and umoci agree about.

use serde_json::{Value, json};

use crate::env::registry::RegistryOptions;
use crate::env::{Canary, Registry, TestEnv, Who, fixtures, poll};
use crate::require;

fn inspect(env: &TestEnv, image: &str) -> Value {
    let all: Value = serde_json::from_str(&env.coracle(&["inspect", image]).ok()).unwrap();
    all[0].clone()
}

/// Runs a script to its end in a container that stays.
fn ended(env: &TestEnv, name: &str, flags: &[&str], image: &str, script: &str) {
    env.containers_may_stay();
    let run = env.coracle(&["run", "--network", "none", "--name", name]).args(flags);
    run.args(&[image, "sh", "-c", script]).ok();
}

#[test]
fn changes_of_a_container_become_a_layer_that_others_read() {
    require!("skopeo", "umoci");
    let env = TestEnv::new();
    let script = "echo new >/new; chown 7:8 /new; ln /new /hard; ln -s /new /link; rm /bin/wc; rm -r /var; \
                  mkdir /var; echo fresh >/var/only; mkdir -p /deep/er; chmod 700 /tmp; echo v >/vol/x";
    ended(&env, "c", &["-v", "data:/vol", "-e", "ADDED=1", "-w", "/tmp"], &env.image("busybox"), script);
    let id = env
        .coracle(&[
            "commit",
            "-a",
            "Me <me@example>",
            "-m",
            "a message",
            "-c",
            "CMD [\"cat\", \"/new\"]",
            "-c",
            "ENV X=\"y z\"",
        ])
        .args(&["-c", "EXPOSE 80", "-c", "LABEL mine=yes", "c", "made:v1"])
        .ok();
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    let image = inspect(&env, "made:v1");
    assert_eq!((&image["Author"], &image["Config"]["Cmd"]), (&json!("Me <me@example>"), &json!(["cat", "/new"])));
    let environment = image["Config"]["Env"].to_string();
    assert!(environment.contains("ADDED=1") && environment.contains("X=y z"), "{environment}");
    assert!(!environment.contains("HOSTNAME"), "{environment}");
    assert_eq!(image["Config"]["Labels"]["mine"], "yes");
    assert_eq!(image["Config"]["WorkingDir"], "/tmp");
    assert!(env.coracle(&["history", "made:v1"]).ok().contains("a message"));
    // What coracle sees in it, mounted as layers.
    assert_eq!(env.container(&["made:v1"]).ok(), "new");
    let look = "stat -c '%u:%g %a %n' /new /tmp; readlink /link; ls -A /var; test -e /vol || test -e /bin/wc || echo gone; \
                test /new -ef /hard && echo same";
    let owner = if env.who() == Who::Single { "0:0" } else { "7:8" };
    let expect = format!("{owner} 644 /new\n0:0 700 /tmp\n/new\nonly\ngone\nsame");
    assert_eq!(env.container(&["made:v1", "sh", "-c", look]).ok(), expect);
    // What umoci makes of it: its own reading of whiteouts.
    let layout = format!("{}:made", env.root().join("images").display());
    let layout = layout.replace(":made", ":docker.io/library/made:v1");
    let copy = env.path("copy");
    let source = format!("oci:{layout}");
    env.program("skopeo").args(&["copy", &source, &format!("oci:{}:made", copy.display())]).ok();
    if env.who() != Who::Single {
        let bundle = env.path("bundle");
        let mut unpack = env.program("umoci").args(&["unpack", "--image", &format!("{}:made", copy.display())]);
        if env.who() == Who::Ranges {
            unpack = unpack.args(&["--rootless"]);
        }
        unpack.args(&[&bundle]).ok();
        let root = bundle.join("rootfs");
        assert_eq!(fs_err::read_to_string(root.join("new")).unwrap(), "new\n");
        assert!(!root.join("bin/wc").exists() && root.join("var/only").exists() && !root.join("vol/x").exists());
        assert_eq!(fs_err::read_dir(root.join("var")).unwrap().count(), 1, "the opaque directory hides what was below");
    }
    // And once more on top of it.
    ended(&env, "d", &[], "made:v1", "echo two >/two; rm /new");
    env.coracle(&["commit", "d", "made:v2"]).ok();
    assert_eq!(
        env.container(&["made:v2", "sh", "-c", "cat /two; ls /new 2>/dev/null || echo none; cat /hard"]).ok(),
        "two\nnone\nnew"
    );
}

#[test]
fn a_commit_is_pushed_and_pulled_again() {
    require!("skopeo");
    let env = TestEnv::new();
    let target = Registry::start(&env, RegistryOptions { empty: true, ..RegistryOptions::default() });
    ended(&env, "c", &[], &env.image("busybox"), "echo traveller >/t");
    let name = target.image("mine:1");
    env.coracle(&["commit", "c", &name]).ok();
    let said = env.coracle(&["push", &name]).ok();
    let digest = said.split_whitespace().nth(2).unwrap();
    let seen = env
        .program("skopeo")
        .args(&["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &format!("docker://{name}")])
        .ok();
    assert_eq!(seen, digest);
    env.coracle(&["rm", "c"]).ok();
    env.coracle(&["rmi", "-f", &name]).ok();
    assert_eq!(env.container(&[&name, "cat", "/t"]).ok(), "traveller");
}

/// Puts bytes into a frame of RFC 8878 whose blocks are not compressed.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    // A magic number, no content size, a window of 1 MiB.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x50];
    let blocks: Vec<&[u8]> = bytes.chunks(128 << 10).collect();
    for (place, block) in blocks.iter().enumerate() {
        let last = u32::from(place + 1 == blocks.len());
        let header = u32::try_from(block.len() << 3).unwrap() | last;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}

#[test]
fn import_makes_an_image_of_an_export_however_it_is_compressed() {
    require!();
    let env = TestEnv::new();
    ended(&env, "c", &[], &env.image("busybox"), "echo exported >/e; chown 5:6 /e; true");
    let tar = env.coracle(&["export", "c"]).outcome();
    tar.code(0);
    let file = env.write("c.tar", &tar.stdout).display().to_string();
    env.coracle(&["import", "-c", "CMD [\"cat\", \"/e\"]", "-m", "from a file", &file, "imported:plain"]).ok();
    assert_eq!(env.container(&["imported:plain"]).ok(), "exported");
    assert!(env.coracle(&["history", "imported:plain"]).ok().contains("from a file"));
    env.coracle(&["import", "-", "imported:gzip"]).stdin(crate::env::image::gzip(&tar.stdout)).ok();
    let owner = if env.who() == Who::Single { "0:0" } else { "5:6" };
    assert_eq!(env.container(&["imported:gzip", "stat", "-c", "%u:%g", "/e"]).ok(), owner);
    let image = inspect(&env, "imported:gzip");
    assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 1);
    env.coracle(&["import", "-", "imported:zstd"]).stdin(zstd(&tar.stdout)).ok();
    assert_eq!(env.container(&["imported:zstd", "cat", "/e"]).ok(), "exported");
    env.coracle(&["import", "-"]).stdin(tar.stdout.clone()).ok();
    env.coracle(&["import", "-", "bad:1"]).stdin(b"BZh91AY".to_vec()).outcome().refused(1).says("bzip2");
    env.coracle(&["import", "-", "bad:1"])
        .stdin("no archive, and long enough for a header".repeat(40))
        .outcome()
        .refused(1);
    env.coracle(&["import", "http://127.0.0.1:1/x.tar"]).outcome().refused(1).says("URL");
    env.coracle(&["import", "-c", "RUN x", &file, "bad:1"]).outcome().refused(1).says("RUN");
    env.coracle(&["run", "--rm", "bad:1"]).outcome();
    assert!(!env.coracle(&["images"]).ok().contains("bad"), "half an image is left");
    env.coracle(&["commit", "absent"]).outcome().refused(1).says("no such container");
}

#[test]
fn a42_a_commit_under_a_process_that_swaps_files_has_nothing_of_the_host() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    let target = canary.dir().display().to_string();
    let script = format!(
        "trap 'exit 0' TERM\nmkdir /s\n(while :; do echo x >/s/f; rm -f /s/f; ln -s {target}/file /s/f; rm -f /s/f; mkfifo /s/f; rm -f /s/f; \
         mkdir /s/f; rmdir /s/f; ln -s {target} /s/f; rm -f /s/f; done) &\necho ready\nwhile :; do sleep 0.1; done"
    );
    let run =
        env.coracle(&["run", "--rm", "--network", "none", "--name", "c", &env.image("busybox"), "sh", "-c", &script]);
    let mut running = run.spawn();
    running.wait_for("ready");
    for round in 0..8 {
        let name = format!("swapped:{round}");
        env.coracle(&["commit", "-q", "c", &name]).ok();
        let seen = env.container(&[&name, "sh", "-c", "test -f /s/f && cat /s/f; true"]).ok();
        assert!(seen.is_empty() || seen == "x", "{seen}");
    }
    canary.assert_untouched();
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait();
}

#[test]
fn a_commit_pauses_or_says_that_it_cannot() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["run", "-d", "--name", "c", "--network", "none", &image, "sleep", "1000"]).ok();
    let note = "note: container c runs on meanwhile: it has no cgroup that could be frozen";
    let default = env.coracle(&["commit", "c", "paused:1"]).outcome();
    let asked = env.coracle(&["commit", "--pause", "c", "paused:2"]).outcome();
    default.code(0);
    if env.coracle(&["pause", "c"]).outcome().code == 0 {
        env.coracle(&["unpause", "c"]).ok();
        assert_eq!(default.stderr.trim(), "");
        asked.code(0);
        assert_eq!(env.coracle(&["exec", "c", "echo", "goes on"]).ok(), "goes on");
    } else {
        assert_eq!(default.stderr.trim(), note);
        asked.error(1, "error: container c has no cgroup that could be frozen");
        assert!(!env.coracle(&["images"]).ok().contains("paused:2"), "half an image is left");
    }
    assert_eq!(env.coracle(&["commit", "--pause=false", "c", "paused:3"]).outcome().code(0).stderr.trim(), "");
    env.coracle(&["rm", "-f", "c"]).ok();
}

#[test]
fn a_commit_that_is_killed_leaves_a_store_that_works() {
    require!();
    let env = TestEnv::new();
    ended(&env, "c", &[], &env.image("busybox"), "dd if=/dev/urandom of=/noise bs=1M count=12 2>/dev/null; echo x >/x");
    for round in 0..8_u32 {
        let name = format!("killed:{round}");
        let mut running = env.coracle(&["commit", "c", &name]).spawn();
        // From the first moment to some time after the last.
        if !poll(std::time::Duration::from_millis(u64::from(round) * 60), || running.has_ended()) {
            running.signal(nix::sys::signal::Signal::SIGKILL);
        }
        running.wait();
        let here = env.coracle(&["images", "-q", &name]).ok();
        if !here.is_empty() {
            assert_eq!(env.container(&[&name, "cat", "/x"]).ok(), "x", "an image that is listed is whole");
        }
    }
    env.coracle(&["commit", "c", "whole:1"]).ok();
    assert_eq!(env.container(&["whole:1", "sh", "-c", "wc -c </noise"]).ok(), (12 << 20).to_string());
    let partial: Vec<_> = fs_err::read_dir(env.root().join("images/partial")).unwrap().flatten().collect();
    assert!(partial.iter().all(|entry| !entry.file_name().to_string_lossy().contains("commit")), "{partial:?}");
}

#[test]
fn a_root_that_was_copied_is_compared_and_committed_whole() {
    require!("unshare");
    let env = TestEnv::new();
    let image = env.image("busybox");
    // An overlay on an overlay on an overlay is one too many (FILESYSTEM_MAX_STACK_DEPTH), so the image is copied there.
    let script = "mkdir a au aw am bu bw bm
        mount -t overlay o -o lowerdir=a,upperdir=au,workdir=aw,userxattr am
        mkdir am/x
        mount -t overlay o -o lowerdir=am,upperdir=bu,workdir=bw,userxattr bm
        coracle() { \"$CORACLE\" --root \"$PWD/bm/root\" \"$@\"; }
        run() { coracle run --userns=single --network=none \"$@\"; }
        run --name c \"$IMAGE\" sh -c 'echo new >/etc/new; rm /bin/wc; echo x >>/etc/passwd; rm -r /var; touch /bin/busybox'
        coracle diff c
        coracle commit c made:v1 >id
        run --rm made:v1 sh -c 'cat /etc/new; tail -n 1 /etc/passwd; ls /bin/wc /var 2>/dev/null | wc -l'
        coracle inspect --format '{{len .RootFS.Layers}}' made:v1
        coracle rm c >id";
    let place = env.path("stack");
    fs_err::create_dir_all(&place).unwrap();
    let run = env.program("unshare").args(&["-Urm", "sh", "-ec", script]).directory(&place);
    let outcome = run.env("CORACLE", fixtures::coracle()).env("IMAGE", &image).outcome();
    outcome.says("so the image is copied").says("the image has one layer with everything in it");
    let changes = "C /bin\nC /bin/busybox\nD /bin/wc\nC /etc\nA /etc/new\nC /etc/passwd\nD /var";
    assert_eq!(outcome.ok(), format!("{changes}\nnew\nx\n0\n1"));
}
