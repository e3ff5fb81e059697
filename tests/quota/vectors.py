# Runs inside a limited container: every way to write that F39 of the security notes names, one after the
# other. Prints one line each: NAME ERRNO, and "again" when there is room after the clean-up.
# vectors.py MIB [NAME...]: the limit, and which ones [all there are here]; ways.rs has the names.
import errno, fcntl, mmap, os, random, resource, signal, struct, subprocess, sys

MIB = 1 << 20
LIMIT = int(sys.argv[1]) * MIB
CHOSEN = set(sys.argv[2:])
HERE = "/vector"
BLOCK = os.urandom(MIB)


def until_error(step, unit=MIB):
    # Never much more than the limit, should nothing stop it: the host's disk is somebody's.
    for number in range(4 * LIMIT // unit):
        try:
            step(number)
        except OSError as error:
            return error.errno
    return 0


def path(name):
    return os.path.join(HERE, name)


def fill(name):
    try:
        with open(name, "wb", buffering=0) as file:
            return until_error(lambda _: file.write(BLOCK))
    except OSError as error:
        # Not even the file.
        return error.errno


def sequential():
    return fill(path("file"))


def parallel():
    children = []
    for child in range(8):
        pid = os.fork()
        if pid == 0:
            os._exit(fill(path(f"file{child}")))
        children.append(pid)
    results = {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children}
    return results.pop() if len(results) == 1 else results


def random_pages():
    fd = os.open(path("file"), os.O_RDWR | os.O_CREAT)
    pages = list(range(LIMIT // 4096 * 2))
    random.Random(1).shuffle(pages)
    return until_error(lambda number: os.pwrite(fd, BLOCK[:4096], pages[number] * 4096), 8192)


def fallocate():
    fd = os.open(path("file"), os.O_RDWR | os.O_CREAT)
    return until_error(lambda number: os.posix_fallocate(fd, number * MIB, MIB))


def fallocate_at_once():
    fd = os.open(path("file"), os.O_RDWR | os.O_CREAT)
    return until_error(lambda _: os.posix_fallocate(fd, 0, 4 * LIMIT), LIMIT)


def sparse_to_dense():
    fd = os.open(path("file"), os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 16 * LIMIT)
    return until_error(lambda number: os.pwrite(fd, BLOCK, number * MIB))


def mapped():
    fd = os.open(path("file"), os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 2 * LIMIT)
    pid = os.fork()
    if pid == 0:
        area = mmap.mmap(fd, 2 * LIMIT)
        for at in range(0, 2 * LIMIT, 4096):
            area[at] = 1
        try:
            area.flush()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return errno.ENOSPC if status == -signal.SIGBUS else status


def hard_links():
    with open(path("file"), "wb", buffering=0) as file:
        for number in range(50):
            os.link(path("file"), path(f"link{number}"))
        os.unlink(path("file"))
        result = until_error(lambda _: file.write(BLOCK))
    for number in range(49):
        os.unlink(path(f"link{number}"))
    # Every name but one is gone, and nothing was given back.
    size = os.stat(path("link49")).st_size
    other = fill(path("other"))
    more = os.stat(path("other")).st_size if os.path.exists(path("other")) else 0
    return other if result and size + more <= LIMIT else "%s, then %s more" % (result, more)


def deleted_open():
    held = []

    def step(number):
        held.append(open(path(f"file{number}"), "wb", buffering=0))
        os.unlink(path(f"file{number}"))
        held[-1].write(BLOCK)

    return until_error(step)


def rename_over():
    def step(number):
        with open(path("new"), "wb", buffering=0) as file:
            file.write(BLOCK)
        os.rename(path("new"), path("old"))
        if number > 3 * LIMIT // MIB:
            raise OSError(errno.ENOSPC, "it was given back every time, as it should")

    return until_error(step)


def attributes():
    # So that there is room for less of them than there are inodes.
    with open(path("most"), "wb", buffering=0) as file:
        for _ in range(LIMIT // MIB - 3):
            file.write(BLOCK)

    def step(number):
        name = path(f"file{number // 2}")
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
        os.setxattr(name, f"user.a{number % 2}", BLOCK[:1500])

    return until_error(step, 1024)


def empty_files():
    return until_error(lambda number: os.close(os.open(path(f"empty{number}"), os.O_CREAT | os.O_WRONLY)), 1024)


def deep_directories():
    os.chdir(HERE)

    def step(number):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)

    result = until_error(step, 1024)
    os.chdir("/")
    return result


def copy_file_range():
    source = os.open(path("source"), os.O_RDWR | os.O_CREAT)
    os.write(source, BLOCK)
    target = os.open(path("target"), os.O_RDWR | os.O_CREAT)
    return until_error(lambda number: os.copy_file_range(source, target, MIB, 0, number * MIB))


def image_files(change):
    for top, _, names in os.walk("/usr"):
        for name in names:
            found = os.path.join(top, name)
            if not os.path.islink(found):
                try:
                    change(found)
                except OSError as error:
                    return error.errno
    return 0


def chmod_image():
    return image_files(lambda name: os.chmod(name, 0o600 if "bin" not in name else 0o755))


def chown_image():
    return image_files(lambda name: os.chown(name, 0, 0))


def core_dump():
    with open("/proc/sys/kernel/core_pattern") as file:
        pattern = file.read()
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    pid = os.fork()
    if pid == 0:
        os.chdir(HERE)
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        held = bytearray(b"x" * (2 * LIMIT))
        os.abort()
    os.waitpid(pid, 0)
    written = sum(os.lstat(path(name)).st_size for name in os.listdir(HERE))
    if pattern[0] in "|/" or hard != resource.RLIM_INFINITY:
        # It goes nowhere, or to a program of the host's.
        return errno.ENOSPC if written == 0 else "a core file of %d bytes" % written
    # It stopped where the room did: next to nothing is left.
    if written < LIMIT // 2:
        return "a core file of %d bytes only" % written
    with open(path("more"), "wb", buffering=0) as file:
        return until_error(lambda _: file.write(BLOCK)) if file.write(BLOCK[:1]) else 0


def elsewhere(place):
    with open(os.path.join(place, "filling"), "wb", buffering=0) as file:
        result = until_error(lambda _: file.write(BLOCK))
    os.unlink(os.path.join(place, "filling"))
    return result


def other_user():
    pid = os.fork()
    if pid == 0:
        os.chmod(HERE, 0o777)
        try:
            os.setgid(1000)
            os.setuid(1000)
        except OSError:
            pass
        with open(path("file"), "wb", buffering=0) as file:
            os._exit(until_error(lambda _: file.write(BLOCK)))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def project_id():
    # FS_IOC_FSSETXATTR: another project, none, and not passing it on. Whatever it says, the limit stays.
    fd = os.open(path("file"), os.O_RDWR | os.O_CREAT)
    for target in (fd, os.open(HERE, os.O_RDONLY)):
        for flags, project in ((0x200, 4242), (0x200, 0), (0, 0), (0, 4242)):
            try:
                fcntl.ioctl(target, 0x401C5820, struct.pack("7I", flags, 0, 0, project, 0, 0, 0))
            except OSError:
                pass
    with open(path("after"), "wb", buffering=0) as file:
        return until_error(lambda _: file.write(BLOCK))


def by_descriptor():
    with open(path("file"), "wb", buffering=0) as file:
        with open(f"/proc/self/fd/{file.fileno()}", "wb", buffering=0) as again:
            return until_error(lambda _: again.write(BLOCK))


def nested_namespaces():
    # Root of a user namespace of its own, who mounts what it may; what it writes here is still charged.
    script = """mount -t tmpfs none /mnt; mount --bind / /mnt; mount -o remount,size=1g /; umount -l /tmp
                dd if=/dev/zero of=%s bs=1M count=%d""" % (path("file"), 2 * LIMIT // MIB)
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode != 0 and "No space left" in done.stderr:
        return errno.ENOSPC
    if done.returncode != 0 and ("Disk quota exceeded" in done.stderr or "Quota exceeded" in done.stderr):
        return errno.EDQUOT
    return "%d: %s" % (done.returncode, done.stderr)


def log_flood():
    # What is said goes into a log with a cap of its own: more than that, when there is no room left.
    result = fill(path("file"))
    for _ in range(4 * MIB // 64):
        os.write(2, b"x" * 63 + b"\n")
    return result


VECTORS = [
    sequential, parallel, random_pages, fallocate, fallocate_at_once, sparse_to_dense, mapped, hard_links,
    deleted_open, rename_over, attributes, empty_files, deep_directories, copy_file_range, core_dump, other_user,
    project_id, by_descriptor, nested_namespaces, log_flood,
]
PLACES = ["/tmp", "/dev/shm", "/volume"]
# Last, because what is copied up stays.
IMAGE = [chmod_image, chown_image]


def again():
    # The whole limit but a little: nothing of what was deleted is still charged.
    with open(path("again"), "wb", buffering=0) as file:
        for _ in range(LIMIT // MIB - 3):
            file.write(BLOCK)


def clean():
    # Of any depth: by way of the working directory, because a path ends at PATH_MAX and descriptors are few.
    os.chdir(HERE)
    above = []
    while True:
        inner = None
        for entry in list(os.scandir(".")):
            if entry.is_dir(follow_symlinks=False):
                inner = entry.name
            else:
                os.unlink(entry.name)
        if inner:
            os.chdir(inner)
            above.append(inner)
        elif above:
            os.chdir("..")
            os.rmdir(above.pop())
        else:
            break
    os.chdir("/")
    os.rmdir(HERE)
    os.mkdir(HERE)


def name_of(result):
    return errno.errorcode.get(result, result) if isinstance(result, int) else result


known = {vector.__name__ for vector in VECTORS + IMAGE} | set(PLACES)
if CHOSEN - known:
    sys.exit("there is no %s" % (CHOSEN - known))
os.makedirs(HERE, exist_ok=True)
for vector in VECTORS:
    if CHOSEN and vector.__name__ not in CHOSEN:
        continue
    pid = os.fork()
    if pid == 0:
        print(vector.__name__, name_of(vector()), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    clean()
    again()
    clean()
    print("again", flush=True)
for place in PLACES:
    if place in CHOSEN or not CHOSEN and os.path.isdir(place):
        print(place, name_of(elsewhere(place)), flush=True)
for vector in IMAGE:
    if not CHOSEN or vector.__name__ in CHOSEN:
        print(vector.__name__, name_of(vector()), flush=True)
