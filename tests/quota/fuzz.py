# Runs inside a container: random file operations from a seed, one line of result each, and the tree at the
# end. The same seed on overlayfs alone and on the limited filesystem must say the same.
import ctypes, errno, fcntl, hashlib, mmap, os, random, stat, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
count, chance = int(sys.argv[1]), random.Random(int(sys.argv[2]))
ROOTS = ["/fuzz", "/etc", "/var/lib/dpkg"]
os.makedirs("/fuzz", exist_ok=True)
handles = []


def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def known():
    paths = []
    for root in ROOTS:
        for top, dirs, files in os.walk(root):
            dirs.sort()
            for name in sorted(dirs + files):
                paths.append(os.path.join(top, name))
            if len(paths) > 400:
                return paths
    return paths


def fresh():
    parents = [root for root in ROOTS] + [path for path in tree if os.path.isdir(path) and not os.path.islink(path)]
    return lasting(os.path.join(chance.choice(parents), chance.choice("abcdefgh") * chance.choice([1, 1, 1, 60, 255])))


def some():
    return chance.choice(tree) if tree and chance.random() < 0.9 else fresh()


def data():
    return bytes([chance.randrange(256)]) * chance.choice([0, 1, 100, 4095, 4096, 4097, 70000])


def offset():
    return chance.choice([0, 1, 4095, 4096, 10000, 1 << 17])


def create():
    os.close(os.open(fresh(), os.O_CREAT | chance.choice([0, os.O_EXCL, os.O_TRUNC]) | os.O_WRONLY | os.O_NONBLOCK, chance.choice([0o644, 0o4755, 0o600])))


def rights_of_several(path):
    """Overlayfs alone has an inode for each name of a file of the image, and truncates by a mode that is out of date: such
    a file keeps its rights there, and loses them on the limited filesystem, which looks at the file."""
    try:
        found = os.stat(path)
        return found.st_nlink > 1 and found.st_mode & 0o6000
    except OSError:
        return False


def write():
    path, flag = some(), chance.choice([0, os.O_APPEND, os.O_TRUNC])
    flag = 0 if flag == os.O_TRUNC and rights_of_several(path) else flag
    fd = os.open(path, os.O_WRONLY | flag | os.O_NONBLOCK)
    try:
        bytes_ = data()
        return os.write(fd, bytes_) if chance.random() < 0.5 else os.pwrite(fd, bytes_, offset())
    finally:
        os.close(fd)


def read():
    fd = os.open(some(), os.O_RDONLY | os.O_NONBLOCK)
    try:
        return hashlib.md5(os.pread(fd, 100000, offset())).hexdigest()
    finally:
        os.close(fd)


def mapped():
    path = some()
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return "other"
    fd = os.open(path, os.O_RDWR)
    try:
        size = os.fstat(fd).st_size
        if size == 0:
            return "empty"
        area = mmap.mmap(fd, size)
        area[chance.randrange(size)] = 7
        area.flush()
        area.close()
    finally:
        os.close(fd)


def opened():
    handles.append(os.open(some(), os.O_RDWR | os.O_NONBLOCK))
    if len(handles) > 20:
        os.close(handles.pop(0))


def through_handle():
    if handles:
        fd = chance.choice(handles)
        kind = chance.randrange(6)
        if kind == 0:
            return os.pwrite(fd, data(), offset())
        if kind == 1:
            return hashlib.md5(os.pread(fd, 100000, offset())).hexdigest()
        if kind == 2:
            size = offset()
            return "several" if rights_of_several(fd) else os.ftruncate(fd, size)
        if kind == 3:
            return call(libc.fallocate(fd, chance.choice([0, 1, 3, 0x11]), ctypes.c_long(offset()), ctypes.c_long(5000)))
        if kind == 4:
            found = os.fstat(fd)
            return found.st_nlink, found.st_size, oct(found.st_mode)
        return os.fsync(fd)


def truncate():
    path = some()
    if stat.S_ISREG(os.lstat(path).st_mode) and not rights_of_several(path):
        os.truncate(path, offset())


def lasting(path):
    """A name that may go. Of a file of several names none does: where overlayfs heard of it first by that one, making or
    renaming over one of the others would be ESTALE (shim/src/disk/parting.rs)."""
    try:
        found = os.lstat(path)
        return path if stat.S_ISDIR(found.st_mode) or found.st_nlink == 1 else "/fuzz/none/none"
    except OSError:
        return path


def rename():
    os.rename(some(), lasting(some()) if chance.random() < 0.5 else fresh())


def rename_with():
    old, new = some().encode(), (some() if chance.random() < 0.7 else fresh()).encode()
    return call(libc.renameat2(-100, old, -100, new, chance.choice([1, 2])))


def copy():
    source, target = os.open(some(), os.O_RDONLY | os.O_NONBLOCK), -1
    try:
        target = os.open(some(), os.O_WRONLY | os.O_NONBLOCK)
        at = offset()
        try:
            return os.copy_file_range(source, target, 5000, 0, at)
        except OSError as error:
            # From the image's filesystem to ours: the caller copies by itself, as everybody does (copy_file_range(2)).
            if error.errno != errno.EXDEV:
                raise
            return os.pwrite(target, os.pread(source, 5000, 0), at)
    finally:
        os.close(source)
        if target >= 0:
            os.close(target)


def seek():
    path = some()
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return "other"
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.lseek(fd, offset(), chance.choice([os.SEEK_END, os.SEEK_SET]))
    finally:
        os.close(fd)


def set_acl():
    # user::rwx user:1000:rw- group::r-x mask::rwx other::r--
    entries = [(1, 7, 0xFFFFFFFF), (2, 6, chance.choice([0, 1])), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(some(), chance.choice(["system.posix_acl_access", "system.posix_acl_default"]), value)


def look():
    found = os.lstat(some())
    return oct(found.st_mode), found.st_nlink, found.st_uid, found.st_gid, found.st_size if not stat.S_ISDIR(found.st_mode) else 0


OPERATIONS = [
    (8, create), (12, write), (6, read), (3, mapped), (4, opened), (10, through_handle), (4, truncate), (8, rename),
    (4, rename_with), (2, copy), (3, seek), (2, set_acl), (6, look),
    (6, lambda: os.unlink(lasting(some()))),
    (4, lambda: os.mkdir(fresh(), chance.choice([0o755, 0o2775, 0o1777]))),
    (4, lambda: os.rmdir(some())),
    (4, lambda: os.link(some(), fresh(), follow_symlinks=False)),
    (3, lambda: os.symlink(some(), fresh())),
    (2, lambda: os.readlink(some())),
    (4, lambda: os.chmod(some(), chance.choice([0o600, 0o755, 0o4755, 0o2711, 0o1777]))),
    (3, lambda: os.chown(some(), chance.choice([0, 1, -1]), chance.choice([0, 1, -1]), follow_symlinks=False)),
    (3, lambda: os.utime(some(), (chance.randrange(1 << 31), 5), follow_symlinks=False)),
    (4, lambda: os.setxattr(some(), "user.a" + chance.choice("123"), data()[:3000], follow_symlinks=False)),
    (3, lambda: hashlib.md5(os.getxattr(some(), "user.a" + chance.choice("123"), follow_symlinks=False)).hexdigest()),
    (2, lambda: os.removexattr(some(), "user.a" + chance.choice("123"), follow_symlinks=False)),
    (2, lambda: sorted(os.listxattr(some(), follow_symlinks=False))),
    (2, lambda: sorted(os.listdir(some()))),
    (1, lambda: os.mkfifo(fresh())),
    (1, lambda: os.mknod(fresh(), stat.S_IFCHR | 0o600, os.makedev(0, 0))),
    (1, lambda: os.mknod(fresh(), stat.S_IFCHR | 0o600, os.makedev(1, 3))),
]
WEIGHTS = [weight for weight, _ in OPERATIONS]

tree = known()
for number in range(count):
    if number % 20 == 0:
        tree = known()
    kind = chance.choices(range(len(OPERATIONS)), WEIGHTS)[0]
    os.umask(chance.choice([0o022, 0o077]))
    try:
        result = OPERATIONS[kind][1]()
    except OSError as error:
        result = errno.errorcode.get(error.errno, error.errno)
    print(number, kind, result)

for root in ROOTS:
    for top, dirs, files in os.walk(root):
        dirs.sort()
        for name in sorted(dirs + files):
            path = os.path.join(top, name)
            found = os.lstat(path)
            line = [path, oct(found.st_mode), found.st_uid, found.st_gid, sorted(os.listxattr(path, follow_symlinks=False))]
            if not stat.S_ISDIR(found.st_mode):
                line += [found.st_nlink, found.st_size]
            if stat.S_ISREG(found.st_mode):
                with open(path, "rb") as file:
                    line.append(hashlib.md5(file.read()).hexdigest())
            if stat.S_ISLNK(found.st_mode):
                line.append(os.readlink(path))
            print(*line)
