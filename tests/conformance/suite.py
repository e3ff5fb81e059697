#!/usr/bin/env python3
"""Runs crun's own test functions against one OCI runtime and prints one JSON object a test.

    suite.py TESTS_DIRECTORY INIT RUNTIME CGROUP_MANAGER WORK_DIRECTORY

crun's run_all_tests runs everything in one process and prints TAP. Here every test is a process of its
own with a deadline, so that one that hangs or exits spoils only itself. The meaning of a result is
theirs: 0 is ok, 77 is ok with a skip, everything else is not ok. Tests of terminals get one.

Their helpers always ask for `--cgroup-manager cgroupfs`; the runtime is called through a small script
that puts CGROUP_MANAGER there instead, for both runtimes alike.
"""

import fcntl
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
import time

# The slowest test that passes takes 4 s on an idle machine, and about 15 times that under emulation.
TEST_SECONDS_MAX = float(os.environ.get("CONFORMANCE_TEST_SECONDS", "60"))
# A failure's explanation is in its last lines.
OUTPUT_BYTES_MAX = 4000
SKIPPED = 77
# These skip themselves without a terminal. The fourth of them, test-detach-tty, is in differences.toml.
TERMINAL = ("tty/test-stdin-tty", "tty/test-stdout-tty", "tty/test-stderr-tty")


def write_wrapper(path, runtime, manager):
    with open(path, "w") as file:
        file.write(
            "#!/bin/sh\n"
            "previous=\n"
            "for argument; do\n"
            "    shift\n"
            f'    [ "$previous:$argument" != --cgroup-manager:cgroupfs ] || argument={manager}\n'
            "    previous=$argument\n"
            '    set -- "$@" "$argument"\n'
            "done\n"
            f'exec "{runtime}" "$@"\n'
        )
    os.chmod(path, 0o755)


def run_child(function, output, terminal):
    """The body of a test's process: ends with the test's result as exit status."""
    os.setsid()
    if terminal is None:
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(output, 1)
    else:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        os.dup2(terminal, 0)
        os.dup2(terminal, 1)
    os.dup2(output, 2)
    import tests_utils

    status = 1
    try:
        os.makedirs(tests_utils.get_tests_root())
        result = function()
        status = result if result in (0, SKIPPED) else 1
    except BaseException as error:
        if getattr(error, "output", None):
            sys.stderr.write(f"{error.output}\n")
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait(pid, deadline):
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def sweep(runtime, root):
    """Removes the containers a test left behind, and its directory."""
    state = os.path.join(root, "root")
    for name in os.listdir(state) if os.path.isdir(state) else []:
        subprocess.run([runtime, "--root", state, "delete", "-f", name], stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, timeout=TEST_SECONDS_MAX, check=False)
    shutil.rmtree(root, ignore_errors=True)


def run_test(function, runtime, log, wants_terminal):
    # The master's end is only held: what a test of terminals prints fits into the kernel's buffer.
    master, terminal = os.openpty() if wants_terminal else (None, None)
    with open(log, "w+b") as output:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            run_child(function, output.fileno(), terminal)
        code = wait(pid, started + TEST_SECONDS_MAX)
        seconds = time.monotonic() - started
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - OUTPUT_BYTES_MAX))
        text = output.read().decode(errors="replace")
    for end in (master, terminal):
        if end is not None:
            os.close(end)
    sweep(runtime, os.path.join(os.getcwd(), f".testsuite-run-{pid}"))
    result = {0: "ok", SKIPPED: "skip"}.get(code, "not ok")
    if code is None:
        text += f"\nno end within {TEST_SECONDS_MAX:.0f} s"
    return {"result": result, "seconds": round(seconds, 2), "output": text.strip()}


def main():
    tests, init, runtime, manager, work = sys.argv[1:6]
    wanted = set(sys.argv[6:])
    os.makedirs(os.path.join(work, "tests"), exist_ok=True)
    os.chdir(work)
    # Some of their tests call ./tests/init, the others take INIT.
    shutil.copy2(init, "tests/init")
    wrapper = os.path.join(work, "runtime")
    write_wrapper(wrapper, runtime, manager)
    os.environ.update(OCI_RUNTIME=wrapper, INIT=os.path.join(work, "tests/init"), LANG="C")
    sys.path.insert(0, tests)
    sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "stand-in"))
    sys.dont_write_bytecode = True
    for file in sorted(os.listdir(tests)):
        if not (file.startswith("test_") and file.endswith(".py")):
            continue
        name = file[len("test_"):-len(".py")]
        for test, function in importlib.import_module(file[:-3]).all_tests.items():
            if wanted and not wanted & {name, f"{name}/{test}"}:
                continue
            outcome = run_test(function, wrapper, os.path.join(work, "log"), f"{name}/{test}" in TERMINAL)
            print(json.dumps({"test": f"{name}/{test}", **outcome}), flush=True)


if __name__ == "__main__":
    main()
