//! Making room: prune, df, reset; and `unshare`, the way into the files of containers.

use serde_json::Value;

use crate::env::{TestEnv, Who};
use crate::require;

/// Leaves a container that has ended and an anonymous volume with something in it.
fn ended(env: &TestEnv, name: &str, image: &str) {
    env.containers_may_stay();
    let run = env.coracle(&["run", "--network", "none", "--name", name, "-v", "/anon", "-v", "named:/named"]);
    run.args(&[
        image,
        "sh",
        "-c",
        "dd if=/dev/zero of=/anon/x bs=1k count=300 2>/dev/null; cp /anon/x /x; touch /named/n",
    ])
    .ok();
}

fn df(env: &TestEnv) -> Vec<Value> {
    let text = env.coracle(&["system", "df", "--format", "json"]).ok();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn prune_takes_what_nothing_uses_and_df_says_so() {
    require!();
    let env = TestEnv::new();
    let (busybox, other) = (env.image("busybox"), env.image("config"));
    ended(&env, "gone", &busybox);
    env.coracle(&["pull", &other]).ok();
    let running = env.coracle(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--name",
        "stays",
        &busybox,
        "sh",
        "-c",
        "echo up; sleep 60",
    ]);
    let mut running = running.spawn();
    running.wait_for("up");
    let before = df(&env);
    let counts = |rows: &[Value]| -> Vec<String> {
        rows.iter()
            .map(|row| format!("{} {}", row["TotalCount"].as_str().unwrap(), row["Active"].as_str().unwrap()))
            .collect()
    };
    assert_eq!(counts(&before), ["2 1", "2 1", "2 2"], "images, containers, volumes: {before:?}");
    assert!(env.coracle(&["system", "df", "-v"]).ok().contains("named"));
    // No answer is no.
    env.coracle(&["container", "prune"]).ok();
    assert_eq!(counts(&df(&env))[1], "2 1");
    let said = env.coracle(&["container", "prune", "--force"]).ok();
    assert!(said.starts_with("Deleted Containers:\n") && said.contains("Total reclaimed space: 307"), "{said}");
    assert_eq!(counts(&df(&env)), ["2 1", "1 1", "2 0"], "the running one stays, and volumes without --volumes");
    assert!(env.coracle(&["image", "prune", "-f"]).ok().contains("reclaimed space: 0B"), "everything has a name");
    let said = env.coracle(&["image", "prune", "-af"]).ok();
    assert!(said.contains("untagged: ") && said.contains("deleted: sha256:"), "{said}");
    assert_eq!(counts(&df(&env))[0], "1 1", "the image of the running container stays");
    let said = env.coracle(&["system", "prune", "-f", "--volumes"]).ok();
    assert!(said.contains("Deleted Volumes:") && !said.contains("named"), "{said}");
    assert_eq!(counts(&df(&env)), ["1 1", "1 1", "1 0"]);
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.wait();
    env.container(&[&busybox, "true"]).ok();
    env.coracle(&["system", "prune", "-af", "--volumes"]).ok();
    assert_eq!(counts(&df(&env)), ["0 0", "0 0", "1 0"]);
    env.coracle(&["container", "prune", "-f", "--filter", "wat=1"]).outcome().refused(1).says("wat");
}

#[test]
fn reset_removes_everything_and_asks_first() {
    require!();
    let env = TestEnv::new();
    ended(&env, "c", &env.image("debian"));
    env.coracle(&["system", "reset"]).stdin("no\n").ok();
    assert!(env.root().join("images/index.json").exists());
    env.write("root/mine.txt", "a person's own");
    env.coracle(&["system", "reset", "--force"]).outcome().code(0).says("mine.txt is not coracle's");
    let left: Vec<_> = fs_err::read_dir(env.root()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["mine.txt"]);
    fs_err::remove_file(env.root().join("mine.txt")).unwrap();
    env.container(&[&env.image("busybox"), "true"]).ok();
    env.coracle(&["system", "reset", "-f"]).ok();
    assert!(!env.root().exists());
}

#[test]
fn unshare_is_root_where_containers_files_belong() {
    require!();
    let env = TestEnv::new();
    assert_eq!(env.coracle(&["unshare", "id", "-u"]).ok(), "0");
    assert_eq!(env.coracle(&["unshare", "sh", "-c", "exit 7"]).outcome().code, 7);
    assert_eq!(env.coracle(&["unshare", "/no/such"]).outcome().code, 127);
    assert_eq!(env.coracle(&["unshare"]).env("SHELL", "/bin/sh").stdin("echo from a shell").ok(), "from a shell");
    let script = "mount -t tmpfs none /mnt && touch /mnt/x && ls /mnt";
    assert_eq!(env.coracle(&["unshare", "sh", "-c", script]).ok(), "x");
    assert!(!std::path::Path::new("/mnt/x").exists(), "the mount reached the host");
    if env.who() == Who::Ranges {
        let file = env.write("f", "x").display().to_string();
        env.coracle(&["unshare", "chown", "5:6", &file]).ok();
        assert_eq!(env.coracle(&["unshare", "stat", "-c", "%u:%g", &file]).ok(), "5:6");
    }
}
