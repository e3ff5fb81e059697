//! Processes that a case needs beside itself: a launcher that can be killed, a program that is sealed.

use std::path::Path;
use std::process::ExitCode;

use coracle_runtime::{IdMap, LaunchOptions, Rootfs, launch, seal};

pub fn run(args: &[String]) -> ExitCode {
    match args
        .iter()
        .map(String::as_str)
        .collect::<Vec<&str>>()
        .as_slice()
    {
        ["launch-and-wait", spec, bundle] => launch_and_wait(Path::new(spec), Path::new(bundle)),
        ["sealed"] => {
            seal::ensure_sealed().expect("sealed");
            println!(
                "sealed {}, argument {}, KEPT {}",
                seal::is_sealed(),
                args[0],
                std::env::var("KEPT").unwrap_or_default()
            );
            ExitCode::SUCCESS
        }
        ["sealed-launch", spec, bundle] => {
            seal::ensure_sealed().expect("sealed");
            launch_and_wait(Path::new(spec), Path::new(bundle))
        }
        ["overwrite"] => {
            let result = fs_err::OpenOptions::new()
                .write(true)
                .open("/proc/self/exe");
            println!(
                "overwrite: {}",
                if result.is_err() {
                    "refused"
                } else {
                    "possible"
                }
            );
            ExitCode::SUCCESS
        }
        other => panic!("unknown helper {other:?}"),
    }
}

fn launch_and_wait(spec: &Path, bundle: &Path) -> ExitCode {
    let text = fs_err::read(spec).expect("read");
    let (spec, idmap): (oci_spec::runtime::Spec, IdMap) =
        serde_json::from_slice(&text).expect("json");
    let mut options = LaunchOptions::new(
        "helper",
        &spec,
        bundle,
        Rootfs::Directory(bundle.join("rootfs")),
    );
    options.idmap = Some(idmap);
    options.die_with_parent = true;
    let running = launch(options).expect("launched");
    let status = running.wait().expect("waited").status();
    ExitCode::from(u8::try_from(status).unwrap_or(255))
}
