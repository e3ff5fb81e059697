"""Workloads inside of a container; prints the seconds of each. Its own start does not count."""

import compileall
import json
import os
import subprocess
import sys
import time
import zipfile

MIB = 1 << 20
# A smaller part of the two that write one file, for a machine that is slow.
PART = float(os.environ.get("PART", "1"))


def sequential():
    """1 GiB (with PART less) in large writes, and on the disk."""
    block = os.urandom(MIB)
    fd = os.open("/file", os.O_WRONLY | os.O_CREAT)
    for _ in range(int(1024 * PART)):
        os.write(fd, block)
    os.fsync(fd)


def small_writes():
    """256 MiB (with PART less) in writes of 4 KiB."""
    block = os.urandom(4096)
    fd = os.open("/file", os.O_WRONLY | os.O_CREAT)
    for _ in range(int(256 * PART) * MIB // 4096):
        os.write(fd, block)


def image_files():
    """Every file of the image that a package manager put there."""
    for top, _, names in os.walk("/usr"):
        for name in names:
            path = os.path.join(top, name)
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    while file.read(MIB):
                        pass


def pip():
    """What an installer of packages does: unpack, then compile."""
    with zipfile.ZipFile("/input/wheel.zip") as archive:
        archive.extractall("/installed")
    compileall.compile_dir("/installed", quiet=2, maxlevels=2)


def untar():
    subprocess.run(["tar", "-C", "/", "-xf", "/input/files.tar"], check=True)


def git_clone():
    environment = {**os.environ, "HOME": "/root", "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory",
                   "GIT_CONFIG_VALUE_0": "*"}
    git = os.path.join(os.environ["GIT_EXEC_PATH"], "git")
    subprocess.run([git, "clone", "-q", "-s", "/input/repository", "/clone"], check=True, env=environment)


def wait():
    """Until it is killed."""
    print("waits", flush=True)
    while True:
        time.sleep(60)


for name in sys.argv[1:]:
    begin = time.perf_counter()
    globals()[name]()
    print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)
