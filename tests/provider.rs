//! A machine that is lent by an ordinary user: a real scheduler over TLS, a real agent, real containers.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::env::command::Running;
use crate::env::{Run, TestEnv, fixtures, poll, wait_until};
use crate::require;

fn json(run: Run) -> Value {
    serde_json::from_str(&run.ok()).unwrap()
}

/// A pool with one provider, each in a state directory of its own.
struct Lent {
    env: TestEnv,
    scheduler: Running,
    url: String,
    image: String,
    token: String,
}

impl Lent {
    fn new() -> Self {
        let env = TestEnv::new();
        let image = env.image("busybox");
        let at = env.root().join("central");
        let central = |args: &[&str]| env.coracle(&["--root"]).args(&[&at]).args(args);
        let secret = central(&["scheduler", "init"]).ok();
        let token = env.write("admin", &secret);
        let mut scheduler = central(&["scheduler", "serve", "--listen", "127.0.0.1:0", "--log", "off"]).spawn();
        scheduler.wait_for("\n");
        let url = scheduler.stdout_so_far().trim().to_owned();
        let ca = at.join("scheduler/ca.crt");
        let login = env.coracle(&["pool", "login", "--scheduler", &url, "--ca"]).args(&[&ca]);
        login.args(&["--token-from"]).args(&[&token]).ok();
        let lent = Self { env, scheduler, url, image, token: secret };
        let join = lent.env.write("join", lent.env.coracle(&["pool", "join-token", "laptop"]).ok());
        let join_as = |name: &str| {
            let run = lent.env.coracle(&["provider", "join", "--scheduler", &lent.url, "--name", name]);
            run.args(&["--network", "none", "--cpus", "1.5", "--ca"])
                .args(&[&ca])
                .args(&["--token-from"])
                .args(&[&join])
        };
        // The token is for one name, and for once.
        join_as("other").outcome().refused(1);
        join_as("laptop").ok();
        join_as("laptop").outcome().refused(1).says("in the pool of");
        lent
    }

    fn pool(&self, args: &[&str]) -> Run {
        self.env.coracle(&["pool"]).args(args)
    }

    fn agent(&self) -> Running {
        let mut agent = self.env.coracle(&["provider", "run"]).spawn();
        agent.wait_for("works for");
        agent
    }

    fn run(&self, name: &str, command: &[&str]) -> Run {
        self.pool(&["run", "--name", name, &self.image]).args(command)
    }

    fn state(&self, name: &str) -> String {
        json(self.pool(&["inspect", name]))["state"].as_str().unwrap().to_owned()
    }

    fn containers(&self) -> String {
        self.env.coracle(&["ps", "-q", "--no-trunc"]).ok()
    }
}

#[test]
fn what_is_lent_runs_and_survives_its_agent_and_its_scheduler() {
    require!("curl");
    let lent = Lent::new();
    let agent = lent.agent();
    wait_until("the provider is ready", || lent.pool(&["providers", "--format", "{{.State}}"]).ok() == "ready");
    assert_eq!(lent.pool(&["providers", "--format", "{{.Name}} {{.Cpus}}"]).ok(), "laptop 1.5");
    assert_eq!(lent.run("one", &["sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"]).ok(), "one");
    let container = lent.containers();
    assert_eq!(container.lines().count(), 1);

    // What it writes comes through the scheduler, also while it writes.
    lent.run("talker", &["sh", "-c", "echo hello; while [ ! -e /go ]; do sleep 0.1; done; echo bye"]).ok();
    assert_eq!(lent.pool(&["logs", "talker"]).ok(), "hello");
    // What an agent cannot do is told to who waits for it, and at once.
    let id = json(lent.pool(&["inspect", "talker"]))["id"].as_str().unwrap().to_owned();
    let ca = lent.env.root().join("central/scheduler/ca.crt");
    let curl = lent.env.program("curl").args(&["-sS", "--max-time", "5", "-d", r#"{"kind":{"of":"ssh"}}"#, "--cacert"]);
    let curl = curl.args(&[&ca]).args(&["-H", "Connection: Upgrade", "-H", "Upgrade: coracle-stream"]);
    let bearer = format!("Authorization: Bearer {}", lent.token);
    let curl = curl.args(&["-H", &bearer, "-H", "Content-Type: application/json"]);
    let refused = json(curl.args(&[format!("{}/v1/instances/{id}/streams", lent.url)]));
    assert_eq!(refused["status"], 409, "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains("its owner has no SSH key"), "{refused}");

    let mut follow = lent.pool(&["logs", "-f", "talker"]).spawn();
    follow.wait_for("hello");
    let talker = lent.env.coracle(&["ps", "-q", "--filter", "status=running", "-n", "1"]).ok();
    lent.env.coracle(&["exec", &talker, "touch", "/go"]).ok();
    assert_eq!(follow.wait().ok(), "hello\nbye");
    wait_until("its end is known", || lent.state("talker") != "running");
    lent.pool(&["logs", "talker"]).outcome().error(1, "error: the scheduler refuses: the instance does not run");

    // Nothing happens to an instance when its agent is killed, nor when the scheduler is away meanwhile.
    agent.signal(Signal::SIGKILL);
    assert_eq!(agent.wait().signal, Some(9));
    let agent = lent.agent();
    lent.env.coracle(&["provider", "run"]).outcome().error(1, "error: an agent works here already");
    lent.scheduler.signal(Signal::SIGSTOP);
    let here = lent.env.coracle(&["provider", "status", "--format", "{{.Status}}"]).ok();
    // What ended is listed until the scheduler has heard of it.
    assert_eq!(here.lines().filter(|status| *status != "exited").collect::<Vec<_>>(), ["running"]);
    lent.scheduler.signal(Signal::SIGCONT);
    // For a moment it runs, and who asked may have been told so.
    let two = lent.run("two", &["sh", "-c", "exit 3"]).outcome();
    if two.code != 0 {
        assert_eq!(two.refused(1).stderr.lines().last(), Some("error: the instance failed: exited with 3"));
    }
    wait_until("its failure is known", || lent.state("two") == "failed");
    assert_eq!((lent.containers(), lent.state("one").as_str()), (container, "running"));

    // Where nothing fits, the reason is said.
    let plan = json(lent.pool(&["run", "--dry-run", "--constraint", "arch==sparc", &lent.image]));
    assert_eq!(
        (plan["matched"].as_u64(), plan["hints"][0].as_str()),
        (Some(0), Some("1 would match without constraint:arch==sparc"))
    );
    lent.run("three", &["no-such-program"]).outcome().refused(1).says("no-such-program: no such file or directory");

    lent.pool(&["rm", "one"]).outcome().error(1, "error: one is running: stop it first, or remove it with --force");
    lent.pool(&["rm", "-f", "one"]).ok();
    assert_eq!(lent.state("one"), "stopped");
    wait_until("what ended is removed", || lent.env.coracle(&["ps", "-aq"]).ok().is_empty());
    agent.signal(Signal::SIGTERM);
    agent.wait().code(0);
    lent.scheduler.signal(Signal::SIGTERM);
    lent.scheduler.wait().code(0);
}

#[test]
fn the_owner_counts_before_the_scheduler() {
    require!();
    let lent = Lent::new();
    let agent = lent.agent();
    lent.run("one", &["sleep", "1000"]).ok();
    // With the scheduler stopped, as with the network unplugged, the owner's commands work.
    lent.scheduler.signal(Signal::SIGSTOP);
    lent.env.coracle(&["provider", "pause"]).ok();
    assert!(lent.env.coracle(&["provider", "status"]).ok().contains("new work   paused"));
    lent.scheduler.signal(Signal::SIGCONT);
    wait_until("nothing new is let in", || lent.pool(&["providers", "--format", "{{.Accepting}}"]).ok() == "false");
    let plan = json(lent.pool(&["run", "--dry-run", &lent.image]));
    assert_eq!(plan["matched"], 0, "{plan}");
    assert_eq!(lent.state("one"), "running");
    lent.env.coracle(&["provider", "resume"]).ok();
    wait_until("new work is welcome", || lent.pool(&["providers", "--format", "{{.Accepting}}"]).ok() == "true");

    lent.scheduler.signal(Signal::SIGSTOP);
    let own = lent.env.coracle(&["run", "-d", "--network", "none", &lent.image, "sleep", "1000"]).ok();
    lent.env.coracle(&["provider", "leave"]).ok();
    agent.wait().code(0);
    assert_eq!(lent.containers(), own, "everything of the pool is gone, and nothing else");
    assert!(!lent.env.root().join("provider/membership.json").exists());
    lent.env.coracle(&["provider", "run"]).outcome().error(1, "error: this machine is in no pool");
    lent.env.coracle(&["rm", "-f", &own]).ok();
    lent.scheduler.signal(Signal::SIGCONT);
    lent.scheduler.signal(Signal::SIGTERM);
    lent.scheduler.wait().code(0);
}

#[test]
fn f03_an_agent_that_is_killed_while_it_starts_something_starts_it_once() {
    require!();
    let lent = Lent::new();
    let mut agent = lent.agent();
    let rounds: u64 = if fixtures::is_full() { 100 } else { 2 };
    for round in 0..rounds {
        let name = format!("i{round}");
        let mut run = lent.run(&name, &["sleep", "1000"]).spawn();
        // From the first moment of a start to some time after it.
        poll(std::time::Duration::from_millis((round % 2) * 150), || run.has_ended());
        agent.signal(Signal::SIGKILL);
        assert_eq!(agent.wait().signal, Some(9));
        agent = lent.agent();
        run.wait().ok();
        wait_until("it runs", || lent.state(&name) == "running");
        wait_until("it runs once", || lent.containers().lines().count() == 1);
        let container = lent.containers();
        lent.env.coracle(&["exec", &container, "true"]).ok();
        // The agent that has adopted it also ends it.
        lent.pool(&["stop", &name]).ok();
        assert_eq!(lent.state(&name), "halted");
        lent.pool(&["rm", &name]).ok();
        wait_until("nothing is left of it", || lent.env.coracle(&["ps", "-aq"]).ok().is_empty());
    }
    agent.signal(Signal::SIGTERM);
    agent.wait().code(0);
    lent.scheduler.signal(Signal::SIGTERM);
    lent.scheduler.wait().code(0);
}
