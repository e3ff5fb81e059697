//! Docker's limit flags: one struct for every command that takes them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::error::CliError;
use crate::engine::limits::{LimitOptions, Rate, RateKind, parse_nano_cpus};
use crate::engine::size::parse_size_bytes;

/// What limits a container's use of the machine.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Processors, e.g. 0.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Weight against other containers when processors are short [default: 1024]
    #[arg(short = 'c', long, value_name = "WEIGHT")]
    cpu_shares: Option<u64>,
    /// Length of a period for --cpu-quota, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// Processor time in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Processors to run on, e.g. 0-2,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use, e.g. 0
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Memory, at least 6m
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// Memory that is left to it when others run short
    #[arg(long, value_name = "SIZE")]
    memory_reservation: Option<String>,
    /// Memory and swap together, -1 for as much swap as there is [default: twice --memory]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Refused: cgroup v2 has no such limit
    #[arg(long, value_name = "PERCENT", allow_hyphen_values = true, hide = true)]
    memory_swappiness: Option<i64>,
    /// Refused: cgroup v2 has no such switch
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    oom_kill_disable: Option<bool>,
    /// Processes and threads, -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Bytes that are read from a device in a second
    #[arg(long, value_name = "DEVICE:SIZE")]
    device_read_bps: Vec<String>,
    /// Bytes that are written to a device in a second
    #[arg(long, value_name = "DEVICE:SIZE")]
    device_write_bps: Vec<String>,
    /// Reads from a device in a second
    #[arg(long, value_name = "DEVICE:NUMBER")]
    device_read_iops: Vec<String>,
    /// Writes to a device in a second
    #[arg(long, value_name = "DEVICE:NUMBER")]
    device_write_iops: Vec<String>,
    /// Weight against other containers at block devices, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// The same for one device
    #[arg(long, value_name = "DEVICE:WEIGHT")]
    blkio_weight_device: Vec<String>,
    /// A file of the cgroup and its value, e.g. memory.high=100000000
    #[arg(long, value_name = "FILE=VALUE")]
    cgroup_conf: Vec<String>,
    /// What happens to limits that this host cannot enforce: strict refuses, best-effort says so and goes on
    #[arg(long, value_enum, default_value = "strict")]
    limits: LimitsArg,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum LimitsArg {
    #[default]
    Strict,
    BestEffort,
}

impl LimitArgs {
    /// Reads the flags; what cgroup v2 cannot do is refused by name.
    pub fn options(&self) -> Result<LimitOptions, CliError> {
        // -1 is Docker's word for "leave it alone".
        if self.memory_swappiness.is_some_and(|percent| percent != -1) {
            return Err(CliError::message("--memory-swappiness: cgroup v2 has no such limit"));
        }
        if self.oom_kill_disable == Some(true) {
            return Err(CliError::message("--oom-kill-disable: cgroup v2 has no such switch"));
        }
        let size = |text: &Option<String>| text.as_deref().map(parse_size_bytes).transpose();
        let mut rates = Vec::new();
        for (list, kind) in [
            (&self.device_read_bps, RateKind::ReadBytes),
            (&self.device_write_bps, RateKind::WriteBytes),
            (&self.device_read_iops, RateKind::ReadOperations),
            (&self.device_write_iops, RateKind::WriteOperations),
        ] {
            for text in list {
                rates.push(rate(kind, text)?);
            }
        }
        let mut blkio_weight_device = Vec::new();
        for text in &self.blkio_weight_device {
            let (device, weight) = device(text)?;
            blkio_weight_device.push((device, weight.parse().map_err(|_| invalid(text))?));
        }
        let mut unified = Vec::new();
        for text in &self.cgroup_conf {
            let (file, value) = text.split_once('=').ok_or_else(|| invalid(text))?;
            unified.push((file.to_owned(), value.to_owned()));
        }
        Ok(LimitOptions {
            nano_cpus: self.cpus.as_deref().map(parse_nano_cpus).transpose()?,
            cpu_shares: self.cpu_shares,
            cpu_period_us: self.cpu_period,
            cpu_quota_us: self.cpu_quota,
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            memory_bytes: size(&self.memory)?,
            memory_reservation_bytes: size(&self.memory_reservation)?,
            memory_swap_bytes: self.memory_swap.as_deref().map(swap).transpose()?,
            pids: self.pids_limit,
            rates,
            blkio_weight: self.blkio_weight,
            blkio_weight_device,
            unified,
            best_effort: self.limits == LimitsArg::BestEffort,
        })
    }
}

fn swap(text: &str) -> Result<i64, CliError> {
    if text == "-1" {
        return Ok(-1);
    }
    i64::try_from(parse_size_bytes(text)?).map_err(|_| invalid(text))
}

fn rate(kind: RateKind, text: &str) -> Result<Rate, CliError> {
    let (device, amount) = device(text)?;
    let per_second = match kind {
        RateKind::ReadBytes | RateKind::WriteBytes => parse_size_bytes(amount)?,
        RateKind::ReadOperations | RateKind::WriteOperations => amount.parse().map_err(|_| invalid(text))?,
    };
    Ok(Rate { kind, device, per_second })
}

/// Splits `/dev/sda:1mb`.
fn device(text: &str) -> Result<(PathBuf, &str), CliError> {
    let (path, amount) = text.rsplit_once(':').ok_or_else(|| invalid(text))?;
    if path.starts_with("/dev/") { Ok((path.into(), amount)) } else { Err(invalid(text)) }
}

fn invalid(text: &str) -> CliError {
    CliError::message(format!("invalid limit {text:?}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitArgs,
    }

    fn parsed(line: &str) -> Result<LimitOptions, String> {
        let line = Line::try_parse_from(std::iter::once("x").chain(line.split_whitespace()));
        let line = line.map_err(|error| error.to_string())?;
        line.limits.options().map_err(|error| format!("{error:?}"))
    }

    #[test]
    fn flags() {
        let options = parsed(
            "--cpus 1.5 -m 64m --memory-swap -1 --pids-limit -1 --device-write-bps /dev/sda:1mb \
             --device-read-iops=/dev/disk/by-id/a:b:7 --cgroup-conf memory.high=5 --limits=best-effort",
        );
        let expect = LimitOptions {
            nano_cpus: Some(1_500_000_000),
            memory_bytes: Some(64 << 20),
            memory_swap_bytes: Some(-1),
            pids: Some(-1),
            rates: vec![
                Rate { kind: RateKind::WriteBytes, device: "/dev/sda".into(), per_second: 1 << 20 },
                Rate { kind: RateKind::ReadOperations, device: "/dev/disk/by-id/a:b".into(), per_second: 7 },
            ],
            unified: vec![("memory.high".into(), "5".into())],
            best_effort: true,
            ..LimitOptions::default()
        };
        assert_eq!(options, Ok(expect));
        assert_eq!(parsed("--memory-swappiness=-1 --oom-kill-disable=false"), Ok(LimitOptions::default()));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (line, word) in [
            ("--memory-swappiness 10", "--memory-swappiness"),
            ("--oom-kill-disable", "--oom-kill-disable"),
            ("--device-read-bps sda:1", "sda:1"),
            ("--device-read-bps /dev/sda", "/dev/sda"),
            ("--device-read-iops /dev/sda:1k", "/dev/sda:1k"),
            ("--memory-swap -2", "-2"),
            ("--memory 1x", "1x"),
            ("--cgroup-conf memory.high", "memory.high"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
