//! Volumes that outlive containers: named, filled from the image once, shared, in use, pruned.

use serde_json::{Value, json};

use crate::env::image::{Image, Layer};
use crate::env::mock::Mock;
use crate::env::{Canary, TestEnv, Who, poll};
use crate::options::sh;
use crate::require;

fn names(env: &TestEnv) -> Vec<String> {
    let text = env.coracle(&["volume", "ls", "-q"]).ok();
    text.lines().map(str::to_owned).collect()
}

/// Runs a script in an image with these flags.
fn run(env: &TestEnv, flags: &[&str], image: &str, script: &str) -> String {
    env.container(flags).args(&[image, "sh", "-c", script]).ok()
}

#[test]
fn create_list_inspect_remove_and_prune() {
    require!();
    let env = TestEnv::new();
    assert_eq!(env.coracle(&["volume", "create", "--label", "a=1", "--label", "b", "data"]).ok(), "data");
    assert_eq!(env.coracle(&["volume", "create", "data"]).ok(), "data", "again is no error, as in docker");
    let random = env.coracle(&["volume", "create"]).ok();
    assert!(random.len() == 64 && random.bytes().all(|byte| byte.is_ascii_hexdigit()), "{random}");
    assert_eq!(names(&env).len(), 2);
    assert_eq!(env.coracle(&["volume", "ls", "--filter", "label=a=1", "--format", "{{.Name}}"]).ok(), "data");
    let all: Value = serde_json::from_str(&env.coracle(&["volume", "inspect", "data"]).ok()).unwrap();
    assert_eq!((&all[0]["Labels"], &all[0]["Driver"]), (&json!({"a": "1", "b": ""}), &json!("local")));
    for bad in ["../x", "a/b", ".hidden", "-x", "a b", "é", ""] {
        env.coracle(&["volume", "create", "--", bad]).outcome().refused(1).says("invalid volume name");
    }
    env.coracle(&["volume", "create", "--driver", "nfs", "x"]).outcome().refused(1).says("nfs");
    env.coracle(&["volume", "rm", "absent"]).outcome().refused(1).says("no such volume");
    env.coracle(&["volume", "rm", "-f", "absent"]).ok();
    assert_eq!(env.coracle(&["volume", "rm", &random]).ok(), random);
    // Only a yes is a yes; what somebody named stays without --all.
    env.coracle(&["volume", "prune"]).stdin("n\n").ok();
    env.coracle(&["volume", "prune", "-f"]).ok();
    assert_eq!(names(&env), ["data"]);
    assert!(env.coracle(&["volume", "prune", "-f", "--all"]).ok().contains("data"));
    assert_eq!(names(&env), Vec::<String>::new());
}

#[test]
fn data_stays_from_container_to_container() {
    require!();
    let env = TestEnv::new();
    sh(&env, &["-v", "data:/data"], "echo kept >/data/file");
    assert_eq!(
        sh(&env, &["-v", "data:/elsewhere:ro"], "cat /elsewhere/file; touch /elsewhere/x || echo no"),
        "kept\nno"
    );
    assert_eq!(sh(&env, &["--mount", "type=volume,src=data,dst=/m,readonly"], "cat /m/file"), "kept");
    env.coracle(&["volume", "rm", "data"]).ok();
    assert_eq!(sh(&env, &["-v", "data:/data"], "ls -A /data"), "");
}

#[test]
fn a_volume_of_a_container_that_has_ended_is_in_use() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    env.coracle(&["run", "--network", "none", "--name", "user", "-v", "data:/data", &env.image("busybox"), "true"])
        .ok();
    env.coracle(&["volume", "rm", "data"]).outcome().refused(1).says("is used by container");
    env.coracle(&["volume", "prune", "-f", "-a"]).ok();
    assert_eq!(names(&env), ["data"]);
    env.coracle(&["rm", "user"]).ok();
    env.coracle(&["volume", "rm", "data"]).ok();
}

/// An image with something worth copying at /data.
fn filled(extra: Layer) -> Image {
    let layer = extra
        .dir("data", 0o750)
        .owned("data/mine", 0o640, 1000, 1001, b"of 1000\n")
        .file("data/gone", 0o644, b"x")
        .dir("data/sub", 0o700)
        .file("data/sub/deep", 0o600, b"deep\n")
        .symlink("data/link", "/etc/passwd")
        .hardlink("data/hard", "data/mine");
    let top = Layer::new().file("data/.wh.gone", 0o644, b"").file("data/added", 0o644, b"added\n");
    Image::new(vec![Layer::busybox().bytes(), layer.bytes(), top.bytes()], &json!({}))
}

#[test]
fn the_first_container_fills_a_volume_from_its_image_and_no_other_does() {
    require!();
    let env = TestEnv::new();
    let registry = Mock::serving(&[("filled", filled(Layer::new()))]);
    let image = registry.image("filled");
    let look =
        "stat -c '%a %u %g %n' /data /data/mine; ls -A /data | tr '\\n' ' '; readlink /data/link; cat /data/sub/deep";
    let said = run(&env, &["-v", "data:/data"], &image, look);
    let owner = if env.who() == Who::Single { "0 0" } else { "1000 1001" };
    let expect = format!("750 0 0 /data\n640 {owner} /data/mine\nadded hard link mine sub /etc/passwd\ndeep");
    assert_eq!(said, expect);
    // What is there is never overwritten and never comes back (A45).
    run(&env, &["-v", "data:/data"], &image, "echo changed >/data/added; rm /data/link");
    assert_eq!(
        run(&env, &["-v", "data:/data"], &image, "cat /data/added; ls /data | grep -c link; true"),
        "changed\n0".to_owned()
    );
}

#[test]
fn a45_copy_up_stays_in_the_image_and_leaves_data_alone() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    let target = canary.dir().display().to_string();
    let image = filled(Layer::new().symlink("v", &target).symlink("w", "../../../../data").symlink("loop", "loop"));
    let registry = Mock::serving(&[("evil", image)]);
    let image = registry.image("evil");
    // A link out of the image leads nowhere; one that stays in it is followed there.
    env.container(&["-v", "one:/v", &image, "true"]).outcome();
    let one = env.root().join("volumes/one/data");
    assert_eq!(fs_err::read_dir(&one).map(Iterator::count).unwrap_or(0), 0, "host files were copied");
    run(&env, &["-v", "two:/w"], &image, "grep -q added /w/added && echo inside");
    env.container(&["-v", "three:/loop", &image, "true"]).outcome();
    run(&env, &["-v", "four:/data:nocopy"], &image, "test -z \"$(ls -A /data)\"");
    // An earlier file stays, whatever the image has.
    run(&env, &["-v", "five:/other"], &image, "echo mine >/other/added");
    assert_eq!(run(&env, &["-v", "five:/data"], &image, "cat /data/added; ls /data"), "mine\nadded");
    canary.assert_untouched();
}

#[test]
fn anonymous_volumes_go_with_their_container_and_volumes_from_shares_them() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let busybox = env.image("busybox");
    assert_eq!(sh(&env, &["-v", "/scratch"], "echo x >/scratch/x; cat /scratch/x"), "x");
    assert_eq!(names(&env), Vec::<String>::new(), "left by --rm");
    env.write("bound/file", "bound\n");
    let bound = format!("{}:/bound", env.path("bound").display());
    let flags = ["run", "--network", "none", "--name", "first", "-v", "/anon", "-v", "named:/named", "-v", &bound];
    env.coracle(&flags).args(&[busybox.as_str(), "sh", "-c", "echo a >/anon/f; echo n >/named/f"]).ok();
    assert_eq!(names(&env).len(), 2);
    assert_eq!(
        sh(&env, &["--volumes-from", "first"], "cat /anon/f /named/f /bound/file; echo more >/anon/g"),
        "a\nn\nbound"
    );
    let said =
        sh(&env, &["--volumes-from", "first:ro", "-v", "/named"], "ls -A /named; ls /anon; touch /anon/x || echo no");
    assert_eq!(said, "f\ng\nno");
    env.container(&["--volumes-from", "absent", &busybox, "true"]).outcome().refused(125).says("no such container");
    env.container(&["--volumes-from", "first:wat", &busybox, "true"]).outcome().code(125);
}

#[test]
fn rm_keeps_volumes_and_rm_v_removes_those_without_a_name() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let busybox = env.image("busybox");
    let run = |name| {
        env.coracle(&[
            "run",
            "--network",
            "none",
            "--name",
            name,
            "-v",
            "/anon",
            "-v",
            "named:/named",
            &busybox,
            "true",
        ])
    };
    run("kept").ok();
    env.coracle(&["rm", "kept"]).ok();
    assert_eq!(names(&env).len(), 2, "as docker keeps them");
    run("gone").ok();
    assert_eq!(names(&env).len(), 3);
    env.coracle(&["rm", "-v", "gone"]).ok();
    assert_eq!(names(&env).len(), 2);
    assert!(names(&env).contains(&"named".to_owned()));
}

#[test]
fn a_fill_that_is_killed_is_done_again_whole() {
    require!();
    let env = TestEnv::new();
    let mut layer = Layer::new().dir("data", 0o755);
    for number in 0..400 {
        layer = layer.file(&format!("data/{number}"), 0o644, &vec![b'x'; 20_000]);
    }
    let image = Image::new(vec![Layer::busybox().bytes(), layer.bytes()], &json!({}));
    let registry = Mock::serving(&[("many", image)]);
    let image = registry.image("many");
    env.coracle(&["pull", &image]).ok();
    for round in 0..12_u32 {
        let volume = format!("v{round}");
        let mut running = env.container(&["-v", &format!("{volume}:/data"), &image, "true"]).spawn();
        let (filling, data) = ("filling", env.root().join("volumes").join(&volume));
        // Somewhere between the first and the last file.
        let part = usize::try_from(round).unwrap() * 30;
        poll(crate::env::DEADLINE, || {
            let count = fs_err::read_dir(data.join(filling)).map(Iterator::count).unwrap_or(0);
            count >= part.max(1) || data.join("data/0").exists() || running.has_ended()
        });
        running.signal(nix::sys::signal::Signal::SIGKILL);
        running.wait();
        assert_eq!(run(&env, &["-v", &format!("{volume}:/data")], &image, "ls /data | wc -l"), "400", "round {round}");
        env.coracle(&["volume", "rm", &volume]).ok();
    }
    let left: Vec<_> = fs_err::read_dir(env.root().join("volumes")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}
