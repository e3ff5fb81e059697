//! What is seen of a container with a real cgroup: it stands still, it is counted, its end for want of memory.

use crate::container::{Container, usage};
use crate::host::{CORACLE, Guest, IMAGE, User};

#[test]
fn pause_stops_every_process_and_unpause_lets_them_go_on() {
    let Some(guest) = Guest::find("pause_stops_every_process_and_unpause_lets_them_go_on") else { return };
    let busy = Container::start(&guest, User::Alice, "frozen", &["--cpus", "0.5"], "while :; do :; done");
    let used = || usage(&guest, &[busy.cgroup()]).0[0];
    assert!(used() > 0.0);
    guest.run(User::Alice, &[CORACLE, "pause", "frozen"]).ok();
    assert_eq!(busy.inspect("State.Status"), "paused");
    assert!(busy.outside("cgroup.events").contains("frozen 1"));
    assert!(used() < f64::EPSILON, "it went on");
    let refused = guest.run(User::Alice, &[CORACLE, "exec", "frozen", "true"]);
    assert!(refused.failed().contains("paused"), "{refused:?}");
    guest.run(User::Alice, &[CORACLE, "unpause", "frozen"]).ok();
    assert_eq!(busy.inspect("State.Status"), "running");
    assert!(used() > 0.0);
}

#[test]
fn stats_are_the_cgroups() {
    let Some(guest) = Guest::find("stats_are_the_cgroups") else { return };
    let flags = ["--memory", "64m", "--pids-limit", "50"];
    let script = "dd if=/dev/zero bs=20M count=1 2>/dev/null | sleep 1000";
    let held = Container::start(&guest, User::Alice, "held", &flags, script);
    let enough = format!("test $(cat {}/memory.current) -gt 20000000", held.cgroup());
    guest.wait_for(User::Root, &enough, "20 MiB are held");
    let format = "{{.MemUsage}}|{{.PIDs}}|{{.Name}}";
    let row = guest.run(User::Alice, &[CORACLE, "stats", "--no-stream", "--format", format, "held"]);
    let (usage, rest) = row.ok().split_once(" / ").unwrap();
    let mebibytes: f64 = usage.trim_end_matches("MiB").parse().unwrap();
    assert!((20.0..40.0).contains(&mebibytes), "{row:?}");
    assert_eq!(rest, format!("64MiB|{}|held", held.outside("pids.current")));
}

#[test]
fn f10_an_end_for_want_of_memory_is_an_event() {
    let Some(guest) = Guest::find("f10_an_end_for_want_of_memory_is_an_event") else { return };
    guest.prepare(User::Alice);
    let allocate = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"];
    // With a shim, too: it is the one who sees the end.
    for (name, more) in [("thirsty", None), ("behind", Some("-d"))] {
        guest.run(User::Alice, &[CORACLE, "rm", "-f", name]);
        let argv = [CORACLE, "run", "--network", "none", "--name", name, "--memory", "64m"].into_iter();
        guest.run(User::Alice, &argv.chain(more).chain([IMAGE]).chain(allocate).collect::<Vec<_>>());
        assert_eq!(guest.run(User::Alice, &[CORACLE, "wait", name]).ok(), "137");
        let (filter, format) = (format!("container={name}"), "{{.Action}}");
        let events = [CORACLE, "events", "--since", "10m", "--until", "0s", "-f", &filter, "--format", format];
        let seen = guest.run(User::Alice, &events);
        let words: Vec<&str> = seen.ok().lines().collect();
        assert_eq!(words.iter().rev().take(2).rev().copied().collect::<Vec<_>>(), ["oom", "die"], "{name}: {words:?}");
        let killed = guest.run(User::Alice, &[CORACLE, "inspect", "-f", "{{.State.OOMKilled}}", name]);
        assert_eq!(killed.ok(), "true");
        guest.run(User::Alice, &[CORACLE, "rm", name]).ok();
    }
}
