//! Debian's docker-registry on a free port of loopback, as somebody would run it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{TestEnv, fixtures, wait_until};

/// Name and password that the protected registry knows (tests/setup/images writes the htpasswd file).
pub const USER: &str = "tester";
/// See [`USER`].
pub const PASSWORD: &str = "correct horse";

/// A registry that runs.
pub struct Registry {
    child: Child,
    address: String,
    log: PathBuf,
}

/// How a registry is protected.
#[derive(Clone, Copy, Default)]
pub struct RegistryOptions {
    /// Ask for [`USER`] and [`PASSWORD`].
    pub password: bool,
    /// Speak TLS with a certificate of the test's own authority.
    pub tls: bool,
    /// Own empty storage that may be written, instead of the shared one with every test image.
    pub empty: bool,
}

impl Registry {
    /// Starts one that anybody may read, with every test image.
    pub fn anonymous(env: &TestEnv) -> Self {
        Self::start(env, RegistryOptions::default())
    }

    /// Starts one and waits until it listens.
    pub fn start(env: &TestEnv, options: RegistryOptions) -> Self {
        let images = fixtures::images().expect("test images; as root: make test");
        let name = format!("registry-{}", NUMBER.fetch_add(1, std::sync::atomic::Ordering::SeqCst));
        let storage = if options.empty { env.path(format!("{name}.d")) } else { images.join("registry") };
        if options.empty {
            fs_err::create_dir(&storage).unwrap();
        }
        let config = configuration(&storage, &images, options);
        let config = env.write(&format!("{name}.yml"), config);
        let log = env.path(format!("{name}.log"));
        let output = fs_err::File::create(&log).unwrap().into_parts().0;
        let child = Command::new(fixtures::find_program("docker-registry").expect("docker-registry"))
            .arg("serve")
            .arg(config)
            .env_clear()
            .env("PATH", fixtures::SEARCH_PATH)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let mut registry = Self { child, address: String::new(), log };
        wait_until("docker-registry to listen", || {
            assert!(registry.child.try_wait().unwrap().is_none(), "docker-registry ended: {}", registry.log());
            registry.address = listening(&registry.log()).unwrap_or_default();
            !registry.address.is_empty()
        });
        registry
    }

    /// Gives `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Gives the full name of a repository here.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Gives everything it logged so far.
    pub fn log(&self) -> String {
        fs_err::read_to_string(&self.log).unwrap_or_default()
    }

    /// Counts answered requests of a method for a path with this in it.
    pub fn requests(&self, method: &str, path: &str) -> usize {
        let method = format!("http.request.method={method}");
        let log = self.log();
        let answered = log.lines().filter(|line| line.contains("msg=\"response completed\""));
        answered.filter(|line| line.contains(&method) && line.contains(path)).count()
    }

    /// Ends it, as when the machine goes away.
    pub fn stop(mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.address.clone()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// Finds the port in the log: it was asked to take any.
fn listening(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("listening on ")?;
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'))?;
    Some(rest[..end].to_owned())
}

fn configuration(storage: &Path, images: &Path, options: RegistryOptions) -> String {
    let readonly = !options.empty;
    let mut text = format!(
        "version: 0.1\nlog: {{level: info, formatter: text}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  \
         delete: {{enabled: false}}\n  maintenance:\n    uploadpurging: {{enabled: false}}\n    readonly: {{enabled: {readonly}}}\n\
         http:\n  addr: 127.0.0.1:0\n  secret: not-a-secret\n",
        storage.display()
    );
    if options.tls {
        let tls = images.join("tls");
        text.push_str(&format!("  tls: {{certificate: {0}/server.crt, key: {0}/server.key}}\n", tls.display()));
    }
    if options.password {
        text.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}/htpasswd}}}}\n", images.display()));
    }
    text
}
