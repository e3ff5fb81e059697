"""Runs the command lines of `lines` with coracle and with podman and compares them; Python's own library only.

compare.py CORACLE LAYOUT: works in the current directory. Every difference must stand in `differences` with its
reason, and every line of `differences` must still be true.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORACLE, LAYOUT = sys.argv[1], Path(sys.argv[2])
WORK = Path.cwd()
TIME_LIMIT_S = 60
KINDS = ["code", "output", "files"]

# What differs from run to run or is only a tool's way to write the same name.
SHAPES = [
    (r"sha256:[0-9a-f]{64}", "<DIGEST>"),
    (r"\b[0-9a-f]{64}\b", "<ID>"),
    (r"\b[0-9a-f]{12}\b", "<SHORT>"),
    (r"\b(docker\.io/library|localhost)/", ""),
    (r"(Less than a second|About an? (minute|hour)|\d+ (second|minute|hour|day|week|month)s?) ago", "<AGO>"),
    (r"Up (Less than a second|About an? (minute|hour)|\d+ (second|minute)s?)", "Up <TIME>"),
    (r"\b\d+(\.\d+)? ?[kMG]?B\b", "<SIZE>"),
    (r" {2,}|\t", "  "),
]


def lines():
    for text in (HERE / "lines").read_text().splitlines():
        if text.strip() and not text.startswith("#"):
            name, command = text.split(None, 1)
            yield name, command


def shape(text):
    for pattern, word in SHAPES:
        text = re.sub(pattern, word, text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def files(directory):
    """Gives what a person would find: paths, and the content of what is no archive."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_file():
            found[name] = "archive" if path.suffix == ".tar" else path.read_text()
        else:
            found[name] = "directory"
    return found


def podman_environment():
    """Writes podman's configuration: its own store, no cgroups, no registry but the named one."""
    config = WORK / "podman-config"
    config.mkdir()
    (config / "containers.conf").write_text(
        '[containers]\ncgroups = "disabled"\nlog_driver = "k8s-file"\nnetns = "none"\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
    )
    (config / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{WORK}/podman-store"\nrunroot = "{WORK}/run/podman-store"\n'
    )
    (config / "registries.conf").write_text('unqualified-search-registries = ["docker.io"]\n')
    (config / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
    home = WORK / "podman-home/.config/containers"
    home.mkdir(parents=True)
    shutil.copy(config / "policy.json", home)
    return {
        "HOME": str(WORK / "podman-home"),
        "CONTAINERS_CONF": str(config / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(config / "storage.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(config / "registries.conf"),
    }


def run_all(tool, environment):
    """Runs every line with one tool and gives (code, output, files) of each."""
    directory = WORK / tool
    directory.mkdir()
    environment = {**os.environ, **environment}
    results = {}
    before = {}
    for name, command in lines():
        try:
            done = subprocess.run(
                ["sh", "-c", command], cwd=directory, env=environment, stdin=subprocess.DEVNULL,
                capture_output=True, timeout=TIME_LIMIT_S, check=False, text=True, errors="replace",
            )
            code, output, errors = done.returncode, done.stdout, done.stderr
        except subprocess.TimeoutExpired:
            code, output, errors = "timeout", "", ""
        after = files(directory)
        changed = {path: content for path, content in after.items() if before.get(path) != content}
        before = after
        results[name] = (code, shape(output), changed, errors)
    return results


def differences():
    known = {}
    for text in (HERE / "differences").read_text().splitlines():
        if text.strip() and not text.startswith("#"):
            name, kind, reason = text.split(None, 2)
            assert kind in KINDS, text
            known[name, kind] = reason
    return known


def end_pause():
    """Ends the process that podman leaves behind."""
    try:
        os.kill(int((WORK / "run/libpod/tmp/pause.pid").read_text()), signal.SIGKILL)
    except (OSError, ValueError):
        pass


def main():
    (WORK / "run").mkdir(mode=0o700)
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{LAYOUT}:busybox", f"docker-archive:{WORK}/busybox.tar:busybox:latest"],
        check=True,
    )
    try:
        ours = run_all("coracle", {"D": CORACLE, "CORACLE_ROOT": str(WORK / "coracle-root"), "HOME": str(WORK)})
        theirs = run_all("podman", {"D": "podman", **podman_environment()})
    finally:
        end_pause()
        for name in ["podman-store", "coracle-root"]:
            subprocess.run(["unshare", "--user", "--map-root-user", "--map-auto", "rm", "-rf", WORK / name], check=False)
    known = differences()
    bad = same = listed_only = 0
    for name, command in lines():
        equal = fine = True
        for at, kind in enumerate(KINDS):
            mine, other = ours[name][at], theirs[name][at]
            listed = (name, kind) in known
            equal = equal and mine == other
            if (mine != other) == listed:
                continue
            bad += 1
            fine = False
            if listed:
                print(f"SAME AGAIN  {name} {kind}: take it off the list")
                continue
            print(f"DIFFERENT   {name} {kind}: {command}\n  coracle: {mine!r}\n  podman:  {other!r}")
            print(f"  coracle says: {ours[name][3].strip()!r}\n  podman says:  {theirs[name][3].strip()!r}")
        same += equal and fine
        listed_only += fine and not equal
    unknown = {name for name, _ in known} - {name for name, _ in lines()}
    bad += len(unknown)
    for name in unknown:
        print(f"UNKNOWN     {name} in differences")
    total = len(list(lines()))
    print(f"docker lines: {total} run with both, {same} the same, {listed_only} as listed, {bad} failed")
    sys.exit(bad > 0 or total < 60)


main()
