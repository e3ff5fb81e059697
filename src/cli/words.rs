//! How Docker words what belongs to a container: its ports and its network.

use crate::engine::network::Plan;
use crate::engine::ports::{PortMapping, Protocol};

/// Gives the host's side of a published port: `0.0.0.0:8080`.
pub fn host_side(mapping: &PortMapping) -> String {
    match mapping.ip {
        None => format!("0.0.0.0:{}", mapping.host),
        Some(ip) => std::net::SocketAddr::new(ip, mapping.host).to_string(),
    }
}

/// Gives the PORTS column: `0.0.0.0:8080->80/tcp, …`.
pub fn ports(mappings: &[PortMapping]) -> String {
    let mut sorted: Vec<&PortMapping> = mappings.iter().collect();
    sorted.sort_by_key(|mapping| (mapping.container, mapping.protocol == Protocol::Udp, mapping.host));
    let texts = sorted.into_iter().map(|mapping| format!("{}->{}", host_side(mapping), mapping.container_side()));
    texts.collect::<Vec<_>>().join(", ")
}

/// Names a network.
pub fn network(plan: &Plan) -> String {
    match plan {
        Plan::None => "none".to_owned(),
        Plan::Host => "host".to_owned(),
        Plan::Pasta(outside) => outside.kind.program().to_owned(),
        Plan::Container(id) => format!("container:{id}"),
        Plan::Networks(plan) => {
            let names: Vec<&str> = plan.attachments.iter().map(|one| one.network.as_str()).collect();
            names.join(",")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ports::parse_publish;

    #[test]
    fn ports_read_as_in_docker() {
        let mut all = parse_publish("53:53/udp").unwrap();
        all.extend(parse_publish("127.0.0.1:8080:80").unwrap());
        all.extend(parse_publish("[::1]:81:53/tcp").unwrap());
        assert_eq!(ports(&all), "[::1]:81->53/tcp, 0.0.0.0:53->53/udp, 127.0.0.1:8080->80/tcp");
        assert_eq!(ports(&[]), "");
    }
}
