//! A machine that is lent to a pool as its owner does it: a unit of his own systemd, lingering, with limits that the
//! kernel keeps, over the end of a login, of the agent, and of the machine's own life. The scheduler is carol's.

use serde_json::Value;

use crate::host::{Guest, IMAGE, User};

/// Where an administrator puts the program.
const PROGRAM: &str = "/usr/local/bin/coracle";
const URL: &str = "https://127.0.0.1:7443";
const SCHEDULER: &str = "/etc/systemd/system/pool-scheduler.service";
const UNIT: &str = "coracle-provider.service";
const LIMITS: [&str; 6] = ["--memory", "64m", "--cpus", "0.25", "--pids-limit", "50"];
/// Says at every start that it has begun, and ends when it is told to.
const SCRIPT: &str = "echo begun >>/runs; trap 'exit 0' TERM; sleep 100000 & wait";

/// A scheduler and alice, who lends the machine to it.
struct Pool<'a> {
    guest: &'a Guest,
}

impl<'a> Pool<'a> {
    #[track_caller]
    fn new(guest: &'a Guest) -> Self {
        guest.prepare(User::Alice);
        let pool = Self { guest };
        let root = |line: &str| guest.sh(User::Root, line).ok().to_owned();
        root(&format!("cp /payload/coracle {PROGRAM}"));
        let token = guest.run(User::Carol, &[PROGRAM, "--root", "/home/carol/central", "scheduler", "init"]);
        let serve = format!("{PROGRAM} --root /home/carol/central scheduler serve --listen 127.0.0.1:7443 --log off");
        let unit = format!(
            "[Service]\nUser=carol\nExecStart={serve}\nRestart=always\nRestartSec=1\n[Install]\nWantedBy=multi-user.target\n"
        );
        root(&format!(
            "printf '{unit}' >{SCHEDULER}; systemctl daemon-reload; systemctl -q enable --now pool-scheduler"
        ));
        guest.wait_for(User::Root, "ss -Hltn sport = :7443 | grep -q .", "the scheduler listens");
        root("install -m 644 /home/carol/central/scheduler/ca.crt /etc/pool.crt");
        let alice = |line: &str| guest.sh(User::Alice, line).ok().to_owned();
        alice(&format!(
            "echo '{}' | {PROGRAM} pool login --scheduler {URL} --ca /etc/pool.crt --token-from -",
            token.ok()
        ));
        let lend = format!("provider join --scheduler {URL} --ca /etc/pool.crt --name laptop --token-from -");
        alice(&format!("{PROGRAM} pool join-token laptop | {PROGRAM} {lend} --cpus 1 --memory 256m --network none"));
        pool
    }

    #[track_caller]
    fn pool(&self, args: &[&str]) -> String {
        self.guest.run(User::Alice, &[&[PROGRAM, "pool"], args].concat()).ok().to_owned()
    }

    #[track_caller]
    fn inspect(&self, name: &str) -> Value {
        serde_json::from_str(&self.pool(&["inspect", name])).unwrap()
    }

    #[track_caller]
    fn wait_state(&self, name: &str, state: &str) {
        let line = format!("{PROGRAM} pool ps -a --format '{{{{.Name}}}} {{{{.State}}}}' | grep -qx '{name} {state}'");
        self.guest.wait_for(User::Alice, &line, &format!("{name} is {state}"));
    }

    #[track_caller]
    fn wait_ready(&self) {
        let line = format!("{PROGRAM} pool providers --format '{{{{.State}}}}' | grep -qx ready");
        self.guest.wait_for(User::Alice, &line, "the machine is ready");
    }

    /// The container of an instance.
    #[track_caller]
    fn container(&self, name: &str) -> String {
        let label = format!("label=coracle.pool.instance={}", self.inspect(name)["id"].as_str().unwrap());
        let found = self.guest.run(User::Alice, &[PROGRAM, "ps", "-aq", "--no-trunc", "--filter", &label]);
        assert_eq!(found.ok().lines().count(), 1, "{name} is here once: {found:?}");
        found.ok().to_owned()
    }

    #[track_caller]
    fn pid(&self, name: &str) -> String {
        let argv = [PROGRAM, "inspect", "-f", "{{.State.Pid}}", &self.container(name)];
        self.guest.run(User::Alice, &argv).ok().to_owned()
    }

    #[track_caller]
    fn inside(&self, name: &str, line: &str) -> String {
        self.guest.run(User::Alice, &[PROGRAM, "exec", &self.container(name), "sh", "-c", line]).ok().to_owned()
    }

    /// The limits are in the kernel's own files, in the one scope of the user's manager.
    #[track_caller]
    fn holds_limits(&self, name: &str) {
        let line = format!(
            "cd /sys/fs/cgroup$(sed s/^0::// /proc/{}/cgroup) && pwd && cat memory.max cpu.max pids.max",
            self.pid(name)
        );
        let found = self.guest.sh(User::Root, &line);
        let base = "/sys/fs/cgroup/user.slice/user-1001.slice/user@1001.service/app.slice/coracle.scope";
        let wanted = format!("{base}/coracle-{}\n67108864\n25000 100000\n50", self.container(name));
        assert_eq!(found.ok(), wanted);
    }

    /// The process of the agent, by the unit's own word.
    #[track_caller]
    fn agent(&self) -> String {
        let line = format!("systemctl --user is-active -q {UNIT} && systemctl --user show -P MainPID {UNIT}");
        self.guest.wait_for(User::Alice, &line, "the unit is active")
    }
}

impl Drop for Pool<'_> {
    /// A test that failed leaves nothing to the next one.
    fn drop(&mut self) {
        let line = format!(
            "systemctl --user disable -q --now {UNIT}; {PROGRAM} provider leave; rm -f ~/.config/systemd/user/{UNIT}; systemctl --user daemon-reload"
        );
        self.guest.sh(User::Alice, &line);
        let line =
            format!("systemctl disable -q --now pool-scheduler; rm -rf {SCHEDULER} {PROGRAM} /home/carol/central");
        self.guest.sh(User::Root, &line);
    }
}

#[test]
fn f03_f15_a_lent_machine_works_over_logouts_its_agents_end_and_a_reboot() {
    let Some(guest) = Guest::find("f03_f15_a_lent_machine_works_over_logouts_its_agents_end_and_a_reboot") else {
        return;
    };
    let pool = Pool::new(&guest);
    // The owner logs in, switches the unit on, and logs out.
    let switch = format!(
        "{PROGRAM} provider install-unit && systemctl --user enable --now {UNIT} && loginctl show-user alice -P Sessions"
    );
    let said = guest.run(User::Root, &["su", "-l", "alice", "-c", &switch]);
    assert!(said.ok().lines().last().is_some_and(|session| !session.is_empty()), "it was a login: {said:?}");
    guest.sh(User::Root, "loginctl enable-linger alice").ok();
    let nobody = "test -z \"$(loginctl show-user alice -P Sessions)\"";
    guest.wait_for(User::Root, nobody, "nobody is logged in");
    pool.wait_ready();
    let facts = pool.inspect("laptop")["facts"].clone();
    for limit in ["limit_memory", "limit_cpu", "limit_pids"] {
        assert_eq!(facts[limit]["value"], "hard", "{facts}");
    }

    let hard = ["--constraint", "limit_memory==hard", "--on-loss", "keep", "--stop-timeout", "5"];
    for name in ["works", "rests"] {
        let argv = [&["run", "--name", name], &LIMITS[..], &hard, &[IMAGE, "sh", "-c", SCRIPT]].concat();
        pool.pool(&argv);
        pool.wait_state(name, "running");
    }
    pool.holds_limits("works");
    pool.inside("rests", "echo kept >/file");
    pool.pool(&["stop", "rests"]);

    // The agent is killed, and the unit is restarted: nothing happens to what it looks after.
    let (agent, works) = (pool.agent(), pool.pid("works"));
    guest.sh(User::Root, &format!("kill -9 {agent}")).ok();
    let another = |than: &str| {
        let line = format!("now=$(systemctl --user show -P MainPID {UNIT}); test $now != 0 && test $now != {than}");
        guest.wait_for(User::Alice, &line, "there is another agent");
    };
    another(&agent);
    let agent = pool.agent();
    guest.run(User::Alice, &["systemctl", "--user", "restart", UNIT]).ok();
    another(&agent);
    pool.wait_ready();
    assert_eq!((pool.pid("works"), pool.inside("works", "cat /runs").as_str()), (works, "begun"));

    guest.reboot();
    // Without anybody's login the agent is back and has joined by its own key, and what ran runs with its data.
    pool.agent();
    pool.wait_ready();
    pool.wait_state("works", "running");
    guest.sh(User::Root, nobody).ok();
    let begun = format!("test $({PROGRAM} exec {} grep -c begun /runs) = 2", pool.container("works"));
    guest.wait_for(User::Alice, &begun, "it was begun once more");
    pool.holds_limits("works");
    pool.wait_state("rests", "halted");
    pool.pool(&["start", "rests"]);
    assert_eq!(pool.inside("rests", "cat /file /runs"), "kept\nbegun\nbegun");
    for name in ["works", "rests"] {
        assert_eq!(pool.inspect(name)["epoch"], 1, "{name} was placed once");
    }
    let all = guest.run(User::Alice, &[PROGRAM, "ps", "-aq", "--filter", "label=coracle.pool.instance"]);
    assert_eq!(all.ok().lines().count(), 2, "nothing is here twice");

    guest.run(User::Alice, &[PROGRAM, "provider", "leave"]).ok();
    let nothing = format!(
        "! test -e ~/.local/share/coracle/provider && ! {PROGRAM} ps -aq --filter label=coracle.pool.instance | grep ."
    );
    guest.wait_for(User::Alice, &nothing, "nothing of the pool is left");
}
