//! What people do with a network: a web server, an application and a database that find each other by name; and
//! a crowd of fifty.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::env::{TestEnv, Who, fixtures, free_ports, poll, wait_until};
use crate::networks::{address, nth, remove};
use crate::require;

/// Counts visits in the database, by its own protocol, and says the count as a page.
const APPLICATION: &str = r#"
import socket, threading
def visit():
    with socket.create_connection(("db", 6379), 5) as s:
        s.settimeout(5); s.sendall(b"*2\r\n$4\r\nINCR\r\n$6\r\nvisits\r\n")
        return s.makefile("rb").readline().strip(b":\r\n").decode()
def serve(c):
    f = c.makefile("rb")
    while f.readline().strip(): pass
    try: status, body = "200 OK", "visit " + visit()
    except OSError: status, body = "503 Service Unavailable", "no database"
    c.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()); c.close()
s = socket.create_server(("", 8000), backlog=64)
while True:
    c, _ = s.accept(); threading.Thread(target=serve, args=(c,), daemon=True).start()
"#;

/// Passes everything on to the application, whose address it asks the network's name server for, again and again.
fn site(server: &str) -> String {
    format!(
        "server {{ listen 8080; location / {{ resolver {server} valid=1s; set $app http://app:8000; \
         proxy_pass $app; proxy_read_timeout 30s; }} }}\n"
    )
}

/// Tries everything of the three by name and by address; says who answered: some networks outside take every
/// connection, and say nothing of ours.
const SPY: &str = r#"
import socket, sys
for place in sys.argv[1:]:
    host, port = place.rsplit(":", 1)
    ask, wanted = (b"PING\r\n", b"+PONG") if port == "6379" else (b"GET / HTTP/1.0\r\n\r\n", b" 200 OK")
    try:
        s = socket.create_connection((host, int(port)), 1); s.settimeout(3)
        s.sendall(ask)
        if wanted in s.recv(999): print("reached", place)
    except OSError: pass
print("done")
"#;

fn page(port: u16) -> String {
    let mut answer = String::new();
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return answer };
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let _ = stream.write_all(b"GET / HTTP/1.0\r\nHost: shop\r\n\r\n");
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// Which visit a page says that this was.
fn visit(page: &str) -> Option<u32> {
    page.rsplit_once("visit ")?.1.parse().ok()
}

fn start_the_three(env: &TestEnv, port: u16) {
    let (nginx, python, redis) = (env.image("nginx"), env.image("python3"), env.image("redis"));
    env.coracle(&["run", "-d", "--name", "db", "--network", "shop", &redis]).ok();
    env.coracle(&["run", "-d", "--name", "app", "--network", "shop", &python, "python3", "-c", APPLICATION]).ok();
    let volume =
        format!("{}:/etc/nginx/conf.d/shop.conf:ro", env.write("shop.conf", site(&nth(env, "shop", 1))).display());
    let publish = format!("127.0.0.1:{port}:8080");
    let args = ["run", "-d", "--name", "web", "--network", "shop", "-p", &publish, "-v", &volume, &nginx];
    let web = env.coracle(&args);
    if env.who() == Who::Single {
        // Its workers cannot become www-data where there is one id.
        let as_root = "sed -i 's/^user .*/user root;/' /etc/nginx/nginx.conf && exec nginx -g 'daemon off;'";
        web.args(&["sh", "-c", as_root]).ok();
    } else {
        web.ok();
    }
}

#[test]
fn a_web_an_application_and_a_database_container_talk_by_name() {
    require!("pasta");
    let env = TestEnv::new();
    env.coracle(&["network", "create", "shop"]).ok();
    env.coracle(&["network", "create", "elsewhere"]).ok();
    let port = free_ports(1);
    start_the_three(&env, port);
    let python = env.image("python3");
    env.coracle(&["run", "-d", "--name", "stranger", "--network", "elsewhere", &python, "sleep", "1000"]).ok();
    wait_until("the shop to open", || visit(&page(port)).is_some());
    let first = visit(&page(port)).unwrap();
    let visits: Vec<_> = (0..5).map(|_| visit(&page(port))).collect();
    let expected: Vec<_> = (first + 1..first + 6).map(Some).collect();
    assert_eq!(visits, expected, "every page is a visit that the database counted");

    let places = [("web", 8080), ("app", 8000), ("db", 6379)];
    let of = |(name, port): (&str, u16)| [format!("{name}:{port}"), format!("{}:{port}", address(&env, name, "shop"))];
    let all: Vec<String> = places.into_iter().flat_map(of).collect();
    let spy = || env.coracle(&["exec", "stranger", "python3", "-c", SPY]).args(&all).ok();
    assert_eq!(spy(), "done", "from another network");
    env.coracle(&["network", "connect", "shop", "stranger"]).ok();
    let reached = all.iter().map(|place| format!("reached {place}\n")).collect::<String>() + "done";
    wait_until("everybody to be reached once it is connected", || spy() == reached);
    env.coracle(&["network", "disconnect", "shop", "stranger"]).ok();
    assert_eq!(spy(), "done", "once it is disconnected");

    // The database goes, and comes back with what it knows.
    env.coracle(&["network", "disconnect", "shop", "db"]).ok();
    wait_until("the database to be missed", || page(port).contains("no database"));
    env.coracle(&["network", "connect", "shop", "db"]).ok();
    wait_until("the database to be found", || visit(&page(port)).is_some());
    assert!(visit(&page(port)).unwrap() > first + 5);
    remove(&env, &["web", "app", "db", "stranger"]);
}

/// Serves its name, and the name of the one after it in the ring as soon as it has heard it.
const IN_THE_RING: &str = r#"mkdir /tmp/www && cd /tmp/www && echo "this-is-$OWN" >own && httpd -p 80 -h /tmp/www
ask() { printf 'GET /%s HTTP/1.0\r\n\r\n' $2 | nc -w 5 $1 80 | grep ^this-is; }
until ask $NEXT own >heard; do sleep 0.2; done; mv heard next; exec sleep 1000"#;
const CROWD: usize = 50;

#[test]
fn fifty_containers_are_in_one_network() {
    require!("pasta");
    let env = TestEnv::new();
    if env.who() != Who::Ranges && !fixtures::is_full() {
        return fixtures::elsewhere("fifty containers are started by the user with a range of ids");
    }
    let image = env.image("busybox");
    env.coracle(&["network", "create", "crowd"]).ok();
    let name = |number: usize| format!("c{}", number % CROWD);
    let names: Vec<String> = (0..CROWD).map(name).collect();
    for (number, called) in names.iter().enumerate() {
        let (own, next) = (format!("OWN={called}"), format!("NEXT={}", name(number + 1)));
        let flags = ["run", "-d", "--name", called, "--network", "crowd", "-e", &own, "-e", &next];
        env.coracle(&flags).args(&[&image, "sh", "-c", IN_THE_RING]).ok();
    }
    // One of them hears of each that it heard the next one, and asks for every name to do so.
    let ask = format!(
        "for n in $(seq 0 {}); do printf 'GET /next HTTP/1.0\\r\\n\\r\\n' | nc -w 5 c$n 80 | grep ^this-is || exit 1; done",
        CROWD - 1
    );
    let expected: Vec<String> = (0..CROWD).map(|number| format!("this-is-{}", name(number + 1))).collect();
    let whole = poll(Duration::from_secs(120), || {
        env.coracle(&["exec", "c7", "sh", "-c", &ask]).outcome().text() == expected.join("\n")
    });
    assert!(whole, "{}", env.coracle(&["exec", "c7", "sh", "-c", &ask]).outcome());
    let mut addresses: Vec<String> = names.iter().map(|name| address(&env, name, "crowd")).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), CROWD, "each has an address of its own");
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    remove(&env, &names);
}
