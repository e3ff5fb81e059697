"""Measures coracle beside crun, podman, skopeo and umoci; prints ratios of medians. Python's own library only."""

import json
import os
import re
import resource
import secrets
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

CORACLE, IMAGES, CHOSEN = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
WORK = Path.cwd()
# Enough for a stable median of a few milliseconds, little enough for a minute in all.
RUNS_START, RUNS_PODMAN, RUNS_PULL = 60, 12, 5
RUNS_LIVES, RUNS_AT_ONCE = 1000, 5
LOG_FILE_BYTES, LOG_REPEATS = 50_000_000, 10
# The number of containers that sleep at once.
SHIMS = 250
TIME_LIMIT_S = 120
# A created container keeps its streams, so a pipe would stay open.
DEAF = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}


def run(*command, **more):
    """Runs a command that must succeed and gives the seconds it took."""
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], timeout=TIME_LIMIT_S, **{**QUIET, **more})
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.returncode}\n{(done.stderr or b'').decode()}")
    return seconds


def remove(path):
    """Removes a tree with files of subordinate ids."""
    subprocess.run(["unshare", "--user", "--map-root-user", "--map-auto", "rm", "-rf", str(path)], check=False)


def interleaved(times, **candidates):
    """Runs each candidate in turn and gives the median seconds of each."""
    seconds = {name: [] for name in candidates}
    for action in candidates.values():
        action()
    for _ in range(times):
        for name, action in candidates.items():
            seconds[name].append(action())
    return {name: statistics.median(values) for name, values in seconds.items()}


def registry():
    """Starts the real registry over the prepared storage; gives the process and its address."""
    config = WORK / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem: {{rootdirectory: {IMAGES}/registry}}\n"
        "  maintenance:\n    uploadpurging: {enabled: false}\n    readonly: {enabled: true}\n"
        "http: {addr: '127.0.0.1:0', secret: x}\n"
    )
    log = (WORK / "registry.log").open("w+")
    process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        found = re.search(r"listening on (127\.0\.0\.1:\d+)", Path(log.name).read_text())
        if found:
            return process, found.group(1)
        time.sleep(0.02)
    sys.exit("docker-registry did not start")


def podman(*args, root=WORK / "podman"):
    """Gives podman's command line for its own store here."""
    return [
        "podman", "--root", root, "--runroot", WORK / "run/podman", "--storage-driver", "overlay",
        "--cgroup-manager", "cgroupfs", "--events-backend", "none", *args,
    ]


def end_pause():
    """Ends the process that podman leaves behind."""
    try:
        os.kill(int((WORK / "run/libpod/tmp/pause.pid").read_text()), 9)
    except (OSError, ValueError):
        pass


def own_spec():
    """Gives the specification that coracle itself would write: the same filter, masks and mounts for crun."""
    face, place = WORK / "coracle-oci", WORK / "spec"
    if not face.exists():
        face.symlink_to(CORACLE)
        place.mkdir()
        run(face, "spec", "--rootless", "--bundle", place)
    return json.loads((place / "config.json").read_text())


def sub_ids(path):
    """Gives the first range that a file of subordinate ids grants this user."""
    for line in Path(path).read_text().splitlines():
        name, first, count = line.split(":")
        if name == os.environ.get("USER", "alice"):
            return int(first), int(count)
    sys.exit(f"{path} has no range for this user")


def crun_bundle(name, ranges):
    """Prepares what crun gets: the same rootfs, ids, namespaces, masks and seccomp filter."""
    bundle = WORK / name
    run("umoci", "unpack", "--rootless", "--image", f"{IMAGES}/layout:busybox", bundle)
    config = own_spec()
    # Debian's crun 1.8.1 knows no newer version; nothing newer is used.
    config["ociVersion"] = "1.0.2"
    config["process"].update({"terminal": False, "args": ["true"]})
    config["root"] = {"path": "rootfs", "readonly": False}
    config["linux"]["namespaces"] = [{"type": kind} for kind in ["user", "mount", "pid", "ipc", "uts", "network", "cgroup"]]
    for key, own, file in [("uidMappings", os.getuid(), "/etc/subuid"), ("gidMappings", os.getgid(), "/etc/subgid")]:
        config["linux"][key] = [{"containerID": 0, "hostID": own, "size": 1}]
        if ranges:
            first, count = sub_ids(file)
            config["linux"][key].append({"containerID": 1, "hostID": first, "size": count})
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def coracle(*args, root=WORK / "coracle"):
    return [CORACLE, "--root", root, *args]


def start_speed(address):
    image = f"{address}/busybox:latest"
    run(*coracle("pull", image))
    run(*podman("pull", "-q", "--tls-verify=false", image))
    bundle, bundle_single = crun_bundle("bundle", True), crun_bundle("bundle-single", False)
    number = iter(range(1 << 30))

    def crun(bundle):
        return run("crun", "--root", WORK / "run/crun", "--cgroup-manager=disabled", "run", "--bundle", bundle, f"bench{next(number)}")

    ours = lambda: run(*coracle("run", "--rm", "--network", "none", image, "true"))
    single = lambda: run(*coracle("run", "--rm", "--network", "none", "--userns", "single", image, "true"))
    theirs = lambda: run(*podman("run", "--rm", "--cgroups=disabled", "--network", "none", image, "true"))
    short = interleaved(
        RUNS_START, ours=ours, single=single, crun=lambda: crun(bundle), crun_single=lambda: crun(bundle_single)
    )
    long = interleaved(RUNS_PODMAN, ours=ours, podman=theirs)
    ranges, one = short["ours"] / short["crun"], short["single"] / short["crun_single"]
    say("run --rm true / crun run of a bundle, ranges of ids", ranges, "at most 1.5", ranges <= 1.5)
    say("run --rm true / crun run of a bundle, one id", one, "at most 1.5", one <= 1.5)
    say("podman run --rm true / run --rm true", long["podman"] / long["ours"], "at least 10", long["podman"] >= 10 * long["ours"])


def peak_kib(command):
    """Runs a command that must succeed and gives the kernel's own largest resident size of it and its children.

    By way of a small program: the size of whoever executes counts as the first size of what is executed, and
    Python's is larger than either runtime's."""
    file = WORK / "peak"
    run("/usr/bin/time", "--format=%M", f"--output={file}", *command)
    return int(file.read_text())


def lives(runtime, bundle, ids):
    """create, start and delete of containers; together if there are several."""

    def each(*words):
        processes = [subprocess.Popen([str(part) for part in [*runtime, *words, name]], cwd=bundle, **DEAF) for name in ids]
        for process in processes:
            if process.wait(timeout=TIME_LIMIT_S) != 0:
                sys.exit(f"{runtime[0]} {' '.join(words)} failed")

    start = time.perf_counter()
    each("create")
    each("start")
    each("delete", "--force")
    return time.perf_counter() - start


def leftovers():
    """Counts what containers could leave: processes and mounts of ours, and entries of the state directories."""
    own = [stat for stat in Path("/proc").glob("[0-9]*") if stat.exists() and stat.owner() == Path("/proc/self").owner()]
    states = [len(list(place.iterdir())) for place in [WORK / "run/crun", WORK / "run/ours"] if place.exists()]
    return len(own), len(Path("/proc/self/mounts").read_text().splitlines()), sum(states)


def oci_speed(_address):
    """coracle-oci beside crun on the same prepared bundle: run, whole lives one by one and at once, memory."""
    bundle = crun_bundle("oci-bundle", True)
    number = iter(range(1 << 30))
    ours = [WORK / "coracle-oci", "--root", WORK / "run/ours", "--cgroup-manager=disabled"]
    theirs = ["crun", "--root", WORK / "run/crun", "--cgroup-manager=disabled"]
    bench = lambda runtime: lambda: run(*runtime, "run", "--bundle", bundle, f"oci{next(number)}")
    short = interleaved(RUNS_START, ours=bench(ours), crun=bench(theirs))
    say("coracle-oci run / crun run", short["ours"] / short["crun"], "at most 1", short["ours"] <= short["crun"])
    one = lambda runtime: ["run", "--bundle", bundle, f"oci{next(number)}"]
    peaks = [statistics.median(peak_kib([*runtime, *one(runtime)]) for _ in range(5)) for runtime in (ours, theirs)]
    say("peak memory of coracle-oci run / crun run", peaks[0] / peaks[1], "at most 0.5", peaks[0] <= peaks[1] / 2)
    before = leftovers()
    life = lambda runtime, count: lambda: lives(runtime, bundle, [f"life{next(number)}" for _ in range(count)])
    # A thousand lives: each is one round of the median.
    many = interleaved(RUNS_LIVES, ours=life(ours, 1), crun=life(theirs, 1))
    say("create, start, delete / crun's", many["ours"] / many["crun"], "at most 1", many["ours"] <= many["crun"])
    at_once = interleaved(RUNS_AT_ONCE, ours=life(ours, 50), crun=life(theirs, 50))
    say("50 at once / crun's", at_once["ours"] / at_once["crun"], "at most 1", at_once["ours"] <= at_once["crun"])
    # The processes are orphans, which the host's first process reaps when it gets to it.
    end = time.monotonic() + 20
    after = leftovers()
    while sum(after) > sum(before) and time.monotonic() < end:
        time.sleep(0.05)
        after = leftovers()
    say("processes, mounts and states left", sum(after) - sum(before), "at most 0", sum(after) <= sum(before))


def pull_speed(address):
    """Every pull goes to a new place and nothing is removed meanwhile: an ext4 without a journal searches for a free
    inode for seconds after a tree was removed, and that would be all that is measured."""
    image = f"{address}/python3:latest"
    number = iter(range(1 << 30))

    def place(name):
        os.sync()
        return WORK / "pulls" / f"{name}{next(number)}"

    def ours():
        return run(*coracle("pull", "-q", image, root=place("coracle")))

    def theirs():
        root = place("podman")
        run(*podman("images", root=root))
        return run(*podman("pull", "-q", "--tls-verify=false", image, root=root))

    def tools():
        layout, unpacked = place("layout"), place("unpacked")
        copy = run("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{image}", f"oci:{layout}:x")
        return copy + run("umoci", "unpack", "--rootless", "--image", f"{layout}:x", unpacked)

    (WORK / "pulls").mkdir()
    medians = interleaved(RUNS_PULL, ours=ours, podman=theirs, tools=tools)
    say("podman pull python3 / pull", medians["podman"] / medians["ours"], "at least 2", medians["podman"] >= 2 * medians["ours"])
    say("skopeo copy + umoci unpack / pull", medians["tools"] / medians["ours"], "at least 4", medians["tools"] >= 4 * medians["ours"])


def copies(root, count):
    """Multiplies the one container that has ended: what ps reads is the same as of that many real ones."""
    first = next((root / "containers").iterdir())
    record = json.loads((first / "container.json").read_text())
    for number in range(count - 1):
        name = secrets.token_hex(32)
        copy = root / "containers" / name
        copy.mkdir(mode=0o700)
        for file in ["config.json", "state.json", "exit.json", "lock"]:
            shutil.copy(first / file, copy)
        (copy / "container.json").write_text(json.dumps({**record, "id": name, "name": f"copy{number}"}))


def ps_speed(address):
    """ps of 500 containers; podman has to list 50 only, because it takes so long to make them."""
    image, root = f"{address}/busybox:latest", WORK / "coracle-ps"
    run(*coracle("pull", "-q", image, root=root))
    run(*coracle("run", "--name", "first", "--network", "none", image, "true", root=root))
    copies(root, 500)
    run(*podman("pull", "-q", "--tls-verify=false", image))
    for _ in range(50):
        run(*podman("create", "--cgroups=disabled", "--network", "none", image, "true"))
    listing = lambda: run(*coracle("ps", "-a", root=root))
    medians = interleaved(RUNS_PULL * 4, ours=listing, podman=lambda: run(*podman("ps", "-a")))
    run(*podman("rm", "-a", "-f"))
    limit_s = 0.020
    # While another command starts one container after the other.
    starts = f"while :; do {' '.join(map(str, coracle('run', '--rm', '--network', 'none', image, 'true', root=root)))}; done"
    process = subprocess.Popen(["sh", "-c", starts], **DEAF)
    busy = statistics.median(listing() for _ in range(RUNS_PULL * 4))
    process.kill()
    process.wait()
    say("ps of 500 containers while others start / 20 ms", busy / limit_s, "at most 1", busy <= limit_s)
    say("ps of 500 containers / 20 ms", medians["ours"] / limit_s, "at most 1", medians["ours"] <= limit_s)
    say("podman ps of 50 / ps of 500", medians["podman"] / medians["ours"], "at least 2", medians["podman"] >= 2 * medians["ours"])


def detached_speed(address):
    """run -d until the container is said to run, and exec, beside podman's."""
    image, root = f"{address}/busybox:latest", WORK / "coracle-detached"
    run(*coracle("pull", image, root=root))
    run(*podman("pull", "-q", "--tls-verify=false", image))
    number = iter(range(1 << 30))

    def ours():
        return run(*coracle("run", "-d", "--name", f"d{next(number)}", "--network", "none", image, "sleep", "1000", root=root))

    def theirs():
        return run(*podman("run", "-d", "--name", f"d{next(number)}", "--cgroups=disabled", "--network", "none", image, "sleep", "1000"))

    medians = interleaved(RUNS_PODMAN, ours=ours, podman=theirs)
    say("podman run -d / run -d", medians["podman"] / medians["ours"], "at least 10", medians["podman"] >= 10 * medians["ours"])
    # Those that interleaved() made first.
    medians = interleaved(
        RUNS_PODMAN,
        ours=lambda: run(*coracle("exec", "d0", "true", root=root)),
        podman=lambda: run(*podman("exec", "d1", "true")),
    )
    say("podman exec true / exec true", medians["podman"] / medians["ours"], "at least 5", medians["podman"] >= 5 * medians["ours"])
    run(*podman("rm", "-a", "-f", "-t", "0"))
    remove_all(root)


def remove_all(root):
    """Ends and removes every container below a root."""
    names = subprocess.run(coracle("ps", "-aq", root=root), capture_output=True, check=True, text=True).stdout.split()
    run(*coracle("rm", "-f", *names, root=root))


def log_speed(address):
    """What goes through a shim into its log, beside conmon's; lines as services write them."""
    image, root, data = f"{address}/busybox:latest", WORK / "coracle-logs", WORK / "lines"
    run(*coracle("pull", image, root=root))
    run(*podman("pull", "-q", "--tls-verify=false", image))
    line = "2026-11-21T11:45:47 INFO request handled path=/api/v1/items/{:08} status=200 bytes=5123 ms=12.3\n"
    data.write_text("".join(line.format(number) for number in range(LOG_FILE_BYTES // len(line.format(0)))))
    script = f"for i in $(seq {LOG_REPEATS}); do cat /lines; done"
    size_mb = data.stat().st_size * LOG_REPEATS / 1e6

    def flow(command, *options):
        start = run(*command("run", "-d", "--name", "flow", "--network", "none", *options, "-v", f"{data}:/lines:ro", image, "sh", "-c", script))
        return start + run(*command("wait", "flow")), run(*command("rm", "flow"))

    ours = lambda: flow(lambda *args: coracle(*args, root=root))[0]
    theirs = lambda: flow(podman, "--cgroups=disabled", "--log-driver", "k8s-file")[0]
    medians = interleaved(RUNS_AT_ONCE, ours=ours, conmon=theirs)
    speeds = {name: size_mb / seconds for name, seconds in medians.items()}
    wanted = min(500, 2 * speeds["conmon"])
    say(f"log of the shim / the less of 500 MB/s and twice conmon's ({wanted:.0f} MB/s)", speeds["ours"] / wanted, "at least 1", speeds["ours"] >= wanted)


def shim_memory(address):
    """Private memory of one shim alone, and of each of many."""
    image, root = f"{address}/busybox:latest", WORK / "coracle-shims"
    run(*coracle("pull", image, root=root))
    limit_kib = 1024
    for count in (1, SHIMS):
        have = len(list((root / "containers").iterdir())) if (root / "containers").exists() else 0
        for number in range(have, count):
            run(*coracle("run", "-d", "--name", f"m{number}", "--network", "none", image, "sleep", "1000", root=root))
        time.sleep(1)
        states = [json.loads(state.read_text()) for state in (root / "containers").glob("*/state.json")]
        largest = max(private_kib(state["watcher"]["pid"]) for state in states)
        say(f"private memory of a shim, the largest of {len(states)} / 1 MiB", largest / limit_kib, "at most 1", 0 < largest <= limit_kib)
    remove_all(root)


def private_kib(pid):
    """Gives the private memory of one process, in KiB; nothing for one that has gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))


def family(pid):
    """Gives a process and everything below it."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parent = int(text.rsplit(")", 1)[1].split()[1])
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for process in found:
        found.extend(children.get(process, []))
    return found


def pull_memory(address):
    """Largest private memory of all processes of a pull, sampled, and the kernel's own largest resident size."""
    remove(WORK / "coracle-pull")
    peak = 0
    process = subprocess.Popen(coracle("pull", "-q", f"{address}/python3:latest", root=WORK / "coracle-pull"), **QUIET)
    while process.poll() is None:
        peak = max(peak, sum(private_kib(pid) for pid in family(process.pid)))
        time.sleep(0.01)
    limit_kib = 64 * 1024
    say("peak private memory of a pull / 64 MiB", peak / limit_kib, "at most 1", peak <= limit_kib)
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"      (the largest resident size of any process that this benchmark started: {largest / limit_kib:.2f} of it)")


def idle_memory(address):
    """Private memory of what stays beside a container that does nothing."""
    image = f"{address}/busybox:latest"
    command = coracle("run", "--rm", "--network", "none", image, "sh", "-c", "echo ready; exec sleep 1000")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    # Idle is when nothing has happened for a while (shim/src/foreground.rs, SETTLED).
    time.sleep(2)
    beside = []
    for pid in family(process.pid):
        name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
        if name != b"sleep":
            beside.append(private_kib(pid))
    process.terminate()
    for pid in family(process.pid)[1:]:
        try:
            os.kill(pid, 9)
        except OSError:
            pass
    process.wait()
    limit_kib = 2 * 1024
    say(f"idle private memory beside a container ({len(beside)} processes) / 2 MiB", sum(beside) / limit_kib, "at most 1", sum(beside) <= limit_kib)


def say(what, ratio, wanted, good):
    print(f"{'ok  ' if good else 'MISS'}  {what}: {ratio:.2f} ({wanted})", flush=True)


# Further arguments choose some of them, for whoever works on one.
PARTS = [pull_speed, start_speed, oci_speed, ps_speed, detached_speed, log_speed, shim_memory, idle_memory, pull_memory]


def main():
    process, address = registry()
    try:
        # In this order: pulls come before anything is removed, see there.
        for part in PARTS:
            if not CHOSEN or part.__name__ in CHOSEN:
                part(address)
    finally:
        process.kill()
        process.wait()
        end_pause()


main()
