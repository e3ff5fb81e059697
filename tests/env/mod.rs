//! A hermetic place for one test: own home, state directory, registries; leaves nothing behind.
//!
//! Tests of one process take turns (a lock), so that every descendant of this process belongs to the
//! test that runs; under nextest each test is a process of its own and they run side by side.

pub mod canary;
pub mod command;
pub mod fixtures;
pub mod image;
pub mod leak;
pub mod lent;
pub mod mock;
pub mod registry;
pub mod terminal;
pub mod tree;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use canary::Canary;
pub use command::{Outcome, Run};
pub use registry::Registry;

/// A test that polls gives up after this; generous, because two cores are shared with other tests.
pub const DEADLINE: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

static TURN: Mutex<()> = Mutex::new(());

/// Finds so many ports in a row that nobody listens on, of those that the kernel gives to nobody by
/// itself: else a connection of another test could take one before it is used.
pub fn free_ports(count: u16) -> u16 {
    const FIRST: u16 = 20_000;
    const PLACES: u32 = 12_000;
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    loop {
        // Processes of tests that run side by side begin far from each other.
        let turn = NEXT.fetch_add(u32::from(count), std::sync::atomic::Ordering::Relaxed);
        let place = std::process::id().wrapping_mul(2_654_435_761).wrapping_add(turn) % PLACES;
        let port = FIRST + u16::try_from(place).unwrap();
        let free = |port: u16| {
            std::net::TcpListener::bind(("0.0.0.0", port)).is_ok()
                && std::net::UdpSocket::bind(("0.0.0.0", port)).is_ok()
        };
        if (port..port + count).all(free) {
            return port;
        }
    }
}

/// Says which kind of user the tests run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// An ordinary user with a range of subordinate ids: images have all their owners.
    Ranges,
    /// An ordinary user with one id.
    Single,
    /// Root of the host.
    Root,
}

/// The place of one test.
pub struct TestEnv {
    dir: PathBuf,
    who: Who,
    anonymous: OnceCell<Registry>,
    before: leak::Before,
    containers_may_stay: std::cell::Cell<bool>,
    _turn: MutexGuard<'static, ()>,
}

impl TestEnv {
    /// Makes the place; everything in it is gone at the end.
    pub fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let dir = tempfile::Builder::new().prefix("coracle-test-").tempdir().unwrap().keep();
        for sub in ["home", "run", "tmp"] {
            fs_err::create_dir(dir.join(sub)).unwrap();
        }
        set_mode(&dir.join("run"), 0o700);
        Self {
            before: leak::Before::look(),
            dir,
            who: who(),
            anonymous: OnceCell::new(),
            containers_may_stay: std::cell::Cell::new(false),
            _turn: turn,
        }
    }

    /// Gives the kind of user that this is.
    pub fn who(&self) -> Who {
        self.who
    }

    /// Gives a path in the place.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// Gives the state directory that every command is told by `CORACLE_ROOT`.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// Gives the home directory.
    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// Writes a file in the place.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, content).unwrap();
        path
    }

    /// Prepares a `coracle` command.
    pub fn coracle<A: AsRef<std::ffi::OsStr>>(&self, args: &[A]) -> Run {
        Run::new(self, &fixtures::coracle()).args(args)
    }

    /// Prepares `coracle run --rm --network none ARGS…`: the usual container.
    pub fn container<A: AsRef<std::ffi::OsStr>>(&self, args: &[A]) -> Run {
        self.coracle(&["run", "--rm", "--network", "none"]).args(args)
    }

    /// Prepares any other program in the same environment.
    pub fn program(&self, program: &str) -> Run {
        Run::new(self, Path::new(program))
    }

    /// Gives the registry that anybody may read, with every image of tests/setup/images.
    pub fn registry(&self) -> &Registry {
        self.anonymous.get_or_init(|| Registry::anonymous(self))
    }

    /// Gives the full name of a test image in the anonymous registry.
    pub fn image(&self, name: &str) -> String {
        let tag = if name.contains(':') { "" } else { ":latest" };
        format!("{}/{name}{tag}", self.registry().address())
    }

    /// Says that this test leaves stopped containers in the state directory.
    pub fn containers_may_stay(&self) {
        self.containers_may_stay.set(true);
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        self.anonymous.take();
        let leaks = self.before.leaks(&self.dir, self.containers_may_stay.get());
        if std::thread::panicking() {
            leak::kill_descendants();
            println!("place of the failed test: {}", self.dir.display());
            if leaks.is_empty() {
                leak::remove_tree(&self.dir);
            }
            return;
        }
        leak::kill_descendants();
        leak::remove_tree(&self.dir);
        assert!(leaks.is_empty(), "O2, left behind:\n{}", leaks.join("\n"));
    }
}

/// Finds out which kind of user this is.
fn who() -> Who {
    let uid = nix::unistd::getuid();
    if uid.is_root() {
        return Who::Root;
    }
    let passwd = fs_err::read_to_string("/etc/passwd").unwrap();
    let name = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).is_some_and(|id| *id == uid.to_string()))
        .map(|fields| fields[0].to_owned())
        .unwrap_or_default();
    let subuid = fs_err::read_to_string("/etc/subuid").unwrap_or_default();
    let has = |line: &str| line.split(':').next().is_some_and(|first| first == name || first == uid.to_string());
    if subuid.lines().any(has) { Who::Ranges } else { Who::Single }
}

/// Polls until the condition holds; panics with `what` after the deadline.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    assert!(poll(DEADLINE, &mut condition), "waited {DEADLINE:?} for {what}");
}

/// Polls until the condition holds or the time is over; says which.
pub fn poll(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + time;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Sets permission bits.
pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs_err::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}
