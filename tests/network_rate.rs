//! `--net-rate`: the kernel holds it, the container cannot change it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::env::{TestEnv, fixtures, free_ports, wait_until};
use crate::require;

/// Sends what is asked for, or takes everything and says what it was; answers datagrams too, with the caller's
/// address and what it said.
pub const SERVER: &str = r#"
import hashlib, socket, threading, sys
def datagrams():
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("0.0.0.0", int(sys.argv[-1])))
    while True:
        d, a = u.recvfrom(65535); u.sendto(a[0].encode() + b" " + d, a)
threading.Thread(target=datagrams, daemon=True).start()
def serve(c):
    f = c.makefile("rb"); words = f.readline().split()
    if words[:1] == [b"get"]:
        c.sendall(b"x" * int(words[1])); c.shutdown(1); f.read()
    elif words[:1] == [b"put"]:
        c.sendall(b"%d\n" % len(f.read()))
    elif words[:1] == [b"random"]:
        d = hashlib.shake_128(words[1]).digest(int(words[2]))
        c.sendall(hashlib.sha256(d).hexdigest().encode() + b"\n" + d); c.shutdown(1); f.read()
    elif words[:1] == [b"sum"]:
        c.sendall(hashlib.sha256(f.read()).hexdigest().encode() + b"\n")
    elif words[:1] == [b"who"]:
        c.sendall(c.getpeername()[0].encode() + b"\n")
    c.close()
s = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=512)
while True:
    c, _ = s.accept(); threading.Thread(target=serve, args=(c,), daemon=True).start()
"#;

/// Is how fast something went, in bits a second.
fn fetched(port: u16, bytes: usize) -> Option<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let start = Instant::now();
    stream.write_all(format!("get {bytes}\n").as_bytes()).ok()?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).ok()?;
    (all.len() == bytes).then(|| speed(bytes, start))
}

fn sent(port: u16, bytes: usize) -> f64 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let start = Instant::now();
    stream.write_all(b"put\n").unwrap();
    stream.write_all(&vec![b'x'; bytes]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.trim(), bytes.to_string());
    speed(bytes, start)
}

fn speed(bytes: usize, start: Instant) -> f64 {
    f64::from(u32::try_from(bytes).unwrap()) * 8.0 / start.elapsed().as_secs_f64()
}

/// Never faster than the rate but for its burst; slower only where the machine is busy with others.
fn holds(what: &str, measured: f64, rate: f64) {
    println!("{what}: {:.3} of the rate", measured / rate);
    assert!(measured <= rate * 1.1, "{what}: {measured} is more than {rate}");
    if fixtures::is_full() {
        assert!(measured >= rate * 0.9, "{what}: {measured} is less than {rate}");
    }
}

/// How many bytes each direction moves: a second's worth, or the issue's own 100 MB.
fn amount(rate: usize) -> usize {
    if fixtures::is_full() { 100 << 20 } else { rate / 8 }
}

#[test]
fn rates_hold_in_both_directions_and_change_while_running() {
    require!("pasta");
    let env = TestEnv::new();
    let image = env.image("python3");
    let (port, quick) = (free_ports(1), free_ports(1));
    let run = |name: &str, port: u16, rates: &str| {
        let publish = format!("127.0.0.1:{port}:80");
        let args = ["run", "-d", "--name", name, "--net-rate", rates, "--cap-add", "NET_ADMIN", "-p", &publish];
        env.coracle(&args).args(&[&image, "python3", "-c", SERVER, "80"]).ok();
        wait_until("the server", || fetched(port, 1).is_some());
    };
    run("slow", port, "up=20mbit,down=40mbit");
    run("quick", quick, "up=80mbit,down=80mbit");
    holds("up", fetched(port, amount(20_000_000)).unwrap(), 20e6);
    holds("down", sent(port, amount(40_000_000)), 40e6);
    // A second one at the same time has its own.
    let beside = std::thread::spawn(move || fetched(quick, amount(80_000_000)).unwrap());
    holds("up beside another", fetched(port, amount(20_000_000)).unwrap(), 20e6);
    holds("up of another", beside.join().unwrap(), 80e6);
    // Whatever root of the container does to its own end.
    let spoil = "import fcntl, socket, struct; s = socket.socket(); \
                 fcntl.ioctl(s, 0x8922, struct.pack('16si12x', b'eth0', 1400))";
    env.coracle(&["exec", "slow", "python3", "-c", spoil]).ok();
    holds("up after NET_ADMIN", fetched(port, amount(20_000_000)).unwrap(), 20e6);
    // Its own loopback is its own: nothing of this goes through the device that is shaped.
    let inner = "import socket\nsent = lambda: int(open('/sys/class/net/eth0/statistics/tx_bytes').read())\n\
                 s = socket.create_connection(('127.0.0.1', 80)); before = sent(); s.sendall(b'get 50000000\\n'); n = 0\n\
                 while n < 50000000: n += len(s.recv(1 << 20))\nprint(sent() - before)";
    let shaped: u64 = env.coracle(&["exec", "slow", "python3", "-c", inner]).ok().parse().unwrap();
    assert!(shaped < 1_000_000, "50 MB over the loopback sent {shaped} bytes through eth0");
    env.coracle(&["update", "--net-rate", "up=60mbit", "slow"]).ok();
    holds("up after update", fetched(port, amount(60_000_000)).unwrap(), 60e6);
    holds("down as before", sent(port, amount(40_000_000)), 40e6);
    // Three rates in each direction.
    env.coracle(&["update", "--net-rate", "up=40mbit,down=20mbit", "slow"]).ok();
    holds("up of 40", fetched(port, amount(40_000_000)).unwrap(), 40e6);
    holds("down of 20", sent(port, amount(20_000_000)), 20e6);
    env.coracle(&["update", "--net-rate", "down=60mbit", "slow"]).ok();
    holds("down of 60", sent(port, amount(60_000_000)), 60e6);
    let stats: Value =
        serde_json::from_str(&env.coracle(&["stats", "--no-stream", "--format", "{{json .}}", "slow"]).ok()).unwrap();
    for field in ["NetIO", "NetPackets", "NetDrops"] {
        let text = stats[field].as_str().unwrap();
        assert!(text.contains(" / "), "{field}: {text}");
    }
    assert!(!stats["NetPackets"].as_str().unwrap().starts_with("0 /"), "{stats}");
    env.coracle(&["rm", "-f", "slow", "quick"]).ok();
}

#[test]
fn rates_hold_in_a_user_network() {
    require!("pasta");
    let env = TestEnv::new();
    let image = env.image("python3");
    env.coracle(&["network", "create", "net"]).ok();
    let args = ["run", "-d", "--name", "slow", "--network", "net", "--net-rate", "up=20mbit,down=20mbit"];
    env.coracle(&args).args(&[&image, "python3", "-c", SERVER, "80"]).ok();
    let client = r#"
import socket, time
while True:
    try: s = socket.create_connection(("slow", 80)); break
    except OSError: time.sleep(0.05)
t = time.time(); s.sendall(b"get 2500000\n"); n = 0
while n < 2500000: n += len(s.recv(1 << 20))
print(n * 8 / (time.time() - t))
"#;
    let measured = env.coracle(&["run", "--rm", "--network", "net", &image, "python3", "-c", client]).ok();
    holds("between two containers", measured.parse().unwrap(), 20e6);
    env.coracle(&["network", "create", "other"]).ok();
    env.coracle(&["network", "connect", "other", "slow"]).outcome().refused(1).says("more than one network");
    env.coracle(&["rm", "-f", "slow"]).ok();
}

#[test]
fn rates_are_refused_where_they_could_not_hold() {
    require!("pasta");
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["network", "create", "a"]).ok();
    env.coracle(&["network", "create", "b"]).ok();
    let refused = |args: &[&str], why: &str| {
        let all = [&["run", "--rm", "--net-rate", "up=1mbit"], args, &[image.as_str(), "true"]].concat();
        env.coracle(&all).outcome().refused(125).says(why);
    };
    refused(&["--network", "host"], "not none, host");
    refused(&["--network", "none"], "not none, host");
    refused(&["--network", "a", "--network", "b"], "more than one network");
    for bad in ["up=1", "10mbit", "up=x", "sideways=1mbit", ""] {
        let outcome = env.coracle(&["run", "--rm", "--net-rate", bad, &image, "true"]).outcome();
        assert_ne!(outcome.code, 0, "{bad}");
    }
    env.containers_may_stay();
    env.coracle(&["create", "--name", "plain", "--network", "a", &image, "true"]).ok();
    env.coracle(&["update", "--net-rate", "up=1mbit", "plain"]).outcome().refused(1).says("without a network rate");
}
