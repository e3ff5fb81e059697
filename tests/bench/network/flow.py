"""One end of a stream: `serve PORT` sends without end to everybody, `take HOST PORT SECONDS` prints bytes a second."""

import socket
import sys
import threading
import time

BLOCK = bytes(1 << 20)


def send(connection):
    try:
        while True:
            connection.sendall(BLOCK)
    except OSError:
        connection.close()


def serve(port):
    listener = socket.create_server(("0.0.0.0", int(port)), backlog=16)
    while True:
        threading.Thread(target=send, args=(listener.accept()[0],), daemon=True).start()


def connected(host, port):
    end = time.monotonic() + 30
    while True:
        try:
            connection = socket.create_connection((host, int(port)), 5)
            if connection.recv(1):
                return connection
        except OSError:
            pass
        if time.monotonic() > end:
            sys.exit("nobody answers")
        time.sleep(0.05)


def take(host, port, seconds):
    connection = connected(host, port)
    buffer = bytearray(1 << 20)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < float(seconds):
        count += connection.recv_into(buffer)
    print(count / (time.perf_counter() - begin))


{"serve": serve, "take": take}[sys.argv[1]](*sys.argv[2:])
