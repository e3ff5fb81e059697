//! Ranges of addresses: parsing, choosing, counting. Pure but for the random bits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::error::NetworksError;

/// Where ranges of user networks start: 10.89.0.0/24 and the 255 after it; podman's habit, far from
/// what homes and machine rooms use.
const FIRST_V4: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 0);
const PREFIX_V4: u8 = 24;
const CANDIDATES_V4: u32 = 256;
const PREFIX_V6: u8 = 64;
/// Fewer bits give no two hosts, more are whole continents.
const PREFIXES_V4: std::ops::RangeInclusive<u8> = 8..=30;
const PREFIXES_V6: std::ops::RangeInclusive<u8> = 48..=126;

/// Is a network address and how many of its bits are fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Subnet {
    base: IpAddr,
    prefix: u8,
}

impl Subnet {
    pub fn is_ipv6(&self) -> bool {
        self.base.is_ipv6()
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    fn bits(&self) -> u8 {
        if self.is_ipv6() { 128 } else { 32 }
    }

    fn host_mask(&self) -> u128 {
        (1_u128 << (self.bits() - self.prefix)) - 1
    }

    /// Says whether an address is in the range.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv6() == self.is_ipv6() && number(ip) & !self.host_mask() == number(self.base)
    }

    /// Says whether a host can have the address: neither the range's own nor its broadcast.
    pub fn is_usable(&self, ip: IpAddr) -> bool {
        let host = number(ip) & self.host_mask();
        self.contains(ip) && host != 0 && (self.is_ipv6() || host != self.host_mask())
    }

    /// Says whether the two have addresses in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }

    /// Gives the address at a place, counted from the range's own.
    pub fn nth(&self, place: u32) -> IpAddr {
        address(number(self.base) + u128::from(place), self.is_ipv6())
    }

    /// How many places a search for a free address looks at.
    pub fn places(&self) -> u32 {
        /// A network with more containers than this has other problems.
        const PLACES_MAX: u32 = 1 << 16;
        u32::try_from(self.host_mask()).unwrap_or(PLACES_MAX).min(PLACES_MAX)
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

fn address(number: u128, v6: bool) -> IpAddr {
    if v6 { IpAddr::V6(number.into()) } else { IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()) }
}

impl std::str::FromStr for Subnet {
    type Err = NetworksError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || NetworksError::Subnet(text.to_owned());
        let (ip, prefix) = text.split_once('/').ok_or_else(fail)?;
        let ip: IpAddr = ip.parse().map_err(|_| fail())?;
        let prefix: u8 = prefix.parse().map_err(|_| fail())?;
        let prefixes = if ip.is_ipv6() { PREFIXES_V6 } else { PREFIXES_V4 };
        if !prefixes.contains(&prefix) || ip.is_loopback() || ip.is_multicast() {
            return Err(fail());
        }
        let whole = Self { base: ip, prefix };
        Ok(Self { base: address(number(ip) & !whole.host_mask(), ip.is_ipv6()), prefix })
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl TryFrom<String> for Subnet {
    type Error = NetworksError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Finds a range that no network and no route of this host has.
pub fn free_v4(taken: &[Subnet]) -> Option<Subnet> {
    let routed = host_routes();
    (0..CANDIDATES_V4).find_map(|place| {
        let base = u32::from(FIRST_V4) + (place << (32 - PREFIX_V4));
        let subnet = Subnet { base: IpAddr::V4(base.into()), prefix: PREFIX_V4 };
        (!taken.iter().chain(&routed).any(|other| other.overlaps(&subnet))).then_some(subnet)
    })
}

/// Reads this host's IPv4 routes but the default one.
fn host_routes() -> Vec<Subnet> {
    let text = fs_err::read_to_string("/proc/net/route").unwrap_or_default();
    text.lines().skip(1).filter_map(route).collect()
}

fn route(line: &str) -> Option<Subnet> {
    let mut fields = line.split_ascii_whitespace();
    let hex = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let base = hex(fields.nth(1)?)?;
    let mask = hex(fields.nth(5)?)?;
    let prefix = u8::try_from(mask.count_ones()).ok().filter(|prefix| *prefix > 0)?;
    Some(Subnet { base: IpAddr::V4(Ipv4Addr::from(base)), prefix })
}

/// Makes a unique local range with random bits (RFC 4193, section 3.2.2).
pub fn random_v6() -> Result<Subnet, NetworksError> {
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes[1..6], rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| NetworksError::Io { op: "read", path: "/dev/urandom".into(), source: errno.into() })?;
    bytes[0] = 0xfd;
    Ok(Subnet { base: IpAddr::V6(Ipv6Addr::from(bytes)), prefix: PREFIX_V6 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_know_their_addresses() {
        let range = subnet("10.1.2.99/24");
        assert_eq!(range.to_string(), "10.1.2.0/24");
        assert_eq!(range.nth(1).to_string(), "10.1.2.1");
        for (ip, usable) in [("10.1.2.1", true), ("10.1.2.0", false), ("10.1.2.255", false), ("10.1.3.1", false)] {
            assert_eq!(range.is_usable(ip.parse().unwrap()), usable, "{ip}");
        }
        assert!(subnet("fd00:1::/64").is_usable("fd00:1::ffff".parse().unwrap()));
        assert!(!subnet("10.1.0.0/16").contains("::1".parse().unwrap()));
        assert!(subnet("10.1.0.0/16").overlaps(&range) && range.overlaps(&subnet("10.0.0.0/8")));
    }

    #[test]
    fn odd_ranges_are_refused() {
        for bad in ["", "10.0.0.0", "10.0.0.0/31", "10.0.0.0/7", "x/24", "::/0", "127.0.0.0/8", "ff00::/64", "10.0.0/8"]
        {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn free_ranges_differ() {
        let first = free_v4(&[]).unwrap();
        let second = free_v4(&[first]).unwrap();
        assert!(!first.overlaps(&second));
        assert!(random_v6().unwrap().to_string().starts_with("fd"));
        let line = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";
        assert_eq!(route(line).unwrap().to_string(), "192.0.2.0/24");
    }
}
