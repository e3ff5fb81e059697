//! The processes of a running container as the host's /proc shows them (proc(5)): those in its process
//! namespace, whoever started them.
//!
//! Looking into namespaces of other ids' processes is allowed to the owner of the container's user
//! namespace (user_namespaces(7)). What ends meanwhile is left out.

use std::path::{Path, PathBuf};

use super::containers::Container;

/// More of a file of /proc is not read.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Is one process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// Effective, as the host counts.
    pub uid: u32,
    /// R, S, D, Z, T…
    pub state: char,
    /// Device number of the terminal, 0 without one.
    pub tty: i32,
    /// Ticks of the clock, in programs and in the kernel.
    pub cpu_ticks: u64,
    pub threads: u64,
    pub nice: i64,
    /// Ticks after the boot.
    pub started_ticks: u64,
    pub virtual_bytes: u64,
    pub resident_bytes: u64,
    /// The program's own name, cut by the kernel.
    pub name: String,
    pub argv: Vec<String>,
}

/// Ticks in a second: fixed for programs on every architecture that we run on (time(7), USER_HZ).
pub const TICKS_PER_SECOND: u64 = 100;

/// Lists the processes of a container, by number; none when it does not run.
pub fn list(container: &Container) -> Vec<Process> {
    let Some(init) = container.init() else { return Vec::new() };
    let namespace = |pid: i32| fs_err::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(own) = namespace(init.pid) else { return Vec::new() };
    let entries = fs_err::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let mut found: Vec<Process> = pids
        .filter(|pid| namespace(*pid).is_some_and(|other| other == own))
        .filter_map(|pid| read(pid, &PathBuf::from(format!("/proc/{pid}"))))
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

fn read(pid: i32, directory: &Path) -> Option<Process> {
    let stat = read_text(&directory.join("stat"))?;
    let status = read_text(&directory.join("status"))?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok())?;
    let command = read_text(&directory.join("cmdline")).unwrap_or_default();
    let argv = command.split_terminator('\0').map(str::to_owned).collect();
    parse(pid, uid, &stat, argv)
}

/// Reads `stat`: the name stands between the first and the last parenthesis and may contain anything.
fn parse(pid: i32, uid: u32, stat: &str, argv: Vec<String>) -> Option<Process> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    // The manual counts from 1; the first field here is the third there.
    let fields: Vec<&str> = after.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let page_bytes = u64::try_from(rustix::param::page_size()).ok()?;
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        uid,
        state: fields.first()?.chars().next()?,
        tty: fields.get(4)?.parse().ok()?,
        cpu_ticks: number(14)?.saturating_add(number(15)?),
        nice: fields.get(16)?.parse().ok()?,
        threads: number(20)?,
        started_ticks: number(22)?,
        virtual_bytes: number(23)?,
        resident_bytes: number(24)?.saturating_mul(page_bytes),
        name,
        argv,
    })
}

fn read_text(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs_err::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_move_the_fields() {
        let stat =
            "42 (a) R 1 (x) S 7 42 42 34816 42 4194304 1 0 0 0 150 50 0 0 20 -5 3 0 9900 4096 2 18446744073709551615";
        let process = parse(42, 1000, stat, vec!["a".into()]).unwrap();
        assert_eq!((process.name.as_str(), process.parent, process.state), ("a) R 1 (x", 7, 'S'));
        assert_eq!((process.cpu_ticks, process.threads, process.nice), (200, 3, -5));
        assert_eq!((process.tty, process.started_ticks, process.virtual_bytes), (34816, 9900, 4096));
        assert_eq!(parse(1, 0, "1 (x) S", vec![]), None);
    }
}
