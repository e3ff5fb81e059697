//! What `network create --opt` says: docker's options of its bridge that mean something without a bridge of the host.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::error::NetworksError;

/// RFC 791: a packet of this size passes everywhere.
const MTU_MIN: u32 = 68;
/// RFC 8200, section 5: below it the kernel takes IPv6 away.
const MTU_MIN_V6: u32 = 1280;
/// What the length of an IPv4 packet can say.
const MTU_MAX: u32 = 65_535;

/// Is a network's options, understood.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Driver {
    /// The largest packet of its devices; the kernel's own where none is given.
    pub mtu: Option<u32>,
    /// Its containers reach the name server and the outside, but not each other.
    pub is_apart: bool,
    /// Where a port is published that names no address of the host.
    pub publish_at: Option<Ipv4Addr>,
}

impl Driver {
    /// Reads options under docker's names, and podman's for the size of packets.
    pub fn read(options: &BTreeMap<String, String>, has_v6: bool) -> Result<Self, NetworksError> {
        let mut driver = Self::default();
        for (key, value) in options {
            let fail = |reason| NetworksError::OptionValue { key: key.clone(), value: value.clone(), reason };
            match key.as_str() {
                "com.docker.network.driver.mtu" | "mtu" => {
                    let smallest = if has_v6 { MTU_MIN_V6 } else { MTU_MIN };
                    let mtu = value.parse().ok().filter(|mtu| (smallest..=MTU_MAX).contains(mtu));
                    driver.mtu = Some(mtu.ok_or_else(|| fail("expected 68 to 65535, or 1280 with IPv6"))?);
                }
                "com.docker.network.bridge.enable_icc" => {
                    driver.is_apart = !truth(value).ok_or_else(|| fail("expected true or false"))?;
                }
                "com.docker.network.bridge.enable_ip_masquerade" if truth(value) != Some(true) => {
                    return Err(fail("there is no way out without the host's addresses"));
                }
                "com.docker.network.bridge.enable_ip_masquerade" => {}
                "com.docker.network.bridge.host_binding_ipv4" => {
                    driver.publish_at = Some(value.parse().map_err(|_| fail("expected an IPv4 address"))?);
                }
                _ => return Err(NetworksError::Option(key.clone())),
            }
        }
        Ok(driver)
    }

    /// Gives the address at which a port is published.
    pub fn published(&self, ip: Option<IpAddr>) -> Option<IpAddr> {
        ip.or(self.publish_at.filter(|at| !at.is_unspecified()).map(IpAddr::V4))
    }
}

/// Reads a truth as docker does, which is Go's strconv.ParseBool.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(key: &str, value: &str, has_v6: bool) -> Result<Driver, NetworksError> {
        Driver::read(&BTreeMap::from([(key.to_owned(), value.to_owned())]), has_v6)
    }

    #[test]
    fn dockers_options() {
        assert_eq!(read("com.docker.network.driver.mtu", "1400", false).unwrap().mtu, Some(1400));
        assert_eq!(read("mtu", "68", false).unwrap().mtu, Some(68));
        for (bad, has_v6) in [("67", false), ("1279", true), ("65536", false), ("x", false), ("", false)] {
            assert!(matches!(read("mtu", bad, has_v6), Err(NetworksError::OptionValue { .. })), "{bad}");
        }
        assert!(read("com.docker.network.bridge.enable_icc", "false", false).unwrap().is_apart);
        assert!(!read("com.docker.network.bridge.enable_icc", "1", false).unwrap().is_apart);
        assert!(read("com.docker.network.bridge.enable_icc", "no", false).is_err());
        assert!(read("com.docker.network.bridge.enable_ip_masquerade", "true", false).is_ok());
        assert!(read("com.docker.network.bridge.enable_ip_masquerade", "false", false).is_err());
        for unknown in ["com.docker.network.bridge.name", "com.docker.network.container_iface_prefix", "isolate"] {
            assert!(matches!(read(unknown, "x", false), Err(NetworksError::Option(_))), "{unknown}");
        }
    }

    #[test]
    fn ports_go_where_the_network_says() {
        let driver = read("com.docker.network.bridge.host_binding_ipv4", "127.0.0.1", false).unwrap();
        assert_eq!(driver.published(None), Some(Ipv4Addr::LOCALHOST.into()));
        let own = "10.0.0.1".parse().ok();
        assert_eq!(driver.published(own), own);
        assert_eq!(Driver::default().published(None), None);
    }
}
