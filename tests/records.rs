//! Records of containers when the disk is full or the power goes: F08 and F12 beyond images and logs.

use crate::env::{TestEnv, fixtures, wait_until};
use crate::life::{detached, directory, json, lives, pid, status};
use crate::require;

#[test]
fn f08_a_record_that_cannot_be_written_is_an_error_and_leaves_nothing() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let whole = detached(&env, &["--name", "whole", &image, "sleep", "1000"]);
    let entries = || {
        let list = fs_err::read_dir(env.root().join("containers")).unwrap();
        list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    // In blocks of 512 bytes: no file at all, none of the size of the record, none of the specification's.
    for (blocks, file) in [(0, "name"), (1, "container.json"), (8, "config.json")] {
        for command in ["run -d", "create"] {
            let what = format!("{command} with {blocks} blocks");
            let script = format!(
                "trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" {command} --network none --name c {image} sleep 1000"
            );
            let outcome = env.program("sh").args(&["-c", &script]).args(&[fixtures::coracle()]).outcome();
            outcome.refused(125).says(file);
            assert_eq!(entries(), std::slice::from_ref(&whole), "{what}: {outcome}");
            assert_eq!(env.coracle(&["ps", "-aq", "--no-trunc"]).ok(), whole, "{what}");
            // The name is free, and what was there is as it was.
            env.coracle(&["create", "--name", "c", "--network", "none", &image, "true"]).ok();
            env.coracle(&["rm", "c"]).ok();
            assert_eq!(env.coracle(&["exec", "whole", "echo", "here"]).ok(), "here", "{what}");
        }
    }
    env.coracle(&["rm", "-f", "whole"]).ok();
}

#[test]
fn f08_an_end_that_cannot_be_written_down_is_unknown_and_never_running() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let script = "until [ -e /go ]; do sleep 0.02; done; rm /go; exit 7";
    let id = detached(&env, &["--name", "c", &image, "sh", "-c", script]);
    let (shim, init) = (pid(&env, &id, "watcher"), pid(&env, &id, "init"));
    // Whatever the shim writes gets EFBIG from now on, as it would get ENOSPC from a full disk.
    env.program("prlimit").args(&[format!("--pid={shim}"), "--fsize=0:unlimited".to_owned()]).ok();
    let waiter = env.coracle(&["wait", "c"]).spawn();
    env.coracle(&["exec", "c", "touch", "/go"]).ok();
    // Who waited has heard the code from the shim, or has read that nobody knows it.
    let heard = waiter.wait().ok();
    assert!(["7", "137"].contains(&heard.as_str()), "{heard}");
    wait_until("both to be gone", || !lives(shim) && !lives(init));
    assert!(!directory(&env, &id).join("exit.json").exists(), "the limit had no effect");
    assert_eq!(status(&env, "c"), "exited");
    assert!(env.coracle(&["ps", "-a"]).ok().contains("Exited (unknown)"));
    assert_eq!(env.coracle(&["wait", "c"]).ok(), "137");
    // Room again: the next run is as any other.
    env.coracle(&["start", "c"]).ok();
    env.coracle(&["exec", "c", "touch", "/go"]).ok();
    assert_eq!(env.coracle(&["wait", "c"]).ok(), "7");
    assert_eq!(json(&env, &id, "exit.json")["run"], 2);
    env.coracle(&["rm", "c"]).ok();
}

#[test]
fn f12_records_are_on_the_disk_before_anybody_hears_of_them() {
    require!("strace");
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let trace = env.path("trace");
    // newuidmap has no privilege under strace, so the container has one id.
    let run = env.program("strace").args(&["-f", "-y", "-s", "200", "-e", "trace=fsync,fdatasync,rename,write,sendto"]);
    let run = run.args(&["-o"]).args(&[&trace, &fixtures::coracle()]);
    let id = run.args(&["run", "-d", "--userns", "single", "--network", "none", &image, "sh", "-c", "exit 7"]).ok();
    let text = fs_err::read_to_string(&trace).unwrap();
    let place = |what: &str, found: &dyn Fn(&str) -> bool| {
        text.lines().position(found).unwrap_or_else(|| panic!("no {what} in\n{text}"))
    };
    let told = place("id", &|line| line.contains(" write(1<") && line.contains(&id));
    let own = format!("containers/{id}");
    for synced in [&format!("{own}/container.json"), &format!("{own}/config.json"), &own, "containers", "names"] {
        let end = format!("/{synced}>");
        let at = place(synced, &|line| line.contains(" fsync(") && line.contains(&end));
        assert!(at < told, "{synced} is synced after the id was told:\n{text}");
    }
    let synced = place("end", &|line| line.contains(" fsync(") && line.contains("exit.json.new>"));
    let renamed = place("end's name", &|line| line.contains(" rename(") && line.contains("exit.json.new"));
    assert!(synced < renamed, "a name without its content:\n{text}");
    assert_eq!(env.coracle(&["wait", &id]).ok(), "7");
    env.coracle(&["rm", &id]).ok();
}
