"""exchange.py serve PORT: greets every client, takes its bytes, and sends them back when all are there.
exchange.py serve-proxy PORT: the same behind PROXY headers (version 2).
exchange.py ask ADDRESS PORT BYTES: waits for the greeting, sends so many bytes and checks every one that
comes back.
exchange.py tell ADDRESS PORT BYTES: the same, but it does not wait for the greeting.

The client uploads, and then it downloads. Both ends stop reading for a while, so that their windows close.
"""

import random
import socket
import sys
import threading
import time

GREETING = b"welcome\n"
CHUNK = 1 << 16
PATIENCE_S = 25
# Longer than the time in which a window fills.
PAUSE_S = 0.2


def read(connection, count):
    """Reads so many bytes, with a pause in the middle of many."""
    data = bytearray()
    paused = count < CHUNK
    while len(data) < count:
        part = connection.recv(min(CHUNK, count - len(data)))
        if not part:
            raise EOFError(f"{len(data)} of {count} bytes")
        data += part
        if not paused and len(data) > count // 2:
            paused = True
            time.sleep(PAUSE_S)
    return bytes(data)


def answer(connection, proxy):
    with connection:
        try:
            # The header comes before the client has sent anything.
            if proxy:
                fixed = read(connection, 16)
                assert fixed.startswith(b"\r\n\r\n\0\r\nQUIT\n\x21"), fixed
                read(connection, int.from_bytes(fixed[14:], "big"))
            connection.sendall(GREETING)
            count = int.from_bytes(read(connection, 8), "big")
            connection.sendall(read(connection, count))
        except (EOFError, ConnectionError):
            # A health check, or a client that only wanted the greeting.
            pass


def serve(port, proxy):
    with socket.create_server(
        ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    ) as server:
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=answer, args=(connection, proxy), daemon=True).start()


def greeted(connection):
    greeting = read(connection, len(GREETING))
    if greeting != GREETING:
        sys.exit(f"no greeting: {greeting}")


def ask(address, port, count, waits):
    data = random.Random(count).randbytes(count)
    with socket.create_connection((address, port), PATIENCE_S) as connection:
        if waits:
            greeted(connection)
        connection.sendall(count.to_bytes(8, "big") + data)
        if not waits:
            greeted(connection)
        back = read(connection, count)
    if back != data:
        sys.exit("other bytes came back")


if __name__ == "__main__":
    if sys.argv[1] in ("ask", "tell"):
        ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[1] == "ask")
    else:
        serve(int(sys.argv[2]), sys.argv[1] == "serve-proxy")
