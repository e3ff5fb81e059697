"""Measures what a pool costs its people; prints medians beside the targets of issue 8. Python's own library only."""

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from medians import median_seconds

CORACLE, IMAGES, CHOSEN = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
ROUNDS = int(os.environ["ROUNDS"])
WORK = Path.cwd()
TIME_LIMIT_S = 120
# What issue 8 asks to copy.
FILE_BYTES = 100 * 1000 * 1000
# Long enough for several heartbeats.
IDLE_S = 30
# Short enough for the talk of a heartbeat to be seen.
LOOK_S = 0.02
CONFIG = WORK / "ssh_config"
started = []


def run(*command, **more):
    """Runs a command that must succeed and gives what it says."""
    done = subprocess.run([str(part) for part in command], timeout=TIME_LIMIT_S, capture_output=True, text=True, check=False, **more)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))[:300]}: {done.returncode}\n{done.stderr}")
    return done.stdout.strip()


def coracle(*args):
    return run(CORACLE, "--root", WORK / "root", *args)


def spawn(*command):
    """Starts what stays until the end."""
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    started.append(process)
    return process


def until(what, condition):
    deadline = time.monotonic() + TIME_LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited in vain for {what}")
        time.sleep(0.02)


def make_pool():
    """A scheduler, an agent, an instance that runs, a registered key and ssh's configuration."""
    central = WORK / "central"
    (WORK / "token").write_text(run(CORACLE, "--root", central, "scheduler", "init"))
    scheduler = spawn(CORACLE, "--root", central, "scheduler", "serve", "--listen", "127.0.0.1:0", "--log", "off")
    url, authority = scheduler.stdout.readline().strip(), central / "scheduler/ca.crt"
    coracle("pool", "login", "--scheduler", url, "--ca", authority, "--token-from", WORK / "token")
    (WORK / "join").write_text(coracle("pool", "join-token", "laptop"))
    coracle("provider", "join", "--scheduler", url, "--name", "laptop", "--network", "none", "--ca", authority,
            "--token-from", WORK / "join")
    archive = WORK / "busybox.tar"
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{IMAGES}/layout:busybox", f"docker-archive:{archive}:busybox:latest")
    coracle("load", "-i", archive)
    agent = spawn(CORACLE, "--root", WORK / "root", "provider", "run")
    until("the provider", lambda: coracle("pool", "providers", "--format", "{{.State}}") == "ready")
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", WORK / "id")
    coracle("pool", "keys", "add", WORK / "id.pub")
    coracle("pool", "run", "--name", "box", "busybox", "sleep", "100000")
    until("the instance", lambda: coracle("pool", "ps", "--format", "{{.State}}") == "running")
    coracle("pool", "ssh-config", f"--write={CONFIG}", "--identity", WORK / "id")
    return agent


def make_sshd():
    """The machine's own sshd as this user, for comparison; gives the words for its clients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", WORK / "host")
    (WORK / "known").write_text(f"[127.0.0.1]:{port} {(WORK / 'host.pub').read_text()}")
    config = WORK / "sshd_config"
    config.write_text(f"Port {port}\nListenAddress 127.0.0.1\nHostKey {WORK}/host\nAuthorizedKeysFile {WORK}/id.pub\n"
                      f"PidFile none\nStrictModes no\nUsePAM no\nSubsystem sftp internal-sftp\n")
    spawn("/usr/sbin/sshd", "-D", "-f", config)
    direct = ["-F", "none", "-i", WORK / "id", "-o", f"UserKnownHostsFile={WORK}/known", "-o", f"Port={port}"]
    until("sshd", lambda: subprocess.run(["ssh", *map(str, direct), "127.0.0.1", "true"], capture_output=True).returncode == 0)
    return direct


def ssh(_agent):
    """A command and a file over SSH, beside the machine's own sshd."""
    direct = make_sshd()
    found = median_seconds(ROUNDS, pool=lambda: run("ssh", "-F", CONFIG, "box", "true"),
                    sshd=lambda: run("ssh", *direct, "127.0.0.1", "true"))
    print(f"ssh NAME true: {found['pool'] * 1000:.0f} ms, {found['pool'] / found['sshd']:.2f} of sshd's, under 300 ms wanted")
    sent = WORK / "sent"
    sent.write_bytes(os.urandom(FILE_BYTES))
    ways = {
        "to": (("-F", CONFIG, sent, "box:/tmp/sent"), (*direct, sent, f"127.0.0.1:{WORK}/direct")),
        "from": (("-F", CONFIG, "box:/tmp/sent", WORK / "back"), (*direct, f"127.0.0.1:{sent}", WORK / "back")),
    }
    for way, (pool, sshd) in ways.items():
        found = median_seconds(max(ROUNDS // 3, 1), pool=lambda: run("scp", "-q", *pool), sshd=lambda: run("scp", "-q", *sshd))
        print(f"scp of 100 MB {way} the instance, rate / sshd's: {found['sshd'] / found['pool']:.2f}, 0.5 wanted "
              f"({FILE_BYTES / found['pool'] / 1e6:.0f} MB/s)")
        if way == "from" and (WORK / "back").read_bytes() != sent.read_bytes():
            sys.exit("what came back is not what was sent")


def first_output(_agent):
    """From the request to the first output at the person's own terminal, both commands' starts included."""
    numbers = iter(range(ROUNDS + 1))

    def one():
        name = f"hello{next(numbers)}"
        coracle("pool", "run", "--name", name, "busybox", "sh", "-c", "echo hello; exec sleep 1000")
        follow = spawn(CORACLE, "--root", WORK / "root", "pool", "logs", "-f", name)
        if follow.stdout.readline().strip() != "hello":
            sys.exit("no output")
        names.append(name)

    names = []
    found = median_seconds(ROUNDS, pool=one)
    print(f"pool run to the first line of pool logs -f: {found['pool'] * 1000:.0f} ms, under 300 ms wanted")
    coracle("pool", "rm", "-f", *names)


def idle(agent):
    """Memory and CPU of an agent whose instances sleep: one, then three."""
    rest(agent, "one instance")
    for name in ("box2", "box3"):
        coracle("pool", "run", "--name", name, "busybox", "sleep", "100000")
    rest(agent, "three instances")
    coracle("pool", "rm", "-f", "box2", "box3")


def rest(agent, what):
    def cpu():
        fields = Path(f"/proc/{agent.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory():
        # The agent does not let others look into it, so these are the kernel's own sums.
        status = dict(line.split(":", 1) for line in Path(f"/proc/{agent.pid}/status").read_text().splitlines())
        return [int(status[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")]

    time.sleep(IDLE_S / 3)
    before, begun, found = cpu(), time.monotonic(), []
    while time.monotonic() < begun + IDLE_S:
        found.append(memory())
        time.sleep(LOOK_S)
    used = (cpu() - before) / (time.monotonic() - begun) * 100
    whole, own = ([look[at] for look in found] for at in (0, 1))
    print(f"idle agent with {what}: {statistics.median(whole):.1f} MiB with the program's pages, {max(whole):.1f} at most "
          f"(a heartbeat), {statistics.median(own):.1f} of its own, under 15 wanted; {used:.2f} % of a core, under 0.5 wanted")


def main():
    parts = {"idle": idle, "first_output": first_output, "ssh": ssh}
    try:
        agent = make_pool()
        for name in CHOSEN or parts:
            parts[name](agent)
        coracle("pool", "rm", "-f", "box")
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=TIME_LIMIT_S)


main()
