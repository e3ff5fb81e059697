"""Compiles a seccomp profile (a config.json's linux.seccomp, on stdin) with libseccomp; prints the classic BPF in hex.

The names that this libseccomp does not know come first, on a line of their own.
"""
import ctypes
import json
import os
import sys
import tempfile

LIB = ctypes.CDLL("libseccomp.so.2", use_errno=True)
ARCHES = {
    "SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_ARM": 0x40000028, "SCMP_ARCH_AARCH64": 0xC00000B7,
}
ACTIONS = {
    "SCMP_ACT_KILL_PROCESS": 0x80000000, "SCMP_ACT_KILL": 0, "SCMP_ACT_KILL_THREAD": 0, "SCMP_ACT_TRAP": 0x30000,
    "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_ALLOW": 0x7FFF0000,
}
OPS = {name: number for number, name in enumerate(["", "NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"])}


class Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def action(name, errno):
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        base = 0x50000 if name == "SCMP_ACT_ERRNO" else 0x7FF00000
        return base | (1 if errno is None else errno)
    return ACTIONS[name]


def must(result, what):
    if result < 0:
        sys.exit(f"{what}: {os.strerror(-result)}")


def add(context, verdict, number, args):
    array = (Compare * len(args))(*args)
    result = LIB.seccomp_rule_add_array(
        ctypes.c_void_p(context), ctypes.c_uint32(verdict), ctypes.c_int(number), ctypes.c_uint(len(args)), array
    )
    # EEXIST: said before. EDOM: not on every architecture of the filter.
    if result not in (0, -17, -33):
        must(result, f"rule for {number}")


profile = json.load(sys.stdin)
LIB.seccomp_init.restype = ctypes.c_void_p
default = action(profile["defaultAction"], profile.get("defaultErrnoRet"))
context = LIB.seccomp_init(ctypes.c_uint32(default))
for name in profile.get("architectures") or []:
    result = LIB.seccomp_arch_add(ctypes.c_void_p(context), ctypes.c_uint32(ARCHES[name]))
    if result != -17:
        must(result, name)
unknown = set()
for rule in profile.get("syscalls") or []:
    verdict = action(rule["action"], rule.get("errnoRet"))
    if verdict == default:
        continue
    args = [
        Compare(one["index"], OPS[one["op"].removeprefix("SCMP_CMP_")], one["value"], one.get("valueTwo") or 0)
        for one in rule.get("args") or []
    ]
    repeated = len({one.arg for one in args}) < len(args)
    for name in rule["names"]:
        number = LIB.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            unknown.add(name)
        elif repeated:
            for one in args:
                add(context, verdict, number, [one])
        else:
            add(context, verdict, number, args)
with tempfile.TemporaryFile() as file:
    must(LIB.seccomp_export_bpf(ctypes.c_void_p(context), file.fileno()), "export")
    file.seek(0)
    print(" ".join(sorted(unknown)))
    print(file.read().hex())
