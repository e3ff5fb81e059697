//! What of the host is inside: bind volumes, tmpfs, the read-only root.

use crate::env::TestEnv;
use crate::options::sh;
use crate::require;

#[test]
fn a_bind_volume_shows_the_hosts_files_and_takes_writes() {
    require!();
    let env = TestEnv::new();
    env.write("shared/in", "from host\n");
    let volume = format!("{}:/shared", env.path("shared").display());
    assert_eq!(sh(&env, &["-v", &volume], "cat /shared/in; echo from inside >/shared/out"), "from host");
    assert_eq!(fs_err::read_to_string(env.path("shared/out")).unwrap(), "from inside\n");
    use std::os::unix::fs::MetadataExt;
    let owner = fs_err::metadata(env.path("shared/out")).unwrap().uid();
    assert_eq!(owner, nix::unistd::getuid().as_raw(), "container root's files belong to the caller");
}

#[test]
fn a_read_only_volume_refuses_writes() {
    require!();
    let env = TestEnv::new();
    env.write("shared/in", "x");
    let source = env.path("shared").display().to_string();
    for flags in [
        ["-v".to_owned(), format!("{source}:/shared:ro")],
        ["--mount".to_owned(), format!("type=bind,source={source},target=/shared,readonly")],
        ["--mount".to_owned(), format!("type=bind,src={source},dst=/shared,ro")],
    ] {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let output = sh(
            &env,
            &flags,
            "cat /shared/in; touch /shared/new 2>&1; mount -o remount,rw /shared 2>&1; touch /shared/new 2>&1 || echo still",
        );
        assert!(output.contains("Read-only file system") && output.ends_with("still"), "{output}");
    }
    assert!(!env.path("shared/new").exists());
}

#[test]
fn a_volume_of_one_file_and_into_a_new_directory() {
    require!();
    let env = TestEnv::new();
    let file = env.write("one", "single\n");
    let volume = format!("{}:/new/dir/one:ro", file.display());
    assert_eq!(sh(&env, &["-v", &volume], "cat /new/dir/one; ls /new/dir"), "single\none");
}

#[test]
fn a_relative_bind_and_a_missing_source() {
    require!();
    let env = TestEnv::new();
    env.write("home/sub/file", "here");
    assert_eq!(sh(&env, &["-v", "./sub:/x"], "cat /x/file"), "here");
    let image = env.image("busybox");
    let missing = format!("type=bind,source={},target=/x", env.path("missing").display());
    env.container(&["--mount", &missing, &image, "true"]).outcome().refused(125).says("missing");
}

#[test]
fn volumes_are_nosuid_and_nodev() {
    require!();
    let env = TestEnv::new();
    env.write("shared/in", "x");
    let volume = format!("{}:/shared", env.path("shared").display());
    let options = sh(&env, &["-v", &volume], "grep ' /shared ' /proc/self/mountinfo");
    assert!(options.contains("nosuid") && options.contains("nodev"), "{options}");
}

#[test]
fn tmpfs_is_empty_bounded_and_gone_afterwards() {
    require!();
    let env = TestEnv::new();
    let script = "ls -A /scratch; stat -f -c %T /scratch; echo x >/scratch/x && cat /scratch/x; \
                  dd if=/dev/zero of=/scratch/big bs=1M count=3 2>/dev/null || echo full; stat -c %a /scratch";
    assert_eq!(sh(&env, &["--tmpfs", "/scratch:size=2m,mode=1770"], script), "tmpfs\nx\nfull\n1770");
    let mount = "type=tmpfs,target=/scratch,tmpfs-size=2m";
    let script = "dd if=/dev/zero of=/scratch/big bs=1M count=3 2>/dev/null || echo full";
    assert_eq!(sh(&env, &["--mount", mount], script), "full");
}

#[test]
fn read_only_root_still_has_writable_dev_shm_and_volumes() {
    require!();
    let env = TestEnv::new();
    env.write("shared/in", "x");
    let volume = format!("{}:/shared", env.path("shared").display());
    let script = "touch /new 2>&1; touch /etc/new 2>&1; echo x >/dev/shm/x && echo x >/shared/x && echo x >/scratch/x && echo fine";
    let output = sh(&env, &["--read-only", "-v", &volume, "--tmpfs", "/scratch"], script);
    assert_eq!(output.matches("Read-only file system").count(), 2, "{output}");
    assert!(output.ends_with("fine"), "{output}");
}
