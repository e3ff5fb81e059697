//! The table of the default profile: groups of system calls, each with its reason.
//!
//! Everything that is not in the table is denied. A call that Linux has and the table lacks gets
//! EPERM, a number that Linux did not have when this was written gets ENOSYS (`compile` adds that),
//! and calls with a well-known fallback get the errno that triggers it.
//!
//! The shape follows Docker's profile where that is stricter than Podman's: no namespaces, mounts
//! or keys without the capability. Differences from Docker are marked in the reasons. Compare only
//! what the kernel looks at: an `int` argument is judged by its low 32 bits (A16, CVE-2019-10063).

use super::profile::{Group, Test, Verdict, When};
use crate::caps::Capability;

use Capability::{
    CAP_BPF, CAP_DAC_READ_SEARCH, CAP_NET_RAW, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_BOOT, CAP_SYS_CHROOT,
    CAP_SYS_MODULE, CAP_SYS_NICE, CAP_SYS_PACCT, CAP_SYS_PTRACE, CAP_SYS_RAWIO, CAP_SYS_TIME, CAP_SYS_TTY_CONFIG,
    CAP_SYSLOG,
};
use Test::{AtLeast, Bits, Is, Not};
use Verdict::{Allow, AllowIf, Refuse, RefuseIf};
use When::{Always, With, Without};

/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}. clone(2) keeps CLONE_NEWTIME's bit for the signal.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;

/// The same, and CLONE_NEWTIME, which unshare(2) takes.
const UNSHARE_NAMESPACES: u32 = CLONE_NAMESPACES | 0x80;

const AF_UNIX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const AF_NETLINK: u32 = 16;
const AF_PACKET: u32 = 17;
const NETLINK_ROUTE: u32 = 0;

/// ioctl(2) requests that type into, or read from, somebody else's terminal.
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;

/// personality(2): 32-bit uname, the 2.6 version lie, both, and the question what is set.
const PER_LINUX: u32 = 0;
const PER_LINUX32: u32 = 0x8;
const UNAME26: u32 = 0x2_0000;
const ASK_PERSONALITY: u32 = u32::MAX;

/// The table. Hot groups stand first only for readers: the kernel caches "always allowed" numbers
/// in a bitmap and does not run the filter for them.
pub(super) const GROUPS: &[Group] = &[
    Group {
        reason: "reading and writing open files; the descriptor already carries the permission",
        names: "read write close close_range fstat lseek readv writev pread64 pwrite64 preadv \
                pwritev preadv2 pwritev2 dup dup2 dup3 fcntl flock fsync fdatasync sync syncfs \
                sync_file_range ftruncate fallocate fadvise64 readahead copy_file_range sendfile \
                splice tee cachestat ioctl",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "a terminal must not be fed keystrokes from inside (CVE-2017-5226)",
        names: "ioctl",
        when: Always,
        verdict: RefuseIf(libc::EPERM, &[&[Is(1, TIOCSTI)], &[Is(1, TIOCLINUX)]]),
    },
    Group {
        reason: "files by path; permissions and the mount namespace decide",
        names: "open openat openat2 creat stat lstat newfstatat statx access faccessat faccessat2 \
                readlink readlinkat mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 \
                link linkat symlink symlinkat chmod fchmod fchmodat fchmodat2 chown fchown lchown \
                fchownat umask utime utimes futimesat utimensat truncate statfs fstatfs getdents \
                getdents64 getcwd chdir fchdir name_to_handle_at file_getattr file_setattr",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "device nodes are refused by the kernel in a user namespace; fifos and sockets are needed",
        names: "mknod mknodat",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "extended attributes; the kernel guards trusted and security names",
        names: "setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr \
                flistxattr removexattr lremovexattr fremovexattr setxattrat getxattrat \
                listxattrat removexattrat",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "memory of the caller itself",
        names: "mmap mprotect munmap mremap brk madvise mincore msync mlock mlock2 munlock \
                mlockall munlockall memfd_create memfd_secret membarrier pkey_alloc pkey_free \
                pkey_mprotect remap_file_pages map_shadow_stack mseal",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "where the caller's own memory lies; beyond Docker, because numerical programs on \
                 shared nodes bind their memory and the call reaches nobody else's",
        names: "get_mempolicy set_mempolicy mbind set_mempolicy_home_node",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "threads, locks and the machine state of the caller",
        names: "futex futex_wait futex_wake futex_waitv futex_requeue set_robust_list \
                get_robust_list set_tid_address rseq arch_prctl set_thread_area get_thread_area \
                modify_ldt prctl sched_yield getcpu restart_syscall",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "the kernel's own breakpoints; a filter that stops them kills a traced process",
        names: "uretprobe uprobe",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "signals; pid and user namespaces limit whom they reach",
        names: "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend \
                rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack kill tkill tgkill \
                pidfd_send_signal signalfd signalfd4 pause alarm",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "processes without new namespaces",
        names: "fork vfork execve execveat exit exit_group wait4 waitid pidfd_open \
                process_mrelease getpid getppid gettid getpgid getpgrp setpgid getsid setsid",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "clone makes threads and children; with a namespace flag it would open the kernel's \
                 largest attack surface to an unprivileged program",
        names: "clone",
        when: Without(&[CAP_SYS_ADMIN]),
        verdict: AllowIf(&[&[Bits(0, CLONE_NAMESPACES, 0)]]),
    },
    Group {
        reason: "unshare without a namespace flag only separates the caller's own tables",
        names: "unshare",
        when: Without(&[CAP_SYS_ADMIN]),
        verdict: AllowIf(&[&[Bits(0, UNSHARE_NAMESPACES, 0)]]),
    },
    Group {
        reason: "flags of clone3 lie in memory that a filter cannot read; ENOSYS makes libc use clone",
        names: "clone3",
        when: Without(&[CAP_SYS_ADMIN]),
        verdict: Refuse(libc::ENOSYS),
    },
    Group {
        reason: "--cap-add=SYS_ADMIN asks for namespaces and mounts",
        names: "clone clone3 unshare setns mount umount2 pivot_root fsopen fsconfig fsmount \
                fspick move_mount open_tree open_tree_attr mount_setattr fanotify_init \
                lookup_dcookie quotactl quotactl_fd setdomainname sethostname",
        when: With(&[CAP_SYS_ADMIN]),
        verdict: Allow,
    },
    Group {
        reason: "ids and capabilities; the kernel allows only what the bounding set and id map hold",
        names: "getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid \
                setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capget capset",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "a program may confine itself further",
        names: "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "waiting for events",
        names: "poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait \
                epoll_pwait epoll_pwait2 eventfd eventfd2 pipe pipe2 inotify_init inotify_init1 \
                inotify_add_watch inotify_rm_watch fanotify_mark",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "clocks and timers; reading the clock's adjustment is harmless, setting needs SYS_TIME",
        names: "time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep getitimer \
                setitimer timer_create timer_settime timer_gettime timer_getoverrun timer_delete \
                timerfd_create timerfd_settime timerfd_gettime times adjtimex clock_adjtime",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "scheduling and limits within what the kernel grants the user",
        names: "sched_setparam sched_getparam sched_setscheduler sched_getscheduler \
                sched_get_priority_max sched_get_priority_min sched_rr_get_interval \
                sched_setaffinity sched_getaffinity sched_setattr sched_getattr getpriority \
                setpriority ioprio_get ioprio_set getrlimit setrlimit prlimit64 getrusage",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "facts about the system",
        names: "uname sysinfo getrandom statmount listmount",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "the socket families of ordinary programs; netlink for interfaces and routes alone",
        names: "socket",
        when: Always,
        verdict: AllowIf(&[
            &[Is(0, AF_UNIX)],
            &[Is(0, AF_INET)],
            &[Is(0, AF_INET6)],
            &[Is(0, AF_NETLINK), Is(2, NETLINK_ROUTE)],
        ]),
    },
    Group {
        reason: "packet sockets read and forge the traffic of the network namespace",
        names: "socket",
        when: With(&[CAP_NET_RAW]),
        verdict: AllowIf(&[&[Is(0, AF_PACKET)]]),
    },
    Group {
        reason: "families that a host-bound or rarely tested module would serve (VSOCK, ALG, RXRPC, KEY, \
                 BLUETOOTH, XDP, ...) look absent, so that programs take their fallback; libaudit treats \
                 any other errno for its netlink family as fatal and breaks useradd",
        names: "socket",
        when: Always,
        verdict: RefuseIf(
            libc::EAFNOSUPPORT,
            &[
                &[Is(0, 0)],
                &[Is(0, 3)],
                &[Bits(0, !3, 4)],
                &[Bits(0, !1, 8)],
                &[Is(0, 11)],
                &[Bits(0, !3, 12)],
                &[Is(0, AF_NETLINK), Not(2, NETLINK_ROUTE as u64)],
                &[AtLeast(0, 18)],
            ],
        ),
    },
    Group {
        reason: "pairs of sockets make sense in the unix family alone",
        names: "socketpair",
        when: Always,
        verdict: AllowIf(&[&[Is(0, AF_UNIX)]]),
    },
    Group {
        reason: "sockets that exist; the network namespace decides what they reach",
        names: "bind connect listen accept accept4 getsockname getpeername sendto recvfrom \
                sendmsg recvmsg sendmmsg recvmmsg shutdown setsockopt getsockopt",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "System V and POSIX message passing inside the ipc namespace",
        names: "shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv \
                msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "the older asynchronous file I/O, which databases use",
        names: "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "modes of binary formats that programs do ask for",
        names: "personality",
        when: Always,
        verdict: AllowIf(&[
            &[Is(0, PER_LINUX)],
            &[Is(0, PER_LINUX32)],
            &[Is(0, UNAME26)],
            &[Is(0, UNAME26 | PER_LINUX32)],
            &[Is(0, ASK_PERSONALITY)],
        ]),
    },
    Group {
        reason: "debuggers inside the container; the user namespace bounds their reach and kernels since \
                 4.8 apply the filter after the tracer",
        names: "ptrace process_vm_readv process_vm_writev",
        when: Always,
        verdict: Allow,
    },
    Group {
        reason: "taking descriptors or memory advice of other processes is more than debugging needs",
        names: "kcmp pidfd_getfd process_madvise",
        when: With(&[CAP_SYS_PTRACE]),
        verdict: Allow,
    },
    Group {
        reason: "--cap-add of the one capability each of these asks the kernel for",
        names: "chroot",
        when: With(&[CAP_SYS_CHROOT]),
        verdict: Allow,
    },
    Group { reason: "process accounting", names: "acct", when: With(&[CAP_SYS_PACCT]), verdict: Allow },
    Group {
        reason: "moving pages of other processes between memory nodes",
        names: "move_pages migrate_pages",
        when: With(&[CAP_SYS_NICE]),
        verdict: Allow,
    },
    Group {
        reason: "setting the clock",
        names: "clock_settime settimeofday",
        when: With(&[CAP_SYS_TIME]),
        verdict: Allow,
    },
    Group { reason: "the kernel log", names: "syslog", when: With(&[CAP_SYSLOG]), verdict: Allow },
    Group { reason: "hanging up the terminal", names: "vhangup", when: With(&[CAP_SYS_TTY_CONFIG]), verdict: Allow },
    Group {
        reason: "files by handle bypass the permissions of directories, and of the mount namespace",
        names: "open_by_handle_at",
        when: With(&[CAP_DAC_READ_SEARCH]),
        verdict: Allow,
    },
    Group { reason: "programs in the kernel", names: "bpf", when: With(&[CAP_BPF, CAP_SYS_ADMIN]), verdict: Allow },
    Group {
        reason: "performance counters see other programs and have had many holes",
        names: "perf_event_open",
        when: With(&[CAP_PERFMON, CAP_SYS_ADMIN]),
        verdict: Allow,
    },
    Group {
        reason: "kernel modules",
        names: "init_module finit_module delete_module",
        when: With(&[CAP_SYS_MODULE]),
        verdict: Allow,
    },
    Group {
        reason: "rebooting; in a pid namespace it ends the container",
        names: "reboot kexec_load kexec_file_load",
        when: With(&[CAP_SYS_BOOT]),
        verdict: Allow,
    },
    Group {
        reason: "I/O ports of the machine itself",
        names: "iopl ioperm",
        when: With(&[CAP_SYS_RAWIO]),
        verdict: Allow,
    },
    Group {
        reason: "calls that current kernels do not have either, under any capability",
        names: "_sysctl afs_syscall create_module epoll_ctl_old epoll_wait_old get_kernel_syms \
                getpmsg nfsservctl putpmsg query_module security tuxcall vserver",
        when: Always,
        verdict: Refuse(libc::ENOSYS),
    },
];

/// Calls that Linux has and no capability of ours opens: they get the default, EPERM.
///
/// The list changes nothing in the filter; a test demands that every call is either in the table
/// or here, so that a new call is judged by a person.
#[cfg(test)]
pub(super) const REFUSED: &[(&str, &str)] = &[
    ("keyrings are not divided by container", "add_key request_key keyctl"),
    ("io_uring does by other means what the filter judges", "io_uring_setup io_uring_enter io_uring_register"),
    ("page faults in the attacker's hands win every kernel race", "userfaultfd"),
    ("zero-copy pipes have a history, and copying is the fallback", "vmsplice"),
    ("security modules of the host", "lsm_get_self_attr lsm_set_self_attr lsm_list_modules"),
    ("swap belongs to the host", "swapon swapoff"),
    ("obsolete and able to name the host's devices", "sysfs uselib ustat"),
];
