//! User-defined networks without root: containers that find each other by name.
//!
//! ```text
//! shim of a container ──> init, in a user namespace inside the outer one
//!    '── link ── link: plugs eth0, eth1 … into networks ─── holder, one per network: bridge, members, names
//!                  '── keeper ── pasta: outside and published ports, a device out0 of the container's own
//! ```
//! A pair of devices joins two network namespaces only by a process with CAP_NET_ADMIN over both, and
//! two user namespaces of one caller have no common ancestor in which an ordinary user has it. So the
//! user namespaces of such containers are made inside an *outer* one, one per state directory, with the
//! caller's whole id map; links and holders live in it, pasta does not. Nobody keeps it but those
//! processes; whoever comes next finds it through a holder's socket or a link's /proc.
//!
//! Rejected: networks that the outer namespace owns and containers join (no fresh sysfs, no NET_ADMIN
//! inside, low ports closed); one namespace for all networks with rules between them (rules can be
//! forgotten, namespaces cannot); one pasta for a whole network (its old versions know one address
//! inside, so it takes NAT, which loses the caller's address).
//!
//! A holder's namespace outlives it, because links have it open. A link that hears the end of its holder
//! starts another one there and takes its old place: addresses and connections stay, names are back in
//! milliseconds. The name server forwards what no network knows from the host's own network, never for
//! a container whose networks are all internal.
//!
//! The way outside is there while one of the container's networks is not internal: with the last one that is
//! left pasta ends, with the first one that is joined it starts. A second process of the link starts another
//! link where one was killed, and a link another pasta.
//!
//! A member is who its port is: the bridge learns no addresses, and the network knows each member's by itself,
//! so that nobody gets the answers of another one (with NET_RAW anybody can ask in another's name).
//!
//! On disk: `networks/<name>/{network.json, members.json, holder.sock}`,
//! `containers/<id>/{link.json, link.sock}`.

pub mod connect;
mod driver;
mod error;
mod gate;
pub mod holder;
pub mod link;
mod names;
mod netlink;
pub mod plan;
pub mod rate;
pub mod record;
mod relay;
mod resolver;
pub mod subnet;
pub mod watch;
mod wire;

pub use error::NetworksError;
pub use gate::{OUTSIDE, OUTSIDE_PREFIX, OUTSIDE_ROUTER, OUTSIDE_ROUTER6};
pub use plan::{Attachment, NetworksPlan};
pub use rate::Rate;
