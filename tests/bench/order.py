#!/usr/bin/python3
"""Writes src/used.ld anew: which functions of coracle a container's life enters, in their order, for the linker.

    order.py BINARY OUT -- COMMAND...    as root; BINARY with its symbols, COMMAND runs it and may change its user

A trap is set on every function of BINARY in COMMAND and in its children, and taken away when it is hit. The names of
functions carry a hash of their types and of the crates they come from, which another compiler or another profile
changes, so it is left out. A name that stands for far more functions than were entered (generic ones) is left out
whole: what it would bring along is more than it saves.
"""

import collections
import ctypes
import os
import re
import signal
import subprocess
import sys

# linux/ptrace.h, and sys/user.h of x86_64
TRACEME, PEEKUSER, POKEUSER, SYSCALL, SETOPTIONS, GETEVENTMSG = 0, 3, 6, 24, 0x4200, 0x4201
OPTIONS = 1 | 2 | 4 | 8 | 16
NEW_PROCESS, EXECUTED = (1, 2, 3), 4
ORIG_RAX, RAX, RDX, RIP = 15 * 8, 10 * 8, 12 * 8, 16 * 8
WALL, ENOSYS, MADVISE, DONTNEED = 0x40000000, 38, 28, 4
TRAP = 0xCC
# A pattern may stand for half as much again as what is used; that of one name for four pages.
WASTE, SPARE_BYTES = 1.5, 16 * 1024

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long


def ptrace(request, pid, address=0, data=0):
    return LIBC.ptrace(request, pid, ctypes.c_void_p(address), ctypes.c_void_p(data))


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


class Program:
    """The functions and the code of an executable file."""

    def __init__(self, path):
        self.path = os.path.realpath(path)
        self.functions = {}
        for words in map(str.split, output("readelf", "-sW", self.path)):
            if len(words) >= 8 and words[3] in ("FUNC", "IFUNC") and words[6].isdigit():
                self.functions.setdefault(int(words[1], 16), (words[7], int(words[2], 0)))
        loads = [words for words in map(str.split, output("readelf", "-lW", self.path)) if words[:1] == ["LOAD"]]
        offset, self.start, size = next([int(words[i], 16) for i in (1, 2, 4)] for words in loads if "E" in words[6:8])
        with open(self.path, "rb") as file:
            self.code = file.read()[offset:offset + size]
        trapped = bytearray(self.code)
        for address in self.functions:
            if self.start <= address < self.start + size:
                trapped[address - self.start] = TRAP
        self.trapped = bytes(trapped)

    def write(self, pid, address, content):
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(address)
            while content:
                content = content[memory.write(content):]


def entered(program, command):
    """Gives the names and sizes of the functions that are entered, in the order of their first use."""
    found, bases = {}, {}
    child = os.fork()
    if child == 0:
        ptrace(TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.execvp(command[0], command)
    os.waitpid(child, 0)
    ptrace(SETOPTIONS, child, 0, OPTIONS)
    ptrace(SYSCALL, child)
    while True:
        try:
            pid, status = os.waitpid(-1, WALL)
        except ChildProcessError:
            return list(found.values())
        if os.WIFSTOPPED(status):
            ptrace(SYSCALL, pid, 0, stopped(program, pid, status, bases, found))


def stopped(program, pid, status, bases, found):
    """Handles one stop of a process; gives the signal that it is to see."""
    stop, event = os.WSTOPSIG(status), status >> 16
    peek = lambda register: ptrace(PEEKUSER, pid, register)
    if event == EXECUTED:
        bases.pop(pid, None)
        if os.path.realpath(f"/proc/{pid}/exe") == program.path:
            with open(f"/proc/{pid}/maps") as maps:
                bases[pid] = next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(program.path))
            program.write(pid, bases[pid] + program.start, program.trapped)
    elif event in NEW_PROCESS:
        new = ctypes.c_long()
        LIBC.ptrace(GETEVENTMSG, pid, None, ctypes.byref(new))
        if pid in bases:
            bases[new.value] = bases[pid]
    elif stop == signal.SIGTRAP | 0x80:
        if pid in bases and (peek(ORIG_RAX), peek(RAX), peek(RDX)) == (MADVISE, -ENOSYS, DONTNEED):
            # The program drops its own pages, and the traps would go with them.
            ptrace(POKEUSER, pid, ORIG_RAX, (1 << 64) - 1)
    elif stop == signal.SIGTRAP:
        at = (peek(RIP) - 1) % (1 << 64)
        address = at - bases[pid] if pid in bases else None
        if address in program.functions:
            found.setdefault(address, program.functions[address])
            program.write(pid, at, program.code[address - program.start:address - program.start + 1])
            ptrace(POKEUSER, pid, RIP, at)
    elif stop != signal.SIGSTOP:
        return stop
    return 0


def patterns(name):
    """Gives the patterns that a name fits without its hashes, from its crate's to its own."""
    if name.startswith("_R"):
        return [re.sub(r"Cs[0-9A-Za-z]+_", "Cs*_", name)]
    if not (found := re.match(r"_ZN(.*)17h[0-9a-f]{16}E", name)):
        return []
    rest, parts, given = found[1], [], []
    while words := re.match(r"\d+", rest):
        end = words.end() + int(words[0])
        parts, rest = [*parts, rest[:end]], rest[end:]
    if inner := re.match(r"\d+(_\$LT\$.*)", parts[0]):
        pieces = inner[1].split("..")
        given = ["_ZN*" + "..".join(pieces[:count]) + "..*" for count in range(1, len(pieces))]
    else:
        given = ["_ZN" + "".join(parts[:count]) + "[1-9]*" for count in range(1, len(parts))]
    return [*given, f"_ZN{found[1]}17h*"]


def members():
    """Says in which file of the C library each function is: there a section is a file's."""
    found = {}
    for line in output("nm", "-A", "--defined-only", output("gcc", "-print-file-name=libc.a")[0]):
        if words := re.match(r".*libc\.a:([^:]+):\S+ [tTWwiV] (\S+)", line):
            found.setdefault(words[2], words[1])
    return found


# What the standard library's generic code is called, whose name says nothing about what it was made for. A release has
# most of it inside the functions that call it.
GENERIC = re.compile(r"_ZN(4core|5alloc|\d+_\$LT\$(core|alloc|std|str|bool|char|[ui](\d+|size)|[TIF]\$|\$))")


def lines(program, used):
    """Gives the lines of the script: as few as can be without much that is not used."""
    everywhere, here = collections.Counter(), collections.Counter()
    for counter, functions in ((everywhere, program.functions.values()), (here, used)):
        for name, size in functions:
            counter.update(dict.fromkeys(patterns(name), size))
    libc = members()
    for name, _ in used:
        fitting = patterns(name)
        if GENERIC.match(name):
            continue
        if not fitting:
            # The variants for other processors come along.
            file = re.sub(r"-(avx|evex|sse|ssse).*\.o", "-*.o", libc.get(name, ""))
            yield f"*libc.a:{file}(.text .text.*)" if file else f"*(.text.{name})"
        close = [one for one in fitting if everywhere[one] <= WASTE * here[one]]
        bearable = [one for one in fitting[-1:] if everywhere[one] <= here[one] + SPARE_BYTES]
        for one in (close or bearable)[:1]:
            yield f"*(.text.{one})"


def main():
    program = Program(sys.argv[1])
    used = entered(program, sys.argv[sys.argv.index("--") + 1:])
    with open(sys.argv[2], "w") as file:
        file.write("/* Written by tests/bench/order.py: what a container's life uses stands together. */\n")
        file.write("SECTIONS {\n.text.used : {\n")
        file.writelines(f"{line}\n" for line in dict.fromkeys(lines(program, used)))
        file.write("}\n} INSERT BEFORE .text;\n")
    print(f"{len(used)} functions, {sum(size for _, size in used)} bytes")


main()
