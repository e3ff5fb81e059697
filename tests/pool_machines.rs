//! Machines of several people: ordinary users, each with a network of its own behind a cable to one scheduler. Root makes
//! the networks and pulls the cables; nothing of the pool runs as root but the scheduler's people.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::env::lent::{CENTRE, Lent, patiently};
use crate::env::{TestEnv, Who, fixtures, set_mode, wait_until};
use crate::require;

/// In the container: it ends at once when it is told to.
const SLEEPER: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"];
/// Reports come every two seconds, so that silence counts after six.
const SCHEDULER: [&str; 2] = ["--heartbeat", "2"];
/// Where the scheduler is; machines follow.
const HUB: &str = "10.77.0.1";
/// A user without an entry in /etc/passwd, as directories of large sites have them.
const STRANGER: &str = "47110";
const MACHINES: [(&str, &str); 3] = [("attic", "alice"), ("barn", "bob"), ("cellar", STRANGER)];

/// A network without a way out, kept by a process.
struct Network {
    keeper: Child,
}

impl Network {
    fn new() -> Self {
        let mut unshare = Command::new("/usr/bin/unshare");
        let keeper =
            unshare.args(["-n", "sleep", "1000000"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let network = Self { keeper };
        let own = fs_err::read_link("/proc/self/ns/net").unwrap();
        let place = format!("/proc/{}/ns/net", network.keeper.id());
        wait_until("there is a network", || fs_err::read_link(&place).is_ok_and(|found| found != own));
        network.ip("link set lo up");
        network
    }

    /// What comes before a command in it.
    fn words(&self) -> Vec<String> {
        ["/usr/bin/nsenter", "-n", "-t", &self.keeper.id().to_string(), "--"].map(str::to_owned).to_vec()
    }

    fn ip(&self, line: &str) {
        let words = self.words();
        let done = Command::new(&words[0]).args(&words[1..]).arg("ip").args(line.split(' ')).output().unwrap();
        assert!(done.status.success(), "ip {line}: {done:?}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Which packets of a machine are lost.
#[derive(Clone, Copy)]
enum Way {
    From,
    To,
}

/// A switch with a cable to each machine.
struct Cables {
    hub: Network,
    machines: BTreeMap<&'static str, Network>,
}

impl Cables {
    fn new() -> Self {
        let hub = Network::new();
        hub.ip("link add switch type bridge");
        hub.ip(&format!("addr add {HUB}/24 dev switch"));
        hub.ip("link set switch up");
        let mut machines = BTreeMap::new();
        for (number, (name, _)) in MACHINES.iter().enumerate() {
            let machine = Network::new();
            hub.ip(&format!("link add {name} type veth peer name eth0 netns {}", machine.keeper.id()));
            hub.ip(&format!("link set {name} master switch up"));
            machine.ip(&format!("addr add 10.77.0.{}/24 dev eth0", number + 2));
            machine.ip("link set eth0 up");
            machines.insert(*name, machine);
        }
        Self { hub, machines }
    }

    /// Drops every packet from and to a machine, which sees its own end up all the time.
    fn pull(&self, name: &str) {
        self.hub.ip(&format!("link set {name} nomaster"));
    }

    fn plug(&self, name: &str) {
        self.hub.ip(&format!("link set {name} master switch"));
    }

    /// Loses, without a word, every packet that a machine sends, or every one that is sent to it.
    fn lose(&self, name: &str, way: Way) {
        // Nobody has this address.
        self.neighbour(name, way, "replace", " lladdr 02:00:00:00:00:99 nud permanent");
    }

    fn find(&self, name: &str, way: Way) {
        self.neighbour(name, way, "del", "");
    }

    fn neighbour(&self, name: &str, way: Way, what: &str, more: &str) {
        let number = MACHINES.iter().position(|(machine, _)| *machine == name).unwrap() + 2;
        match way {
            Way::From => self.machines[name].ip(&format!("neigh {what} {HUB} dev eth0{more}")),
            Way::To => self.hub.ip(&format!("neigh {what} 10.77.0.{number} dev switch{more}")),
        }
    }

    /// What comes before commands at each place; makes each user a home that is its own.
    fn places(&self, env: &TestEnv) -> BTreeMap<String, Vec<String>> {
        set_mode(&env.path(""), 0o711);
        let mut places = BTreeMap::from([(CENTRE.to_owned(), self.hub.words())]);
        for (name, user) in MACHINES {
            let mut words = self.machines[name].words();
            words.extend(as_user(env, name, user));
            places.insert(name.to_owned(), words);
        }
        places
    }
}

/// What comes before a command of a user.
fn as_user(env: &TestEnv, name: &str, user: &str) -> Vec<String> {
    let place = env.path(format!("machine-{name}"));
    let home = place.join("home");
    fs_err::create_dir_all(home.join("run")).unwrap();
    set_mode(&home.join("run"), 0o700);
    env.program("chown").args(&["-R", &format!("{user}:{user}")]).args(&[&place]).ok();
    let ids = [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()];
    let home = home.display();
    let environment = [format!("HOME={home}"), format!("TMPDIR={home}"), format!("XDG_RUNTIME_DIR={home}/run")];
    let words = ["/usr/bin/setpriv".to_owned()].into_iter().chain(ids).chain(["env", "-C"].map(str::to_owned));
    words.chain([home.to_string()]).chain(environment).collect()
}

fn pool(cables: &Cables) -> Lent {
    let env = TestEnv::new();
    let places = cables.places(&env);
    let image = env.image("busybox");
    // The registry is where this test is, so the image comes before the machines move to their networks.
    for (name, user) in MACHINES {
        let words = as_user(&env, name, user);
        let pull = env.program(&words[0]).args(&words[1..]).args(&[fixtures::coracle()]).args(&["--root"]);
        pull.args(&[env.path(format!("machine-{name}"))]).args(&["pull", "-q", &image]).ok();
    }
    let mut lent = Lent::among(env, HUB, places, &SCHEDULER);
    for (name, _) in MACHINES {
        lent.lend(name, &["--network", "none", "--cpus", "4", "--memory", "4g"]);
    }
    lent
}

/// Every container of the pool on every machine by its instance, each there once; what is halted counts.
fn here(lent: &Lent) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (machine, _) in MACHINES {
        for id in lent.containers(machine) {
            let format = "{{index .Config.Labels \"coracle.pool.instance\"}}";
            let instance = lent.machine(machine, &["inspect", "--format", format, &id]).ok();
            if let Some(other) = found.insert(instance, machine.to_owned()) {
                panic!("an instance is on {other} and on {machine}");
            }
        }
    }
    found
}

#[test]
fn f05_f06_f31_three_users_machines_cut_off_suspended_and_without_their_scheduler() {
    require!("ip", "nsenter", "setpriv", "unshare");
    if !nix::unistd::getuid().is_root() {
        return fixtures::elsewhere("root gives ordinary users networks of their own");
    }
    let cables = Cables::new();
    let mut lent = pool(&cables);
    assert_eq!(lent.env.who(), Who::Root);
    for (name, user) in MACHINES {
        let uid = fs_err::read_to_string(format!("/proc/{}/status", lent.agent_pid(name))).unwrap();
        let uid =
            uid.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap().split('\t').next().unwrap().to_owned();
        assert!(uid != "0" && (user != STRANGER || uid == STRANGER), "{name} is an ordinary user's: {uid}");
    }
    let ask = |lent: &Lent, name: &str, machine: &str, more: &[&str]| {
        // It prefers the machine.
        let run = lent.pool(&["run", "-d", "--name", name, "--stop-timeout", "0", "--lost-after", "1"]);
        run.args(&["--constraint", &format!("node==~{machine}")]).args(more).args(&[&lent.image]).args(&SLEEPER)
    };
    for (machine, _) in MACHINES {
        ask(&lent, &format!("{machine}-moves"), machine, &[]).ok();
        ask(&lent, &format!("{machine}-stays"), machine, &["--on-loss", "keep"]).ok();
    }
    for (machine, _) in MACHINES {
        for what in ["moves", "stays"] {
            lent.wait_place(&format!("{machine}-{what}"), &format!("{machine} running"));
        }
    }
    let before = here(&lent);
    assert_eq!(before.len(), 6);

    // One cable is pulled, one agent stands still, both past their leases; then the scheduler dies under load.
    cables.pull("attic");
    lent.signal_agent("barn", Signal::SIGSTOP);
    for machine in ["attic", "barn"] {
        lent.wait_place(&format!("{machine}-moves"), "cellar running");
        lent.wait_place(&format!("{machine}-stays"), &format!("{machine} lost"));
        assert_eq!(lent.containers(machine).len(), 2, "nothing happens to containers because nobody hears of them");
    }
    let asked: Vec<_> = (0..4)
        .map(|number| {
            let name = format!("late-{number}");
            let run = ask(&lent, &name, "cellar", &[]).spawn();
            (name, run)
        })
        .collect();
    // Who asks repeats itself until somebody answers.
    lent.kill_scheduler();
    lent.start_scheduler(&SCHEDULER);
    let mut names: BTreeSet<String> = BTreeSet::new();
    for (name, run) in asked {
        assert_eq!(run.wait().ok(), name);
        names.insert(name);
    }
    cables.plug("attic");
    lent.signal_agent("barn", Signal::SIGCONT);

    // Who comes back gives up what runs elsewhere now, and keeps what is its own.
    for (machine, _) in MACHINES {
        lent.wait_provider(machine, "ready");
        lent.wait_place(&format!("{machine}-stays"), &format!("{machine} running"));
        assert_eq!(lent.inspect(&format!("{machine}-stays"))["epoch"], 1);
        names.extend([format!("{machine}-stays"), format!("{machine}-moves")]);
    }
    names.iter().for_each(|name| lent.wait_state(name, "running"));
    let ids: BTreeSet<String> =
        names.iter().map(|name| lent.inspect(name)["id"].as_str().unwrap().to_owned()).collect();
    patiently("everything is somewhere once", || {
        let all: usize = MACHINES.iter().map(|(machine, _)| lent.containers(machine).len()).sum();
        all == ids.len()
    });
    let after = here(&lent);
    assert_eq!(after.keys().cloned().collect::<BTreeSet<_>>(), ids, "none is lost and none is an orphan");
    for (machine, _) in MACHINES {
        let id = lent.inspect(&format!("{machine}-stays"))["id"].as_str().unwrap().to_owned();
        assert_eq!((before[&id].as_str(), after[&id].as_str()), (machine, machine));
    }
    lent.end_with(|| drop(cables));
}

/// One way works: reports are heard and never answered, or orders are heard and nothing is ever said.
#[test]
fn f31_packets_that_are_lost_one_way_lose_and_double_nothing() {
    require!("ip", "nsenter", "setpriv", "unshare");
    if !nix::unistd::getuid().is_root() {
        return fixtures::elsewhere("root gives ordinary users networks of their own");
    }
    let cables = Cables::new();
    let lent = pool(&cables);
    let on = |machine: &str, name: &str, script: &str| {
        let run = lent.pool(&["run", "--name", name, "--stop-timeout", "0", "--on-loss", "keep"]);
        run.args(&["--constraint", &format!("node=={machine}"), &lent.image, "sh", "-c", script]).ok();
    };
    const ONE_WAY: [(&str, Way); 2] = [("attic", Way::From), ("barn", Way::To)];
    const STAYS: &str = "echo begun >>/runs; trap 'exit 0' TERM; sleep 100000 & wait";
    const ENDS: &str = "until [ -e /end ]; do sleep 0.2; done; exit 7";
    for (machine, way) in ONE_WAY {
        on(machine, &format!("{machine}-stays"), STAYS);
        on(machine, &format!("{machine}-halts"), STAYS);
        on(machine, &format!("{machine}-ends"), ENDS);
        cables.lose(machine, way);
    }
    for (machine, way) in ONE_WAY {
        // It ends, and is asked to stop, while nobody or only one of the two can be heard.
        lent.inside(machine, &format!("{machine}-ends"), &["touch", "/end"]).ok();
        lent.pool(&["stop", "--no-wait", &format!("{machine}-halts")]).ok();
        lent.wait_provider(machine, "unknown");
        cables.find(machine, way);
    }
    for machine in ["attic", "barn"] {
        lent.wait_provider(machine, "ready");
        lent.wait_place(&format!("{machine}-halts"), &format!("{machine} halted"));
        lent.wait_state(&format!("{machine}-ends"), "failed");
        assert_eq!(lent.inspect(&format!("{machine}-ends"))["exit"]["code"], 7);
        lent.wait_place(&format!("{machine}-stays"), &format!("{machine} running"));
        let stays = format!("{machine}-stays");
        assert_eq!(lent.inspect(&stays)["epoch"], 1);
        assert_eq!(lent.inside(machine, &stays, &["cat", "/runs"]).ok(), "begun");
        lent.pool(&["start", &format!("{machine}-halts")]).ok();
        let halts = lent.inside(machine, &format!("{machine}-halts"), &["cat", "/runs"]).ok();
        assert_eq!(halts, "begun\nbegun");
    }
    assert_eq!(here(&lent).len(), 4, "what has ended is gone, and nothing is an orphan");
    lent.end_with(|| drop(cables));
}
