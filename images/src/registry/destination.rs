//! Where a request may go: address classes, and the rules for redirects and token hosts.
//!
//! A registry is outside our trust: it names other hosts in `Location` and `WWW-Authenticate`. What
//! it names must not be a host that only we can reach (security.md A61, A62). The same rule is
//! applied twice: to URLs here, and to the addresses that a name resolves to in `dns`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;
use url::{Host, Origin};

/// How far an address reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// Anybody can reach it.
    Public,
    /// Our own network: RFC 1918, unique local, carrier NAT, benchmarking.
    Private,
    /// Our own link; cloud metadata services live here.
    LinkLocal,
    /// This machine.
    Loopback,
    /// No single host: unspecified, multicast, broadcast, reserved.
    Nowhere,
}

/// Why a registry may not send us to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum DestinationProblem {
    #[error("is not a valid http or https address")]
    NotHttp,
    #[error("carries a user name or password")]
    UserInfo,
    #[error("leaves https for http")]
    Downgrade,
    #[error("is on a network that the registry is not on")]
    Inside,
    #[error("would be more than {} redirects", crate::limits::REDIRECTS_MAX)]
    TooMany,
    #[error("has no readable Location header")]
    NoLocation,
}

impl Reach {
    /// Classifies `address`, looking through the IPv6 forms that embed an IPv4 address.
    pub fn of(address: IpAddr) -> Reach {
        match address {
            IpAddr::V4(address) => Reach::of_v4(address),
            IpAddr::V6(address) => Reach::of_v6(address),
        }
    }

    /// Classifies the host of a URL as far as that is possible without resolving a name.
    pub fn of_host(host: &Host<&str>) -> Option<Reach> {
        match host {
            Host::Ipv4(address) => Some(Reach::of_v4(*address)),
            Host::Ipv6(address) => Some(Reach::of_v6(*address)),
            Host::Domain(name) => is_localhost(name).then_some(Reach::Loopback),
        }
    }

    /// Tells whether a registry with this reach may send us to a place with the reach `target`.
    pub fn may_point_to(self, target: Reach) -> bool {
        target == Reach::Public || (target == self && target != Reach::Nowhere)
    }

    fn of_v4(address: Ipv4Addr) -> Reach {
        let [a, b, c, _] = address.octets();
        match (a, b, c) {
            (127, ..) => Reach::Loopback,
            (169, 254, _) => Reach::LinkLocal,
            (10, ..) | (172, 16..=31, _) | (192, 168, _) => Reach::Private,
            // Carrier NAT (RFC 6598), benchmarking (RFC 2544).
            (100, 64..=127, _) | (198, 18..=19, _) => Reach::Private,
            // This network, protocol assignments, documentation, 6to4 relays, multicast, reserved.
            (0, ..) | (192, 0, 0 | 2) | (198, 51, 100) | (203, 0, 113) | (192, 88, 99) => Reach::Nowhere,
            (224.., ..) => Reach::Nowhere,
            _ => Reach::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Reach {
        let s = address.segments();
        let v4 = |high: u16, low: u16| {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            Reach::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match s {
            [0, 0, 0, 0, 0, 0, 0, 1] => Reach::Loopback,
            [0, 0, 0, 0, 0, 0, 0, 0] => Reach::Nowhere,
            // IPv4-mapped, IPv4-compatible, NAT64 (RFC 6052), local NAT64 (RFC 8215), 6to4.
            [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => v4(high, low),
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
            [0x64, 0xff9b, 1, ..] => Reach::Private,
            [0x2002, high, low, ..] => v4(high, low),
            [0xfe80..=0xfebf, ..] => Reach::LinkLocal,
            [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Reach::Private,
            // Teredo hides an IPv4 address, and documentation space is nobody's.
            [0x2001, 0 | 0xdb8, ..] | [0xff00..=0xffff, ..] => Reach::Nowhere,
            [0x2000..=0x3fff, ..] => Reach::Public,
            _ => Reach::Nowhere,
        }
    }
}

/// Tells whether `name` is reserved for this machine (RFC 6761).
pub fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// Resolves the `Location` of a redirect and decides whether it may be followed.
pub fn redirect(from: &Url, location: &str, home: Reach) -> Result<Url, DestinationProblem> {
    let mut target = from.join(location).map_err(|_| DestinationProblem::NotHttp)?;
    target.set_fragment(None);
    check(&target, home)?;
    if from.scheme() == "https" && target.scheme() != "https" {
        return Err(DestinationProblem::Downgrade);
    }
    Ok(target)
}

/// Applies the rules that hold for every place a registry names.
pub fn check(target: &Url, home: Reach) -> Result<(), DestinationProblem> {
    if !matches!(target.scheme(), "http" | "https") || !matches!(target.origin(), Origin::Tuple(..)) {
        return Err(DestinationProblem::NotHttp);
    }
    if !target.username().is_empty() || target.password().is_some() {
        return Err(DestinationProblem::UserInfo);
    }
    let host = target.host().ok_or(DestinationProblem::NotHttp)?;
    match Reach::of_host(&host) {
        Some(reach) if !home.may_point_to(reach) => Err(DestinationProblem::Inside),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(text: &str) -> Reach {
        Reach::of(text.parse().expect(text))
    }

    #[test]
    fn a61_addresses_are_classified_through_every_embedding() {
        let table = [
            ("8.8.8.8", Reach::Public),
            ("127.255.0.1", Reach::Loopback),
            ("10.1.2.3", Reach::Private),
            ("172.16.0.1", Reach::Private),
            ("172.32.0.1", Reach::Public),
            ("192.168.9.9", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("169.254.169.254", Reach::LinkLocal),
            ("0.0.0.0", Reach::Nowhere),
            ("255.255.255.255", Reach::Nowhere),
            ("224.0.0.1", Reach::Nowhere),
            ("::1", Reach::Loopback),
            ("::", Reach::Nowhere),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("::127.0.0.1", Reach::Loopback),
            ("::ffff:8.8.8.8", Reach::Public),
            ("64:ff9b::a9fe:a9fe", Reach::LinkLocal),
            ("64:ff9b:1::1", Reach::Private),
            ("2002:7f00:1::1", Reach::Loopback),
            ("2002:a9fe:a9fe::", Reach::LinkLocal),
            ("fe80::1", Reach::LinkLocal),
            ("fd00::1", Reach::Private),
            ("ff02::1", Reach::Nowhere),
            ("2001:0:1::1", Reach::Nowhere),
            ("2606:4700::1", Reach::Public),
        ];
        for (address, expected) in table {
            assert_eq!(reach(address), expected, "{address}");
        }
    }

    #[test]
    fn a62_redirects_stay_out_of_places_the_registry_is_not_in() {
        use DestinationProblem as P;
        let https = Url::parse("https://registry.example/v2/x/blobs/y").expect("url");
        let go = |location: &str, home| redirect(&https, location, home).map(|url| url.to_string());
        assert_eq!(go("/other", Reach::Public).as_deref(), Ok("https://registry.example/other"));
        assert_eq!(go("https://cdn.example/z#f", Reach::Public).as_deref(), Ok("https://cdn.example/z"));
        assert_eq!(go("http://cdn.example/z", Reach::Public), Err(P::Downgrade));
        assert_eq!(go("file:///etc/passwd", Reach::Public), Err(P::NotHttp));
        assert_eq!(go("ftp://cdn.example/", Reach::Public), Err(P::NotHttp));
        assert_eq!(go("data:,x", Reach::Public), Err(P::NotHttp));
        assert_eq!(go("https://u:p@cdn.example/", Reach::Public), Err(P::UserInfo));
        let inside = [
            "127.0.0.1",
            "localhost",
            "a.localhost",
            "LOCALHOST.",
            "10.0.0.1",
            "169.254.169.254",
            "[::1]",
            "[::ffff:10.0.0.1]",
            "0x7f.1",
            "2130706433",
            "[64:ff9b::7f00:1]",
            "0",
        ];
        for host in inside {
            assert_eq!(go(&format!("https://{host}/z"), Reach::Public), Err(P::Inside), "{host}");
        }
        assert!(go("https://10.0.0.1/z", Reach::Private).is_ok());
        assert_eq!(go("https://127.0.0.1/z", Reach::Private), Err(P::Inside));
        assert_eq!(go("https://10.0.0.1/z", Reach::Loopback), Err(P::Inside));
        assert!(go("https://127.0.0.1:1/z", Reach::Loopback).is_ok());
    }
}
