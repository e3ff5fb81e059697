"""Runs each workload in containers with and without a disk limit, in turn; prints ratios of medians."""

import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

STAGE, IMAGES, CHOSEN = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
CORACLE, WORK = str(STAGE / "coracle"), Path.cwd()
BACKENDS, ROUNDS = os.environ["BACKENDS"].split(), int(os.environ["ROUNDS"])
# Name and what the issue allows the fuse backend.
WORKLOADS = {"sequential": 1.4, "image_files": 1.0, "pip": 1.2, "untar": 3, "git_clone": 2, "small_writes": 2.5}
# What two runs of the same thing differ by here.
NOISE = 0.1
MEMORY_KIB = 4096
FILES = 20_000
# What floor.c measures by itself.
FLOORS = ["sequential", "small_writes"]
# Of the kernel, counted with strace: WHERE-THE-TIME-GOES.md.
REQUESTS_A_FILE = {"untar": 12.2}


def coracle(*arguments):
    command = [CORACLE, "--root", str(WORK / "state"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def prepare():
    """Makes what the workloads unpack, the same in every run."""
    place, chosen = WORK / "input", random.Random(1)
    tree = place / "tree"
    tree.mkdir(parents=True)
    for number in range(FILES):
        path = tree / f"d{number // 100}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(chosen.randbytes(chosen.choice([100, 1000, 3000, 8000, 20000])))
    with tarfile.open(place / "files.tar", "w") as archive:
        archive.add(tree, "tree")
    quiet = {"cwd": tree, "check": True, "capture_output": True}
    subprocess.run(["git", "init", "-q"], **quiet)
    subprocess.run(["git", "add", "-A"], **quiet)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "all"], **quiet)
    (tree / ".git").rename(place / "repository")
    subprocess.run(["rm", "-rf", tree], check=True)
    with zipfile.ZipFile(place / "wheel.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        library = Path("/usr/lib/python3.11")
        for source in sorted(library.rglob("*.py")):
            archive.write(source, source.relative_to(library))
    return place


def image():
    """Loads the Debian image; gives its id."""
    layout = WORK / "layout"
    subprocess.run(["skopeo", "copy", "-q", f"oci:{IMAGES}/layout:debian", f"oci:{layout}:debian"], check=True)
    return coracle("load", "-q", "-i", layout).split("sha256:")[-1].split()[0]


def container(backend, image_id, place, *workloads):
    """Makes a container that runs these workloads."""
    limit = ["--disk", f"6g,inodes=200000,backend={backend}"] if backend else []
    git = subprocess.run(["git", "--exec-path"], capture_output=True, text=True).stdout.strip()
    # Not --rm: overlayfs would be mounted without fsync.
    coracle("create", "--name", "box", "--network", "none", *limit, "-v", f"{place}:/input:ro", "-v", "/usr:/host:ro",
            "-v", f"{STAGE}/inside.py:/inside.py:ro", "-e", "PYTHONHOME=/host", "-e",
            "LD_LIBRARY_PATH=/host/lib/x86_64-linux-gnu", "-e", f"GIT_EXEC_PATH={git.replace('/usr', '/host', 1)}",
            image_id, "/host/bin/python3", "/inside.py", *workloads)


def once(name, backend, image_id, place):
    """Runs one workload in a new container; gives its seconds."""
    container(backend, image_id, place, name)
    found = json.loads(coracle("start", "-a", "box").splitlines()[-1])
    coracle("rm", "-f", "box")
    return found["seconds"]


def floor():
    """What the kernel takes at least for requests to a server that does nothing: both on one processor."""
    place, processor = WORK / "floor", str(min(os.sched_getaffinity(0)))
    place.mkdir(exist_ok=True)
    command = ["taskset", "-c", processor, "unshare", "-Urm", STAGE / "floor", place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        sys.exit(f"floor: {done.stderr}")
    return json.loads(done.stdout)


def floor_ratio(name, floors, native, wanted):
    """The ratio of a server that does nothing and is asked one thing at a time, and the work itself. Where that misses
    what is wanted, no server behind /dev/fuse can have it that is asked for each write: only a writeback cache, which hides
    ENOSPC, or FUSE_PASSTHROUGH, which is for CAP_SYS_ADMIN of the first user namespace and counts nothing."""
    median = {key: statistics.median(one[key] for one in floors) for key in floors[0]}
    seconds = median[name] if name in median else median["request"] * FILES * REQUESTS_A_FILE.get(name, 0)
    ratio = (seconds + native) / native
    verdict = " [impossible here without writeback or passthrough]" if ratio > wanted else ""
    return f"; a server that does nothing: {ratio:.2f}{verdict}, at {median['request'] * 1e6:.1f} us a request"


def memory(image_id, place):
    """Private memory of guard and server after a large file and many small ones."""
    container("fuse", image_id, place, "untar", "sequential", "wait")
    coracle("start", "box")
    while "waits" not in coracle("logs", "box"):
        time.sleep(0.2)
    kib = private_kib()
    coracle("rm", "-f", "box")
    say("private memory of the fuse backend's processes", f"{kib} KiB", f"under {MEMORY_KIB}", 0 < kib < MEMORY_KIB)


def private_kib():
    """Memory that no file backs. The server is a copy of the guard and shares what that has: the larger counts."""
    most = 0
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"__serve-disk" in line and str(WORK).encode() in line:
                rows = (entry / "status").read_text().splitlines()
                most = max(most, sum(int(row.split()[1]) for row in rows if row.startswith("RssAnon")))
        except OSError:
            pass
    return most


def say(what, value, wanted, good):
    print(f"{'ok  ' if good else 'MISS'}  {what}: {value} ({wanted})", flush=True)


def main():
    place, image_id = prepare(), image()
    for name, wanted in WORKLOADS.items():
        if CHOSEN and name not in CHOSEN:
            continue
        seconds = {backend: [] for backend in [None, *BACKENDS]}
        for backend in seconds:
            once(name, backend, image_id, place)
        floors = []
        for _ in range(ROUNDS):
            for backend, list_ in seconds.items():
                list_.append(once(name, backend, image_id, place))
            if "fuse" in BACKENDS and (name in REQUESTS_A_FILE or name in FLOORS):
                floors.append(floor())
        native = statistics.median(seconds.pop(None))
        for backend, list_ in seconds.items():
            ratio = statistics.median(list_) / native
            wanted_here = wanted if backend == "fuse" else 1.0
            spread = f"{min(list_) / native:.2f}-{max(list_) / native:.2f}, native {native:.2f} s"
            if backend == "fuse" and floors:
                spread += floor_ratio(name, floors, native, wanted)
            say(f"{backend} / overlayfs alone, {name}", f"{ratio:.2f} [{spread}]", f"at most {wanted_here}",
                ratio <= wanted_here + (NOISE if wanted_here == 1.0 else 0))
    if "fuse" in BACKENDS and (not CHOSEN or "memory" in CHOSEN):
        memory(image_id, place)


main()
