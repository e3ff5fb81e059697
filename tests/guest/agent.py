#!/usr/bin/env python3
"""Runs commands inside the guest for the tests outside, as the user that the agent runs as.

One TCP connection is one command. The client sends a line of JSON {token, argv, env, cwd} and then
frames; a frame is one byte of kind, four bytes of length (big endian), and that many bytes:
    to the agent:    0 standard input (empty: its end)
    to the client:   1 standard output, 2 standard error, 3 exit status as text
The command gets a session of its own; when the connection goes away, its process group is killed.
It listens inside an emulated machine, behind a port forwarded from 127.0.0.1, and wants a token because
every user of the host can reach that port.
"""

import hmac
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys

TOKEN_FILE = "/etc/guest-agent.token"
REQUEST_BYTES_MAX = 1 << 20
CHUNK_BYTES = 1 << 16
STDIN, STDOUT, STDERR, EXIT = range(4)
HEADER = struct.Struct(">BI")
# What a shell says of a program that cannot be run.
EXIT_NOT_RUN = 127


def frame(kind, data):
    return HEADER.pack(kind, len(data)) + data


def read_request(connection, buffer):
    """Takes the first line; what came after it stays in the buffer."""
    while b"\n" not in buffer:
        data = connection.recv(CHUNK_BYTES)
        if not data or len(buffer) > REQUEST_BYTES_MAX:
            raise ConnectionError("no request")
        buffer += data
    line, _, rest = bytes(buffer).partition(b"\n")
    buffer[:] = rest
    request = json.loads(line)
    with open(TOKEN_FILE) as file:
        token = file.read().strip()
    if not hmac.compare_digest(token, request["token"]):
        raise PermissionError("wrong token")
    return request


def serve(connection):
    buffer = bytearray()
    request = read_request(connection, buffer)
    environment = {**os.environ, **request.get("env", {})}
    try:
        child = subprocess.Popen(request["argv"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, start_new_session=True, env=environment,
                                 cwd=request.get("cwd") or environment.get("HOME", "/"))
    except OSError as error:
        connection.sendall(frame(STDERR, f"guest: {request['argv'][0]}: {error.strerror}\n".encode()))
        connection.sendall(frame(EXIT, str(EXIT_NOT_RUN).encode()))
        return
    try:
        copy(connection, buffer, child)
    finally:
        # Whatever of the command's own group is still there; detached containers have left it.
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    status = child.wait()
    connection.sendall(frame(EXIT, str(status if status >= 0 else 128 - status).encode()))


def copy(connection, buffer, child):
    """Moves bytes until the command has ended and its output is read, or the client is gone."""
    deliver(buffer, child)
    selector = selectors.DefaultSelector()
    selector.register(connection, selectors.EVENT_READ)
    for pipe, kind in ((child.stdout, STDOUT), (child.stderr, STDERR)):
        selector.register(pipe, selectors.EVENT_READ, kind)
    ended = os.pidfd_open(child.pid)
    selector.register(ended, selectors.EVENT_READ, EXIT)
    done = False
    while True:
        # A daemon may hold the pipes open for ever: after the command's end, what is there is all.
        ready = selector.select(0 if done else None)
        if done and not ready:
            break
        for key, _ in ready:
            if key.fileobj is connection:
                feed(connection, buffer, child)
            elif key.data == EXIT:
                selector.unregister(ended)
                done = True
            else:
                data = os.read(key.fd, CHUNK_BYTES)
                if data:
                    connection.sendall(frame(key.data, data))
                else:
                    selector.unregister(key.fileobj)
    os.close(ended)


def feed(connection, buffer, child):
    """Takes what the client has sent."""
    data = connection.recv(CHUNK_BYTES)
    if not data:
        raise ConnectionError("the client is gone")
    buffer += data
    deliver(buffer, child)


def deliver(buffer, child):
    """Gives whole frames to the command."""
    while len(buffer) >= HEADER.size:
        _, length = HEADER.unpack_from(buffer)
        if len(buffer) < HEADER.size + length:
            break
        data = bytes(buffer[HEADER.size:HEADER.size + length])
        del buffer[:HEADER.size + length]
        try:
            if data:
                child.stdin.write(data)
                child.stdin.flush()
            else:
                child.stdin.close()
        except (BrokenPipeError, ValueError):
            pass  # it reads no more


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.create_server(("", int(sys.argv[1])), backlog=64) as server:
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                try:
                    with connection:
                        serve(connection)
                except Exception as error:  # the client has gone, or was none of ours
                    print(f"guest-agent: {error}", file=sys.stderr)
                os._exit(0)
            connection.close()


if __name__ == "__main__":
    main()
