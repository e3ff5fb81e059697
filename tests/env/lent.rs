//! A pool for tests: a real scheduler over TLS, and machines that are lent to it, each in a state directory of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::command::Running;
use super::{Run, TestEnv, fixtures, poll, wait_until};

/// A scheduler with machines.
pub struct Lent {
    pub env: TestEnv,
    pub scheduler: Option<Running>,
    pub url: String,
    pub image: String,
    agents: BTreeMap<String, Running>,
    /// What comes before the commands of a machine that is not simply this one, and of the scheduler and its people.
    places: BTreeMap<String, Vec<String>>,
}

/// What the scheduler and the people who use the pool are called among the places.
pub const CENTRE: &str = "centre";

/// An agent that found nobody waits up to twenty seconds before it tries again, and a lost answer takes thirty.
const PATIENCE: Duration = Duration::from_secs(100);

/// Polls for what agents do about silence.
pub fn patiently(what: &str, condition: impl FnMut() -> bool) {
    assert!(poll(PATIENCE, condition), "waited {PATIENCE:?} for {what}");
}

/// Reads what a command printed as JSON.
pub fn json(run: Run) -> Value {
    serde_json::from_str(&run.ok()).unwrap()
}

impl Lent {
    /// Starts a scheduler with the given arguments and keeps a login for its administrator.
    pub fn new(more: &[&str]) -> Self {
        Self::among(TestEnv::new(), "127.0.0.1", BTreeMap::new(), more)
    }

    /// The same with a scheduler at another address, and machines that are elsewhere.
    pub fn among(env: TestEnv, address: &str, places: BTreeMap<String, Vec<String>>, more: &[&str]) -> Self {
        let image = env.image("busybox");
        let at = env.root().join("central");
        let secret = env.coracle(&["--root"]).args(&[&at]).args(&["scheduler", "init", "--name", address]).ok();
        let url = format!("https://{address}:0");
        let mut lent = Self { env, scheduler: None, url, image, agents: BTreeMap::new(), places };
        lent.start_scheduler(more);
        let token = lent.env.write("admin", &secret);
        let login = lent.pool(&["login", "--scheduler", &lent.url, "--ca"]).args(&[lent.authority()]);
        login.args(&["--token-from"]).args(&[&token]).ok();
        lent
    }

    /// Starts the scheduler, the next times at the address it had.
    pub fn start_scheduler(&mut self, more: &[&str]) {
        let address = self.url.trim_start_matches("https://").to_owned();
        let at = self.env.root().join("central");
        let serve = ["scheduler", "serve", "--log", "off", "--listen", &address];
        let mut scheduler = self.at(CENTRE).args(&["--root"]).args(&[&at]).args(&serve).args(more).spawn();
        scheduler.wait_for("\n");
        self.url = scheduler.stdout_so_far().trim().to_owned();
        self.scheduler = Some(scheduler);
    }

    /// Sends a signal to the scheduler.
    pub fn signal_scheduler(&self, signal: Signal) {
        self.scheduler.as_ref().unwrap().signal(signal);
    }

    pub fn authority(&self) -> PathBuf {
        self.env.root().join("central/scheduler/ca.crt")
    }

    /// Lends a machine, which reaches the scheduler by this address, without starting its agent.
    pub fn join(&self, name: &str, url: &str, lent: &[&str]) {
        let token = self.env.write("join", self.pool(&["join-token", name]).ok());
        let join = self.machine(name, &["provider", "join", "--scheduler", url, "--name", name, "--ca"]);
        // A copy that everybody may read.
        let authority = self.env.write("authority.crt", fs_err::read(self.authority()).unwrap());
        let join = join.args(&[authority]).args(&["--token-from"]).args(&[&token]);
        join.args(lent).ok();
    }

    /// Lends a machine and waits until the pool counts on it.
    pub fn lend(&mut self, name: &str, lent: &[&str]) {
        self.join(name, &self.url, lent);
        self.start(name);
        self.wait_provider(name, "ready");
    }

    /// Starts a machine's agent.
    pub fn start(&mut self, name: &str) {
        let mut agent = self.machine(name, &["provider", "run"]).spawn();
        agent.wait_for("works for");
        self.agents.insert(name.to_owned(), agent);
    }

    pub fn agent_pid(&self, name: &str) -> i32 {
        self.agents[name].pid()
    }

    /// Waits for an agent that was told to end by another way.
    pub fn agent_ended(&mut self, name: &str) {
        self.agents.remove(name).unwrap().wait().code(0);
    }

    /// Sends a signal to an agent.
    pub fn signal_agent(&self, name: &str, signal: Signal) {
        self.agents[name].signal(signal);
    }

    /// Kills the scheduler without a warning.
    pub fn kill_scheduler(&mut self) {
        self.signal_scheduler(Signal::SIGKILL);
        self.scheduler.take().unwrap().wait();
    }

    /// Sends a signal to an agent and waits for its end.
    pub fn end_agent(&mut self, name: &str, signal: Signal) {
        let agent = self.agents.remove(name).unwrap();
        agent.signal(signal);
        agent.wait();
    }

    pub fn wait_provider(&self, name: &str, state: &str) {
        patiently(&format!("{name} is {state}"), || {
            let all = self.pool(&["providers", "--format", "{{.Name}} {{.State}}"]).ok();
            all.lines().any(|line| line == format!("{name} {state}"))
        });
    }

    /// Runs a command on a machine, as its owner.
    pub fn machine(&self, name: &str, args: &[&str]) -> Run {
        self.at(name).args(&["--root"]).args(&[self.root(name)]).args(args)
    }

    fn at(&self, place: &str) -> Run {
        match self.places.get(place) {
            None => self.env.coracle::<&str>(&[]),
            Some(words) => self.env.program(&words[0]).args(&words[1..]).args(&[fixtures::coracle()]),
        }
    }

    pub fn root(&self, name: &str) -> PathBuf {
        match self.places.contains_key(name) {
            true => self.env.path(format!("machine-{name}")),
            false => self.env.root().join(format!("machine-{name}")),
        }
    }

    /// Runs a command of the pool's, as the administrator.
    pub fn pool(&self, args: &[&str]) -> Run {
        self.at(CENTRE).args(&["pool"]).args(args)
    }

    pub fn inspect(&self, name: &str) -> Value {
        json(self.pool(&["inspect", name]))
    }

    pub fn state(&self, name: &str) -> String {
        self.inspect(name)["state"].as_str().unwrap().to_owned()
    }

    pub fn wait_state(&self, name: &str, state: &str) {
        patiently(&format!("{name} is {state}"), || self.state(name) == state);
    }

    /// Runs a command in an instance, on the machine where it is and without the pool.
    pub fn inside(&self, machine: &str, instance: &str, command: &[&str]) -> Run {
        let id = self.inspect(instance)["id"].as_str().unwrap().to_owned();
        let label = format!("label=coracle.pool.instance={id}");
        let container = self.machine(machine, &["ps", "-q", "--filter", &label]).ok();
        self.machine(machine, &["exec", &container]).args(command)
    }

    /// Names the containers of a machine.
    pub fn containers(&self, machine: &str) -> Vec<String> {
        self.machine(machine, &["ps", "-aq", "--no-trunc"]).ok().lines().map(str::to_owned).collect()
    }

    /// Says where an instance is and in which state, e.g. `one running`.
    pub fn place(&self, instance: &str) -> String {
        let all = self.pool(&["ps", "-a", "--format", "{{.Name}} {{.Provider}} {{.State}}"]).ok();
        let found = all.lines().rev().find_map(|line| line.strip_prefix(&format!("{instance} ")));
        found.unwrap_or_default().to_owned()
    }

    /// Waits until an instance is somewhere, in a state.
    pub fn wait_place(&self, instance: &str, place: &str) {
        patiently(&format!("{instance} is {place}"), || self.place(instance) == place);
    }

    /// Removes every instance and ends everybody; nothing may be left on any machine.
    pub fn end(self) {
        self.end_with(|| ());
    }

    /// The same where something else ends after everybody.
    pub fn end_with(mut self, last: impl FnOnce()) {
        let names = self.pool(&["ps", "--format", "{{.Name}}"]).ok();
        let names: Vec<&str> = names.lines().collect();
        if !names.is_empty() {
            self.pool(&["rm", "-f"]).args(&names).ok();
        }
        let machines: Vec<String> = self.agents.keys().cloned().collect();
        for name in &machines {
            wait_until("nothing is left", || self.containers(name).is_empty());
            self.end_agent(name, Signal::SIGTERM);
        }
        self.signal_scheduler(Signal::SIGTERM);
        self.scheduler.take().unwrap().wait().code(0);
        last();
    }
}
