//! Processes that a case needs beside itself: a launcher that can be killed, a program that is sealed.

use std::path::Path;
use std::process::ExitCode;

use coracle_runtime::{IdMap, LaunchOptions, Rootfs, launch, seal};

pub fn run(args: &[String]) -> ExitCode {
    match args.iter().map(String::as_str).collect::<Vec<&str>>().as_slice() {
        ["launch-and-wait", spec, bundle] => launch_and_wait(Path::new(spec), Path::new(bundle)),
        ["sealed"] => {
            seal::ensure_sealed(std::iter::empty()).expect("sealed");
            println!(
                "sealed {}, argument {}, KEPT {}",
                seal::is_sealed(),
                args[0],
                std::env::var("KEPT").unwrap_or_default()
            );
            ExitCode::SUCCESS
        }
        ["sealed-launch", spec, bundle] => {
            seal::ensure_sealed(std::iter::empty()).expect("sealed");
            launch_and_wait(Path::new(spec), Path::new(bundle))
        }
        ["overwrite"] => {
            let result = fs_err::OpenOptions::new().write(true).open("/proc/self/exe");
            println!("overwrite: {}", if result.is_err() { "refused" } else { "possible" });
            ExitCode::SUCCESS
        }
        ["look"] => look(),
        ["climb"] => climb(),
        ["exchange", one, other] => exchange(Path::new(one), Path::new(other)),
        other => panic!("unknown helper {other:?}"),
    }
}

/// Climbs out of a root that is only a directory of a larger tree, and tells what is at the top.
fn climb() -> ExitCode {
    use rustix::process::{chdir, chroot};
    fs_err::create_dir_all("/tmp/step").expect("made");
    chroot("/tmp/step").expect("CAP_SYS_CHROOT");
    for _ in 0..100 {
        chdir("..").expect("climbed");
    }
    chroot(".").expect("CAP_SYS_CHROOT");
    let mut names: Vec<String> = fs_err::read_dir("/")
        .expect("listed")
        .map(|entry| entry.expect("entry").file_name().display().to_string())
        .collect();
    names.sort();
    println!("{}", names.join(" "));
    ExitCode::SUCCESS
}

fn launch_and_wait(spec: &Path, bundle: &Path) -> ExitCode {
    let text = fs_err::read(spec).expect("read");
    let (spec, idmap): (oci_spec::runtime::Spec, IdMap) = serde_json::from_slice(&text).expect("json");
    let mut options = LaunchOptions::new("helper", &spec, bundle, Rootfs::Directory(bundle.join("rootfs")));
    options.idmap = Some(idmap);
    options.die_with_parent = true;
    let running = launch(options).expect("launched");
    let status = running.wait().expect("waited").status();
    ExitCode::from(u8::try_from(status).unwrap_or(255))
}

/// Looks at every process but itself until it is killed, and writes down what it could see.
fn look() -> ExitCode {
    use std::io::Write;
    let mut log = fs_err::File::create("/tmp/seen").expect("made");
    println!("ready");
    loop {
        for entry in fs_err::read_dir("/proc").expect("listed").flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.parse::<u32>().ok());
            if number.is_none_or(|number| number == 1) {
                continue;
            }
            for line in views(&entry.path()) {
                writeln!(log, "{line}").expect("written");
            }
        }
    }
}

/// Everything that can be seen of a process which its own program does not explain.
fn views(process: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for link in ["exe", "cwd", "root"] {
        if let Ok(target) = fs_err::read_link(process.join(link)) {
            let target = target.display().to_string();
            let allowed = matches!(target.as_str(), "/" | "/bin/busybox");
            lines.push(format!("{link} {target} {}", if allowed { "allowed" } else { "LEAK" }));
        }
    }
    for entry in fs_err::read_dir(process.join("fd")).into_iter().flatten().flatten() {
        if let Ok(target) = fs_err::read_link(entry.path()) {
            let target = target.display().to_string();
            let allowed = target.starts_with("pipe:") || target == "/dev/null";
            lines.push(format!("fd {target} {}", if allowed { "allowed" } else { "LEAK" }));
        }
    }
    lines
}

/// Exchanges two names until it is killed, or whoever started it is gone.
fn exchange(one: &Path, other: &Path) -> ExitCode {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let tied = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    tied.expect("tied");
    loop {
        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).expect("exchanged");
    }
}
