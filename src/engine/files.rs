//! The three files that every container gets from outside: /etc/hosts, /etc/resolv.conf and
//! /etc/hostname. Contents are made here, purely; the container directory keeps them.

use std::net::IpAddr;

/// More than resolv.conf(5) allows; only a bound for a broken file.
const NAMESERVERS_MAX: usize = 16;
/// Where pasta answers DNS for a host whose own resolver listens on loopback only.
pub const FORWARDED_DNS: &str = "169.254.1.1";

/// Gives the text of /etc/hosts.
pub fn hosts(hostname: &str, extra: &[(String, String)]) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, ip) in extra {
        text.push_str(&format!("{ip}\t{name}\n"));
    }
    text
}

/// Is what resolv.conf is made of.
pub struct ResolverInputs<'a> {
    /// The host's own file.
    pub host: &'a str,
    /// `--dns`; replaces the host's servers when not empty.
    pub servers: &'a [String],
    /// `--dns-search`; replaces the host's domains when not empty.
    pub search: &'a [String],
    /// `--dns-option`; replaces the host's options when not empty.
    pub options: &'a [String],
    /// The container shares the host's network, so loopback servers work.
    pub host_network: bool,
    /// Who answers for servers on the host's loopback else.
    pub forwarder: &'a str,
}

/// Gives the text of /etc/resolv.conf and whether the network must forward DNS itself.
pub fn resolver(inputs: &ResolverInputs) -> (String, bool) {
    let mut servers: Vec<String> = inputs.servers.to_vec();
    let mut forwarded = false;
    if servers.is_empty() {
        let all: Vec<IpAddr> = values(inputs.host, "nameserver").filter_map(|text| text.parse().ok()).collect();
        let usable = all.iter().filter(|ip| inputs.host_network || !ip.is_loopback());
        servers = usable.take(NAMESERVERS_MAX).map(ToString::to_string).collect();
        if servers.is_empty() && !all.is_empty() {
            forwarded = true;
            servers.push(inputs.forwarder.to_owned());
        }
    }
    let search: Vec<String> = match inputs.search {
        [] => values(inputs.host, "search").map(str::to_owned).collect(),
        given => given.to_vec(),
    };
    let mut text = String::new();
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    let options: Vec<String> = match inputs.options {
        [] => values(inputs.host, "options").map(str::to_owned).collect(),
        given => vec![given.join(" ")],
    };
    for option in options {
        text.push_str(&format!("options {option}\n"));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    (text, forwarded)
}

/// Leaves the servers out of a resolv.conf: the container's networks name theirs when it is connected.
///
/// A name without a dot is asked for as it is, because names of containers have none.
pub fn networked(text: &str) -> String {
    let kept = text.lines().filter(|line| !line.starts_with("nameserver ") && !line.contains("ndots:"));
    kept.chain(["options ndots:0"]).map(|line| format!("{line}\n")).collect()
}

/// Gives the servers that a resolv.conf names.
pub fn nameservers(text: &str) -> Vec<IpAddr> {
    values(text, "nameserver").filter_map(|text| text.parse().ok()).take(NAMESERVERS_MAX).collect()
}

/// Gives what follows a keyword of resolv.conf(5).
fn values<'a>(text: &'a str, keyword: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let rest = line.trim_start().strip_prefix(keyword)?;
        rest.starts_with([' ', '\t']).then_some(rest.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, servers: &[&str], host_network: bool) -> (String, bool) {
        let servers: Vec<String> = servers.iter().map(|s| (*s).to_owned()).collect();
        resolver(&ResolverInputs {
            host,
            servers: &servers,
            search: &[],
            options: &[],
            host_network,
            forwarder: FORWARDED_DNS,
        })
    }

    #[test]
    fn loopback_resolvers_are_forwarded_or_kept() {
        let host = "# x\nnameserver 127.0.0.53\nsearch lab.example\noptions edns0\n";
        let (text, forwarded) = check(host, &[], false);
        assert_eq!((text.as_str(), forwarded), ("search lab.example\noptions edns0\nnameserver 169.254.1.1\n", true));
        assert!(check(host, &[], true).0.contains("127.0.0.53"));
        let mixed = "nameserver ::1\nnameserver 10.0.0.1\n";
        assert_eq!(check(mixed, &[], false), ("nameserver 10.0.0.1\n".into(), false));
        assert_eq!(check(mixed, &["9.9.9.9"], false), ("nameserver 9.9.9.9\n".into(), false));
        assert_eq!(check("nameserverX 1.1.1.1\n", &[], false), (String::new(), false));
    }

    #[test]
    fn hosts_file() {
        let text = hosts("box", &[("db".into(), "10.0.0.1".into())]);
        assert!(text.starts_with("127.0.0.1\tlocalhost box\n") && text.ends_with("10.0.0.1\tdb\n"));
    }
}
