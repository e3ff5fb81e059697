//! slirp4netns (slirp4netns(1)), where there is no pasta. Ports are published through its socket, one
//! JSON object a connection.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use coracle_shim::{Helper, Keeper, Manner};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use super::{NetworkError, OUTSIDE_DEVICE, OutsidePlan, Place, host_side};
use crate::engine::networks::NetworksError;
use crate::engine::ports::{PortMapping, Protocol};

/// Its own name server.
pub const FORWARDED_DNS: &str = "10.0.2.3";
/// The address that it gives to the container.
const CONTAINER_IP: &str = "10.0.2.100";
/// What a device of its kind can take; packets go no further than its process.
const MTU: &str = "65520";
const SOCKET: &str = "slirp.sock";
/// Whoever does not answer in this time is stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 16 << 10;

/// Starts it and publishes the ports.
pub fn start(plan: &OutsidePlan, place: Place<'_>, directory: &Path) -> Result<Keeper, NetworkError> {
    let program = plan.kind.program();
    let Place::Container { user, net, .. } = place else {
        let complaint = NetworksError::RateNeedsPasta.to_string();
        return Err(NetworkError::Helper { program, complaint });
    };
    let own = rustix::process::getpid().as_raw_pid();
    let path = |fd: BorrowedFd<'_>| format!("/proc/{own}/fd/{}", fd.as_raw_fd());
    let mut arguments: Vec<String> =
        ["--configure", "--disable-host-loopback", "--mtu", MTU, "--ready-fd", "1", "--api-socket", SOCKET]
            .map(str::to_owned)
            .to_vec();
    arguments.extend(["--userns-path".to_owned(), path(user), "--netns-type".to_owned(), "path".to_owned()]);
    arguments.push(path(net));
    arguments.push(plan.device.clone().unwrap_or_else(|| OUTSIDE_DEVICE.to_owned()));
    // One that is left of an earlier start.
    let _ = fs_err::remove_file(directory.join(SOCKET));
    let manner = Manner::Foreground;
    let helper = Helper { program: &plan.program, arguments: &arguments, directory, input: None, manner, again: false };
    let keeper = plan.keep(&helper)?;
    match plan.ports.iter().try_for_each(|mapping| publish(mapping, directory)) {
        Ok(()) => Ok(keeper),
        Err(error) => {
            keeper.finish();
            Err(error)
        }
    }
}

fn publish(mapping: &PortMapping, directory: &Path) -> Result<(), NetworkError> {
    let port = host_side(mapping);
    let fail = |reason: String| NetworkError::Port { port, reason };
    let protocol = if mapping.protocol == Protocol::Tcp { "tcp" } else { "udp" };
    let host = mapping.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let arguments = json!({
        "proto": protocol, "host_addr": host.to_string(), "host_port": mapping.host,
        "guest_addr": CONTAINER_IP, "guest_port": mapping.container,
    });
    let question = json!({ "execute": "add_hostfwd", "arguments": arguments });
    let answer = ask(directory, &question).map_err(|error| fail(error.to_string()))?;
    match answer.get("error") {
        Some(error) => Err(fail(error["desc"].as_str().unwrap_or("slirp4netns refuses").to_owned())),
        None => Ok(()),
    }
}

fn ask(directory: &Path, question: &Value) -> std::io::Result<Value> {
    // By the directory's descriptor: an address has room for 107 bytes only.
    let dir = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut socket = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    socket.write_all(question.to_string().as_bytes())?;
    socket.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    socket.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
