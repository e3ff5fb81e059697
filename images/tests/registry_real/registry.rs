//! `docker-registry` on a loopback port of its own, images made with umoci, and children that pull.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_images::{LayerSpace, Ownership, PullOptions, Store};

/// How long an external program may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
const TOOLS: [&str; 4] = ["docker-registry", "skopeo", "umoci", "htpasswd"];

/// Says whether the tools are there; without them a test is skipped, and fails where CI requires all.
pub fn has_tools(test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &&str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    match TOOLS.iter().find(|tool| !is_there(tool)) {
        None => true,
        Some(missing) => {
            let required = std::env::var_os("CORACLE_TEST_REQUIRE").is_some_and(|value| value == "all");
            assert!(!required, "{test}: {missing} is not installed");
            eprintln!("SKIP {test}: {missing} is not installed");
            false
        }
    }
}

/// What a registry asks of its users.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    Open,
    /// `user` with `password`.
    Password,
    /// TLS with an authority of its own, and the password.
    Tls,
}

/// A running registry; it stops when dropped.
pub struct Registry {
    pub port: u16,
    pub dir: tempfile::TempDir,
    pub authority_pem: Option<String>,
    guard: Guard,
    child: Child,
}

impl Registry {
    pub fn start(guard: Guard) -> Registry {
        let dir = tempfile::tempdir().expect("tempdir");
        let port = free_port();
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {0}/data}}}}\n",
            dir.path().display()
        );
        if guard != Guard::Open {
            let file = dir.path().join("htpasswd");
            run(Command::new("htpasswd").args(["-Bbc"]).arg(&file).args(["user", "password"]));
            config += &format!("auth: {{htpasswd: {{realm: r, path: {}}}}}\n", file.display());
        }
        config += &format!("http:\n  addr: 127.0.0.1:{port}\n");
        let mut authority_pem = None;
        if guard == Guard::Tls {
            let (authority, certificate, key) = certificates();
            let (certificate_path, key_path) = (dir.path().join("server.crt"), dir.path().join("server.key"));
            fs_err::write(&certificate_path, certificate).expect("certificate");
            fs_err::write(&key_path, key).expect("key");
            config += &format!("  tls: {{certificate: {}, key: {}}}\n", certificate_path.display(), key_path.display());
            authority_pem = Some(authority);
        }
        let config_path = dir.path().join("config.yml");
        fs_err::write(&config_path, config).expect("config");
        let log = fs_err::File::create(dir.path().join("log")).expect("log").into_parts().0;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config_path)
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("docker-registry");
        let registry = Registry { port, dir, authority_pem, guard, child };
        wait_until("docker-registry", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        registry
    }

    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Copies `tag` of the layout at `oci` to the repository `name`.
    pub fn push(&self, oci: &Path, tag: &str, name: &str, arguments: &[&str]) {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]).args(arguments);
        if self.guard != Guard::Open {
            command.args(["--dest-creds", "user:password"]);
        }
        command.arg(format!("oci:{}:{tag}", oci.display()));
        run(command.arg(format!("docker://{}/{name}", self.host())).env("TMPDIR", self.dir.path()));
    }

    /// How many times each blob was sent, as the access log has it.
    pub fn blob_requests(&self) -> Vec<String> {
        let log = fs_err::read_to_string(self.dir.path().join("log")).expect("log");
        let lines = log.lines().filter(|line| line.contains("\"GET /v2/") && line.contains("/blobs/"));
        let digest = |line: &str| {
            let (_, rest) = line.split_once("/blobs/").expect("blob");
            rest.split([' ', '"']).next().unwrap_or_default().to_owned()
        };
        lines.filter(|line| line.contains("\" 200 ") || line.contains("\" 206 ")).map(digest).collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes an OCI layout whose image `t` has one layer for each of `sizes`, of bytes that do not compress.
pub fn make_image(dir: &Path, sizes: &[usize]) -> PathBuf {
    let oci = dir.join("oci");
    run(Command::new("umoci").args(["init", "--layout"]).arg(&oci));
    let image = format!("{}:t", oci.display());
    run(Command::new("umoci").args(["new", "--image", &image]));
    for (number, size) in sizes.iter().enumerate() {
        let archive = dir.join(format!("layer{number}.tar"));
        let name = format!("file{number}");
        fs_err::write(dir.join(&name), noise(*size, number as u64 + 1)).expect("file");
        run(Command::new("tar").args(["--owner=0", "--group=0", "-cf"]).arg(&archive).arg("-C").arg(dir).arg(&name));
        run(Command::new("umoci").args(["raw", "add-layer", "--image", &image]).arg(&archive));
        fs_err::remove_file(archive).expect("archive");
    }
    oci
}

/// Makes a copy of the image `t` whose layers are compressed with zstd.
pub fn with_zstd(oci: &Path, dir: &Path) -> PathBuf {
    let (bare, zstd) = (dir.join("bare"), dir.join("zstd"));
    let copy = || {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet"]).env("TMPDIR", dir);
        command
    };
    let (from, between) = (format!("oci:{}:t", oci.display()), format!("dir:{}", bare.display()));
    run(copy().arg("--dest-decompress").args([&from, &between]));
    let to = format!("oci:{}:t", zstd.display());
    run(copy().args(["--dest-compress", "--dest-compress-format", "zstd"]).args([&between, &to]));
    zstd
}

/// Bytes without repetitions.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

/// A place to pull to.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub options: PullOptions,
}

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Store::open(&dir.path().join("store")).expect("store");
        let mut options = PullOptions::new(LayerSpace { name: "squashed".to_owned(), ownership: Ownership::Squash });
        options.certs_dirs = vec![dir.path().join("certs.d")];
        Place { dir, store, options }
    }

    pub fn log_in(&mut self, host: &str, user_and_password_base64: &str) {
        let path = self.dir.path().join("config.json");
        let text = format!(r#"{{"auths":{{"{host}":{{"auth":"{user_and_password_base64}"}}}}}}"#);
        fs_err::write(&path, text).expect("login file");
        self.options.login_files = vec![path];
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }
}

/// Starts this test binary once more as a process that only pulls `name` into the store at `root`
/// and then prints its peak memory in KiB.
pub fn spawn_puller(root: &Path, name: &str) -> Child {
    Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "cases::puller", "--nocapture", "--include-ignored"])
        .env(PULLER_ROOT, root)
        .env(PULLER_NAME, name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("own binary")
}

/// Tells a child of [`spawn_puller`] where to pull to, and what.
pub const PULLER_ROOT: &str = "CORACLE_TEST_PULLER_ROOT";
pub const PULLER_NAME: &str = "CORACLE_TEST_PULLER_NAME";

pub fn wait_until(what: &str, is_done: impl Fn() -> bool) {
    let deadline = Instant::now() + READY_TIMEOUT;
    while !is_done() {
        assert!(Instant::now() < deadline, "{what} is not ready after {READY_TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    listener.local_addr().expect("address").port()
}

/// Makes an authority and a certificate for localhost: authority, certificate, key as PEM.
fn certificates() -> (String, String, String) {
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("authority");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().expect("key");
    let authority = parameters.self_signed(&authority_key).expect("authority");
    let issuer = rcgen::Issuer::new(parameters, authority_key);
    let key = rcgen::KeyPair::generate().expect("key");
    let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
    let certificate = parameters.signed_by(&key, &issuer).expect("certificate");
    (authority.pem(), certificate.pem(), key.serialize_pem())
}
