//! What a Docker user looks at: listings, inspection, formats, help for shells. The built-in image is enough.

use serde_json::{Value, json};

use crate::env::{TestEnv, fixtures, wait_until};
use crate::require;

fn hello(env: &TestEnv, name: &str) {
    env.coracle(&["run", "--name", name, "--network", "none", "coracle/hello"]).ok();
}

#[test]
fn ps_has_dockers_columns_filters_and_formats() {
    let env = TestEnv::new();
    env.containers_may_stay();
    assert_eq!(
        env.coracle(&["ps"]).ok(),
        "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES",
        "docker's headings, ten wide and three apart"
    );
    hello(&env, "first");
    hello(&env, "second");
    let ps = |args: &[&str]| env.coracle(&["ps"]).args(args).ok();
    let names = |args: &[&str]| {
        let text = env.coracle(&["ps", "--format", "{{.Names}}"]).args(args).ok();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), [""; 0], "both have ended");
    assert_eq!(names(&["-a"]), ["second", "first"], "newest first");
    let table = ps(&["-a"]);
    assert!(table.contains("coracle/hello") && table.contains("Exited (0) "), "{table}");
    assert_eq!(ps(&["-aq"]).lines().map(str::len).collect::<Vec<_>>(), [12, 12]);
    assert_eq!(ps(&["-aq", "--no-trunc"]).lines().map(str::len).collect::<Vec<_>>(), [64, 64]);
    for (args, expect) in [
        (&["-l"][..], &["second"][..]),
        (&["-n", "1"], &["second"]),
        (&["-n", "5"], &["second", "first"]),
        (&["-a", "-f", "name=fir"], &["first"]),
        (&["-a", "-f", "name=^ond"], &[]),
        (&["-f", "status=exited"], &["second", "first"]),
        (&["-f", "status=running"], &[]),
        (&["-a", "-f", "exited=0", "-f", "name=first"], &["first"]),
        (&["-a", "-f", "exited=1"], &[]),
        (&["-a", "-f", "before=second"], &["first"]),
        (&["-a", "-f", "since=first"], &["second"]),
        (&["-a", "-f", "ancestor=coracle/hello"], &["second", "first"]),
        (&["-a", "-f", "ancestor=busybox"], &[]),
        (&["-a", "-f", "health=none"], &["second", "first"]),
        (&["-a", "-f", "label=none"], &[]),
        (&["-a", "-f", "volume=/none"], &[]),
    ] {
        assert_eq!(names(args), expect, "{args:?}");
    }
    let row: Value = serde_json::from_str(&ps(&["-l", "--format", "json"])).unwrap();
    assert_eq!(
        (&row["Names"], &row["State"], &row["Image"]),
        (&json!("second"), &json!("exited"), &json!("coracle/hello"))
    );
    assert!(ps(&["-as"]).contains("(virtual "), "what it has written");
    assert_eq!(
        ps(&["-a", "--format", "table {{.Names}}\\t{{.State}}"]),
        "NAMES     STATE\nsecond    exited\nfirst     exited"
    );
    assert_eq!(env.coracle(&["container", "ls", "-aq"]).ok(), ps(&["-aq"]));
    for (args, part) in [
        (&["--format", "{{.Wat}}"][..], "\"Wat\""),
        (&["--format", "{{html .ID}}"], "\"html\" is not implemented"),
        (&["-f", "wat=1"], "filter \"wat\" is not implemented"),
        (&["-f", "status=happy"], "status=happy"),
        (&["-f", "before=nobody"], "no such container: nobody"),
    ] {
        env.coracle(&["ps", "-a"]).args(args).outcome().refused(1).says(part);
    }
}

#[test]
fn inspect_has_dockers_keys() {
    let env = TestEnv::new();
    env.containers_may_stay();
    hello(&env, "web");
    let id = env.coracle(&["ps", "-aq", "--no-trunc"]).ok();
    let all: Value = serde_json::from_str(&env.coracle(&["inspect", "web"]).ok()).unwrap();
    let web = &all[0];
    assert_eq!(web["Id"], id.as_str());
    assert_eq!(web["Name"], "/web");
    assert_eq!(web["State"]["Status"], "exited");
    assert_eq!(web["State"]["ExitCode"], 0);
    assert_eq!(web["HostConfig"]["NetworkMode"], "none");
    assert_eq!(web["Config"]["Image"], "coracle/hello");
    for key in ["StartedAt", "FinishedAt"] {
        let moment = web["State"][key].as_str().unwrap();
        assert!(moment.ends_with('Z') && !moment.starts_with("0001"), "{key}: {moment}");
    }
    let inspect = |args: &[&str]| env.coracle(&["inspect"]).args(args).outcome();
    assert_eq!(inspect(&["-f", "{{.State.Status}} {{.Name}}", &id[..12], "web"]).ok(), "exited /web\nexited /web");
    assert_eq!(inspect(&["-f", "{{json .State.Running}}", "--type", "container", "web"]).ok(), "false");
    assert_eq!(inspect(&["-f", "{{.Config.Labels.none}}", "web"]).ok(), "<no value>");
    inspect(&["-f", "{{.State.Wat}}", "web"]).refused(1).says("State.Wat");
    let mixed = inspect(&["-f", "{{.Name}}", "nobody", "web"]);
    assert_eq!(mixed.code(1).is_clear().says("no such object: nobody").text(), "/web", "what is there is shown");
    env.coracle(&["volume", "create", "web"]).ok();
    assert_eq!(inspect(&["-f", "{{.Driver}} {{.Name}}", "--type", "volume", "web"]).ok(), "local web");
    assert_eq!(inspect(&["-f", "{{.Name}}", "web"]).ok(), "/web", "a container comes before a volume");
    env.coracle(&["volume", "rm", "web"]).ok();
    inspect(&["--type", "volume", "web"]).code(1).is_clear().says("web");
    inspect(&["--type", "image", "web"]).code(1).is_clear().says("no such image: web");
    inspect(&["--type", "container", "nobody"]).code(1).is_clear().says("no such container: nobody");
}

#[test]
fn shells_and_man_learn_every_command() {
    let env = TestEnv::new();
    let help = env.coracle(&["--help"]).ok();
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|word| !word.is_empty()))
        .collect();
    assert!(commands.contains(&"run") && commands.len() > 15, "{commands:?}");
    env.coracle(&["man", "pages"]).ok();
    for shell in ["bash", "zsh", "fish"] {
        let script = env.coracle(&["completion", shell]).ok();
        for command in &commands {
            assert!(script.contains(command), "{shell} does not know {command}");
        }
    }
    for command in &commands {
        let page = env.home().join("pages").join(format!("coracle-{command}.1"));
        let text = fs_err::read_to_string(page).unwrap();
        assert!(text.contains(".TH"), "{command}: {text}");
    }
    let script = env.write("home/complete.bash", env.coracle(&["completion", "bash"]).ok());
    let ask = format!(
        "source {}; COMP_WORDS=(coracle ins); COMP_CWORD=1; _coracle coracle ins coracle; echo ${{COMPREPLY[@]}}",
        script.display()
    );
    if fixtures::find_program("bash").is_some() {
        assert_eq!(env.program("bash").args(&["-c", &ask]).ok(), "inspect");
    }
}

#[test]
fn mistyped_words_lead_to_the_near_one() {
    let env = TestEnv::new();
    env.coracle(&["pss"]).outcome().refused(125).says("command pss is not implemented").says("did you mean ps?");
    env.coracle(&["inspct"]).outcome().refused(125).says("did you mean inspect?");
    env.coracle(&["ps", "--formt", "x"]).outcome().refused(125).says("did you mean --format?");
    env.coracle(&["image", "lss"]).outcome().refused(125).says("did you mean ls?");
}

#[test]
fn version_has_dockers_fields() {
    let env = TestEnv::new();
    let version = env.coracle(&["version", "--format", "{{.Client.Version}} {{.Server.Os}}"]).ok();
    assert_eq!(version, concat!(env!("CARGO_PKG_VERSION"), " linux"));
    assert_eq!(env.coracle(&["info", "-f", "{{.OSType}} {{.Images}}"]).ok(), "linux 0");
}

/// Writes log files as the shim does.
fn write_log(env: &TestEnv, id: &str, name: &str, entries: &[(&str, &str, u32)]) {
    let lines = entries.iter().map(|(text, stream, second)| {
        let time = format!("2026-01-02T03:04:{second:02}.000000001Z");
        format!("{}\n", json!({"log": text, "stream": stream, "time": time}))
    });
    env.write(&format!("root/containers/{id}/logs/{name}"), lines.collect::<String>());
}

#[test]
fn logs_read_rotated_files_in_order() {
    let env = TestEnv::new();
    env.containers_may_stay();
    hello(&env, "web");
    env.coracle(&["logs", "web"]).outcome().refused(1).says("ran in the foreground");
    let id = env.coracle(&["ps", "-aq", "--no-trunc"]).ok();
    write_log(&env, &id, "current.json.1", &[("one\n", "stdout", 1), ("two ", "stdout", 2)]);
    write_log(
        &env,
        &id,
        "current.json",
        &[("err\n", "stderr", 3), ("parts\n", "stdout", 4), ("\u{fffd}\n", "stdout", 5)],
    );
    let logs = |args: &[&str]| env.coracle(&["logs"]).args(args).args(&["web"]).outcome();
    let all = logs(&[]);
    assert_eq!((all.ok().as_str(), all.stderr.as_str()), ("one\ntwo parts\n\u{fffd}", "err\n"));
    assert_eq!(logs(&["-f"]).ok(), all.ok(), "it has ended, so following ends");
    for (args, out, err) in [
        (&["--tail", "1"][..], "\u{fffd}", ""),
        (&["-n", "3"], "parts\n\u{fffd}", "err\n"),
        (&["--tail", "all"], "one\ntwo parts\n\u{fffd}", "err\n"),
        (&["--tail", "0"], "", ""),
        (&["--since", "2026-01-02T03:04:05Z"], "\u{fffd}", ""),
        (&["--until", "2026-01-02T03:04:02Z"], "one", ""),
        (&["-t", "--until", "2026-01-02T03:04:02Z"], "2026-01-02T03:04:01.000000001Z one", ""),
    ] {
        let outcome = logs(args);
        assert_eq!((outcome.ok().as_str(), outcome.stderr.as_str()), (out, err), "{args:?}");
    }
    logs(&["--since", "yesterday"]).refused(1).says("\"yesterday\"");
    logs(&["--details"]).refused(125).says("--details is not implemented");
    env.coracle(&["logs", "nobody"]).outcome().refused(1).says("no such container: nobody");
}

#[test]
fn events_tell_what_happened() {
    let env = TestEnv::new();
    env.containers_may_stay();
    let mut follower = env.coracle(&["events", "--since", "1h", "--format", "{{.Type}} {{.Action}}"]).spawn();
    hello(&env, "web");
    follower.wait_for("container create");
    follower.signal(nix::sys::signal::Signal::SIGTERM);
    drop(follower);
    let events = |args: &[&str]| env.coracle(&["events", "--since", "1h", "--until", "0s"]).args(args).outcome();
    let text = events(&["-f", "event=create"]).ok();
    assert!(text.contains(" container create ") && text.contains("(image=coracle/hello, name=web)"), "{text}");
    let event: Value = serde_json::from_str(&events(&["--format", "json", "--filter", "event=create"]).ok()).unwrap();
    assert_eq!((&event["Type"], &event["Action"]), (&json!("container"), &json!("create")));
    assert_eq!(event["Actor"]["Attributes"]["name"], "web");
    assert_eq!(events(&["-f", "type=image"]).ok(), "");
    env.coracle(&["volume", "create", "data"]).ok();
    env.coracle(&["volume", "rm", "data"]).ok();
    let volumes = events(&["-f", "type=volume", "-f", "volume=data", "--format", "{{.Action}} {{.Actor.ID}}"]);
    assert_eq!(volumes.ok(), "create data\ndestroy data");
    assert_eq!(events(&["-f", "container=other"]).ok(), "");
    assert_ne!(events(&["-f", "container=web", "-f", "image=coracle/hello"]).ok(), "");
    events(&["-f", "wat=1"]).refused(1).says("\"wat\" is not implemented");
}

#[test]
fn a_running_container_is_looked_at() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let script = "sleep 1000 & echo ready; while [ ! -e /tmp/end ]; do sleep 0.05; done";
    let mut run = env.container(&["--name", "web", "--tmpfs", "/tmp", &image, "sh", "-c", script]).spawn();
    run.wait_for("ready");
    let status = env.coracle(&["ps", "--format", "{{.State}}: {{.Status}}"]).ok();
    assert!(status.starts_with("running: Up ") && !status.contains("ago"), "{status}");
    assert!(env.coracle(&["ps", "--no-trunc", "--format", "{{.Command}}"]).ok().starts_with("\"sh -c 'sleep 1000"));
    let pid = env.coracle(&["inspect", "-f", "{{.State.Pid}}", "web"]).ok();
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid}");

    let top = env.coracle(&["top", "web"]).ok();
    let lines: Vec<&str> = top.lines().collect();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[0]), ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    assert_eq!(words(lines[1])[..2], ["root".to_owned(), pid], "{top}");
    assert!(top.contains("sleep 1000") && !top.contains("coracle"), "the container's processes and no others: {top}");
    assert!(env.coracle(&["top", "web", "-o", "pid,comm"]).ok().starts_with("PID       COMMAND"));
    env.coracle(&["top", "web", "--forest"]).outcome().refused(1).says("--forest");

    let stats = env.coracle(&["stats", "--no-stream", "--format", "json", "web"]).outcome();
    let row: Value = serde_json::from_str(&stats.ok()).unwrap();
    assert_eq!(row["Name"], "web");
    assert!(row["PIDs"].as_str().unwrap().parse::<u32>().unwrap() >= 2, "{row}");
    assert!(row["MemUsage"].as_str().unwrap().contains("iB / "), "{row}");
    assert!(row["CPUPerc"].as_str().unwrap().ends_with('%'), "{row}");
    env.coracle(&["port", "web"]).ok();
    env.coracle(&["port", "web", "80"]).outcome().refused(1).says("80/tcp");

    run.signal(nix::sys::signal::Signal::SIGKILL);
    drop(run);
    wait_until("the killed container to be gone", || env.coracle(&["ps", "-q"]).ok().is_empty());
    env.coracle(&["top", "web"]).outcome().refused(1).says("not running");
    // The next run removes what is left of the killed one.
    env.container(&[&image, "true"]).ok();
}

/// Enough for several threads to read them.
const MANY: u64 = 150;

#[test]
fn a_long_list_is_whole_and_in_order() {
    let env = TestEnv::new();
    env.containers_may_stay();
    hello(&env, "first");
    let containers = env.root().join("containers");
    let original = fs_err::read_dir(&containers).unwrap().next().unwrap().unwrap().path();
    let record: Value = serde_json::from_slice(&fs_err::read(original.join("container.json")).unwrap()).unwrap();
    for number in 1..MANY {
        let id = format!("{number:064x}");
        fs_err::create_dir(containers.join(&id)).unwrap();
        for file in ["state.json", "exit.json", "lock"] {
            fs_err::copy(original.join(file), containers.join(&id).join(file)).unwrap();
        }
        let mut copy = record.clone();
        copy["id"] = json!(id);
        copy["name"] = json!(format!("copy{number}"));
        copy["created_ns"] = json!(record["created_ns"].as_u64().unwrap() + number);
        fs_err::write(containers.join(&id).join("container.json"), copy.to_string()).unwrap();
    }
    let expected: Vec<String> =
        (1..MANY).rev().map(|number| format!("copy{number}")).chain(["first".to_owned()]).collect();
    assert_eq!(env.coracle(&["ps", "-a", "--format", "{{.Names}}"]).ok().lines().collect::<Vec<_>>(), expected);
    assert_eq!(env.coracle(&["ps", "-as", "--format", "{{.Names}}"]).ok().lines().collect::<Vec<_>>(), expected);
    // Who may have no thread more wants to see what there is most of all.
    let coracle = fixtures::coracle();
    let limited = env.program("prlimit").args(&["--nproc=1"]).args(&[&coracle]);
    let listed = limited.args(&["ps", "-a", "--format", "{{.Names}}"]).outcome();
    assert_eq!(listed.ok().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn listings_take_no_lock() {
    require!("strace");
    let env = TestEnv::new();
    env.containers_may_stay();
    hello(&env, "other");
    env.coracle(&["run", "-d", "--name", "web", "--network", "none", &env.image("busybox"), "sleep", "1000"]).ok();
    let traced = |args: &[&str]| {
        let trace = env.path("trace");
        let flags = ["-f", "-e", "trace=flock,fcntl", "-o"];
        let coracle = fixtures::coracle();
        env.program("strace").args(&flags).args(&[&trace, &coracle]).args(args).outcome();
        fs_err::read_to_string(trace).unwrap()
    };
    let takes = |trace: &str| trace.contains("_SETLK") || trace.contains("flock(");
    // Under strace newuidmap has no privilege, so it may fail; by then it has taken the container's lock.
    assert!(
        takes(&traced(&["rm", "other"])),
        "a command that changes containers takes locks, and the trace shows them"
    );
    for args in [&["ps", "-a"][..], &["inspect", "web"], &["ps", "-aq", "-f", "name=web"]] {
        let trace = traced(args);
        assert!(trace.contains("_GETLK"), "{args:?} looks at the lock:\n{trace}");
        assert!(!takes(&trace), "{args:?} waits for others:\n{trace}");
    }
    env.coracle(&["rm", "-f", "web"]).ok();
}

#[test]
fn logs_follow_rotations_of_the_shim_without_loss_or_repeat() {
    const LINES: usize = 10_000;
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    // As many files as there can be, so that a line that is missing was lost by the follower.
    let sizes = ["--log-opt", "max-size=20k", "--log-opt", "max-file=100"];
    let script = format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done");
    env.coracle(&["run", "-d", "--name", "web", "--network", "none"])
        .args(&sizes)
        .args(&[&image, "sh", "-c", &script])
        .ok();
    let followed = env.coracle(&["logs", "-f", "web"]).ok();
    let expected: Vec<String> = (0..LINES).map(|number| format!("line {number}")).collect();
    assert!(followed.lines().eq(expected.iter()), "followed: {} lines", followed.lines().count());
    let files = env.root().join("containers").read_dir().unwrap().next().unwrap().unwrap().path().join("logs");
    assert!(files.read_dir().unwrap().count() > 20, "it was rotated");
    assert!(env.coracle(&["logs", "web"]).ok().lines().eq(expected.iter()), "read at once");
    assert_eq!(env.coracle(&["logs", "--tail", "2", "web"]).ok(), format!("line {}\nline {}", LINES - 2, LINES - 1));
}

#[test]
fn a_detached_containers_life_is_seen() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    let check = ["--health-cmd", "test -e /tmp/up", "--health-interval", "100ms", "--health-retries", "1"];
    let script = "trap 'exit 4' TERM; while :; do sleep 0.05; done";
    env.coracle(&["run", "-d", "--name", "web", "--network", "none", "--label", "a=b"])
        .args(&check)
        .args(&[&image, "sh", "-c", script])
        .ok();
    let status = || env.coracle(&["ps", "--format", "{{.Status}}"]).ok();
    wait_until("the check to fail", || status().ends_with(" (unhealthy)"));
    env.coracle(&["exec", "web", "touch", "/tmp/up"]).ok();
    wait_until("the check to pass", || status().ends_with(" (healthy)"));
    assert_eq!(env.coracle(&["ps", "-q", "-f", "health=healthy", "-f", "label=a=b"]).ok().len(), 12);
    assert_eq!(env.coracle(&["inspect", "-f", "{{.State.Health.Status}}", "web"]).ok(), "healthy");
    assert!(env.coracle(&["top", "web"]).ok().contains("trap 'exit 4' TERM"));

    env.coracle(&["update", "web"]).outcome().refused(1).says("nothing to change");
    assert_eq!(env.coracle(&["update", "--restart", "on-failure:3", "web"]).ok(), "web");
    let policy = "{{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    assert_eq!(env.coracle(&["inspect", "-f", policy, "web"]).ok(), "on-failure:3");
    env.coracle(&["rename", "web", "other"]).ok();
    assert_eq!(env.coracle(&["stop", "-t", "20", "other"]).ok(), "other");
    assert!(env.coracle(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]).ok().starts_with("other Exited (4) "));
    env.coracle(&["rm", "other"]).ok();
    let actions = env.coracle(&["events", "--since", "1h", "--until", "0s", "-f", "type=container"]);
    let actions = actions.args(&["--format", "{{.Action}} {{.Actor.Attributes.name}}"]).ok();
    let mut expected =
        ["create web", "start web", "update web", "rename other", "die other", "stop other", "destroy other"].iter();
    let mut next = expected.next();
    for line in actions.lines() {
        if Some(&line) == next {
            next = expected.next();
        }
    }
    assert_eq!(next, None, "{actions}");
}

#[test]
fn images_are_listed_and_filtered_as_by_docker() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    env.coracle(&["tag", &image, "mine:v1"]).ok();
    env.coracle(&["tag", &image, "team/mine:v2"]).ok();
    let list = |args: &[&str]| {
        let text = env.coracle(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).args(args).ok();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let all = [image.as_str(), "mine:v1", "team/mine:v2"];
    for (args, expect) in [
        (&[][..], &all[..]),
        (&["mine"], &["mine:v1"]),
        (&["mine:v2"], &[]),
        (&["m*e"], &["mine:v1"]),
        (&["*/mine:v?"], &["team/mine:v2"]),
        (&["-f", "reference=team/*"], &["team/mine:v2"]),
        (&["-f", "dangling=true"], &[]),
        (&["-f", "dangling=false", "mine"], &["mine:v1"]),
        (&["-f", "since=mine:v1"], &[]),
        (&["-f", "before=mine:v1"], &[]),
        (&["-f", "label=nobody.has.this"], &[]),
        (&["-f", "until=0s"], &all),
        (&["-f", "until=2001-01-01"], &[]),
    ] {
        assert_eq!(list(args), expect, "{args:?}");
    }
    let id = env.coracle(&["images", "-q", "--no-trunc", "mine"]).ok();
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    let row: Value = serde_json::from_str(&env.coracle(&["images", "--format", "json", "mine"]).ok()).unwrap();
    assert_eq!((&row["Repository"], &row["ID"]), (&json!("mine"), &json!(id[7..19])));
    let table = env.coracle(&["image", "ls", "--digests", "mine"]).ok();
    assert!(table.starts_with("REPOSITORY   TAG       DIGEST ") && table.contains("sha256:"), "{table}");
    env.coracle(&["images", "-f", "since=nobody"]).outcome().refused(1).says("nobody");
    env.coracle(&["images", "-f", "color=red"]).outcome().refused(1).says("\"color\" is not implemented");
}

#[test]
fn a44_a_log_that_was_replaced_is_not_shown() {
    let env = TestEnv::new();
    env.containers_may_stay();
    hello(&env, "web");
    let id = env.coracle(&["ps", "-aq", "--no-trunc"]).ok();
    let canary =
        env.write("canary", "{\"log\":\"secret\\n\",\"stream\":\"stdout\",\"time\":\"2026-01-02T03:04:05Z\"}\n");
    write_log(&env, &id, "current.json.1", &[("one\n", "stdout", 1)]);
    let current = env.root().join(format!("containers/{id}/logs/current.json"));
    std::os::unix::fs::symlink(&canary, &current).unwrap();
    let linked = env.coracle(&["logs", "web"]).outcome();
    assert!(!linked.code(1).is_clear().text().contains("secret"));
    fs_err::remove_file(&current).unwrap();
    fs_err::hard_link(&canary, &current).unwrap();
    assert!(!env.coracle(&["logs", "web"]).outcome().code(1).is_clear().text().contains("secret"));
}

#[test]
fn a40_top_and_stats_run_nothing_of_the_image() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let trojan = env.write("trojan", "#!/bin/sh\ntouch /tmp/ran\n");
    crate::env::set_mode(&trojan, 0o755);
    // First on the search path of whatever is started inside.
    let mount = |name: &str| format!("{}:/usr/local/sbin/{name}:ro", trojan.display());
    let looping = "trap 'exit 0' TERM; while :; do sleep 0.05; done";
    env.coracle(&["run", "-d", "--name", "web", "-e", "PATH=/usr/local/sbin:/bin", "--network", "none"])
        .args(&["-v", &mount("ps"), "-v", &mount("top"), &env.image("busybox"), "sh", "-c", looping])
        .ok();
    env.coracle(&["top", "web", "aux"]).ok();
    env.coracle(&["stats", "--no-stream", "web"]).ok();
    env.coracle(&["exec", "web", "test", "-e", "/tmp/ran"]).outcome().code(1);
    env.coracle(&["exec", "web", "ps"]).ok();
    env.coracle(&["exec", "web", "test", "-e", "/tmp/ran"]).outcome().code(0);
    env.coracle(&["rm", "-f", "web"]).ok();
}
