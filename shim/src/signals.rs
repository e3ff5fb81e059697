//! Signal names as Docker takes them, and which signals are passed on to a container.

use nix::sys::signal::Signal;

/// Reads `SIGTERM`, `TERM`, `15`, `RTMIN+3`; None for what is no signal.
pub fn parse_signal(text: &str) -> Option<i32> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Ok(number) = name.parse::<i32>() {
        return (1..=real_time_max()).contains(&number).then_some(number);
    }
    let real_time = |prefix, base: i32, sign: i32| {
        let rest = name.strip_prefix(prefix)?;
        let offset: i32 = if rest.is_empty() { 0 } else { rest.get(1..)?.parse().ok()? };
        let number = base + sign * offset;
        (real_time_min()..=real_time_max()).contains(&number).then_some(number)
    };
    if name.starts_with("RTMIN") {
        return real_time("RTMIN", real_time_min(), 1);
    }
    if name.starts_with("RTMAX") {
        return real_time("RTMAX", real_time_max(), -1);
    }
    format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32)
}

/// The first real-time signal that programs may use; the C library keeps 32 and 33 (signal(7)).
fn real_time_min() -> i32 {
    34
}

fn real_time_max() -> i32 {
    64
}

/// The signals that a person or a batch system sends to `coracle run` and means for the container.
///
/// Left out: what the kernel sends for faults, SIGCHLD, job control (the terminal belongs to us) and
/// SIGPIPE (a reader of our own output went away).
pub const PASSED_ON: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
    Signal::SIGIO,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, expect) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMIN", Some(34)),
            ("0", None),
            ("65", None),
            ("-1", None),
            ("SIGFOO", None),
            ("RTMIN+99", None),
            ("", None),
        ] {
            assert_eq!(parse_signal(text), expect, "{text:?}");
        }
    }
}
