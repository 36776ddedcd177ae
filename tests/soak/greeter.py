"""greeter.py NAME PORT PROCESSES: a TCP server for very many connections, which its processes share. It greets with a
line with NAME, and answers each byte by the same line."""

import os
import resource
import select
import socket
import sys


def main(name, port, processes):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for _ in range(processes - 1):
        if os.fork() == 0:
            break
    line = f"{name}\n".encode()
    listener = socket.create_server(("0.0.0.0", port), backlog=4096, reuse_port=True)
    listener.setblocking(False)
    poll, sockets = select.epoll(), {}
    poll.register(listener, select.EPOLLIN)
    while True:
        for file, _ in poll.poll():
            if file == listener.fileno():
                accept(listener, poll, sockets, line)
            else:
                answer(file, sockets, line)


def accept(listener, poll, sockets, line):
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # The client has gone before it was accepted.
            continue
        connection.setblocking(False)
        sockets[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
        connection.send(line)


def answer(file, sockets, line):
    connection = sockets[file]
    try:
        if connection.recv(64):
            connection.send(line)
            return
    except BlockingIOError:
        return
    except OSError:
        pass
    # Closing also takes it out of the poll.
    sockets.pop(file).close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
