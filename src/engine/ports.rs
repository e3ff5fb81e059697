//! Published ports: `-p [IP:]HOST:CONTAINER[/PROTOCOL]` with ranges, parsed into single mappings.

use std::net::IpAddr;

/// Is TCP or UDP; the only protocols the user-mode network forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Is one port of the host that leads to one port of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PortMapping {
    /// None listens on every address.
    pub ip: Option<IpAddr>,
    /// 0 asks for any free port.
    pub host: u16,
    pub container: u16,
    pub protocol: Protocol,
}

impl PortMapping {
    /// Gives the container's side as docker writes it: `80/tcp`.
    pub fn container_side(&self) -> String {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        format!("{}/{protocol}", self.container)
    }
}

/// Says why a `-p` was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid port mapping {request:?}: {reason}")]
pub struct PortError {
    request: String,
    reason: &'static str,
}

/// Parses one `-p`; a range gives one mapping per port.
pub fn parse_publish(request: &str) -> Result<Vec<PortMapping>, PortError> {
    let fail = |reason| PortError { request: request.to_owned(), reason };
    let (address, protocol) = match request.rsplit_once('/') {
        None | Some((_, "tcp")) => (request.trim_end_matches("/tcp"), Protocol::Tcp),
        Some((address, "udp")) => (address, Protocol::Udp),
        Some((_, "sctp")) => return Err(fail("sctp is not implemented")),
        Some(_) => return Err(fail("the protocol is neither tcp nor udp")),
    };
    let (ip, ports) = split_ip(address).ok_or_else(|| fail("the address is not an IP address"))?;
    let (host, container) = match ports.rsplit_once(':') {
        Some((host, container)) => (host, container),
        None => ("", ports),
    };
    let container = parse_range(container).ok_or_else(|| fail("the container port is not 1 to 65535"))?;
    let count = container.1 - container.0;
    let host = match host {
        "" => None,
        range => Some(parse_range(range).ok_or_else(|| fail("the host port is not 1 to 65535"))?),
    };
    if host.is_some_and(|host| host.1 - host.0 != count) {
        return Err(fail("the two ranges differ in length"));
    }
    Ok((0..=count)
        .map(|n| PortMapping { ip, host: host.map_or(0, |host| host.0 + n), container: container.0 + n, protocol })
        .collect())
}

/// Parses one `--expose PORT[-PORT][/PROTOCOL]`: ports that `-P` publishes.
pub fn parse_expose(request: &str) -> Result<Vec<PortMapping>, PortError> {
    if request.contains(':') {
        return Err(PortError { request: request.to_owned(), reason: "an exposed port has no port of the host" });
    }
    parse_publish(request)
}

/// Splits `[::1]:80:80` and `127.0.0.1:80:80` from `80:80`.
fn split_ip(address: &str) -> Option<(Option<IpAddr>, &str)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (ip, ports) = rest.split_once("]:")?;
        return Some((Some(IpAddr::V6(ip.parse().ok()?)), ports));
    }
    if address.matches(':').count() < 2 {
        return Some((None, address));
    }
    let (ip, ports) = address.split_once(':')?;
    match ip {
        "" => Some((None, ports)),
        ip => Some((Some(IpAddr::V4(ip.parse().ok()?)), ports)),
    }
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0 && !text.starts_with('+'));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(request: &str) -> (Option<String>, u16, u16, Protocol) {
        let mappings = parse_publish(request).unwrap();
        assert_eq!(mappings.len(), 1, "{request}");
        (mappings[0].ip.map(|ip| ip.to_string()), mappings[0].host, mappings[0].container, mappings[0].protocol)
    }

    #[test]
    fn single_ports() {
        assert_eq!(one("8080:80"), (None, 8080, 80, Protocol::Tcp));
        assert_eq!(one("80"), (None, 0, 80, Protocol::Tcp));
        assert_eq!(one("53:53/udp"), (None, 53, 53, Protocol::Udp));
        assert_eq!(one("127.0.0.1:81:80"), (Some("127.0.0.1".into()), 81, 80, Protocol::Tcp));
        assert_eq!(one("127.0.0.1::80"), (Some("127.0.0.1".into()), 0, 80, Protocol::Tcp));
        assert_eq!(one("[::1]:81:80/tcp"), (Some("::1".into()), 81, 80, Protocol::Tcp));
    }

    #[test]
    fn ranges() {
        let mappings = parse_publish("8000-8002:80-82").unwrap();
        assert_eq!(
            mappings.iter().map(|m| (m.host, m.container)).collect::<Vec<_>>(),
            [(8000, 80), (8001, 81), (8002, 82)]
        );
    }

    #[test]
    fn refused() {
        for bad in [
            "",
            "0:80",
            "80:0",
            "70000:80",
            "80:x",
            "1-3:1-2",
            "9-8:9-8",
            "x:80:80",
            "80:80/sctp",
            "80:80/xyz",
            "[::1:80:80",
            "+80:80",
        ] {
            assert!(parse_publish(bad).is_err(), "{bad}");
        }
    }
}
