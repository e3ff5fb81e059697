//! Terminals: the container's own, and the caller's that it must not reach.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use coracle_runtime::{Stage, Stdio};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use serde_json::json;

use crate::container::Container;
use crate::place::Place;
use crate::runner::{ALL, Case};

pub const CASES: &[Case] = &[
    Case { name: "a07_console_is_the_containers_own", users: ALL, run: console },
    Case { name: "a16_callers_terminal_is_not_controlling", users: ALL, run: callers_terminal },
    Case { name: "c18_terminal_and_streams_must_fit", users: ALL, run: pairing },
];

/// Reads a terminal until its other side is closed.
fn read_all(master: &mut std::fs::File) -> String {
    let mut said = Vec::new();
    let mut chunk = [0; 1024];
    // EIO is the end of a terminal.
    while let Ok(length @ 1..) = master.read(&mut chunk) {
        said.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8_lossy(&said).replace("\r\n", "\n")
}

fn with_console(place: &Place, script: &str) -> (Container, String, i32) {
    let mut container = Container::new(place, script);
    container.spec["process"]["terminal"] = json!(true);
    container.spec["process"]["consoleSize"] = json!({"height": 33, "width": 101});
    let running = container.launch(Stdio::Console).expect("launched");
    let mut master = std::fs::File::from(running.console.as_ref().expect("a terminal").try_clone().expect("copied"));
    master.write_all(b"typed\n").expect("written");
    let said = read_all(&mut master);
    let status = running.wait().expect("waited").status();
    (container, said, status)
}

fn console(place: &Place) {
    use std::os::unix::fs::symlink;
    let canary = place.photograph();
    symlink(place.canary().join("file"), place.rootfs().join("dev/console")).expect("linked");
    symlink(place.canary(), place.rootfs().join("dev/pts")).expect("linked");
    let script = "read line; echo got $line; stty size; tty; test -c /dev/console && stat -c '%t' /dev/console /dev/pts/0; echo job > /dev/tty; exit 4";
    let (_, said, status) = with_console(place, script);
    assert_eq!(said, "typed\ngot typed\n33 101\n/dev/pts/0\n88\n88\njob\n");
    assert_eq!(status, 4);
    assert_eq!(canary, place.photograph());
    let (mut container, _, _) = with_console(place, "true");
    container.init_reaper = true;
    let running = container.launch(Stdio::Console).expect("launched");
    let mut master = std::fs::File::from(running.console.as_ref().expect("a terminal").try_clone().expect("copied"));
    read_all(&mut master);
    assert_eq!(running.wait().expect("waited").status(), 0, "with a reaper between");
}

fn callers_terminal(place: &Place) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    grantpt(&master).expect("granted");
    unlockpt(&master).expect("unlocked");
    let peer = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .expect("its other side");
    // Ours to control, as a shell's terminal is.
    rustix::process::setsid().expect("a session");
    rustix::process::ioctl_tiocsctty(peer.as_fd()).expect("controlled");
    let script =
        "test -t 0 && echo terminal; (echo x > /dev/tty) 2>/dev/null || echo none; cut -d' ' -f6 /proc/self/stat";
    let running = Container::new(place, script).launch(Stdio::Fds([peer.as_fd(); 3])).expect("launched");
    assert_eq!(running.wait().expect("waited").status(), 0);
    drop(peer);
    let mut said = Vec::new();
    let mut chunk = [0; 256];
    // One line may come at a time; after the last there is only an error.
    while let Ok(length @ 1..) = rustix::io::read(&master, &mut chunk) {
        said.extend_from_slice(&chunk[..length]);
    }
    let said = String::from_utf8_lossy(&said).replace("\r\n", "\n");
    // Its end would send SIGHUP to us, whose controlling terminal it is.
    std::mem::forget(master);
    assert!(said.starts_with("terminal\nnone\n1"), "{said:?}: a session of its own and no controlling terminal");
}

fn pairing(place: &Place) {
    let mut container = Container::new(place, "true");
    container.spec["process"]["terminal"] = json!(true);
    assert_eq!(container.fails().stage, Stage::Plan);
    container.spec["process"]["consoleSize"] = json!({"height": 65536, "width": 1});
    assert_eq!(container.launch(Stdio::Console).expect_err("too large").stage, Stage::Plan);
    let plain = Container::new(place, "true");
    assert_eq!(plain.launch(Stdio::Console).expect_err("not asked for").stage, Stage::Plan);
    let mut no_pts = Container::new(place, "true");
    no_pts.spec["process"]["terminal"] = json!(true);
    no_pts.spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] != "/dev/pts");
    assert_eq!(no_pts.launch(Stdio::Console).expect_err("no devpts").stage, Stage::Devices);
}
