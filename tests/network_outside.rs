//! What lies outside of a container's network: callers with their own addresses, servers for names, and
//! the host's own loopback, which nobody reaches.
//!
//! The outside is made of namespaces: a host with one cable, and another machine at its other end.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::env::{TestEnv, fixtures, free_ports, tree, wait_until};
use crate::network_rate::SERVER;
use crate::require;

/// Makes a host at 10.50.0.1 with another machine at 10.50.0.2, runs `$1` there, where `there` runs
/// something on the other machine.
const MACHINES: &str = r#"
set -e
ip link set lo up
ip link add h0 type veth peer name p0
unshare -n sleep 1000 & other=$!
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
trap "kill $other" EXIT
ip link set p0 netns $other
ip addr add 10.50.0.1/24 dev h0
ip -6 addr add fd50::1/64 dev h0 nodad
# A link-local address from the first moment: pasta starts without IPv6 on a host that has none yet.
ip link set h0 addrgenmode none
ip -6 addr add fe80::50:1/64 dev h0 nodad
ip link set h0 up
ip route add default via 10.50.0.2
ip -6 route add default via fd50::2
there() { nsenter -t $other -n "$@"; }
there ip link set lo up
there ip addr add 10.50.0.2/24 dev p0
there ip -6 addr add fd50::2/64 dev p0 nodad
there ip link set p0 up
"#;

/// Runs a script on the host of the two machines; gives what it says.
pub fn on_the_host(env: &TestEnv, script: &str) -> String {
    // What the registry has is not reached from there.
    let image = env.image("python3");
    env.coracle(&["pull", "-q", &image]).ok();
    let whole = format!("{MACHINES}\n{script}");
    let server = SERVER.to_owned();
    let coracle = fixtures::coracle();
    let run = env.program("/usr/bin/unshare").args(&["-Urn", "sh", "-c", &whole]);
    run.env("IMAGE", &image).env("SERVER", &server).env("CORACLE", coracle.to_str().unwrap()).time_limit(300).ok()
}

#[test]
fn a36_published_ports_keep_the_callers_address() {
    require!("pasta", "ip", "python3");
    let env = TestEnv::new();
    let script = r#"
$CORACLE network create net >&2
run() { $CORACLE run -d --pull never "$@" "$IMAGE" python3 -c "$SERVER" 80 >&2; }
run --name plain -p 10.50.0.1:8080:80 -p 10.50.0.1:8080:80/udp
run --name joined --network net -p 10.50.0.1:8081:80 -p 10.50.0.1:8081:80/udp
run --name rated --net-rate down=100mbit -p 10.50.0.1:8082:80 -p 10.50.0.1:8082:80/udp
for port in 8080 8081 8082; do nsenter -t $other -n python3 -c "
import socket, sys, time
for _ in range(400):
    try: s = socket.create_connection(('10.50.0.1', $port), 5); s.sendall(b'who\n'); w = s.recv(99)
    except OSError: w = b''
    if w: break
    time.sleep(0.05)
print(w.decode().strip())
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(1)
for _ in range(20):
    u.sendto(b'datagram', ('10.50.0.1', $port))
    try: w = u.recv(99)
    except OSError: continue
    break
else: w = b'nothing'
print(w.decode())"; done
SIX="import socket
s = socket.create_server(('::', 80), family=socket.AF_INET6)
while True:
    c, _ = s.accept(); c.recv(9); c.sendall(c.getpeername()[0].encode()); c.close()"
$CORACLE run -d --pull never --name six -p '[fd50::1]:8083:80' "$IMAGE" python3 -c "$SIX" >&2
there python3 -c "
import socket, time
for _ in range(400):
    try: s = socket.create_connection(('fd50::1', 8083), 5); s.sendall(b'who'); w = s.recv(99)
    except OSError: w = b''
    if w: break
    time.sleep(0.05)
print(w.decode())"
# A74: on the asked address only.
nsenter -t $other -n python3 -c "$SERVER" 7000 >&2 &
far=$!
for name in plain joined rated; do
    $CORACLE exec $name python3 -c "
import socket, time
for _ in range(400):
    try: s = socket.create_connection(('10.50.0.2', 7000), 5); s.sendall(b'who\n'); w = s.recv(99)
    except OSError: w = b''
    if w: break
    time.sleep(0.05)
print(w.decode().strip())"
done
if python3 -c "import socket; socket.create_connection(('127.0.0.1', 8080), 1)" 2>/dev/null; then echo open; else echo closed; fi
kill $far
$CORACLE rm -f plain joined rated six >&2
"#;
    let said = on_the_host(&env, script);
    let callers = "10.50.0.2\n10.50.0.2 datagram\n".repeat(3) + "fd50::2\n";
    let expected = callers + "10.50.0.1\n10.50.0.1\n10.50.0.1\nclosed";
    assert_eq!(said, expected, "callers of three containers, what three containers are to others, the other address");
}

/// A name server of which the first letter of a name asks for a kind of trouble.
const TROUBLE: &str = r#"
import socket, struct, sys, threading
def answer(q, tcp):
    name = q[12:q.index(b"\0", 12) + 1]; end = 12 + len(name) + 4; kind = struct.unpack(">H", q[end-4:end-2])[0]
    first = name[1:2]
    if first == b"s": return None
    if first == b"m" and kind == 1:
        if not tcp: return q[:2] + b"\x83\x80" + q[4:6] + b"\0\0\0\0\0\0" + q[12:end]
        rr = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x0a\x09\x08" + bytes([n]) for n in range(1, 41))
        return q[:2] + b"\x81\x80" + q[4:6] + b"\0\x28\0\0\0\0" + q[12:end] + rr
    if first == b"l":
        return q[:2] + b"\x81\x80" + q[4:6] + b"\0\1\0\0\0\0" + q[12:end] + b"\xc0\x0c\0\5\0\1\0\0\0\x3c\0\2\xc0\x0c"
    if first == b"g" and kind == 1:
        return q[:2] + b"\x81\x80" + q[4:6] + b"\0\1\0\0\0\0" + q[12:end] + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\1\2\3\4"
    return q[:2] + b"\x81\x80" + q[4:6] + b"\0\0\0\0\0\0" + q[12:end]
def streams(t):
    while True:
        c, _ = t.accept(); h = c.recv(2)
        if len(h) < 2: c.close(); continue
        n = struct.unpack(">H", h)[0]; a = answer(c.recv(n), True)
        c.sendall(struct.pack(">H", len(a)) + a); c.close()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("10.50.0.1", 53))
t = socket.create_server(("10.50.0.1", 53)); threading.Thread(target=streams, args=(t,), daemon=True).start()
while True:
    q, a = u.recvfrom(4096); r = answer(q, False)
    if r: u.sendto(r, a)
"#;

#[test]
fn f30_troubled_name_servers_are_survived() {
    require!("pasta", "ip", "python3");
    let env = TestEnv::new();
    let trouble = env.write("trouble.py", TROUBLE);
    let script = r#"
python3 "$TROUBLE" >&2 & server=$!
until python3 -c "import socket; socket.create_connection(('10.50.0.1', 53), 1)" 2>/dev/null; do sleep 0.05; done
$CORACLE network create net >&2
# The first server is nobody, the second is trouble.
$CORACLE run -d --pull never --name asker --network net --dns 10.50.0.9 --dns 10.50.0.1 "$IMAGE" sleep 1000 >&2
$CORACLE exec asker python3 -c "
import socket
def ask(name):
    try: return len({one[4][0] for one in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)})
    except OSError as error: return 'error'
# Good after a server that does not answer; forty addresses by TCP; a loop; silence; and its own network still.
for name in ('good.test', 'many.test', 'loop.test', 'silent.test', 'asker'): print(name, ask(name), flush=True)"
kill $server
$CORACLE rm -f asker >&2
"#;
    let script = script.replace("$TROUBLE", trouble.to_str().unwrap());
    let said = on_the_host(&env, &script);
    assert_eq!(said, "good.test 1\nmany.test 40\nloop.test error\nsilent.test error\nasker 1");
}

#[test]
fn a71_the_hosts_loopback_is_not_reached() {
    require!("pasta");
    let env = TestEnv::new();
    let image = env.image("python3");
    env.coracle(&["network", "create", "net"]).ok();
    let listeners: Vec<TcpListener> =
        ["127.0.0.1:0", "[::1]:0"].iter().filter_map(|address| TcpListener::bind(address).ok()).collect();
    let ports: Vec<String> =
        listeners.iter().map(|listener| listener.local_addr().unwrap().port().to_string()).collect();
    // Every address that some helper has ever mapped to the host, and the routers of this very container.
    let script = r#"
import socket, struct, sys
hosts = ["127.0.0.1", "::1", "10.0.2.2", "10.0.2.3", "169.254.77.1", "169.254.1.1", "10.0.3.2"]
for line in open("/proc/net/route").read().splitlines()[1:]:
    gateway = socket.inet_ntoa(struct.pack("<I", int(line.split()[2], 16)))
    if gateway != "0.0.0.0": hosts.append(gateway)
for host in hosts:
    for port in sys.argv[1:]:
        try: socket.create_connection((host, int(port)), 0.3)
        except OSError: continue
        print("reached", host)
print("done")
"#;
    for network in [&["--network", "pasta"][..], &["--network", "net"], &["--net-rate", "up=100mbit"]] {
        let args = [&["run", "--rm"], network, &[&image, "python3", "-c", script]].concat();
        let said = env.coracle(&args).args(&ports).ok();
        assert_eq!(said, "done", "{network:?}");
    }
    for listener in listeners {
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "the host's loopback was reached");
    }
}

/// Asks a server and gives what it says.
pub fn said(port: u16, question: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return answer };
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let _ = stream.write_all(question);
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// What leaves by a port and comes back is the same, to the last byte.
fn checksums_agree(port: u16, bytes: usize) {
    let down = said(port, format!("random seed {bytes}\n").as_bytes());
    let (sum, data) = down.split_at(down.iter().position(|byte| *byte == b'\n').unwrap());
    assert_eq!(data.len() - 1, bytes);
    assert_eq!(tree::sha256(&data[1..]).as_bytes(), sum, "{bytes} bytes from the container");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"sum\n").unwrap();
    stream.write_all(&data[1..]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut up = Vec::new();
    stream.read_to_end(&mut up).unwrap();
    assert_eq!(up.trim_ascii_end(), sum, "{bytes} bytes to the container");
}

/// So many exchanges after each other, each from a port of its own, and so many at once.
fn datagrams_are_answered(port: u16, one_by_one: usize, at_once: usize) {
    let socket = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket.connect(("127.0.0.1", port)).unwrap();
        socket
    };
    let heard = |socket: &UdpSocket, number: usize| {
        let mut answer = [0; 99];
        let size = socket.recv(&mut answer).unwrap_or_else(|error| panic!("datagram {number} was lost: {error}"));
        assert!(answer[..size].ends_with(format!(" number {number}").as_bytes()), "{:?}", &answer[..size]);
    };
    for number in 0..one_by_one {
        let socket = socket();
        socket.send(format!("number {number}").as_bytes()).unwrap();
        heard(&socket, number);
    }
    let together: Vec<UdpSocket> = (0..at_once).map(|_| socket()).collect();
    for (number, socket) in together.iter().enumerate() {
        socket.send(format!("number {number}").as_bytes()).unwrap();
    }
    together.iter().enumerate().for_each(|(number, socket)| heard(socket, number));
}

#[test]
fn published_ports_lose_nothing() {
    require!("pasta");
    let env = TestEnv::new();
    let image = env.image("python3");
    let port = free_ports(2);
    let publish = format!("127.0.0.1:{port}-{}:80-81", port + 1);
    // With the same number on both sides: of others Debian 12's pasta loses the answers to its own host.
    let datagrams = format!("127.0.0.1:{port}:{port}/udp");
    let flags = ["run", "-d", "--name", "server", "-p", &publish, "-p", &datagrams];
    env.coracle(&flags).args(&[&image, "python3", "-c", SERVER, "80", &port.to_string()]).ok();
    wait_until("the server", || !said(port, b"who\n").is_empty());
    let shown = env.coracle(&["port", "server"]).ok();
    assert!(shown.contains(&format!("81/tcp -> 127.0.0.1:{}", port + 1)), "{shown}");
    let (connections, at_once, bytes) = if fixtures::is_full() { (10_000, 200, 100 << 20) } else { (300, 50, 4 << 20) };
    for count in 0..connections {
        assert!(!said(port, b"who\n").is_empty(), "connection {count} was lost");
    }
    // All are open before the first one asks.
    let mut together: Vec<_> = (0..at_once).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    together.iter_mut().for_each(|stream| stream.write_all(b"get 1000\n").unwrap());
    for mut stream in together {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.len(), 1000);
    }
    println!("{connections} connections after each other and {at_once} at once");
    checksums_agree(port, bytes);
    println!("{bytes} bytes each way");
    datagrams_are_answered(port, connections, at_once);
    println!("{connections} datagrams after each other and {at_once} at once");
    env.coracle(&["rm", "-f", "server"]).ok();
}
