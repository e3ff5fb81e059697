//! The bed itself: that the machine is what the other tests take it for.

use crate::host::{CORACLE, Delegated, Guest, IMAGE, User};

#[test]
fn the_host_is_debian_12_with_the_controllers_it_delegates_by_default() {
    let Some(guest) = Guest::find("the_host_is_debian_12_with_the_controllers_it_delegates_by_default") else {
        return;
    };
    assert_eq!(guest.sh(User::Root, "stat -fc %T /sys/fs/cgroup").ok(), "cgroup2fs");
    assert_eq!(guest.sh(User::Root, ". /etc/os-release; echo $VERSION_ID").ok(), "12");
    assert_eq!(guest.sh(User::Root, "systemctl is-system-running").ok(), "running");
    assert_eq!(guest.sh(User::Alice, "systemctl --user is-system-running").ok(), "running");
    guest.delegate(Delegated::Default);
    assert_eq!(guest.delegated(), "cpu memory pids");
    guest.delegate(Delegated::All);
    assert_eq!(guest.delegated(), "cpuset cpu io memory pids");
    guest.delegate(Delegated::Default);
    assert_eq!(guest.delegated(), "cpu memory pids");
}

#[test]
fn a_command_dies_with_its_client() {
    let Some(guest) = Guest::find("a_command_dies_with_its_client") else { return };
    let sleep = guest.start(User::Alice, &["sh", "-c", "sleep 98765; true"]);
    guest.wait_for(User::Root, "pgrep -f 'sleep 9876[5]'", "it runs");
    drop(sleep);
    guest.wait_for(User::Root, "! pgrep -f 'sleep 9876[5]'", "it is gone");
    assert_eq!(guest.run(User::Carol, &["sh", "-c", "kill -TERM $$"]).status, 128 + 15);
    assert_eq!(guest.run(User::Carol, &["/not/here"]).failed(), "guest: /not/here: No such file or directory");
}

/// Debian 12's Linux 6.1 has neither overlayfs with the new mount API nor mounts on detached mounts.
#[test]
fn a_container_runs_on_linux_6_1_as_every_user() {
    let Some(guest) = Guest::find("a_container_runs_on_linux_6_1_as_every_user") else { return };
    for user in [User::Alice, User::Carol, User::Root] {
        guest.prepare(user);
        let argv = [CORACLE, "run", "--rm", IMAGE, "sh", "-c", "echo $(id -u) $(cat /proc/1/comm); mount"];
        let output = guest.run(user, &argv);
        let (first, mounts) = output.ok().split_once('\n').unwrap();
        assert_eq!(first, "0 sh", "{output:?}");
        assert!(mounts.starts_with("overlay on / type overlay"), "{mounts}");
        assert_eq!(output.stderr, "", "as {user:?}");
    }
}
