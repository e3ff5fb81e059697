//! What breaks under a pool: agents and schedulers that are killed or stand still, networks that pass nothing. Nothing
//! that was acknowledged is lost, nothing runs twice that may not, nothing is left behind.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::env::lent::{Lent, patiently};
use crate::env::{Who, fixtures};
use crate::require;

const SLEEPER: [&str; 3] = ["sh", "-c", "sleep 1000"];
/// Reports come every two seconds, so that silence counts after six.
const SCHEDULER: [&str; 2] = ["--heartbeat", "2"];

fn run(lent: &Lent, flags: &[&str]) -> String {
    lent.pool(&["run", "--stop-timeout", "0"]).args(flags).args(&[&lent.image]).args(&SLEEPER).ok()
}

/// A wire between an agent and its scheduler that can stop passing bytes without a word, as a network does.
struct Wire {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
}

impl Wire {
    fn to(url: &str) -> Self {
        let far: SocketAddr = url.trim_start_matches("https://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Self { address: listener.local_addr().unwrap(), cut: Arc::default() };
        let cut = Arc::clone(&wire.cut);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(far) else { continue };
                let (back, there) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let (one, two) = (Arc::clone(&cut), Arc::clone(&cut));
                std::thread::spawn(move || pass(near, there, &one));
                std::thread::spawn(move || pass(far, back, &two));
            }
        });
        wire
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }
}

/// Passes bytes one way; those that come while the wire is cut are dropped, and their connection is never good again.
fn pass(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    let mut buffer = [0; 4096];
    let mut broken = false;
    from.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                broken |= cut.load(Ordering::SeqCst);
                if !broken && to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                // A network that is back resets what it had lost.
                if broken && !cut.load(Ordering::SeqCst) {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn f06_f31_an_agent_that_stood_still_past_its_lease_gives_up_what_runs_elsewhere_now() {
    require!();
    let mut lent = Lent::new(&SCHEDULER);
    lent.lend("one", &["--network", "none"]);
    let moves = run(&lent, &["--name", "moves", "--lost-after", "1"]);
    let stays = run(&lent, &["--name", "stays", "--lost-after", "1", "--on-loss", "keep"]);
    lent.lend("two", &["--network", "none"]);
    let before = lent.containers("one");
    assert_eq!(before.len(), 2);
    lent.signal_agent("one", Signal::SIGSTOP);
    lent.wait_place(&moves, "two running");
    lent.wait_place(&stays, "one lost");
    assert_eq!(lent.containers("one"), before, "nothing happens to containers because their agent stands still");

    lent.signal_agent("one", Signal::SIGCONT);
    lent.wait_place(&stays, "one running");
    patiently("what runs elsewhere is given up here", || lent.containers("one").len() == 1);
    assert!(before.contains(&lent.containers("one")[0]), "it is the same one as before");
    assert_eq!(lent.place(&moves), "two running");
    assert_eq!(lent.inspect(&stays)["epoch"], 1);
    lent.end();
}

#[test]
fn f31_a_network_that_drops_everything_disturbs_no_instance() {
    require!();
    let mut lent = Lent::new(&SCHEDULER);
    let wire = Wire::to(&lent.url);
    lent.join("far", &wire.url(), &["--network", "none"]);
    lent.start("far");
    lent.wait_provider("far", "ready");
    let name = run(&lent, &["--name", "here"]);
    let ends = run(&lent, &["--name", "ends"]);
    let before = lent.containers("far");
    wire.cut(true);
    lent.wait_provider("far", "unknown");
    lent.wait_place(&name, "far unknown");
    lent.wait_place(&ends, "far unknown");
    assert_eq!(lent.containers("far"), before);
    // What is asked meanwhile is done when the network is back, and what was asked is not done twice.
    lent.pool(&["stop", "--no-wait", &name]).ok();
    lent.pool(&["rm", "-f", "--no-wait", &ends]).ok();
    wire.cut(false);
    lent.wait_place(&name, "far halted");
    lent.wait_state(&ends, "stopped");
    patiently("it is removed", || lent.containers("far").len() == 1);
    lent.pool(&["start", &name]).ok();
    assert!(before.contains(&lent.containers("far")[0]));
    lent.end();
}

#[test]
fn f05_schedulers_and_agents_killed_under_load_lose_and_double_nothing() {
    require!();
    const ROUNDS: usize = 3;
    const EACH: usize = 4;
    let mut lent = Lent::new(&SCHEDULER);
    for name in ["one", "two", "three"] {
        lent.lend(name, &["--network", "none"]);
    }
    let mut acknowledged = BTreeSet::new();
    for round in 0..ROUNDS {
        let asked: Vec<_> = (0..EACH)
            .map(|number| {
                let name = format!("r{round}-{number}");
                let run = lent.pool(&["run", "-d", "--stop-timeout", "0", "--name", &name, &lent.image]);
                (name, run.args(&SLEEPER).spawn())
            })
            .collect();
        // Who asks repeats itself until somebody answers, so each of them is acknowledged.
        lent.kill_scheduler();
        let victim = ["one", "two", "three"][round % 3];
        lent.end_agent(victim, Signal::SIGKILL);
        lent.start_scheduler(&SCHEDULER);
        for (name, asked) in asked {
            assert_eq!(asked.wait().ok(), name);
            acknowledged.insert(name);
        }
        lent.start(victim);
    }
    assert_eq!(acknowledged.len(), ROUNDS * EACH);
    for name in &acknowledged {
        lent.wait_state(name, "running");
        assert_eq!(lent.inspect(name)["epoch"], 1, "{name} was placed once");
    }
    let mut labels = Vec::new();
    for machine in ["one", "two", "three"] {
        let list = lent.machine(machine, &["ps", "-aq"]).ok();
        for id in list.lines() {
            let format = "{{index .Config.Labels \"coracle.pool.instance\"}}";
            labels.push(lent.machine(machine, &["inspect", "--format", format, id]).ok());
        }
    }
    let distinct: BTreeSet<&String> = labels.iter().collect();
    assert_eq!((labels.len(), distinct.len()), (ROUNDS * EACH, ROUNDS * EACH), "each once and no orphan: {labels:?}");
    lent.end();
}

#[test]
fn f42_one_state_has_one_agent() {
    require!();
    let mut lent = Lent::new(&SCHEDULER);
    lent.lend("one", &["--network", "none"]);
    let name = run(&lent, &["--name", "here"]);
    // Who comes second is told, and the first goes on.
    lent.machine("one", &["provider", "run"]).outcome().refused(1);
    assert_eq!(lent.inspect(&name)["epoch"], 1);
    lent.wait_place(&name, "one running");
    lent.end();
}

/// Ends what only makes the machine busy.
struct Busy(Vec<crate::env::command::Running>);

impl Busy {
    fn new(lent: &Lent, count: usize) -> Self {
        Self((0..count).map(|_| lent.env.program("sh").args(&["-c", "while :; do :; done"]).spawn()).collect())
    }

    fn end(self) {
        for busy in self.0 {
            busy.signal(Signal::SIGKILL);
            busy.wait();
        }
    }
}

#[test]
fn f40_an_agent_that_gets_no_processor_is_missed_and_not_replaced() {
    require!();
    let mut lent = Lent::new(&SCHEDULER);
    if lent.env.who() != Who::Ranges {
        lent.end();
        return fixtures::elsewhere("one user makes the machine busy for everybody");
    }
    lent.lend("one", &["--network", "none"]);
    lent.lend("two", &["--network", "none"]);
    let name = run(&lent, &["--name", "here", "--constraint", "node==one"]);
    let before = lent.containers("one");
    // Behind everybody else for as long as it takes to be missed, and for some orders after that.
    let agent = lent.agent_pid("one").to_string();
    lent.env.program("renice").args(&["-n", "19", "-p", &agent]).ok();
    let busy = Busy::new(&lent, 4);
    lent.signal_agent("one", Signal::SIGSTOP);
    lent.wait_provider("one", "unknown");
    lent.wait_place(&name, "one unknown");
    lent.signal_agent("one", Signal::SIGCONT);
    lent.wait_place(&name, "one running");
    let more = run(&lent, &["--name", "more", "--constraint", "node==one"]);
    lent.wait_place(&more, "one running");
    lent.pool(&["rm", "-f", &more]).ok();
    patiently("it is removed", || lent.containers("one").len() == 1);
    busy.end();
    assert_eq!((lent.containers("one"), lent.inspect(&name)["epoch"].clone()), (before, serde_json::json!(1)));
    assert_eq!(lent.containers("two").len(), 0, "nobody took it for lost");
    let kinds = lent.pool(&["events", "--format", "{{.Kind}}"]).ok();
    assert!(kinds.lines().all(|kind| !kind.ends_with(".lost")), "{kinds}");
    lent.end();
}

#[test]
fn f41_an_agent_goes_on_while_its_program_is_replaced_and_refuses_what_it_does_not_know() {
    require!();
    let lent = Lent::new(&SCHEDULER);
    lent.join("one", &lent.url, &["--network", "none"]);
    let program = lent.env.path("coracle");
    let install = || {
        let fresh = program.with_extension("new");
        fs_err::copy(fixtures::coracle(), &fresh).unwrap();
        fs_err::rename(fresh, &program).unwrap();
    };
    let agent = || {
        let run = lent.env.program(program.to_str().unwrap()).args(&["--root"]).args(&[lent.root("one")]);
        run.args(&["provider", "run"])
    };
    let begin = || {
        let mut agent = agent().spawn();
        agent.wait_for("works for");
        agent
    };
    let end = |agent: crate::env::command::Running| {
        agent.signal(Signal::SIGTERM);
        agent.wait().code(0);
    };
    install();
    let old = begin();
    let first = run(&lent, &["--name", "first"]);
    // Replaced, then gone altogether: the agent is the program that it was.
    install();
    let second = run(&lent, &["--name", "second"]);
    fs_err::remove_file(&program).unwrap();
    let third = run(&lent, &["--name", "third"]);
    lent.pool(&["stop", &third]).ok();
    assert_eq!(lent.pool(&["exec", &first, "echo", "in"]).ok(), "in");
    let containers = lent.containers("one");
    assert_eq!(containers.len(), 3);
    end(old);

    // A ledger of a newer program is refused as it is, and nothing happens to what it speaks of.
    install();
    let id = lent.inspect(&first)["id"].as_str().unwrap().to_owned();
    let entry = lent.root("one").join(format!("provider/allocations/{id}.1"));
    let known = fs_err::read_to_string(&entry).unwrap();
    let newer = known.replace("\"halt\":\"no\"", "\"halt\":\"hibernating\"");
    assert_ne!(newer, known, "{known}");
    fs_err::write(&entry, &newer).unwrap();
    agent().outcome().refused(1).says("hibernating");
    assert_eq!(fs_err::read_to_string(&entry).unwrap(), newer);
    assert_eq!(lent.containers("one"), containers);
    // What a newer one has merely added is no hindrance to an older one.
    fs_err::write(&entry, known.replacen('{', "{\"since\":{\"a\":1},", 1)).unwrap();
    let new = begin();
    for name in [&first, &second] {
        lent.wait_place(name, "one running");
    }
    lent.pool(&["start", &third]).ok();
    assert_eq!(lent.containers("one"), containers);
    lent.pool(&["rm", "-f", &first, &second, &third]).ok();
    patiently("nothing is left", || lent.containers("one").is_empty());
    end(new);
    lent.end();
}

/// Sends a signal to every shim of a machine, and waits until nothing runs there.
fn signal_shims(lent: &Lent, signal: Signal) {
    for id in lent.machine("one", &["ps", "-q"]).ok().lines() {
        let init = lent.machine("one", &["inspect", "-f", "{{.State.Pid}}", id]).ok();
        let stat = fs_err::read_to_string(format!("/proc/{init}/stat")).unwrap();
        let shim = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), signal).unwrap();
    }
    patiently("nothing runs", || lent.machine("one", &["ps", "-q"]).ok().is_empty());
}

/// A shutdown tells everybody to end at once, and nobody says in which order they hear it: an agent in a terminal, or one
/// whose unit is stopped last, sees its instances end.
#[test]
fn f15_what_a_shutdown_ends_before_the_agent_runs_again_after_it() {
    require!();
    let mut lent = Lent::new(&SCHEDULER);
    lent.lend("one", &["--network", "none"]);
    let name = "here";
    let run = lent.pool(&["run", "--stop-timeout", "0", "--on-loss", "keep", "--name", name, &lent.image]);
    run.args(&["sh", "-c", "echo begun >>/runs; trap 'exit 0' TERM; sleep 1000 & wait"]).ok();
    signal_shims(&lent, Signal::SIGTERM);
    lent.end_agent("one", Signal::SIGTERM);
    fs_err::write(lent.root("one").join("provider/boot"), "\"another\"").unwrap();
    lent.start("one");
    let begun = || lent.inside("one", name, &["cat", "/runs"]).outcome().text();
    patiently("it runs again", || lent.place(name) == "one running" && begun() == "begun\nbegun");
    assert_eq!(lent.inspect(name)["epoch"].as_u64(), Some(1));
    // Where no shutdown follows it was an end after all.
    signal_shims(&lent, Signal::SIGTERM);
    lent.wait_state(name, "stopped");
    lent.end();
}

/// A reboot as the agent sees it: nothing of it runs any more, and the kernel's boot id is another one.
#[test]
fn f15_what_went_down_with_the_machine_runs_again_and_what_ended_by_itself_does_not() {
    require!();
    let mut lent = Lent::new(&SCHEDULER);
    lent.lend("one", &["--network", "none"]);
    let script = ["sh", "-c", "echo begun >>/runs; sleep 1000"];
    lent.pool(&["secret-add", "db"]).stdin("canary").ok();
    let begin = |name: &str, more: &[&str]| {
        let run = lent.pool(&["run", "--stop-timeout", "0", "--on-loss", "keep", "--name", name]);
        run.args(more).args(&[&lent.image]).args(&script).ok()
    };
    let secret = ["--secret", "db,file=/run/db"];
    let (works, knows, rests) = (begin("works", &[]), begin("knows", &secret), begin("rests", &secret));
    lent.pool(&["stop", &rests]).ok();
    let crash = |lent: &mut Lent| {
        lent.end_agent("one", Signal::SIGKILL);
        signal_shims(lent, Signal::SIGKILL);
    };
    crash(&mut lent);
    fs_err::write(lent.root("one").join("provider/boot"), "\"another\"").unwrap();
    // What was in memory is gone, and comes again from the scheduler.
    let stat = fs_err::metadata(lent.root("one")).unwrap();
    let secrets = format!("/dev/shm/coracle-secrets-{}-{:x}-{:x}", stat.uid(), stat.dev(), stat.ino());
    fs_err::remove_dir_all(&secrets).unwrap();
    lent.start("one");
    let begun = |lent: &Lent, name: &str| lent.inside("one", name, &["cat", "/runs"]).outcome().text();
    patiently("it runs again", || lent.place(&works) == "one running" && begun(&lent, &works) == "begun\nbegun");
    patiently("so does what has a secret", || begun(&lent, &knows) == "begun\nbegun");
    assert_eq!((lent.inspect(&works)["epoch"].as_u64(), lent.place(&rests).as_str()), (Some(1), "one halted"));
    lent.pool(&["start", &rests]).ok();
    assert_eq!(begun(&lent, &rests), "begun\nbegun");
    for name in [&knows, &rests] {
        assert_eq!(lent.inside("one", name, &["cat", "/run/db"]).ok(), "canary");
        assert_eq!(lent.inspect(name)["epoch"].as_u64(), Some(1));
    }
    lent.pool(&["stop", &rests]).ok();

    // In one boot it is an end like any other.
    crash(&mut lent);
    lent.start("one");
    lent.wait_state(&works, "failed");
    lent.wait_state(&knows, "failed");
    assert_eq!(lent.place(&rests), "one halted");
    lent.pool(&["rm", &rests]).ok();
    patiently("no secret is left", || !std::path::Path::new(&secrets).exists());
    lent.end();
}
