//! Networks of an ordinary user on a Debian 12 host, with its own pasta: names, ports, the rate, no way out.
//!
//! Outside is a network namespace of root's at the other end of a cable: the guest is 10.50.0.1, it is 10.50.0.2.

use crate::host::{CORACLE, Guest, IMAGE, Running, User};

/// Runs on the other machine: says `far` to whoever connects.
const FAR: &str =
    "ip netns list | grep -q far || { ip netns add far && ip link add h0 type veth peer name p0 netns far &&
    ip addr add 10.50.0.1/24 dev h0 && ip link set h0 up && ip -n far addr add 10.50.0.2/24 dev p0 &&
    ip -n far link set p0 up && ip -n far link set lo up; }";
const FAR_SERVER: &str = "import socket
s = socket.create_server(('10.50.0.2', 7000), backlog=64)
while True:
    c, _ = s.accept(); c.sendall(b'far\\n'); c.close()";
/// Serves its name, the caller's address, and four million bytes.
const SERVER: &str = "mkdir -p /www/cgi-bin; cd /www; echo this-is-$NAME >name
    printf '#!/bin/sh\\necho; echo $REMOTE_ADDR\\n' >cgi-bin/who; chmod 755 cgi-bin/who
    dd if=/dev/zero of=bulk bs=100000 count=40 2>/dev/null; exec httpd -f -p 80 -h /www";
const BULK_BITS: f64 = 32e6;

/// The containers and networks of one test, taken away at its end.
struct Bed<'a> {
    guest: &'a Guest,
    containers: Vec<&'a str>,
    networks: Vec<&'a str>,
}

impl<'a> Bed<'a> {
    fn new(guest: &'a Guest) -> Self {
        guest.prepare(User::Alice);
        Self { guest, containers: Vec::new(), networks: Vec::new() }
    }

    #[track_caller]
    fn network(&mut self, name: &'a str, more: &[&str]) {
        self.guest.run(User::Alice, &[&[CORACLE, "network", "create"], more, &[name]].concat()).ok();
        self.networks.push(name);
    }

    #[track_caller]
    fn server(&mut self, name: &'a str, flags: &[&str]) {
        let word = format!("NAME={name}");
        let first = [CORACLE, "run", "-d", "--name", name, "-e", &word];
        self.guest.run(User::Alice, &[&first, flags, &[IMAGE, "sh", "-c", SERVER]].concat()).ok();
        self.containers.push(name);
    }

    /// Asks from inside of a container; empty when nobody answers.
    fn ask(&self, from: &str, host: &str, port: u16) -> String {
        let script = format!("printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {host} {port} | tail -n 1");
        self.guest.run(User::Alice, &[CORACLE, "exec", from, "sh", "-c", &script]).stdout.trim().to_owned()
    }

    #[track_caller]
    fn hears(&self, from: &str, host: &str, port: u16, wanted: &str) {
        let line = format!(
            "{CORACLE} exec {from} sh -c \"printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {host} {port}\" | grep {wanted}"
        );
        self.guest.wait_for(User::Alice, &line, &format!("{from} hears {wanted} of {host}"));
    }

    #[track_caller]
    fn end(&mut self) {
        let (containers, networks) = (std::mem::take(&mut self.containers), std::mem::take(&mut self.networks));
        self.guest.run(User::Alice, &[&[CORACLE, "rm", "-f"], containers.as_slice()].concat()).ok();
        self.guest.run(User::Alice, &[&[CORACLE, "network", "rm"], networks.as_slice()].concat()).ok();
        // With their containers the processes beside them end.
        let nobody = "! pgrep -u alice -f '__network-[hl]|__keep-helpe[r]|/past[a] '";
        self.guest.wait_for(User::Root, nobody, "nothing is left");
    }
}

impl Drop for Bed<'_> {
    /// A test that failed leaves nothing to the next one.
    fn drop(&mut self) {
        let all = [(&[CORACLE, "rm", "-f"][..], &self.containers), (&[CORACLE, "network", "rm"], &self.networks)];
        for (words, names) in all.into_iter().filter(|(_, names)| !names.is_empty()) {
            self.guest.run(User::Alice, &[words, names.as_slice()].concat());
        }
    }
}

fn far(guest: &Guest) -> Running {
    guest.sh(User::Root, FAR).ok();
    let server = guest.start(User::Root, &["ip", "netns", "exec", "far", "python3", "-c", FAR_SERVER]);
    guest.wait_for(User::Root, "ip netns exec far ss -Hltn sport = :7000 | grep -q .", "the other machine serves");
    server
}

#[test]
fn containers_of_an_ordinary_user_find_each_other_by_name() {
    let Some(guest) = Guest::find("containers_of_an_ordinary_user_find_each_other_by_name") else { return };
    let mut bed = Bed::new(&guest);
    bed.network("shop", &[]);
    bed.network("elsewhere", &[]);
    bed.server("web", &["--network", "shop"]);
    bed.server("db", &["--network", "shop", "--network-alias", "store"]);
    bed.server("stranger", &["--network", "elsewhere"]);
    bed.hears("web", "db", 80, "this-is-db");
    bed.hears("web", "store", 80, "this-is-db");
    bed.hears("db", "web", 80, "this-is-web");
    assert_eq!(bed.ask("stranger", "db", 80), "");
    guest.run(User::Alice, &[CORACLE, "network", "connect", "shop", "stranger"]).ok();
    bed.hears("stranger", "db", 80, "this-is-db");
    guest.run(User::Alice, &[CORACLE, "network", "disconnect", "shop", "stranger"]).ok();
    assert_eq!(bed.ask("stranger", "db", 80), "");
    bed.end();
}

#[test]
fn a36_published_ports_keep_the_callers_address_and_an_internal_network_has_no_way_out() {
    let Some(guest) =
        Guest::find("a36_published_ports_keep_the_callers_address_and_an_internal_network_has_no_way_out")
    else {
        return;
    };
    let far = far(&guest);
    let mut bed = Bed::new(&guest);
    bed.network("open", &[]);
    bed.network("inner", &["--internal"]);
    bed.server("joined", &["--network", "open", "-p", "8081:80"]);
    bed.server("shut", &["--network", "inner"]);
    let ask = |from: &str, to: &str| {
        let program = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=20).read().decode())";
        format!("{from} python3 -c '{program}' http://{to}:8081/cgi-bin/who | grep .")
    };
    let caller = guest.wait_for(User::Root, &ask("ip netns exec far", "10.50.0.1"), "the port is published");
    // Its server speaks IPv6, which names others so.
    assert_eq!(caller.trim_matches(['[', ']']).trim_start_matches("::ffff:"), "10.50.0.2");
    guest.wait_for(User::Alice, &ask("", "127.0.0.1"), "for callers of the same machine, too");
    bed.hears("joined", "10.50.0.2", 7000, "far");
    bed.hears("shut", "shut", 80, "this-is-shut");
    assert_eq!(bed.ask("shut", "10.50.0.2", 7000), "");
    assert_eq!(bed.ask("shut", "10.50.0.1", 8081), "");
    let names = guest.run(User::Alice, &[CORACLE, "exec", "shut", "nslookup", "example.org"]);
    assert!(names.status != 0 && names.stdout.contains("NXDOMAIN"), "{names:?}");
    let devices = guest.run(User::Alice, &[CORACLE, "exec", "shut", "ls", "/sys/class/net"]);
    assert_eq!(devices.ok(), "eth0\nlo");
    drop(far);
    bed.end();
}

#[test]
fn a_network_rate_holds_for_an_ordinary_user() {
    let Some(guest) = Guest::find("a_network_rate_holds_for_an_ordinary_user") else { return };
    let mut bed = Bed::new(&guest);
    bed.network("net", &[]);
    bed.server("rated", &["--network", "net", "--net-rate", "up=8mbit", "-p", "8082:80"]);
    let seconds = || {
        let fetch = "import time, urllib.request as r; t = time.monotonic()
n = len(r.urlopen('http://127.0.0.1:8082/bulk', timeout=60).read()); assert n == 4000000, n; print(time.monotonic() - t)";
        let said = guest.wait_for(User::Alice, &format!("python3 -c \"{fetch}\""), "the bulk arrives");
        said.parse::<f64>().unwrap()
    };
    // Never faster; how much slower is a matter of the emulated machine.
    let fast_enough = |seconds: f64, rate: f64| {
        println!("{:.2} of the rate", BULK_BITS / seconds / rate);
        assert!(BULK_BITS / seconds <= rate * 1.1, "{seconds} s");
    };
    fast_enough(seconds(), 8e6);
    guest.run(User::Alice, &[CORACLE, "update", "--net-rate", "up=16mbit", "rated"]).ok();
    fast_enough(seconds(), 16e6);
    let argv = [CORACLE, "stats", "--no-stream", "--format", "{{.NetIO}}", "rated"];
    let stats = guest.run(User::Alice, &argv);
    // Two times four million bytes and their headers.
    let sent = stats.ok().split_once(" / ").unwrap().1;
    assert!(sent.ends_with("MB") && sent.trim_end_matches("MB").parse::<f64>().unwrap() >= 8.0, "{sent}");
    bed.end();
}
