//! `events`: what a container uses, once or again and again, and when memory ran out.

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use coracle_runtime::cgroup::{Cgroup, IoStats, Stats};
use coracle_runtime::container::{Id, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::Context;
use super::arguments::{Given, Grammar, Words, switch, valued};
use super::error::OciError;
use super::list::print;

/// Microseconds are the kernel's unit, nanoseconds runc's.
const NS_PER_US: u64 = 1000;
/// The longest interval: a day.
const INTERVAL_S_MAX: u64 = 24 * 3600;

/// `events`.
pub const EVENTS: Grammar = Grammar {
    name: "events",
    about: "Print what a container uses as JSON, one line at a time",
    flags: &[&[
        switch("stats", "Print once and end"),
        valued("interval", "TIME", "Time between two lines [default: 5s]"),
    ]],
    words: Words::Id,
};

/// Runs `events`.
pub fn events(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    let id: Id = given.id()?.parse()?;
    let interval = interval(given.text("interval")?.as_deref().unwrap_or("5s"))?;
    let container = context.place.container(&id)?;
    let state = container.state()?;
    let status = container.status(state.as_ref())?;
    let Some(state) = state.filter(|_| status != Status::Stopped) else {
        return Err(OciError::Status { verb: "watch", id, status });
    };
    let cgroup = state.cgroup()?.ok_or_else(|| OciError::NoCgroup { verb: "watch", id: id.clone() })?;
    if given.has("stats") {
        say(&id, "stats", shown(&cgroup.stats()?))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(pidfd) = state.init.open()? else {
        return Err(OciError::Status { verb: "watch", id, status: Status::Stopped });
    };
    let mut kills = cgroup.oom_kills().unwrap_or(0);
    // Without the memory controller there is no such file.
    let memory = fs_err::File::open(cgroup.path().join("memory.events")).ok();
    while report(&id, &cgroup, &mut kills)? {
        let next = Instant::now() + interval;
        loop {
            let happened = wait(&pidfd, memory.as_ref(), next, &id)?;
            // The cgroup may have gone with its last process: then nothing is known any more.
            if let Ok(now) = cgroup.oom_kills() {
                report_kills(&id, now, &mut kills)?;
            }
            match happened {
                Happened::Ended => return Ok(ExitCode::SUCCESS),
                Happened::Nothing => break,
                Happened::Memory => {}
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints one round; false when the cgroup is gone.
fn report(id: &Id, cgroup: &Cgroup, kills: &mut u64) -> Result<bool, OciError> {
    let stats = match cgroup.stats() {
        Ok(stats) => stats,
        Err(_) if !cgroup.path().exists() => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    report_kills(id, stats.memory.as_ref().map_or(0, |memory| memory.oom_kills), kills)?;
    say(id, "stats", shown(&stats))?;
    Ok(true)
}

fn report_kills(id: &Id, now: u64, kills: &mut u64) -> Result<(), OciError> {
    if now > *kills {
        *kills = now;
        say(id, "oom", Value::Null)?;
    }
    Ok(())
}

/// Is what ended a wait.
enum Happened {
    Ended,
    /// The cgroup counted something about memory.
    Memory,
    Nothing,
}

/// Waits for the end, for news about memory, and for no longer than `deadline`.
fn wait(
    pidfd: &std::os::fd::OwnedFd,
    memory: Option<&fs_err::File>,
    deadline: Instant,
    id: &Id,
) -> Result<Happened, OciError> {
    let failed = |source: std::io::Error| OciError::Watch { id: id.clone(), source };
    let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
    if let Some(mut memory) = memory {
        // The kernel tells of changes since the file was read by this descriptor (cgroups(7), memory.events).
        let mut text = String::new();
        if memory.rewind().and_then(|()| memory.read_to_string(&mut text)).is_ok() {
            fds.push(PollFd::new(memory.file(), PollFlags::PRI));
        }
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut fds, Some(&Timespec::try_from(left).unwrap_or_default())) {
            Ok(0) => return Ok(Happened::Nothing),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(Happened::Ended),
            Ok(_) => return Ok(Happened::Memory),
            Err(Errno::INTR) => {}
            Err(source) => return Err(failed(source.into())),
        }
    }
}

fn say(id: &Id, kind: &str, data: Value) -> Result<(), OciError> {
    let mut line = json!({ "type": kind, "id": id });
    if !data.is_null() {
        line["data"] = data;
    }
    print(&serde_json::to_string(&line).map_err(OciError::Json)?);
    Ok(())
}

/// Go's form of a duration, as far as anybody uses it: `500ms`, `5s`, `1m`, `1h`.
fn interval(text: &str) -> Result<Duration, OciError> {
    let wrong = || OciError::Usage(format!("invalid value {text:?} for --interval: 500ms, 5s, 1m or 1h"));
    let split = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let ms = number.checked_mul(unit_ms).filter(|ms| *ms > 0 && *ms <= INTERVAL_S_MAX * 1000).ok_or_else(wrong)?;
    Ok(Duration::from_millis(ms))
}

/// The numbers in the form that runc prints and that its users parse.
fn shown(stats: &Stats) -> Value {
    let cpu = &stats.cpu;
    let unlimited = u64::MAX;
    let mut data = json!({
        "cpu": {
            "usage": {
                "total": cpu.usage_us * NS_PER_US,
                "kernel": cpu.system_us * NS_PER_US,
                "user": cpu.user_us * NS_PER_US,
            },
            "throttling": {
                "periods": cpu.periods,
                "throttledPeriods": cpu.throttled_periods,
                "throttledTime": cpu.throttled_us * NS_PER_US,
            },
        },
        "blkio": {
            "ioServiceBytesRecursive": entries(&stats.io, |io| [("Read", io.read_bytes), ("Write", io.write_bytes)]),
            "ioServicedRecursive": entries(&stats.io, |io| [("Read", io.reads), ("Write", io.writes)]),
        },
    });
    if let Some(memory) = &stats.memory {
        data["memory"] = json!({
            "usage": {
                "usage": memory.usage_bytes,
                "limit": memory.limit_bytes.unwrap_or(unlimited),
                "max": memory.peak_bytes.unwrap_or(0),
                "failcnt": memory.limit_hits,
            },
            "swap": { "usage": memory.swap_bytes, "limit": memory.swap_limit_bytes.unwrap_or(unlimited) },
            "raw": memory.detail,
        });
    }
    if let Some(pids) = &stats.pids {
        data["pids"] = json!({ "current": pids.current, "limit": pids.limit.unwrap_or(0) });
    }
    let sizes = stats.hugetlb.iter().map(|size| {
        (size.page_size.clone(), json!({ "usage": size.usage_bytes, "limit": size.limit_bytes.unwrap_or(unlimited) }))
    });
    data["hugetlb"] = json!(sizes.collect::<BTreeMap<String, Value>>());
    data
}

fn entries(list: &[IoStats], values: impl Fn(&IoStats) -> [(&'static str, u64); 2]) -> Vec<Value> {
    let one = |io: &IoStats| {
        values(io).map(|(op, value)| json!({ "major": io.major, "minor": io.minor, "op": op, "value": value }))
    };
    list.iter().flat_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        assert_eq!(interval("500ms").ok(), Some(Duration::from_millis(500)));
        assert_eq!(interval("2m").ok(), Some(Duration::from_secs(120)));
        for bad in ["", "5", "s", "0s", "-1s", "1d", "99999999999999999999s", "25h"] {
            assert!(interval(bad).is_err(), "{bad:?}");
        }
    }
}
