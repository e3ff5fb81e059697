//! Layers and configurations that are data and nothing else (A33, A39, A40, T03 to T22), end to end.

use serde_json::json;
use tar::EntryType;

use crate::env::image::{Image, Layer};
use crate::env::mock::Mock;
use crate::env::{Canary, TestEnv, Who};
use crate::hostile_image::run_hostile;
use crate::require;

#[test]
fn a33_the_environment_is_the_specs_and_nothing_of_the_host() {
    require!();
    let env = TestEnv::new();
    let config = json!({"Env": ["FOO", "=x", "", "*", "PATH*", "GOOD=1", "SECRET*", "SECRET", "PATH=/bin"]});
    let registry = Mock::serving(&[("hostile", Image::hostile(Layer::new(), &config))]);
    let run = env.container(&["--hostname", "h", &registry.image("hostile"), "env"]);
    let outcome = run.env("SECRET", "of the host").env("FOO", "of the host").outcome();
    if outcome.code == 0 {
        let text = outcome.text();
        assert!(!text.contains("of the host"), "{outcome}");
        for line in text.lines() {
            assert!(
                ["GOOD=1", "PATH=/bin", "HOME=/root", "HOSTNAME=h"].contains(&line) || line.starts_with("=x"),
                "{outcome}"
            );
        }
    } else {
        outcome.refused(125);
    }
    let nul = Image::hostile(Layer::new(), &json!({"Env": ["A=1\u{0}B=2"]}));
    let registry = Mock::serving(&[("nul", nul)]);
    let outcome = env.container(&[&registry.image("nul"), "env"]).outcome();
    if outcome.code == 0 {
        assert!(!outcome.text().contains("A=") && !outcome.text().contains("B="), "{outcome}");
    } else {
        outcome.refused(125);
    }
}

#[test]
fn a39_labels_and_annotations_are_only_data() {
    require!();
    let env = TestEnv::new();
    let labels =
        json!({"io.coracle.rootfs": "/", "io.coracle.privileged": "true", "org.opencontainers.runtime": "/bin/sh"});
    let config = json!({"Labels": labels, "Env": ["CORACLE_ROOT=/tmp", "LD_PRELOAD=/evil.so", "PATH=/bin"]});
    let outcome = run_hostile(
        &env,
        &[],
        Layer::new(),
        &config,
        &["sh", "-c", "grep CapEff /proc/self/status; echo $CORACLE_ROOT"],
    );
    assert_eq!(outcome.ok(), "CapEff:\t00000000800405fb\n/tmp", "{outcome}");
}

#[test]
fn a40_programs_of_the_image_never_run_in_pull() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    let trojan = format!("#!/bin/sh\necho owned >{}/file\n", canary.dir().display());
    let mut layer = Layer::new();
    for name in ["gzip", "unpigz", "xz", "zstd", "ps", "tar", "newuidmap", "pasta"] {
        layer = layer.file(&format!("usr/bin/{name}"), 0o755, trojan.as_bytes());
    }
    let outcome = run_hostile(&env, &[], layer, &json!({}), &["true"]);
    outcome.code(0);
    canary.assert_untouched();
}

#[test]
fn t20_devices_in_a_layer_are_no_devices_on_the_host() {
    require!();
    let env = TestEnv::new();
    let layer = Layer::new()
        .special("sda", EntryType::Block, 8, 0)
        .special("mem", EntryType::Char, 1, 1)
        .special("whiteout", EntryType::Char, 0, 0)
        .special("fifo", EntryType::Fifo, 0, 0);
    let script = "for f in /sda /mem; do head -c 1 $f 2>/dev/null | wc -c; done; stat -c %F /fifo; ls /bin/cat";
    let outcome = run_hostile(&env, &[], layer, &json!({}), &["sh", "-c", script]);
    assert_eq!(outcome.ok(), "0\n0\nfifo\n/bin/cat", "{outcome}");
}

#[test]
fn t03_t06_layers_that_write_through_links_touch_nothing() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    let dir = canary.dir().display().to_string();
    let layers = [
        Layer::new().symlink("e", &dir).file("e/file", 0o600, b"x"),
        Layer::new().symlink("e", &dir).dir("e", 0o700).file("e/new", 0o600, b"x"),
        Layer::new().symlink("e", &dir).file("e/.wh.file", 0o600, b""),
        Layer::new().symlink("e", &dir).hardlink("h", "e/file").file("h", 0o777, b"x"),
        Layer::new().hardlink("h", &format!("{dir}/file")).file("h", 0o777, b"x"),
        Layer::new().file(&format!("../../../../../..{dir}/file"), 0o777, b"x"),
        Layer::new().symlink("bin/../e", &dir).file("bin/../e/file", 0o600, b"x"),
    ];
    for layer in layers {
        let run = run_hostile(&env, &[], layer, &json!({}), &["true"]);
        if run.code != 0 {
            run.refused(125);
        }
        canary.assert_untouched();
    }
}

#[test]
fn t22_an_owner_outside_of_the_map_is_a_clear_error_or_squashed() {
    require!();
    let env = TestEnv::new();
    let layer = Layer::new().owned("far", 0o644, 70_000, 70_000, b"x").owned("farther", 0o600, 2_000_000, 5, b"y");
    let outcome = run_hostile(&env, &[], layer, &json!({}), &["stat", "-c", "%u", "/far"]);
    match env.who() {
        Who::Ranges => {
            outcome.refused(125);
            assert!(
                outcome.stderr.contains("70000") || outcome.stderr.contains("70001"),
                "which id is missing: {outcome}"
            );
        }
        Who::Single => assert_eq!(outcome.ok(), "0"),
        Who::Root => assert_eq!(outcome.ok(), "70000"),
    }
}
