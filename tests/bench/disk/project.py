"""In the guest: runs each workload in containers with and without a project quota, in turn; prints ratios of medians.

Without one each round runs twice, so that it is known by how much two runs of the same thing differ: a cost is
measurable where the median with the quota is more than every run without it.
"""

import json
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CORACLE, STATE = "/payload/coracle", "/mnt/quota/alice"
ROUNDS, CHOSEN = int(sys.argv[1]), sys.argv[2:]
WORKLOADS = ["sequential", "small_writes", "untar"]
FILES = 2_000
LIBRARIES = "/host/lib/x86_64-linux-gnu"
SERIES = {"alone": [], "again": [], "project": ["--disk", "512m,backend=project"]}


def coracle(*arguments):
    command = [CORACLE, "--root", STATE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def prepare(place):
    chosen = random.Random(1)
    with tarfile.open(place / "files.tar", "w") as archive:
        for number in range(FILES):
            path = place / "file"
            path.write_bytes(chosen.randbytes(chosen.choice([100, 1000, 3000, 8000, 20000])))
            archive.add(path, f"tree/f{number}")


def once(name, limit, image, place):
    # Not --rm: overlayfs would be mounted without fsync.
    coracle("create", "--name", "box", "--network", "none", *limit, "-v", f"{place}:/input:ro", "-v", "/usr:/host:ro",
            "-v", "/payload/inside.py:/inside.py:ro", "-e", "PYTHONHOME=/host", "-e", "PART=0.125", image,
            f"{LIBRARIES}/ld-linux-x86-64.so.2", "--library-path", LIBRARIES, "/host/bin/python3", "/inside.py", name)
    found = json.loads(coracle("start", "-a", "box").splitlines()[-1])
    if limit and coracle("inspect", "-f", "{{.Disk.Backend}} {{.Disk.Hard}}", "box").strip() != "project true":
        sys.exit("it was not under a project quota")
    coracle("rm", "-f", "box")
    return found["seconds"]


def main():
    image = coracle("load", "-q", "-i", "/var/lib/guest/busybox").split("sha256:")[-1].split()[0]
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place))
        for name in CHOSEN or WORKLOADS:
            seconds = {series: [] for series in SERIES}
            # One before it counts, and then in turn.
            for number in range(ROUNDS + 1):
                for series, limit in SERIES.items():
                    took = once(name, limit, image, place)
                    if number > 0:
                        seconds[series].append(took)
            limited, alone = seconds.pop("project"), seconds["alone"] + seconds["again"]
            native = statistics.median(alone)
            same = statistics.median(seconds["again"]) / statistics.median(seconds["alone"])
            ratio = statistics.median(limited) / native
            print(f"{'ok  ' if statistics.median(limited) <= max(alone) else 'MISS'}  project / overlayfs alone, {name}: "
                  f"{ratio:.2f} [{min(limited) / native:.2f}-{max(limited) / native:.2f}]; alone "
                  f"[{min(alone) / native:.2f}-{max(alone) / native:.2f}], again / alone {same:.2f}, {native:.2f} s, "
                  f"n {ROUNDS} (no measurable cost)", flush=True)


main()
