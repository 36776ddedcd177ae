"""Connections on which the server speaks, and the client only listens.

`serve PORT` sends each line of its standard input to every client that has sent its own line.
`hold COUNT ADDRESS...` opens COUNT connections to port 80 of each address and prints "open". When all of
them have received the same next line, it prints "all LINE"; a connection that ends, prints "broken" and why.
It ends by itself after a minute.
"""

import selectors
import signal
import socket
import sys
import threading


def greet(connection, clients):
    # A health check sends nothing.
    if connection.recv(16):
        clients.append(connection)
        connection.sendall(b"welcome\n")


def serve(port):
    clients = []

    def accept(server):
        while True:
            threading.Thread(target=greet, args=(server.accept()[0], clients), daemon=True).start()

    with socket.create_server(
        ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    ) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        print("ready", flush=True)
        for line in sys.stdin:
            for client in clients:
                client.sendall(line.encode())


def hold(count, addresses):
    signal.alarm(60)
    selector = selectors.DefaultSelector()
    for address in addresses:
        for _ in range(count):
            connection = socket.create_connection((address, 80), 10)
            connection.sendall(b"hello\n")
            if connection.makefile().readline() != "welcome\n":
                raise SystemExit("no welcome")
            selector.register(connection, selectors.EVENT_READ)
    print("open", flush=True)
    received = {}
    while True:
        for key, _ in selector.select():
            try:
                line = key.fileobj.recv(64).decode().strip() or "closed"
            except OSError as error:
                line = repr(error)
            if not line.isdigit():
                print("broken", line, flush=True)
                selector.unregister(key.fileobj)
                continue
            received[line] = received.get(line, 0) + 1
            if received[line] == count * len(addresses):
                print("all", line, flush=True)


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    hold(int(sys.argv[2]), sys.argv[3:])
