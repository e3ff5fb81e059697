# Runs inside a container: who writes a file takes set-user-id, set-group-id and capabilities from it, or not. One line for
# each way, mode and writer; the limited filesystem must say what overlayfs alone says.
import ctypes, errno, mmap, os, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
# VFS_CAP_REVISION_2 and cap_net_bind_service, effective.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
PATH = "/rights/file"


def write(fd):
    os.write(fd, b"text")


def write_nothing(fd):
    os.write(fd, b"")


def append(fd):
    os.lseek(fd, 0, os.SEEK_END)
    os.write(fd, b"text")


def write_much(fd):
    os.pwrite(fd, bytes(3 << 20), 100)


def mapped(fd):
    with mmap.mmap(fd, 4096) as area:
        area[5] = 7
        area.flush()


def truncate(fd):
    os.ftruncate(fd, 100)


def truncate_by_name(_):
    os.truncate(PATH, 100)


def opened_anew(_):
    os.close(os.open(PATH, os.O_WRONLY | os.O_TRUNC))


def allocate(fd):
    if libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(100000)) < 0:
        raise OSError(ctypes.get_errno(), "")


def punch(fd):
    if libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)) < 0:
        raise OSError(ctypes.get_errno(), "")


def copy(fd):
    source = os.open("/rights/source", os.O_RDONLY)
    os.copy_file_range(source, fd, 5000, 0, 0)
    os.close(source)


def send(fd):
    source = os.open("/rights/source", os.O_RDONLY)
    os.sendfile(fd, source, 0, 5000)
    os.close(source)


def directly(fd):
    direct = os.open(PATH, os.O_WRONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as area:
        os.pwrite(direct, area, 0)
    os.close(direct)


def owner(_):
    os.chown(PATH, -1, -1)


def owner_set(_):
    os.chown(PATH, 0, 0)


def times(_):
    os.utime(PATH)


def attribute(_):
    os.setxattr(PATH, "user.a", b"1")


WAYS = [write, write_nothing, append, write_much, mapped, truncate, truncate_by_name, opened_anew, allocate, punch, copy, send,
        directly, owner, owner_set, times, attribute]
others = [int(word) for word in sys.argv[1:]]


def prepare(mode):
    fd = os.open(PATH, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(fd, bytes(8192))
    os.close(fd)
    os.chown(PATH, 0, 0)
    os.setxattr(PATH, "security.capability", CAPABILITY)
    os.chmod(PATH, mode)


def attempt(way, writer):
    """Writes as somebody, in a process of its own; gives the errno."""
    child = os.fork()
    if child == 0:
        if writer:
            os.setgroups([])
            os.setgid(writer)
            os.setuid(writer)
        try:
            fd = os.open(PATH, os.O_RDWR)
            way(fd)
            os.fsync(fd)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


os.mkdir("/rights")
os.chmod("/rights", 0o777)
with open("/rights/source", "wb") as file:
    file.write(bytes(10000))
for way in WAYS:
    for mode in [0o4777, 0o2777, 0o2767, 0o6777, 0o1777]:
        # Set-group-id that nobody may execute is no right; FUSE leaves it where a stranger writes, natively it goes.
        for writer in [0] if mode == 0o2767 else [0] + others:
            prepare(mode)
            code = attempt(way, writer)
            has = "security.capability" in os.listxattr(PATH)
            print(way.__name__, oct(mode), writer, errno.errorcode.get(code, code), oct(os.stat(PATH).st_mode & 0o7777), has)
