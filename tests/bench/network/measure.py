"""Measures what networks cost; prints ratios of medians. Python's own library only."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from medians import medians, timed

CORACLE, IMAGES, CHOSEN = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
ROUNDS = int(os.environ["ROUNDS"])
FLOW = (Path(__file__).parent / "flow.py").read_text()
WORK = Path.cwd()
# Long enough for TCP to find its speed.
SECONDS = 2
STARTS = 20
TIME_LIMIT_S = 120
PASTA = ["pasta", "--config-net", "--quiet", "-t", "none", "-u", "none", "-T", "none", "-U", "none"]
# Nobody asks these numbers of the kernel by chance.
PORT = 23456


def run(*command):
    """Runs a command that must succeed and gives what it says."""
    done = subprocess.run([str(part) for part in command], timeout=TIME_LIMIT_S, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))[:300]}: {done.returncode}\n{done.stderr}")
    return done.stdout


def coracle(*args):
    return run(CORACLE, "--root", WORK / "root", *args)


def podman(*args):
    return run("podman", "--root", WORK / "podman", "--runroot", WORK / "run/podman", "--storage-driver", "overlay",
               "--cgroup-manager", "cgroupfs", "--events-backend", "none", *args)


def start():
    """A network costs no more than pasta's own start; none costs nothing."""
    coracle("network", "create", "bench")
    def of(network):
        return lambda: timed(lambda: coracle("run", "--rm", "--network", network, "busybox", "true"))
    found = medians(STARTS, none=of("none"), host=of("host"), pasta=of("pasta"), named=of("bench"),
                    own=lambda: timed(lambda: run(*PASTA, "--", "true")))
    print(f"start, none / host: {found['none'] / found['host']:.2f}")
    for name in ("pasta", "named"):
        more = (found[name] - found["none"]) / found["own"]
        print(f"start, what {name} adds / pasta's own start: {more:.2f} ({found[name] * 1000:.0f}, none "
              f"{found['none'] * 1000:.0f}, pasta alone {found['own'] * 1000:.0f} ms)")


# Two network namespaces of one user namespace with a pair of devices; prints what goes through.
PAIR = """
ip link set lo up; ip link add v0 type veth peer name p0
unshare -n sleep 1000 & other=$!
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
ip link set p0 netns $other; ip addr add 10.1.1.1/24 dev v0; ip link set v0 up
nsenter -t $other -n sh -c 'ip addr add 10.1.1.2/24 dev p0; ip link set p0 up'
nsenter -t $other -n python3 -c "$FLOW" serve 80 >/dev/null 2>&1 & server=$!
python3 -c "$FLOW" take 10.1.1.2 80 $DURATION
kill $other $server
"""


def between():
    """From container to container, beside a plain pair of devices in one user namespace."""
    coracle("network", "create", "flow")
    coracle("run", "-d", "--name", "server", "--network", "flow", "python3", "python3", "-c", FLOW, "serve", "80")
    coracle("run", "-d", "--name", "client", "--network", "flow", "python3", "sleep", "10000")
    environment = {**os.environ, "FLOW": FLOW, "DURATION": str(SECONDS)}

    def pair():
        done = subprocess.run(["unshare", "-Urn", "sh", "-ec", PAIR], env=environment, stdout=subprocess.PIPE, check=True)
        return float(done.stdout)

    found = medians(ROUNDS, pair=pair, network=lambda: float(
        coracle("exec", "client", "python3", "-c", FLOW, "take", "server", "80", SECONDS)))
    print(f"between containers / a plain pair: {found['network'] / found['pair']:.2f} "
          f"({found['network'] / 1e6:.0f} of {found['pair'] / 1e6:.0f} MB/s)")
    coracle("rm", "-f", "server", "client")


def published():
    """Through a published port, beside rootless podman."""
    serve = ["python3", "-c", FLOW, "serve", "80"]
    coracle("network", "create", "ports")
    coracle("run", "-d", "--name", "plain", "-p", f"127.0.0.1:{PORT}:80", "python3", *serve)
    coracle("run", "-d", "--name", "named", "--network", "ports", "-p", f"127.0.0.1:{PORT + 1}:80", "python3", *serve)
    podman("pull", "-q", f"oci:{IMAGES}/layout:python3")
    image = podman("images", "-q").split()[0]
    podman("run", "-d", "--name", "peer", "--cgroups=disabled", "--network", "slirp4netns", "-p",
           f"127.0.0.1:{PORT + 2}:80", image, *serve)

    def of(port):
        return lambda: float(run("python3", "-c", FLOW, "take", "127.0.0.1", port, SECONDS))

    found = medians(ROUNDS, plain=of(PORT), named=of(PORT + 1), peer=of(PORT + 2))
    for name in ("plain", "named"):
        print(f"published port, {name} / podman with slirp4netns: {found[name] / found['peer']:.2f} "
              f"({found[name] / 1e6:.0f} of {found['peer'] / 1e6:.0f} MB/s)")
    coracle("rm", "-f", "plain", "named")
    podman("rm", "-f", "-t", "0", "peer")


def main():
    for image in ("busybox", "python3"):
        archive = WORK / f"{image}.tar"
        run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{IMAGES}/layout:{image}", f"docker-archive:{archive}:{image}:latest")
        coracle("load", "-i", archive)
    parts = {"start": start, "between": between, "published": published}
    try:
        for name in CHOSEN or parts:
            parts[name]()
    finally:
        clean()


def clean():
    """Nothing stays behind, whatever failed."""
    for containers in ([CORACLE, "--root", WORK / "root", "rm", "-f", "server", "client", "plain", "named"],
                       ["podman", "--root", WORK / "podman", "--runroot", WORK / "run/podman", "rm", "-f", "-t", "0", "peer"]):
        subprocess.run([str(part) for part in containers], capture_output=True, check=False)
    for left in ("root", "podman"):
        subprocess.run(["unshare", "--user", "--map-root-user", "--map-auto", "rm", "-rf", WORK / left], check=False)
    shutil.rmtree(WORK / "run", ignore_errors=True)


main()
