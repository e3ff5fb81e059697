//! What becomes of a container's networks while it runs: it is put outside and taken back, and the processes
//! beside it are killed.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};
use serde_json::Value;

use crate::env::{TestEnv, free_ports, wait_until};
use crate::network_outside::{on_the_host, said};
use crate::network_rate::SERVER;
use crate::networks::{remove, server};
use crate::require;

/// Says from inside whether another machine is reached, by IPv4 and by IPv6.
const REACH: &str = r#"
import os, socket, sys, time
def told(family, host):
    try: s = socket.create_connection((host, 7000), 1); s.sendall(b'who\n'); return s.recv(99).strip() != b''
    except OSError: return False
for word in sys.argv[1:]:
    family, wanted = word[0], word[1] == '+'
    host = '10.50.0.2' if family == '4' else 'fd50::2'
    end = time.time() + 30
    while time.time() < end:
        found = told(family, host)
        if found == wanted: break
        time.sleep(0.05)
    print(word if found == wanted else 'NOT ' + word, end=' ')
print(*sorted(os.listdir('/sys/class/net')))
"#;

/// A server on the other machine for both families, and `look NAME WORDS`: what a container sees.
const FAR: &str = r#"
FAR="import socket, sys, threading
s = socket.create_server(('::', 7000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
while True:
    c, _ = s.accept(); c.recv(9); c.sendall(b'here\n'); c.close()"
nsenter -t $other -n python3 -c "$FAR" >&2 &
far=$!
look() { name=$1; shift; $CORACLE exec $name python3 -c "$REACH" "$@"; }
"#;

#[test]
fn outside_comes_and_goes_with_the_networks() {
    require!("pasta", "ip", "python3");
    let env = TestEnv::new();
    let script = r#"
$CORACLE network create net >&2
$CORACLE network create --internal inner >&2
$CORACLE run -d --pull never --name open --network net "$IMAGE" sleep 1000 >&2
look open 4+
$CORACLE network disconnect net open
look open 4-
$CORACLE network connect inner open
look open 4-
$CORACLE network connect net open
look open 4+
$CORACLE run -d --pull never --name shut --network inner "$IMAGE" sleep 1000 >&2
look shut 4-
$CORACLE network connect net shut
look shut 4+
$CORACLE network disconnect net shut
look shut 4-
$CORACLE restart -t 0 shut >&2
look shut 4-
$CORACLE stop -t 0 shut >&2
$CORACLE network connect net shut
$CORACLE start shut >&2
look shut 4+
kill $far
$CORACLE rm -f open shut >&2
"#;
    let said = on_the_host(&env, &format!("REACH=$(cat {})\n{FAR}{script}", reach(&env)));
    let expected = "4+ eth0 lo out0\n4- lo\n4- eth0 lo\n4+ eth0 eth1 lo out0\n\
                    4- eth0 lo\n4+ eth0 eth1 lo out0\n4- eth0 lo\n4- eth0 lo\n4+ eth0 eth1 lo out0";
    assert_eq!(said, expected);
}

fn reach(env: &TestEnv) -> String {
    env.write("reach.py", REACH).display().to_string()
}

#[test]
fn rated_containers_have_both_families() {
    require!("pasta", "ip", "python3");
    let env = TestEnv::new();
    let script = r#"
$CORACLE network create net >&2
$CORACLE network create --ipv6 six >&2
rate="--net-rate up=80mbit,down=80mbit"
$CORACLE run -d --pull never --name joined $rate --network net "$IMAGE" sleep 1000 >&2
$CORACLE run -d --pull never --name beside $rate --network six "$IMAGE" sleep 1000 >&2
for name in joined beside; do look $name 4+ 6+; done
kill $far
$CORACLE rm -f joined beside >&2
"#;
    let said = on_the_host(&env, &format!("REACH=$(cat {})\n{FAR}{script}", reach(&env)));
    assert_eq!(said, "4+ 6+ eth0 lo\n4+ 6+ eth0 lo");
}

/// Sends the first packet of one connection twice.
const TWICE: &str = r#"
import socket, struct
far = '10.50.0.2'
asks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); asks.connect((far, 7000)); near = asks.getsockname()[0]
head = struct.pack('!HHIIBBHHH', 40123, 7000, 1000, 0, 5 << 4, 2, 64240, 0, 0)
words = socket.inet_aton(near) + socket.inet_aton(far) + struct.pack('!BBH', 0, 6, len(head)) + head
total = sum(struct.unpack('!%dH' % (len(words) // 2), words))
while total >> 16: total = (total & 0xffff) + (total >> 16)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
for _ in range(2): raw.sendto(head[:16] + struct.pack('!H', ~total & 0xffff) + head[18:], (far, 0))
"#;

/// Debian 12's pasta loops for ever over a SYN that it reads twice at once, as a busy one does.
#[test]
fn a_helper_that_hangs_is_ended_and_another_takes_its_place() {
    require!("pasta", "ip", "python3");
    let env = TestEnv::new();
    let script = r#"
$CORACLE network create net >&2
$CORACLE run -d --pull never --name plain --cap-add NET_RAW "$IMAGE" sleep 1000 >&2
$CORACLE run -d --pull never --name joined --cap-add NET_RAW --network net --net-rate up=80mbit "$IMAGE" sleep 1000 >&2
for name in plain joined; do
    look $name 4+
    helper=$(cat $ROOT/containers/$($CORACLE inspect -f '{{.Id}}' $name)/pasta.pid)
    kill -STOP $helper
    $CORACLE exec $name python3 -c "$TWICE" >&2
    kill -CONT $helper
    look $name 4+
done
kill $far
$CORACLE rm -f plain joined >&2
"#;
    let root = env.root();
    let twice = env.write("twice.py", TWICE);
    let set = format!("ROOT={} REACH=$(cat {}) TWICE=$(cat {})", root.display(), reach(&env), twice.display());
    let said = on_the_host(&env, &format!("{set}\n{FAR}{script}"));
    let (plain, joined) = ("4+ h0 lo\n", "4+ eth0 lo\n");
    assert_eq!(said + "\n", [plain, plain, joined, joined].concat());
}

/// What the link of a container wrote down.
fn link(env: &TestEnv, name: &str) -> Value {
    let text = fs_err::read_to_string(directory(env, name).join("link.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn directory(env: &TestEnv, name: &str) -> PathBuf {
    let id = env.coracle(&["inspect", "-f", "{{.Id}}", name]).ok();
    env.root().join("containers").join(id)
}

fn link_pid(env: &TestEnv, name: &str) -> i32 {
    link(env, name)["process"]["pid"].as_i64().unwrap().try_into().unwrap()
}

/// Starts a container that answers as many callers at once as there are: a helper that is killed leaves
/// connections behind.
fn patient_server(env: &TestEnv, name: &str, more: &[&str]) {
    let image = env.image("python3");
    let args = [&["run", "-d", "--name", name, "--network", "net"], more, &[&image, "python3", "-c", SERVER, "80"]];
    env.coracle(&args.concat()).ok();
}

/// Waits until one container gets an answer of another's server.
fn asks(env: &TestEnv, from: &str, to: &str) {
    let ask = format!(
        "import socket; s = socket.create_connection(('{to}', 80), 2); s.sendall(b'who\\n'); print(s.recv(99).decode())"
    );
    wait_until(&format!("{from} to hear {to}"), || {
        env.coracle(&["exec", from, "python3", "-c", &ask]).outcome().code == 0
    });
}

#[test]
fn a_link_that_is_killed_is_replaced() {
    require!("pasta");
    let env = TestEnv::new();
    env.coracle(&["network", "create", "net"]).ok();
    env.coracle(&["network", "create", "other"]).ok();
    let port = free_ports(1);
    patient_server(&env, "first", &["-p", &format!("127.0.0.1:{port}:80")]);
    patient_server(&env, "second", &["--net-rate", "up=100mbit"]);
    asks(&env, "second", "first");
    let address = link(&env, "first")["now"]["attachments"][0]["ips"].clone();
    for name in ["first", "second", "first"] {
        let before = link_pid(&env, name);
        kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        wait_until("another link", || link_pid(&env, name) != before);
        asks(&env, "second", "first");
        asks(&env, "first", "second");
        wait_until("its published port", || !said(port, b"who\n").is_empty());
        assert_eq!(link(&env, "first")["now"]["attachments"][0]["ips"], address);
    }
    // It obeys as the first one did.
    wait_until("the new link to obey", || env.coracle(&["network", "connect", "other", "first"]).outcome().code == 0);
    env.coracle(&["network", "disconnect", "net", "first"]).ok();
    let listing = env.coracle(&["network", "inspect", "net"]).ok();
    assert!(!listing.contains("\"first\""), "{listing}");
    remove(&env, &["first", "second"]);
}

#[test]
fn a_way_out_that_is_killed_is_replaced() {
    require!("pasta");
    let env = TestEnv::new();
    env.coracle(&["network", "create", "net"]).ok();
    let (plain, rated) = (free_ports(1), free_ports(1));
    patient_server(&env, "plain", &["-p", &format!("127.0.0.1:{plain}:80")]);
    patient_server(&env, "rated", &["-p", &format!("127.0.0.1:{rated}:80"), "--net-rate", "up=100mbit"]);
    for (name, port) in [("plain", plain), ("rated", rated)] {
        let answers = || !said(port, b"who\n").is_empty();
        wait_until("the published port", answers);
        let file = directory(&env, name).join("pasta.pid");
        let pid = || fs_err::read_to_string(&file).ok().and_then(|text| text.trim().parse::<i32>().ok());
        let before = pid().unwrap();
        kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        wait_until("another pasta", || pid().is_some_and(|now| now != before));
        wait_until("the published port again", answers);
    }
    remove(&env, &["plain", "rated"]);
}

/// The processes of this user that are called so.
fn processes(words: &[&str]) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if words.iter().any(|word| line.contains(word)) {
            found.push((pid, line));
        }
    }
    found
}

#[test]
fn signals_of_the_terminal_spare_the_processes_beside_a_container() {
    require!("pasta");
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["network", "create", "net"]).ok();
    let mut run = env.coracle(&["run", "--rm", "--network", "net", &image, "sh", "-c", "echo up; sleep 1000"]).spawn();
    run.wait_for("up");
    let root = env.root().display().to_string();
    let all = processes(&["__keep-helper", "__network-link", "__network-holder", "pasta --quiet"]);
    let ours: Vec<_> = all.into_iter().filter(|(_, line)| line.contains(&root)).collect();
    // Keeper, two of the link, holder, pasta.
    assert!(ours.len() >= 5, "{ours:?}");
    let terminal = getsid(None).unwrap();
    for (pid, line) in ours {
        assert_ne!(getsid(Some(Pid::from_raw(pid))).unwrap(), terminal, "{line}");
    }
    let id = env.coracle(&["ps", "-q"]).ok();
    env.coracle(&["kill", &id]).ok();
    run.wait();
}

#[test]
fn a37_nobody_else_reaches_the_processes_of_a_network() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["network", "create", "--internal", "inner"]).ok();
    server(&env, "one", &["inner"], &[]);
    let sockets = [directory(&env, "one").join("link.sock"), env.root().join("networks/inner/holder.sock")];
    for socket in &sockets {
        let found = fs_err::symlink_metadata(socket).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o777, 0o600, "{}", socket.display());
        for above in socket.ancestors().skip(1).take_while(|path| path.starts_with(env.root())) {
            let mode = fs_err::metadata(above).unwrap().permissions().mode();
            assert!(mode & 0o077 == 0 || above != env.root(), "{}", above.display());
        }
    }
    // A container with the host's network sees the host's abstract sockets: there is none of ours.
    let mut numbers = Vec::new();
    for (pid, line) in processes(&["__network-link", "__network-holder"]) {
        let links = fs_err::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = links.filter(|_| line.contains(&env.root().display().to_string()));
        numbers.extend(links.filter_map(|entry| {
            let link = fs_err::read_link(entry.path()).ok()?;
            Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        }));
    }
    let table = env.coracle(&["run", "--rm", "--network", "host", &image, "cat", "/proc/net/unix"]).ok();
    let of_ours: Vec<&str> = table
        .lines()
        .filter(|line| line.split_whitespace().nth(6).is_some_and(|number| numbers.iter().any(|own| own == number)))
        .collect();
    assert!(!of_ours.is_empty() || numbers.is_empty(), "the container has the host's table");
    assert!(of_ours.iter().all(|line| !line.contains('@')), "{of_ours:?}");
    remove(&env, &["one"]);
}

/// Asks the name server as somebody else: with that one's address and that one's hardware address.
const PRETEND: &str = r#"
import fcntl, socket, struct, sys
ip, mac, server = sys.argv[1:4]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def tell(call, kind, data): fcntl.ioctl(s, call, struct.pack('16sH14s', b'eth0', kind, data))
def flags(up): fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'eth0', up))
if mac != '-':
    flags(0); tell(0x8924, 1, bytes.fromhex(mac.replace(':', ''))); flags(1)
    tell(0x8916, socket.AF_INET, struct.pack('!H4s8x', 0, socket.inet_aton(ip)))
    tell(0x891c, socket.AF_INET, struct.pack('!H4s8x', 0, socket.inet_aton('255.255.255.0')))
q = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); q.bind((ip, 0)); q.settimeout(0.3)
heard = 'nothing'
for turn in range(10):
    q.sendto(b'\0\7\1\0\0\1\0\0\0\0\0\0\6secret\0\0\1\0\1', (server, 53))
    try: answer = q.recv(999)
    except OSError: continue
    heard = 'an address' if answer[7] else 'code %d' % (answer[3] & 15)
    break
print(heard)
"#;

#[test]
fn a74_nobody_asks_for_names_as_somebody_else() {
    require!();
    let env = TestEnv::new();
    let image = env.image("python3");
    env.coracle(&["network", "create", "--internal", "one"]).ok();
    env.coracle(&["network", "create", "--internal", "two"]).ok();
    let run = |name: &str, networks: &[&str]| {
        let networks: Vec<&str> = networks.iter().flat_map(|network| ["--network", network]).collect();
        let caps = ["--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW", "--name", name];
        env.coracle(&["run", "-d"]).args(&caps).args(&networks).args(&[image.as_str(), "sleep", "1000"]).ok();
    };
    run("victim", &["one", "two"]);
    run("secret", &["two"]);
    run("thief", &["one"]);
    let field = |field: &str| {
        let format = format!("{{{{.NetworkSettings.Networks.one.{field}}}}}");
        env.coracle(&["inspect", "-f", &format, "victim"]).ok()
    };
    let (ip, mac, gateway) = (field("IPAddress"), field("MacAddress"), field("Gateway"));
    let own = env.coracle(&["inspect", "-f", "{{.NetworkSettings.Networks.one.IPAddress}}", "thief"]).ok();
    let ask = |who: &str, ip: &str, mac: &str| {
        env.coracle(&["exec", who, "python3", "-c", PRETEND, ip, mac, &gateway]).outcome().ok()
    };
    assert_eq!(ask("victim", &ip, "-"), "an address");
    assert_eq!(ask("thief", &own, "-"), "code 3");
    assert_eq!(ask("thief", &ip, &mac), "nothing");
    assert_eq!(ask("victim", &ip, "-"), "an address", "nor does it lose its own answers");
    remove(&env, &["victim", "secret", "thief"]);
}
