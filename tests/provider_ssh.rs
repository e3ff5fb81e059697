//! SSH into instances of a pool: a real scheduler, a real agent, the stock OpenSSH client with every check on.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::env::command::Running;
use crate::env::terminal::Terminal;
use crate::env::{Outcome, Run, TestEnv, Who, tree, wait_until};
use crate::require;

/// A pool with one provider, a registered key, and a configuration that `pool ssh-config` wrote.
struct Reached {
    env: TestEnv,
    scheduler: Running,
    agent: Running,
    image: String,
    config: PathBuf,
}

impl Reached {
    fn new() -> Self {
        let env = TestEnv::new();
        let image = env.image("busybox");
        let at = env.root().join("central");
        let central = |args: &[&str]| env.coracle(&["--root"]).args(&[&at]).args(args);
        let token = env.write("admin", central(&["scheduler", "init"]).ok());
        let serve = central(&["scheduler", "serve", "--listen", "127.0.0.1:0", "--log", "requests"]);
        let log = env.write("scheduler.log", "");
        let mut scheduler = serve.stderr_to(fs_err::File::create(log).unwrap().into_parts().0).spawn();
        scheduler.wait_for("\n");
        let url = scheduler.stdout_so_far().trim().to_owned();
        let ca = at.join("scheduler/ca.crt");
        let login = env.coracle(&["pool", "login", "--scheduler", &url, "--ca"]).args(&[&ca]);
        login.args(&["--token-from"]).args(&[&token]).ok();
        let join = env.write("join", env.coracle(&["pool", "join-token", "laptop"]).ok());
        let lend =
            env.coracle(&["provider", "join", "--scheduler", &url, "--name", "laptop", "--network", "none", "--ca"]);
        lend.args(&[&ca]).args(&["--token-from"]).args(&[&join]).ok();
        let agent = agent(&env);
        let ready = || env.coracle(&["pool", "providers", "--format", "{{.State}}"]).ok() == "ready";
        wait_until("the provider is ready", ready);
        let config = env.path("ssh_config");
        let reached = Self { env, scheduler, agent, image, config };
        reached.key("id");
        reached.pool(&["keys", "add"]).args(&[reached.env.path("id.pub")]).ok();
        reached
    }

    fn pool(&self, args: &[&str]) -> Run {
        self.env.coracle(&["pool"]).args(args)
    }

    /// Makes a key pair.
    fn key(&self, name: &str) -> PathBuf {
        let path = self.env.path(name);
        let make = self.env.program("ssh-keygen").args(&["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]);
        make.args(&[&path]).ok();
        path
    }

    /// Asks for an instance and writes the configuration anew.
    fn run(&self, name: &str) {
        self.pool(&["run", "--name", name, &self.image, "sleep", "100000"]).ok();
        self.configure();
    }

    fn configure(&self) {
        let write = format!("--write={}", self.config.display());
        self.pool(&["ssh-config", &write, "--identity"]).args(&[self.env.path("id")]).ok();
    }

    /// Prepares a program of OpenSSH; what the machine's own configuration says does not count.
    fn open(&self, program: &str) -> Run {
        self.env.program(program).args(&["-F"]).args(&[&self.config])
    }

    fn ssh(&self, args: &[&str]) -> Outcome {
        self.open("ssh").args(args).outcome()
    }

    fn has_ids(&self) -> bool {
        self.env.who() != Who::Single
    }

    /// Lets a program work in the place of the test.
    fn at_place(&self, run: Run) -> Run {
        run.directory(&self.env.path(""))
    }

    fn restart_agent(self) -> Self {
        self.agent.signal(Signal::SIGTERM);
        self.agent.wait().code(0);
        Self {
            agent: agent(&self.env),
            env: self.env,
            scheduler: self.scheduler,
            image: self.image,
            config: self.config,
        }
    }

    fn events(&self) -> Vec<Value> {
        let text = fs_err::read_to_string(self.env.root().join("events.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn end(self, names: &[&str]) {
        self.pool(&["rm", "-f"]).args(names).ok();
        wait_until("what was removed is gone", || self.env.coracle(&["ps", "-aq"]).ok().is_empty());
        let keys = || fs_err::read_dir(self.env.root().join("provider/ssh")).unwrap().count();
        wait_until("only the authority's key is left", || keys() == 1);
        self.agent.signal(Signal::SIGTERM);
        self.agent.wait().code(0);
        self.scheduler.signal(Signal::SIGTERM);
        self.scheduler.wait().code(0);
    }
}

fn agent(env: &TestEnv) -> Running {
    let mut agent = env.coracle(&["provider", "run"]).spawn();
    agent.wait_for("works for");
    agent
}

#[test]
fn commands_and_terminals_by_the_stock_client() {
    require!("ssh", "ssh-keygen", "curl");
    let pool = Reached::new();
    pool.run("web");
    let said = pool.ssh(&["web", "echo out; echo err >&2; exit 7"]);
    assert_eq!((said.text().as_str(), said.stderr.as_str(), said.code), ("out", "err\n", 7));
    let through = pool.open("ssh").args(&["web", "cat; echo end"]).stdin("a line\n".repeat(100_000)).outcome();
    assert_eq!(through.ok(), format!("{}end", "a line\n".repeat(100_000)));
    // Only words about language come along (S26).
    let env = ["-o", "SetEnv=LC_TIME=here SECRET=there", "web", "echo $LC_TIME-$SECRET-$SSH_AUTH_SOCK"];
    assert_eq!(pool.ssh(&env).ok(), "here--");
    assert_eq!(pool.ssh(&["-l", "1000", "web", "id -u"]).text(), if pool.has_ids() { "1000" } else { "" });

    let config = pool.config.to_str().unwrap().to_owned();
    let mut terminal = Terminal::start(&pool.env, 100, 30, "ssh", &["-F", &config, "web"]);
    terminal.wait_raw();
    terminal.type_in("echo \"<$TERM $(stty size)>\"\n");
    terminal.expect("<xterm 30 100>");
    terminal.resize(120, 40);
    // The program hears of the new size when it comes, which may be after the next command.
    terminal.type_in("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.1; done; echo \"<$((6 * 7))>\"\n");
    terminal.expect("<42>");
    // A signal that the person types reaches the program and not the session.
    terminal.type_in("echo \"<$((6 * 9))>\"; sleep 100000\n");
    terminal.expect("<54>");
    terminal.type_in("\x03");
    terminal.type_in("echo \"<$((6 * 8))>\"; exit 5\n");
    terminal.expect("<48>");
    assert_eq!(terminal.exit_code(), 5);

    // The same without keys, by the right to the instance.
    let exec = pool.pool(&["exec", "web", "sh", "-c", "echo out; echo err >&2; exit 3"]).outcome();
    assert_eq!((exec.text().as_str(), exec.stderr.as_str(), exec.code), ("out", "err\n", 3));
    assert_eq!(pool.pool(&["exec", "-i", "web", "wc", "-c"]).stdin("x".repeat(200_000)).ok(), "200000");
    pool.pool(&["exec", "web", "no-such"]).outcome().refused(127);
    let coracle = crate::env::fixtures::coracle();
    let args = ["pool", "exec", "-it", "web", "sh", "-c", "stty size; read x; echo \"<$x>\"; exit 4"];
    let mut terminal = Terminal::start(&pool.env, 90, 20, coracle.to_str().unwrap(), &args);
    terminal.expect("20 90");
    terminal.type_in("typed\n");
    terminal.expect("<typed>");
    assert_eq!(terminal.exit_code(), 4);
    pool.end(&["web"]);
}

#[test]
fn s26_nothing_but_programs_files_and_connections_inside() {
    require!("ssh", "ssh-keygen", "curl");
    let pool = Reached::new();
    pool.run("web");
    pool.ssh(&["web", "mkdir /www; echo inside > /www/page; httpd -p 127.0.0.1:8080 -h /www"]).ok();
    let socket = pool.env.path("forwarded");
    let forward = format!("{}:127.0.0.1:8080", socket.display());
    let tunnel = pool.open("ssh").args(&["-N", "-L", &forward, "web"]).spawn();
    let get = || {
        let curl = pool.env.program("curl").args(&["-s", "--max-time", "5", "--unix-socket"]).args(&[&socket]);
        curl.args(&["http://x/page"]).outcome().text()
    };
    wait_until("the tunnel stands", || get() == "inside");
    tunnel.signal(Signal::SIGTERM);
    tunnel.wait();
    // A port of the host's loopback is not there, and no address of anywhere else.
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    for to in [format!("localhost:{port}"), "192.0.2.1:80".to_owned(), "0.0.0.0:8080".to_owned(), "x.org:80".to_owned()]
    {
        pool.ssh(&["-W", &to, "web"]).code(255).says("forwarding failed");
    }
    let page = "GET /page HTTP/1.0\r\n\r\n";
    let through = pool.open("ssh").args(&["-W", "localhost:8080", "web"]).stdin(page).outcome();
    assert!(through.text().ends_with("inside"), "{}", through.text());
    // Nobody listens for a client, and neither keys nor windows of his are asked for.
    pool.ssh(&["-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:1", "web", "true"]).code(255);
    assert_eq!(pool.ssh(&["-A", "web", "echo -$SSH_AUTH_SOCK-$DISPLAY-"]).ok(), "---");
    let subsystem = pool.ssh(&["-s", "web", "other"]);
    assert_eq!(subsystem.code, 255, "{}", subsystem.stderr);
    // A session's own process has no shell of the host: the hidden words work for nobody else.
    for hidden in ["__ssh-session", "__ssh-program", "__ssh-files", "__ssh-dial"] {
        pool.env.coracle(&[hidden, "1", "streams", "exec"]).outcome().refused(1);
    }
    pool.end(&["web"]);
}

#[test]
fn files_by_scp_sftp_and_rsync() {
    require!("scp", "sftp", "rsync", "ssh-keygen", "ldd");
    let pool = Reached::new();
    pool.run("web");
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(|number| number.to_le_bytes()).collect();
    let (there, back) = (pool.env.write("big", &bytes), pool.env.path("back"));
    crate::env::set_mode(&there, 0o640);
    pool.open("scp").args(&["-p", "-q"]).args(&[&there]).args(&["web:/tmp/big"]).ok();
    let sum = tree::sha256(&bytes);
    assert_eq!(pool.ssh(&["web", "sha256sum /tmp/big; stat -c %a /tmp/big"]).ok(), format!("{sum}  /tmp/big\n640"));
    pool.open("scp").args(&["-p", "-q", "web:/tmp/big"]).args(&[&back]).ok();
    assert_eq!(tree::sha256_file(&back), sum);
    assert_eq!(fs_err::metadata(&back).unwrap().permissions().mode() & 0o777, 0o640);

    // What leads out of the instance leads nowhere (O1).
    pool.ssh(&["web", "ln -s /etc/hostname /tmp/link; ln -s ../../../../../../root/up /tmp/up; mkfifo /tmp/fifo"]).ok();
    pool.env.write("batch", "ls -l /tmp\nmkdir /tmp/new\nput big /tmp/new/one\nrename /tmp/new/one /tmp/new/two\nchmod 600 /tmp/new/two\nln -s two /tmp/new/three\nget /tmp/new/three got\nrm /tmp/big\n-get /tmp/fifo never\n-get /proc/version never\nput id.pub /tmp/up\n-rmdir /tmp/new\n");
    let sftp = pool.open("sftp").args(&["-b"]).args(&[pool.env.path("batch")]).args(&["web"]);
    let sftp = pool.at_place(sftp).outcome();
    assert!(sftp.ok().contains("-rw-r-----    1 "), "{}", sftp.text());
    assert_eq!(tree::sha256_file(&pool.env.path("got")), sum);
    assert!(!pool.env.path("never").exists());
    assert_eq!(
        pool.ssh(&["web", "ls /tmp/new; stat -c %a /tmp/new/two; ls /root/up"]).ok(),
        "three\ntwo\n600\n/root/up"
    );

    // rsync is the image's own program; this one has the host's with what it needs.
    let bundle = pool.env.path("rsync");
    fs_err::create_dir(&bundle).unwrap();
    let ldd = pool.env.program("ldd").args(&["/usr/bin/rsync"]).ok();
    let needed = ldd.split_whitespace().filter(|word| word.starts_with('/')).chain(["/usr/bin/rsync"]);
    for file in needed {
        let name = std::path::Path::new(file).file_name().unwrap();
        fs_err::copy(file, bundle.join(name)).unwrap();
    }
    pool.open("scp").args(&["-q", "-r"]).args(&[&bundle]).args(&["web:/opt"]).ok();
    let shell = format!("ssh -F {}", pool.config.display());
    let sync = |from: &str, to: &str| {
        let rsync = pool.env.program("rsync").args(&["-rlpt", "-e", &shell]);
        let inside = "--rsync-path=/opt/ld-linux-x86-64.so.2 --library-path /opt /opt/rsync";
        rsync.args(&[inside, from, to]).ok()
    };
    let folder = pool.env.path("tree");
    fs_err::create_dir_all(folder.join("a/b")).unwrap();
    fs_err::write(folder.join("a/b/c"), &bytes).unwrap();
    sync(&format!("{}/", folder.display()), "web:/srv/");
    assert_eq!(pool.ssh(&["web", "sha256sum /srv/a/b/c"]).ok(), format!("{sum}  /srv/a/b/c"));
    sync("web:/srv/a/", &format!("{}/again/", pool.env.path("").display()));
    assert_eq!(tree::sha256_file(&pool.env.path("again/b/c")), sum);
    pool.end(&["web"]);
}

#[test]
fn s25_s28_s29_only_the_key_that_is_registered_now_and_the_host_that_is_vouched_for() {
    require!("ssh", "ssh-keygen");
    const CANARY: &str = "plaintext-canary-7f3a";
    let pool = Reached::new();
    pool.run("web");
    pool.run("db");
    assert_eq!(pool.ssh(&["web", "echo in"]).ok(), "in");
    // s28: what the server speaks.
    let verbose = pool.ssh(&["-vvv", "web", "true"]).stderr;
    let offered: Vec<&str> = verbose.split("peer server KEXINIT proposal").nth(1).unwrap().lines().take(12).collect();
    assert!(offered.concat().contains("kex-strict-s-v00@openssh.com"), "{offered:?}");
    for weak in ["cbc", "sha1", "md5", "group1", "group-exchange", "3des", "ssh-rsa", "ssh-dss", "arcfour", "zlib"] {
        assert!(!offered.concat().contains(weak), "{weak}: {offered:?}");
    }
    assert!(verbose.contains("strict KEX"), "{verbose}");
    pool.ssh(&["-c", "aes128-cbc", "web", "true"]).code(255).says("no matching cipher");

    // A key that nobody registered, offered beside one that is: what counts is what is proven (A87).
    pool.key("other");
    let as_other = pool.env.path("as_other");
    let write = format!("--write={}", as_other.display());
    pool.pool(&["ssh-config", &write, "--identity"]).args(&[pool.env.path("other")]).ok();
    let with_other = |args: &[&str]| pool.env.program("ssh").args(&["-F"]).args(&[&as_other]).args(args).outcome();
    with_other(&["web", "true"]).code(255).says("Permission denied (publickey)");
    let public = pool.env.path("mixed.pub");
    fs_err::copy(pool.env.path("other"), pool.env.path("mixed")).unwrap();
    fs_err::copy(pool.env.path("id.pub"), public).unwrap();
    let mixed = pool.env.path("mixed");
    with_other(&["-i", mixed.to_str().unwrap(), "web", "true"]).code(255);
    for login in ["root", "web", "-x", "a b"] {
        with_other(&["-o", &format!("User=\"{login}\""), "web", "true"]).code(255);
    }

    // A key that is taken away ends what it opened, and opens nothing more.
    pool.pool(&["keys", "add"]).args(&[pool.env.path("other.pub")]).ok();
    assert_eq!(with_other(&["web", "echo in"]).ok(), "in");
    let mut open = pool.open("ssh").args(&["web", "echo up; sleep 100000"]).spawn();
    open.wait_for("up");
    pool.pool(&["keys", "rm", "id"]).ok();
    open.wait().code(255);
    pool.ssh(&["web", "true"]).code(255).says("Permission denied (publickey)");
    assert_eq!(with_other(&["web", "echo still"]).ok(), "still");

    // RSA, which many people still have: signed over SHA-2, and with enough bits.
    let rsa = |bits: &str| {
        let path = pool.env.path(format!("rsa{bits}"));
        let make = pool.env.program("ssh-keygen").args(&["-q", "-t", "rsa", "-b", bits, "-N", "", "-f"]);
        make.args(&[&path]).ok();
        path
    };
    let (old, weak) = (rsa("2048"), rsa("1024"));
    pool.pool(&["keys", "add"]).args(&[weak.with_extension("pub")]).outcome().refused(1).says("2048 bits");
    pool.pool(&["keys", "add"]).args(&[old.with_extension("pub")]).ok();
    let as_old = pool.env.path("as_old");
    let write = format!("--write={}", as_old.display());
    pool.pool(&["ssh-config", &write, "--identity"]).args(&[&old]).ok();
    let with_old = |algorithm: &str| {
        let only = format!("PubkeyAcceptedAlgorithms={algorithm}");
        pool.env.program("ssh").args(&["-F"]).args(&[&as_old]).args(&["-o", &only, "web", "echo old"]).outcome()
    };
    for algorithm in ["rsa-sha2-256", "rsa-sha2-512"] {
        assert_eq!(with_old(algorithm).ok(), "old", "{algorithm}");
    }
    with_old("ssh-rsa").code(255).says("Permission denied (publickey)");

    // The host of one instance is not taken for another's.
    let id = |name: &str| -> String {
        let found: Value = serde_json::from_str(&pool.pool(&["inspect", name]).ok()).unwrap();
        found["id"].as_str().unwrap().to_owned()
    };
    with_other(&["-o", &format!("HostKeyAlias={}", id("db")), "web", "true"])
        .code(255)
        .says("ost key verification failed");
    // What flows is nowhere but at its two ends; that it flowed is on record (s29).
    let typed = with_other_stdin(&pool, &as_other, &["web", "cat"], CANARY);
    assert_eq!(typed.ok(), CANARY);
    let fingerprint = pool.env.program("ssh-keygen").args(&["-lf"]).args(&[pool.env.path("other.pub")]).ok();
    let fingerprint = fingerprint.split(' ').nth(1).unwrap().to_owned();
    let events = pool.events();
    let last = |action: &str| events.iter().rfind(|event| event["action"] == action).unwrap()["attributes"].clone();
    let (login, end) = (last("ssh_login"), last("ssh_end"));
    assert_eq!(
        (login["key"].as_str(), login["asker"].as_str(), login["login"].as_str()),
        (Some(&*fingerprint), Some("root"), Some("web"))
    );
    assert_eq!(
        (end["what"].as_str(), end["exitCode"].as_str(), end["key"].as_str()),
        (Some("cat"), Some("0"), Some(&*fingerprint))
    );
    assert_eq!(end["bytesIn"].as_str(), Some(CANARY.len().to_string().as_str()));
    assert!(end["name"].as_str().unwrap().starts_with("pool-"), "{end}");
    let grep =
        pool.env.program("grep").args(&["-rlF", CANARY]).args(&[pool.env.root(), pool.env.path("scheduler.log")]);
    assert_eq!(grep.outcome().text(), "");
    assert_eq!(pool.agent.stdout_so_far().matches(CANARY).count(), 0);

    // The host key stays over a restart of the agent; another authority is refused, by ssh and by ssh-config.
    let keys = pool.env.root().join("provider/ssh");
    let host = fs_err::read(keys.join(format!("{}.host", id("web")))).unwrap();
    let pool = pool.restart_agent();
    assert_eq!(with_other_stdin(&pool, &as_other, &["web", "cat"], "again").ok(), "again");
    assert_eq!(fs_err::read(keys.join(format!("{}.host", id_of(&pool, "web")))).unwrap(), host);
    fs_err::remove_file(keys.join("authority")).unwrap();
    let pool = pool.restart_agent();
    with_other_stdin(&pool, &as_other, &["web", "cat"], "no").code(255).says("ost key verification failed");
    let renew = |more: &[&str]| pool.pool(&["ssh-config", &write]).args(more).outcome();
    wait_until("the new authority is told", || renew(&[]).code == 1);
    renew(&[]).refused(1).says("the SSH authority of provider laptop has changed");
    renew(&["--trust", "laptop", "--identity", pool.env.path("other").to_str().unwrap()]).ok();
    assert_eq!(with_other_stdin(&pool, &as_other, &["web", "cat"], "yes").ok(), "yes");
    pool.end(&["web", "db"]);
}

fn id_of(pool: &Reached, name: &str) -> String {
    let found: Value = serde_json::from_str(&pool.pool(&["inspect", name]).ok()).unwrap();
    found["id"].as_str().unwrap().to_owned()
}

fn with_other_stdin(pool: &Reached, config: &std::path::Path, args: &[&str], stdin: &str) -> Outcome {
    pool.env.program("ssh").args(&["-F"]).args(&[config]).args(args).stdin(stdin).outcome()
}
