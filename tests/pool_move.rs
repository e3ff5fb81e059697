//! Instances that move with what they have written: asked for, because their machine is emptied, and while everybody
//! who carries them is killed.

use nix::sys::signal::Signal;

use crate::env::lent::{Lent, patiently};
use crate::require;

const SLEEPER: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; echo up; sleep 100000 & wait"];
/// Reports come every two seconds, so that silence counts after six.
const SCHEDULER: [&str; 2] = ["--heartbeat", "2"];

fn run(lent: &Lent, name: &str, image: &str) {
    lent.pool(&["run", "--name", name, "--stop-timeout", "1", "--constraint", "node==~one", image]).args(&SLEEPER).ok();
}

/// Makes an image with a volume that two machines have under one name.
fn with_volume(lent: &Lent, machines: [&str; 2]) -> String {
    let file = lent.env.path("volume.tar").display().to_string();
    let one = |args: &[&str]| lent.machine(machines[0], args).ok();
    one(&["run", "--network", "none", "--name", "t", &lent.image, "mkdir", "-p", "/data/below"]);
    one(&["commit", "-c", "VOLUME /data", "t", "local/volume:1"]);
    one(&["rm", "-v", "t"]);
    one(&["save", "-o", &file, "local/volume:1"]);
    lent.machine(machines[1], &["load", "-i", &file]).ok();
    "local/volume:1".to_owned()
}

#[test]
fn an_instance_moves_with_its_layer_its_volumes_and_its_name() {
    require!();
    let mut lent = Lent::new(&SCHEDULER);
    lent.lend("one", &["--network", "none"]);
    lent.lend("two", &["--network", "none"]);
    let image = with_volume(&lent, ["one", "two"]);
    run(&lent, "c", &image);
    let change = "echo kept > /kept; ln kept /twin; ln -s kept /soft; chmod 4750 /kept; mkdir -p /opt/a/b; \
                  head -c 3000000 /dev/urandom > /opt/a/b/big; rm /bin/uname; rm -r /etc; mkdir /etc; echo mine > /etc/x; \
                  echo volume > /data/file; chmod 710 /data; mkdir /data/new; rmdir /data/below";
    lent.inside("one", "c", &["sh", "-c", change]).ok();
    let look = "cat /kept /twin /soft /data/file; stat -c '%a %h' /kept /data; ls /etc | grep -v -e hosts -e hostname \
                -e resolv.conf -e mtab; ls /data; ls /bin/uname 2>&1; sha256sum < /opt/a/b/big";
    let seen = |machine: &str| lent.inside(machine, "c", &["sh", "-c", look]).outcome().text();
    let before = seen("one");
    assert!(before.contains("4750 2") && before.contains("No such file"), "{before}");

    lent.pool(&["move", "c"]).ok();
    assert_eq!(lent.place("c"), "two running");
    assert_eq!(seen("two"), before);
    patiently("the old copy is removed", || lent.containers("one").is_empty());
    let found = lent.inspect("c");
    assert_eq!((&found["epoch"], &found["old"]), (&serde_json::json!(2), &serde_json::json!([])), "{found}");
    lent.pool(&["move", "--to", "two", "c"]).outcome().refused(1).says("is there already");

    // One that stands still goes as it is, and starts where it is.
    lent.pool(&["stop", "c"]).ok();
    lent.pool(&["move", "--to", "one", "c"]).ok();
    assert_eq!(lent.place("c"), "one halted");
    lent.pool(&["start", "c"]).ok();
    assert_eq!(seen("one"), before);
    patiently("the old copy is removed", || lent.containers("two").is_empty());

    // Where its image is another one it does not begin with less than it had: it stays and runs.
    lent.machine("two", &["tag", &lent.image, "local/other:1"]).outcome().refused(1);
    lent.machine("two", &["pull", &lent.image]).ok();
    lent.machine("two", &["tag", &lent.image, &image]).ok();
    let outcome = lent.pool(&["move", "c"]).outcome();
    outcome.code(1).says("its image is another one here");
    lent.wait_place("c", "one running");
    assert_eq!(seen("one"), before);
    assert_eq!(lent.containers("two").len(), 0);
    lent.end();
}

#[test]
fn f05_what_is_on_its_way_survives_whoever_carries_it() {
    require!();
    let mut lent = Lent::new(&SCHEDULER);
    lent.lend("one", &["--network", "none"]);
    lent.lend("two", &["--network", "none"]);
    let image = lent.image.clone();
    run(&lent, "c", &image);
    let sum = lent.inside("one", "c", &["sh", "-c", "head -c 60000000 /dev/urandom > /big; sha256sum /big"]).ok();
    for (round, (from, to)) in [("one", "two"), ("two", "one"), ("one", "two")].into_iter().enumerate() {
        lent.pool(&["move", "--no-wait", "--to", to, "c"]).ok();
        patiently("it is under way", || {
            let found = lent.inspect("c");
            !found["moving"]["source"].is_null() || found["alloc"]["epoch"] == round + 2
        });
        match round {
            0 => {
                lent.end_agent(to, Signal::SIGKILL);
                lent.start(to);
            }
            1 => {
                lent.kill_scheduler();
                lent.start_scheduler(&SCHEDULER);
            }
            _ => {
                lent.end_agent(from, Signal::SIGKILL);
                lent.start(from);
            }
        }
        lent.wait_place("c", &format!("{to} running"));
        assert_eq!(lent.inside(to, "c", &["sha256sum", "/big"]).ok(), sum);
        patiently("the old copy is removed", || lent.containers(from).is_empty());
    }
    // Removed on its way, nothing of it stays anywhere.
    lent.pool(&["move", "--no-wait", "--to", "one", "c"]).ok();
    lent.pool(&["rm", "-f", "c"]).ok();
    for machine in ["one", "two"] {
        patiently("nothing is left", || lent.containers(machine).is_empty());
    }
    lent.end();
}

#[test]
fn a_machine_is_emptied_with_the_data_of_what_is_there() {
    require!();
    let mut lent = Lent::new(&SCHEDULER);
    lent.lend("one", &["--network", "none"]);
    let image = lent.image.clone();
    for name in ["runs", "still"] {
        run(&lent, name, &image);
        lent.inside("one", name, &["sh", "-c", &format!("echo {name} > /file")]).ok();
    }
    lent.pool(&["stop", "still"]).ok();
    // Nobody has room: what runs is stopped in time, and everything is kept.
    lent.pool(&["drain", "--within", "0", "one"]).ok();
    lent.wait_place("runs", "one halted");
    assert_eq!(lent.place("still"), "one halted");
    lent.lend("two", &["--network", "none"]);
    lent.wait_place("runs", "two running");
    lent.wait_place("still", "two halted");
    patiently("the machine is empty", || lent.containers("one").is_empty());
    lent.pool(&["start", "still"]).ok();
    for name in ["runs", "still"] {
        assert_eq!(lent.inside("two", name, &["cat", "/file"]).ok(), name);
    }

    // The owner empties a machine, which is told to stop everything at once.
    lent.pool(&["drain", "--undo", "one"]).ok();
    lent.machine("two", &["provider", "drain", "--within", "0"]).ok();
    for name in ["runs", "still"] {
        lent.wait_place(name, "one running");
        assert_eq!(lent.inside("one", name, &["cat", "/file"]).ok(), name);
    }
    patiently("the machine is empty", || lent.containers("two").is_empty());
    lent.end();
}

#[test]
fn a_disk_limit_moves_along_with_what_it_holds() {
    require!();
    let mut lent = Lent::new(&SCHEDULER);
    lent.lend("one", &["--network", "none"]);
    lent.lend("two", &["--network", "none"]);
    let flags = ["run", "--name", "c", "--stop-timeout", "1", "--disk", "16m", "--constraint", "node==~one"];
    lent.pool(&flags).args(&[&lent.image]).args(&SLEEPER).ok();
    let sum = lent.inside("one", "c", &["sh", "-c", "head -c 9000000 /dev/urandom >/big; sha256sum /big"]).ok();
    for (from, to) in [("one", "two"), ("two", "one")] {
        lent.pool(&["move", "--to", to, "c"]).ok();
        lent.wait_place("c", &format!("{to} running"));
        assert_eq!(lent.inside(to, "c", &["sha256sum", "/big"]).ok(), sum);
        let fill = "dd if=/dev/zero of=/more bs=1M count=12 2>&1; ls -l /more | awk '{ print $5 }'; rm /more";
        let said = lent.inside(to, "c", &["sh", "-c", fill]).ok();
        assert!(said.contains("No space left"), "what it brought counts: {said}");
        patiently("the old copy is removed", || lent.containers(from).is_empty());
    }
    lent.end();
}
