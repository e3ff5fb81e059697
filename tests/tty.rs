//! `coracle run -it`: a terminal inside, raw mode outside, resize and Ctrl-C.

use nix::sys::signal::Signal;

use crate::env::terminal::Terminal;
use crate::env::{TestEnv, fixtures};
use crate::require;

fn start(env: &TestEnv, flags: &[&str], command: &[&str]) -> Terminal {
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let mut args = vec!["run", "--rm", "--network", "none"];
    args.extend(flags);
    args.push(&image);
    args.extend(command);
    Terminal::start(env, 101, 37, &fixtures::coracle().display().to_string(), &args)
}

#[test]
fn a_shell_at_a_terminal() {
    require!();
    let env = TestEnv::new();
    let mut terminal = start(&env, &["-it"], &["sh"]);
    terminal.expect("# ");
    terminal.type_in("tty; stty size; echo $TERM; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all-$((40 + 2))\r");
    terminal.expect("all-42");
    terminal.expect("/dev/");
    terminal.expect("37 101");
    terminal.expect("xterm");
    terminal.type_in("exit 5\r");
    assert_eq!(terminal.exit_code(), 5);
    assert!(terminal.is_cooked(), "the caller's terminal was left raw");
}

#[test]
fn resize_reaches_the_container() {
    require!();
    let env = TestEnv::new();
    let mut terminal = start(
        &env,
        &["-it"],
        &["sh", "-c", "trap 'stty size' WINCH; trap 'exit 0' INT; echo ready; while :; do sleep 0.1; done"],
    );
    terminal.expect("ready");
    terminal.resize(55, 22);
    terminal.expect("22 55");
    terminal.resize(99, 11);
    terminal.expect("11 99");
    terminal.type_in("\u{3}");
    assert_eq!(terminal.exit_code(), 0);
}

#[test]
fn ctrl_c_interrupts_the_command_inside_and_not_coracle() {
    require!();
    let env = TestEnv::new();
    let mut terminal = start(
        &env,
        &["-it"],
        &["sh", "-c", "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.1; done"],
    );
    terminal.expect("ready");
    terminal.wait_raw();
    terminal.type_in("\u{3}");
    terminal.expect("interrupted");
    assert_eq!(terminal.exit_code(), 9);
    assert!(terminal.is_cooked());
}

#[test]
fn end_of_input_ends_a_reader() {
    require!();
    let env = TestEnv::new();
    let mut terminal = start(&env, &["-it"], &["sh", "-c", "cat; echo over"]);
    terminal.wait_raw();
    terminal.type_in("line\r\u{4}");
    terminal.expect("over");
    assert_eq!(terminal.exit_code(), 0);
}

#[test]
fn the_terminal_is_restored_when_coracle_is_terminated() {
    require!();
    let env = TestEnv::new();
    let mut terminal =
        start(&env, &["-it"], &["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"]);
    terminal.expect("ready");
    terminal.wait_raw();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(terminal.pid()), Signal::SIGTERM).unwrap();
    assert_eq!(terminal.exit_code(), 3);
    assert!(terminal.is_cooked());
}

#[test]
fn closing_the_terminal_ends_the_container() {
    require!();
    let env = TestEnv::new();
    let terminal = start(&env, &["-it"], &["sh"]);
    terminal.expect("# ");
    // The proof that nothing is left is TestEnv's own at the end.
    let code = terminal.hang_up();
    assert!(matches!(code, 0 | 129), "the shell's own code at the end of its input, or SIGHUP's: {code}");
}

#[test]
fn t_without_a_terminal_is_refused() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.container(&["-it", &image, "true"]).outcome().refused(125).says("terminal");
}

#[test]
fn much_output_through_a_terminal_is_complete() {
    require!();
    let env = TestEnv::new();
    let mut terminal =
        start(&env, &["-it"], &["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done"]);
    assert_eq!(terminal.exit_code(), 0);
    terminal.expect("line 20000\r\n");
    assert_eq!(terminal.screen().matches("line ").count(), 20000);
}

#[test]
fn a_terminal_of_its_own_not_the_callers() {
    require!();
    let env = TestEnv::new();
    // A16: TIOCSTI into the caller's terminal is impossible, the terminal inside is another one.
    let mut terminal = start(
        &env,
        &["-it"],
        &["sh", "-c", "stat -c %n:%t:%T /dev/console; readlink /proc/self/fd/0; ls /dev/pts; exit 0"],
    );
    assert_eq!(terminal.exit_code(), 0);
    let screen = terminal.screen();
    assert!(screen.contains("/dev/console:"), "{screen}");
    assert!(screen.contains("/dev/pts/0") || screen.contains("/dev/console\r\n"), "{screen}");
}
