"""stream.py serve PORT: a TCP server that sends back what it is sent.
stream.py ask ADDRESS PORT BYTES: sends so many bytes and checks that they come back, every one.
"""

import random
import socket
import sys
import threading

CHUNK = 1 << 16
PATIENCE_S = 60


def echo(connection):
    with connection:
        while data := connection.recv(CHUNK):
            connection.sendall(data)


def serve(port):
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=echo, args=(connection,), daemon=True).start()


def ask(address, port, count):
    data = random.Random(count).randbytes(count)
    with socket.create_connection((address, port), timeout=PATIENCE_S) as connection:

        def send():
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        back = bytearray()
        while part := connection.recv(CHUNK):
            back += part
        sender.join()
    if back != data:
        sys.exit(f"{len(back)} of {count} bytes came back, or others")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
