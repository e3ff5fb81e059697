//! The whole story of a pool, from the first profile to the machine that leaves.

use crate::env::Who;
use crate::env::lent::Lent;
use crate::env::wait_until;
use crate::require;

const SLEEPER: [&str; 3] = ["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000"];

/// What the original project called the complete loop.
#[test]
fn the_complete_loop() {
    require!("ssh", "ssh-keygen");
    let mut lent = Lent::new(&[]);
    // A profile, and a key of one's own.
    let token = lent.pool(&["user-add", "paula"]).ok();
    let home = lent.env.path("paula");
    fs_err::create_dir(&home).unwrap();
    let paula = |args: &[&str]| lent.env.coracle(&["pool"]).env("HOME", &home).args(args);
    paula(&["login", "--scheduler", &lent.url, "--ca"]).args(&[lent.authority()]).stdin(token).ok();
    let key = lent.env.path("home/id");
    lent.env.program("ssh-keygen").args(&["-q", "-t", "ed25519", "-N", "", "-f"]).args(&[&key]).ok();
    paula(&["keys", "add"]).args(&[key.with_extension("pub")]).ok();
    assert_eq!(paula(&["keys", "ls"]).ok().lines().count(), 1);

    // Three machines are lent.
    for (name, cpus) in [("attic", "1"), ("cellar", "2"), ("desk", "2")] {
        lent.join(name, &lent.url, &["--network", "none", "--cpus", cpus]);
        lent.start(name);
        lent.wait_provider(name, "ready");
    }
    let paula = |args: &[&str]| lent.env.coracle(&["pool"]).env("HOME", &home).args(args);

    // Three instances: one by a constraint, one near it, one far from both.
    let run = |flags: &[&str]| {
        let run = paula(&["run", "--stop-timeout", "0", "--limits", "best-effort"]).args(flags);
        run.args(&[&lent.image]).args(&SLEEPER).ok()
    };
    let first = run(&["--constraint", "node==cellar", "-l", "job=big", "--cpus", "0.5", "-m", "64m"]);
    let near = run(&["--affinity", &format!("container=={first}")]);
    let far = run(&["--affinity", "job!=big", "-e", "constraint:node!=attic"]);
    assert_eq!([&*first, &*near, &*far], ["paula-cellar-1", "paula-cellar-2", "paula-desk-1"]);
    assert!(paula(&["run", "--dry-run", "--constraint", "cpus>1000", &lent.image]).ok().contains("\"matched\": 0"));

    // Into each of them by the stock client, with the configuration that is printed and every check on.
    let config = lent.env.path("ssh_config");
    paula(&["ssh-config", &format!("--write={}", config.display()), "--identity"]).args(&[&key]).ok();
    let ssh = |name: &str, command: &str| {
        let ssh = lent.env.program("ssh").env("HOME", &home).args(&["-F"]).args(&[&config]);
        ssh.args(&["-o", "BatchMode=yes", name, command]).ok()
    };
    for name in [&first, &near, &far] {
        assert_eq!(ssh(name, &format!("echo {name} > /which; cat /which")), *name);
    }

    // State, then stopped and started again with what it wrote, then removed, then used.
    let list = paula(&["ps", "--format", "{{.Name}} {{.Provider}} {{.State}}"]).ok();
    assert_eq!(list, "paula-cellar-1 cellar running\npaula-cellar-2 cellar running\npaula-desk-1 desk running");
    lent.inside("cellar", &first, &["sh", "-c", "echo mine > /file"]).ok();
    paula(&["stop", &first]).ok();
    paula(&["start", &first]).ok();
    assert_eq!(lent.inside("cellar", &first, &["cat", "/file"]).ok(), "mine");
    assert_eq!(ssh(&first, "cat /which"), first, "the same instance with the same host key");
    paula(&["rm", "-f", &first, &near, &far]).ok();
    assert_eq!(paula(&["ps", "--format", "{{.Name}}"]).ok(), "");
    let usage = paula(&["usage", "--format", "{{.MemoryGiBSeconds}}"]).ok();
    assert_eq!(usage.lines().count(), 2, "one line a machine: {usage}");

    // A machine leaves, and takes nothing with it that was the pool's.
    wait_until("nothing is left", || lent.containers("attic").is_empty());
    lent.machine("attic", &["provider", "leave"]).ok();
    assert!(!lent.root("attic").join("provider").exists());
    lent.agent_ended("attic");
    lent.end();
}

#[test]
fn s30_a_secret_is_a_file_in_memory_and_seen_nowhere_else() {
    require!("grep");
    let mut lent = Lent::new(&[]);
    lent.lend("one", &["--network", "none"]);
    let canary = "canary-f3a91c07";
    lent.pool(&["secret-add", "db"]).stdin(canary).ok();
    let ask = |how: &str| {
        let run = lent.pool(&["run", "--stop-timeout", "0", "--name", "s", "--secret", how, &lent.image]);
        run.args(&["sleep", "1000"])
    };
    ask("db,env=DB").outcome().refused(1).says("this provider gives secrets as files, not as the variable DB");
    ask("db,file=/run/db").ok();
    let inside = |command: &str| lent.inside("one", "s", &["sh", "-c", command]).ok();
    assert_eq!(inside("cat /run/db; echo; stat -c %a /run/db"), format!("{canary}\n400"));
    assert_eq!(inside("echo x 2>&1 > /run/db || echo refused").lines().last(), Some("refused"));

    // Not in a record, a log, an argument, an environment, nor anything below the state directories.
    let found = lent.env.program("grep").args(&["-rlaF", canary]).args(&[lent.env.root()]).outcome();
    assert_eq!(found.text(), "", "{found}");
    let id = lent.machine("one", &["ps", "-q"]).ok();
    for said in [lent.machine("one", &["inspect", &id]), lent.pool(&["inspect", "s"]), lent.pool(&["events"])] {
        assert!(!said.ok().contains(canary));
    }
    let agent = format!("/proc/{}", lent.agent_pid("one"));
    assert!(!String::from_utf8_lossy(&fs_err::read(format!("{agent}/cmdline")).unwrap()).contains(canary));
    if lent.env.who() != Who::Root {
        fs_err::read(format!("{agent}/environ")).expect_err("its memory and environment are nobody's");
        fs_err::File::open(format!("{agent}/mem")).expect_err("its memory and environment are nobody's");
    }
    // Stopped and started again it has it still, and removed it is gone.
    lent.pool(&["stop", "s"]).ok();
    lent.pool(&["start", "s"]).ok();
    let inside = |command: &str| lent.inside("one", "s", &["sh", "-c", command]).ok();
    assert_eq!(inside("cat /run/db"), canary);
    let places = || lent.env.program("sh").args(&["-c", "ls -d /dev/shm/coracle-secrets-$(id -u)-*/pool-* || :"]).ok();
    assert!(!places().is_empty());
    lent.pool(&["rm", "-f", "s"]).ok();
    wait_until("the secret is gone", || places().is_empty());
    lent.end();
}
