# Runs inside a limited container: every way to write that F39 of the security notes names, one after the
# other. Prints one line each: NAME ERRNO, and "again" when there is room after the clean-up.
import errno, fcntl, mmap, os, random, signal, struct, subprocess, sys

MIB = 1 << 20
LIMIT = int(sys.argv[1]) * MIB
HERE = "/vector"
BLOCK = os.urandom(MIB)


def until_error(step):
    for number in range(1 << 20):
        try:
            step(number)
        except OSError as error:
            return error.errno
    return 0


def path(name):
    return os.path.join(HERE, name)


def sequential():
    with open(path("file"), "wb", buffering=0) as file:
        return until_error(lambda _: file.write(BLOCK))


def parallel():
    children = []
    for child in range(8):
        pid = os.fork()
        if pid == 0:
            with open(path(f"file{child}"), "wb", buffering=0) as file:
                os._exit(until_error(lambda _: file.write(BLOCK)))
        children.append(pid)
    results = {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children}
    return results.pop() if len(results) == 1 else results


def random_pages():
    fd = os.open(path("file"), os.O_RDWR | os.O_CREAT)
    pages = list(range(LIMIT // 4096 * 2))
    random.Random(1).shuffle(pages)
    return until_error(lambda number: os.pwrite(fd, BLOCK[:4096], pages[number] * 4096))


def fallocate():
    fd = os.open(path("file"), os.O_RDWR | os.O_CREAT)
    return until_error(lambda number: os.posix_fallocate(fd, number * MIB, MIB))


def fallocate_at_once():
    fd = os.open(path("file"), os.O_RDWR | os.O_CREAT)
    return until_error(lambda _: os.posix_fallocate(fd, 0, 4 * LIMIT))


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
    with open(path("other"), "wb", buffering=0) as file:
        return result if until_error(lambda _: file.write(BLOCK)) == result else "given back"


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
    def step(number):
        name = path(f"file{number // 2}")
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
        os.setxattr(name, f"user.a{number % 2}", BLOCK[:1500])

    return until_error(step)


def empty_files():
    return until_error(lambda number: os.close(os.open(path(f"empty{number}"), os.O_CREAT | os.O_WRONLY)))


def deep_directories():
    os.chdir(HERE)

    def step(number):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)

    result = until_error(step)
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
    command = "ulimit -c $(ulimit -Hc); exec %s -c 'a = b\"x\" * %d; import os; os.abort()'"
    subprocess.run(["sh", "-c", command % (sys.executable, 2 * LIMIT)], cwd=HERE)
    return errno.ENOSPC


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
    # FS_IOC_FSSETXATTR: there is no project to leave here, and no way to ask for one.
    fd = os.open(path("file"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.ioctl(fd, 0x401C5820, struct.pack("7I", 0, 0, 0, 4242, 0, 0, 0))
        return "changed"
    except OSError:
        return errno.ENOSPC


def by_descriptor():
    with open(path("file"), "wb", buffering=0) as file:
        with open(f"/proc/self/fd/{file.fileno()}", "wb", buffering=0) as again:
            return until_error(lambda _: again.write(BLOCK))


def nested_namespaces():
    script = "mount -t tmpfs none /mnt; umount /; dd if=/dev/zero of=%s bs=1M count=1000" % path("file")
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True)
    return errno.ENOSPC if done.returncode != 0 else "went through"


VECTORS = [
    sequential, parallel, random_pages, fallocate, fallocate_at_once, sparse_to_dense, mapped, hard_links,
    deleted_open, rename_over, attributes, empty_files, deep_directories, copy_file_range, core_dump, other_user,
    project_id, by_descriptor, nested_namespaces,
]


def again():
    # The whole limit but a little: nothing of what was deleted is still charged.
    with open(path("again"), "wb", buffering=0) as file:
        for _ in range(LIMIT // MIB - 3):
            file.write(BLOCK)


def clean():
    subprocess.run(["rm", "-rf", HERE])
    os.mkdir(HERE)


def name_of(result):
    return errno.errorcode.get(result, result) if isinstance(result, int) else result


for vector in VECTORS:
    os.makedirs(HERE, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        print(vector.__name__, name_of(vector()), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    clean()
    again()
    clean()
    print("again", flush=True)
for place in ["/tmp", "/dev/shm", "/volume"]:
    print(place, name_of(elsewhere(place)), flush=True)
# Last, because what is copied up stays.
print("chmod_image", name_of(chmod_image()), flush=True)
print("chown_image", name_of(chown_image()), flush=True)
