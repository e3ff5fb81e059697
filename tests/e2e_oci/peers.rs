//! `coracle-oci` beside crun, and under Slurm's rules.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use super::{Oci, unique};
use crate::env::{TestEnv, Who, fixtures, set_mode, wait_until};

/// Slurm asks as root about containers that users started (slurm.md).
#[test]
fn oci_root_works_in_a_users_state_directory() {
    let env = TestEnv::new();
    if env.who() != Who::Root {
        return fixtures::elsewhere("only root can become somebody else");
    }
    let Some((uid, gid)) = user("alice") else {
        return fixtures::skip("there is no user alice");
    };
    let oci = Oci::new(&env, &["sleep", "1000"]);
    fs_err::remove_file(oci.config()).unwrap();
    for dir in [env.path(""), env.path("home"), env.path("slurm")] {
        fs_err::create_dir_all(&dir).unwrap();
        set_mode(&dir, 0o755);
    }
    let chown = |path: &Path| std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    chown(&oci.bundle);
    set_mode(&env.path("slurm"), 0o1777);
    let program = env.path("copy/coracle-oci");
    fs_err::create_dir(env.path("copy")).unwrap();
    fs_err::copy(fixtures::coracle(), &program).unwrap();
    let as_alice = |args: &[&str]| {
        env.program("setpriv")
            .args(&["--reuid=alice", "--regid=alice", "--init-groups"])
            .args(&[program.to_str().unwrap()])
            .args(args)
    };
    let bundle = oci.bundle.to_str().unwrap();
    as_alice(&["spec", "--rootless", "--bundle", bundle]).ok();
    oci.change(|config| config["process"]["args"] = json!(["sleep", "1000"]));
    let root = format!("--root={}", env.path("slurm/alice").display());
    let id = "node1.alice.17.4294967291.0";
    let mut running = as_alice(&[&root, "run", "--bundle", bundle, id]).spawn();
    wait_until("the container to run", || {
        let outcome = oci.run(&[&root, "state", id]).outcome();
        outcome.code == 0 && outcome.text().contains("\"running\"")
    });
    oci.run(&[&root, "state", "nobody"]).outcome().refused(1);
    oci.run(&[&root, "kill", "--all", id]).ok();
    assert!(!running.has_ended(), "sleep as the first process ignores SIGTERM");
    oci.run(&[&root, "kill", "--all", id, "KILL"]).ok();
    assert_eq!(running.wait().code, 137);
    // Another user's directory under this name, and a link to it, are refused.
    fs_err::create_dir(env.path("slurm/bob")).unwrap();
    chown(&env.path("slurm/bob"));
    let bob = format!("--root={}", env.path("slurm/bob").display());
    oci.run(&[&bob, "state", id]).outcome().refused(1).says("not the one of user \"bob\"");
    let link = format!("--root={}", env.path("slurm/link").display());
    symlink(env.path("slurm/alice"), env.path("slurm/link")).unwrap();
    oci.run(&[&link, "state", id]).outcome().refused(1);
    oci.run(&[&root, "delete", "--force", id]).ok();
    assert_eq!(fs_err::read_dir(env.path("slurm/alice")).unwrap().count(), 0);
}

fn user(name: &str) -> Option<(u32, u32)> {
    let passwd = fs_err::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

/// The same bundle through crun: what the program sees must be the same.
#[test]
fn oci_agrees_with_crun() {
    let env = TestEnv::new();
    if fixtures::find_program("crun").is_none() {
        return fixtures::skip("crun is not installed");
    }
    if env.who() == Who::Single {
        return fixtures::elsewhere("crun needs a range of ids to get past a hybrid cgroup host");
    }
    // Two differences are wanted: crun invents HOME=/ where the specification has none, and links
    // /dev/core to the masked /proc/kcore.
    let script = "id; pwd; env | grep -v -E '^(SHLVL|HOME)='; grep -E 'Cap|NoNewPrivs|Seccomp:|Groups' /proc/self/status; \
                  ls -l /dev | grep -v -E '^total| core ' | cut -c1-10; cat /proc/sys/kernel/hostname; echo $0 $1; \
                  for kind in user mnt pid net ipc uts; do readlink /proc/self/ns/$kind >/dev/null && echo $kind; done; \
                  cat /proc/mounts | grep -E ' /(proc|dev|dev/pts|dev/shm|dev/mqueue|tmp) ' | wc -l; exit 42";
    let oci = Oci::new(&env, &["sh", "-c", script, "zero", "one"]);
    oci.change(|config| {
        // Debian's crun 1.8.1 neither knows rro nor mounts a cgroup here, and takes no newer specification.
        config["ociVersion"] = json!("1.0.2");
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup" && mount["destination"] != "/sys");
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        let linux = config["linux"].as_object_mut().unwrap();
        // Inside a user namespace with a range the mapping starts at that namespace's root.
        linux.remove("uidMappings");
        linux.remove("gidMappings");
        linux["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "user");
    });
    let inside = |command: &str| {
        let map = if env.who() == Who::Root { "" } else { "-U --map-auto --map-root-user" };
        let line = format!(
            "exec unshare {map} -m sh -c 'mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup && {command} run --bundle {} {}'",
            oci.bundle.display(),
            unique("crun")
        );
        env.program("/bin/sh").args(&["-c", &line]).outcome()
    };
    let crun = inside(&format!("crun --root {} --cgroup-manager=disabled", env.path("crun").display()));
    let ours = inside(&format!("{} --root {}", oci.program.display(), env.path("ours").display()));
    assert_eq!(crun.code, 42, "{crun}");
    assert_eq!(ours.code, 42, "{ours}");
    assert_eq!(ours.text(), crun.text());
}
