//! `coracle run`: which command runs, with which exit code, and what stays behind.

use serde_json::json;

use crate::env::image::{Image, Layer};
use crate::env::mock::Mock;
use crate::env::{TestEnv, Who, tree};
use crate::require;

#[test]
fn the_command_runs_and_its_output_comes_back() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let outcome = env.container(&[&image, "sh", "-c", "echo out; echo err >&2"]).outcome();
    assert_eq!(outcome.ok(), "out");
    assert!(outcome.stderr.ends_with("err\n"), "{outcome}");
}

#[test]
fn a_second_run_asks_no_registry() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.container(&[&image, "true"]).ok();
    let before = env.registry().log().len();
    let outcome = env.container(&[&image, "true"]).outcome();
    outcome.ok();
    assert_eq!(outcome.stderr, "", "nothing to say about an image that is here");
    assert_eq!(env.registry().log().len(), before, "{}", &env.registry().log()[before..]);
}

#[test]
fn exit_codes_are_the_commands_own() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    for code in [0, 1, 2, 42, 124, 125, 127, 200, 255] {
        env.container(&[&image, "sh", "-c", &format!("exit {code}")]).outcome().code(code);
    }
}

#[test]
fn a_signal_that_ends_the_command_is_128_and_its_number() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    // Only a child can be killed by a signal from inside: pid 1 is protected from its own namespace.
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("SEGV", 139), ("USR1", 138)] {
        let script = format!("sh -c 'kill -{signal} $$'");
        env.container(&["--init", &image, "sh", "-c", &format!("exec {script}")]).outcome().code(code);
    }
}

#[test]
fn a_command_that_is_not_there_is_127() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    for command in ["no-such-command", "/bin/no-such-command", "./nothing"] {
        env.container(&[&image, command]).outcome().refused(127).says(command);
    }
}

#[test]
fn a_command_that_cannot_be_invoked_is_126() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    for command in ["/etc/passwd", "/etc", "/"] {
        env.container(&[&image, command]).outcome().refused(126).says(command);
    }
}

#[test]
fn failures_of_coracle_itself_are_125() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.container(&["--no-such-flag", &image, "true"]).outcome().refused(125).says("--no-such-flag");
    env.container(&["-v", "relative-without-colon:/x:bad-option", &image, "true"]).outcome().refused(125);
    env.container(&[&env.image("no-such-image"), "true"]).outcome().refused(125);
}

#[test]
fn image_config_is_honoured() {
    require!();
    let env = TestEnv::new();
    let image = env.image("config");
    if env.who() == Who::Single {
        // Its USER has an id that a single map does not have: there is one user, and that is who runs.
        assert_eq!(env.container(&[&image]).ok(), "entry one two");
        assert_eq!(env.container(&["--entrypoint", "id", &image, "-u"]).ok(), "0");
        env.container(&["-u", "tester", &image]).outcome().refused(125).says("1000");
        return;
    }
    assert_eq!(env.container(&[&image]).ok(), "entry one two");
    assert_eq!(env.container(&[&image, "three"]).ok(), "entry three", "CMD is replaced, ENTRYPOINT stays");
    let script = "id -u; pwd; echo $FROM_IMAGE $OVERRIDE; cat /data/file; mount | grep -c ' /data '";
    let run = env.container(&["-e", "OVERRIDE=flag", "--entrypoint", "/bin/sh", &image, "-c", script]);
    assert_eq!(run.ok().lines().collect::<Vec<_>>(), ["1000", "/work", "yes flag", "from-image", "1"]);
}

#[test]
fn an_entry_point_flag_drops_the_images_command() {
    require!();
    let env = TestEnv::new();
    let image = env.image("config");
    assert_eq!(env.container(&["-u", "0", "--entrypoint", "/bin/echo", &image]).ok(), "");
    assert_eq!(env.container(&["-u", "0", "--entrypoint", "pwd", &image]).ok(), "/work");
}

#[test]
fn no_command_at_all_is_refused() {
    require!();
    let env = TestEnv::new();
    let registry = Mock::serving(&[("empty", Image::new(vec![Layer::busybox().bytes()], &json!({})))]);
    env.container(&[&registry.image("empty")]).outcome().refused(125).says("no command");
}

#[test]
fn rm_leaves_nothing_and_no_rm_leaves_the_writable_layer() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    let containers = env.root().join("containers");
    env.container(&[&image, "sh", "-c", "echo kept >/file"]).ok();
    let count = || fs_err::read_dir(&containers).map(|entries| entries.count()).unwrap_or(0);
    let without = count();
    env.coracle(&["run", "--network", "none", "--name", "stays", &image, "sh", "-c", "echo kept >/file"]).ok();
    assert_eq!(count(), without + 1);
    let again = env.coracle(&["run", "--rm", "--network", "none", "--name", "stays", &image, "true"]).outcome();
    again.refused(125).says("stays");
}

#[test]
fn what_a_container_writes_is_not_in_the_next_one() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.container(&[&image, "sh", "-c", "echo x >/new; rm /bin/ls; echo changed >/etc/passwd"]).ok();
    let script = "ls /new 2>/dev/null; head -1 /etc/passwd";
    assert_eq!(env.container(&[&image, "sh", "-c", script]).ok(), "root:x:0:0:root:/root:/bin/sh");
}

#[test]
fn two_containers_run_side_by_side() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let runs: Vec<_> = (0..8)
        .map(|number| env.container(&[&image, "sh", "-c", &format!("echo {number} >/f; cat /f; hostname")]).spawn())
        .collect();
    let outputs: Vec<String> = runs.into_iter().map(|run| run.wait().ok()).collect();
    for (number, output) in outputs.iter().enumerate() {
        assert!(output.starts_with(&format!("{number}\n")), "{output}");
    }
    let names: std::collections::BTreeSet<_> = outputs.iter().map(|output| output.lines().nth(1)).collect();
    assert_eq!(names.len(), 8, "every container has a host name of its own: {outputs:?}");
}

#[test]
fn python_runs() {
    require!();
    let env = TestEnv::new();
    let image = env.image("python3");
    let script = "import hashlib, sys; print(sum(range(101)), hashlib.sha256(b'x').hexdigest()[:8], sys.argv[1])";
    assert_eq!(env.container(&[&image, "python3", "-c", script, "a b"]).ok(), "5050 2d711642 a b");
    let outcome = env.container(&[&image, "python3", "-c", "raise SystemExit(3)"]).outcome();
    outcome.code(3);
}

#[test]
fn debian_runs_its_package_manager() {
    require!();
    let env = TestEnv::new();
    let image = env.image("debian");
    let output = env.container(&[&image, "sh", "-c", "cat /etc/debian_version; dpkg --audit; dpkg-query -W dpkg"]).ok();
    assert!(output.starts_with("12.") && output.contains("dpkg\t1.21"), "{output}");
}

#[test]
fn every_kind_of_layer_runs() {
    require!();
    let env = TestEnv::new();
    for tag in ["busybox:latest", "busybox:schema2", "busybox:plain", "busybox:zstd", "multi:latest"] {
        assert_eq!(env.container(&[&env.image(tag), "echo", tag]).ok(), tag);
    }
}

#[test]
fn a_directory_that_only_an_upper_layer_implies_keeps_its_mode() {
    require!();
    let env = TestEnv::new();
    let upper = Layer::new().file("tmp/only-file", 0o644, b"x").file("root/deep/er/file", 0o644, b"y");
    let base = Layer::busybox();
    let image = Image::new(vec![base.bytes(), upper.bytes()], &json!({}));
    let registry = Mock::serving(&[("implied", image)]);
    let script = "stat -c %a:%u:%g /tmp /root /root/deep; cat /tmp/only-file /root/deep/er/file";
    let output = env.container(&[&registry.image("implied"), "sh", "-c", script]).ok();
    assert_eq!(output, "1777:0:0\n700:0:0\n755:0:0\nxy");
}

#[test]
fn the_builtin_image_needs_neither_registry_nor_helpers() {
    let env = TestEnv::new();
    let outcome = env.coracle(&["run", "--rm", "coracle/hello"]).outcome();
    let text = outcome.ok().to_lowercase();
    for word in ["uid", "namespace", "capabilit", "seccomp", "no_new_privs", "mount"] {
        assert!(text.contains(word), "hello does not speak of {word}:\n{text}");
    }
}

#[test]
fn the_binary_itself_is_one_static_file() {
    let env = TestEnv::new();
    let bytes = fs_err::read(crate::env::fixtures::coracle()).unwrap();
    assert!(bytes.starts_with(b"\x7fELF"));
    let interpreter = b"/lib64/ld-linux-x86-64.so.2\0";
    assert!(!bytes.windows(interpreter.len()).any(|window| window == interpreter), "asks for a dynamic loader");
    assert_eq!(tree::sha256(&bytes).len(), 64);
    assert!(env.coracle(&["--version"]).ok().starts_with("coracle "));
}
