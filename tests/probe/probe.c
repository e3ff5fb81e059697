/* Asks a container what it is granted; one line an answer. Compiled static by tests/probe.rs and run inside.
 *
 * Every system call is made by a child of its own with arguments that make nothing happen (all ones), because
 * some end, hang or stop whoever calls them. What is printed is what the filter and the kernel decided, not
 * the error that senseless arguments earn. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CALL_SECONDS = 3, CALLS = 528, X32 = 0x40000000, FAMILIES = 47, PROTOCOLS = 23, CAPABILITIES = 64, OTHER = 1000, DEPTH = 32 };

static const char *verdict(long result, int error)
{
    if (result != -1)
        return "passes";
    switch (error) {
    case EPERM: return "EPERM";
    case ENOSYS: return "ENOSYS";
    case EAFNOSUPPORT: return "EAFNOSUPPORT";
    case EACCES: return "EACCES";
    case EROFS: return "EROFS";
    default: return "passes";
    }
}

/* The verdict on a call made here; errno is read after it, which an argument list does not promise. */
#define VERDICT(call) (errno = 0, made = (call), verdict(made, errno))
static long made;

/* The verdict on one call, told by a child through its exit code. */
static void ask(const char *kind, long number, long first, int all)
{
    static const char *const words[] = { "passes", "EPERM", "ENOSYS", "EAFNOSUPPORT", "EACCES", "EROFS" };
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(CALL_SECONDS);
        setpgid(0, 0);
        for (int fd = 0; fd < 64; fd++)
            close(fd);
        long rest = all ? -1 : 0;
        errno = 0;
        long result = syscall(number, first, rest, rest, rest, rest, rest);
        const char *word = verdict(result, errno);
        for (int index = 0; index < 6; index++)
            if (!strcmp(word, words[index]))
                syscall(SYS_exit_group, index);
        syscall(SYS_exit_group, 0);
    }
    int status = 0;
    waitpid(child, &status, WUNTRACED | __WALL);
    const char *word = "passes"; /* it ended, stopped or hung in the call itself */
    if (WIFEXITED(status) && WEXITSTATUS(status) < 6)
        word = words[WEXITSTATUS(status)];
    else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
        word = "SIGSYS";
    if (!WIFEXITED(status)) {
        kill(child, SIGKILL);
        while (waitpid(-1, &status, WNOHANG | __WALL) > 0)
            ;
    }
    printf("%s %ld %s\n", kind, number & ~(long)X32, word);
}

static void status_lines(void)
{
    char line[256];
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "Cap", 3) || !strncmp(line, "NoNewPrivs", 10) || !strncmp(line, "Seccomp:", 8))
            printf("status %s", line);
    for (int number = 0; number < CAPABILITIES; number++)
        if (prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1)
            printf("bounding %d yes\n", number);
}

static void sockets(void)
{
    for (int family = 0; family < FAMILIES; family++) {
        int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_RAW };
        const char *best = "EAFNOSUPPORT";
        for (int index = 0; index < 3; index++) {
            int fd = socket(family, types[index], 0);
            const char *word = verdict(fd, errno);
            if (!strcmp(word, "passes"))
                best = fd >= 0 ? "opens" : best;
            else if (strcmp(best, "opens"))
                best = word;
            if (fd >= 0)
                close(fd);
        }
        printf("family %d %s\n", family, best);
    }
    for (int protocol = 0; protocol < PROTOCOLS; protocol++) {
        int fd = socket(AF_NETLINK, SOCK_RAW, protocol);
        printf("netlink %d %s\n", protocol, fd >= 0 ? "opens" : "refused");
        if (fd >= 0)
            close(fd);
    }
    printf("packet %s\n", socket(AF_PACKET, SOCK_RAW, 3) >= 0 ? "opens" : "refused");
}

static void namespaces(void)
{
    struct { const char *name; int flag; } kinds[] = {
        { "user", CLONE_NEWUSER }, { "mnt", CLONE_NEWNS }, { "pid", CLONE_NEWPID }, { "net", CLONE_NEWNET },
        { "ipc", CLONE_NEWIPC }, { "uts", CLONE_NEWUTS }, { "cgroup", CLONE_NEWCGROUP }, { "time", 0x80 },
    };
    for (int index = 0; index < 8; index++) {
        printf("unshare %s %s\n", kinds[index].name, VERDICT(unshare(kinds[index].flag)));
        if (kinds[index].flag == 0x80)
            continue; /* as a flag of clone(2) it is part of a signal's number */
        fflush(stdout);
        long child = syscall(SYS_clone, kinds[index].flag | SIGCHLD, 0, 0, 0, 0);
        if (child == 0)
            _exit(0);
        int error = errno;
        printf("clone %s %s\n", kinds[index].name, verdict(child, error));
        if (child > 0)
            waitpid(child, NULL, 0);
    }
    int own = open("/proc/self/ns/uts", O_RDONLY);
    printf("setns %s\n", VERDICT(setns(own, 0)));
    printf("mount %s\n", VERDICT(mount("none", "/tmp", "tmpfs", 0, "")));
    printf("umount %s\n", VERDICT(umount2("/proc", MNT_DETACH)));
    printf("keyctl %s\n", VERDICT(syscall(SYS_keyctl, 0, -1, 0, 0, 0)));
}

/* Whether a path shows anything: a byte, or an entry. */
static void hidden(const char *path)
{
    int seen = 0;
    char byte;
    DIR *dir = opendir(path);
    if (dir) {
        struct dirent *entry;
        while ((entry = readdir(dir)))
            seen |= strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..");
        closedir(dir);
    } else {
        int fd = open(path, O_RDONLY | O_NONBLOCK);
        seen = fd >= 0 && read(fd, &byte, 1) == 1;
        close(fd);
    }
    printf("hidden %s %s\n", path, seen ? "SHOWN" : "yes");
    /* What covers a file is the null device, which anybody may write. */
    struct stat about;
    int fd = open(path, O_WRONLY | O_NONBLOCK);
    int null = fd >= 0 && !fstat(fd, &about) && S_ISCHR(about.st_mode) && about.st_rdev == makedev(1, 3);
    printf("closed %s %s\n", path, fd < 0 || null ? "yes" : "OPENS");
    close(fd);
}

/* Whether any file of a tree opens for writing; nothing is written. */
static const char *opened;
static int try_one(const char *path, const struct stat *about, int kind, struct FTW *place)
{
    (void)about, (void)place;
    int fd = kind == FTW_F ? open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW) : -1;
    if (fd < 0)
        return 0;
    close(fd);
    opened = strdup(path);
    return 1;
}
static void tree(const char *top)
{
    opened = NULL;
    nftw(top, try_one, DEPTH, FTW_PHYS);
    printf("tree %s %s\n", top, opened ? opened : "refused");
}

static void mount_flags(const char *path)
{
    struct statvfs about;
    if (statvfs(path, &about)) {
        printf("flags %s none\n", path);
        return;
    }
    printf("flags %s %s%s%s%s\n", path, about.f_flag & ST_RDONLY ? "ro" : "rw",
           about.f_flag & ST_NOSUID ? ",nosuid" : "", about.f_flag & ST_NODEV ? ",nodev" : "",
           about.f_flag & ST_NOEXEC ? ",noexec" : "");
}

/* What another user of the container gets of its first process, and of a setuid file of root's. With one id
 * there is nobody else, and the answer is the same. */
static void somebody_else(void)
{
    static const char *const files[] = { "/proc/1/mem", "/proc/1/environ", "/proc/1/root/etc", "/proc/1/fd/0", NULL };
    char *const who[] = { "probe", "--who", NULL };
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int other = setgid(OTHER) == 0 && setuid(OTHER) == 0;
        for (int index = 0; files[index]; index++) {
            int fd = other ? open(files[index], O_RDONLY | O_NONBLOCK) : -1;
            printf("other %s %s\n", files[index], fd < 0 ? "refused" : "OPENS");
        }
        fflush(stdout);
        if (other)
            execv("/tmp/setuid-probe", who);
        printf("setuid root %s\n", other ? "FAILED" : "void");
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

static void make_setuid(void)
{
    char bytes[65536];
    int from = open("/proc/self/exe", O_RDONLY), to = open("/tmp/setuid-probe", O_WRONLY | O_CREAT | O_TRUNC, 0755);
    for (ssize_t count; (count = read(from, bytes, sizeof bytes)) > 0;)
        if (write(to, bytes, count) != count)
            break;
    fchmod(to, 04755);
    close(from);
    close(to);
}

/* The 32-bit way into the kernel, from a 64-bit program: getpid. */
static void compat(void)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        long result = 20;
        __asm__ volatile("int $0x80" : "+a"(result) : : "memory");
        _exit(result > 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    printf("i386 getpid %s\n", WIFEXITED(status) && WEXITSTATUS(status) ? "OPENS" : "refused");
}

static void labels(void)
{
    static const char *const names[] = { "current", "exec", "fscreate", "keycreate", "sockcreate", NULL };
    for (int index = 0; names[index]; index++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/attr/%s", names[index]);
        int fd = open(path, O_WRONLY);
        printf("attr %s %s\n", names[index], fd >= 0 && write(fd, "unconfined", 10) > 0 ? "WRITTEN" : "refused");
        close(fd);
    }
    printf("dumpable is %d\n", prctl(PR_GET_DUMPABLE));
    printf("dumpable set %s\n", VERDICT(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)));
    printf("no_new_privs unset %s\n", prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) ? "refused" : "DONE");
    printf("keep_caps %s\n", VERDICT(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)));
    printf("ambient raise %s\n", VERDICT(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 0, 0, 0)));
}

static void written(const char *path)
{
    int fd = open(path, O_WRONLY | O_NONBLOCK);
    printf("write %s %s\n", path, fd >= 0 ? "OPENS" : "refused");
    close(fd);
}

static void terminal(const char *name, unsigned long command)
{
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    char letter = 'x';
    printf("ioctl %s %s\n", name, VERDICT(syscall(SYS_ioctl, master, command, &letter)));
    close(master);
}

int main(int count, char **words)
{
    if (count > 1 && !strcmp(words[1], "--who")) {
        printf("setuid root %s\n", geteuid() == OTHER && getegid() == OTHER ? "void" : "BECOMES");
        return 0;
    }
    if (getpid() != 1) {
        fputs("the probe tries to unmount /proc and worse: only for the first process of a container\n", stderr);
        return 2;
    }
    signal(SIGTTOU, SIG_IGN);
    status_lines();
    static const char *const hide[] = {
        "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
        "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/proc/kmsg", "/proc/kallsyms",
        "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/selinux",
        "/sys/devices/system/cpu/cpu0/thermal_throttle", "/sys/devices/system/cpu/cpu1/thermal_throttle", NULL,
    };
    for (int index = 0; hide[index]; index++)
        hidden(hide[index]);
    static const char *const closed[] = {
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches",
        "/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/bus",
        "/proc/fs", "/sys/power/state", "/sys/kernel/uevent_helper", "/sys/fs/cgroup/cgroup.procs",
        "/sys/module/kernel/parameters/panic", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/fuse", "/dev/net/tun", NULL,
    };
    for (int index = 0; closed[index]; index++)
        written(closed[index]);
    static const char *const trees[] = { "/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq", "/sys", NULL };
    for (int index = 0; trees[index]; index++)
        tree(trees[index]);
    static const char *const places[] = { "/proc", "/proc/sys", "/sys", "/sys/fs/cgroup", "/dev", "/dev/pts",
                                          "/dev/shm", "/dev/mqueue", "/", NULL };
    for (int index = 0; places[index]; index++)
        mount_flags(places[index]);
    make_setuid();
    somebody_else();
    compat();
    labels();
    terminal("TIOCSTI", 0x5412);
    terminal("TIOCSTI+high", 0x100005412UL);
    terminal("TIOCLINUX", 0x541C);
    namespaces();
    sockets();
    for (long number = 0; number < CALLS; number++)
        ask("call", number, -1, 1);
    ask("x32", X32, -1, 1);
    return 0;
}
