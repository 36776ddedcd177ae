"""holder.py COUNT SOURCES TARGET...: opens COUNT connections to servers of greeter.py, and holds them.

SOURCES are addresses of this host, with commas between them; a TARGET is ADDRESS:PORT. Sources and targets take
turns. Prints {"open": N} when all are open, or have failed. Each line of standard input then makes every
connection ask its server once more, and prints {"kept": N, "lost": N}: a lost one has been reset, has no answer
within PATIENCE_S, or that of another backend.
"""

import collections
import errno
import json
import resource
import select
import socket
import sys
import time

# Connections that are opened, or ask, at the same time.
AT_ONCE = 100
PATIENCE_S = 20
# Time for four repetitions of a SYN.
OPEN_S = 20


class Holder:
    """All connections, each with the line of its server."""

    def __init__(self, count, sources, targets):
        self.wanted = collections.deque((sources[n % len(sources)], targets[n // len(sources) % len(targets)])
                                        for n in range(count))
        self.poll = select.epoll()
        self.sockets, self.servers = {}, {}

    def open(self):
        waiting = {}
        while self.wanted or waiting:
            while self.wanted and len(waiting) < AT_ONCE:
                file = self.begin(*self.wanted.popleft())
                waiting[file] = time.monotonic() + OPEN_S
            for file, line in self.lines(waiting):
                if line:
                    self.servers[file] = line
        return len(self.servers)

    def begin(self, source, target):
        connection = socket.socket()
        connection.setblocking(False)
        # The port may be in use for another target.
        connection.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        connection.bind((source, 0))
        code = connection.connect_ex(target)
        if code != errno.EINPROGRESS:
            raise OSError(code, f"{source} to {target}")
        self.sockets[connection.fileno()] = connection
        self.poll.register(connection, select.EPOLLIN)
        return connection.fileno()

    def lines(self, waiting):
        """Yields the lines that have come, and an empty one for each connection that has none in time."""
        for file, _ in self.poll.poll(0.1):
            if file not in waiting:
                continue
            del waiting[file]
            try:
                yield file, self.sockets[file].recv(64)
            except OSError:
                yield file, b""
        now = time.monotonic()
        for file in [file for file, end in waiting.items() if end < now]:
            del waiting[file]
            yield file, b""

    def ask(self):
        left, waiting, kept = collections.deque(self.servers), {}, 0
        while left or waiting:
            while left and len(waiting) < AT_ONCE:
                file = left.popleft()
                try:
                    self.sockets[file].send(b"?")
                    waiting[file] = time.monotonic() + PATIENCE_S
                except OSError:
                    # It has been reset.
                    pass
            kept += sum(line == self.servers[file] for file, line in self.lines(waiting))
        return {"kept": kept, "lost": len(self.servers) - kept}


def main(count, sources, targets):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    holder = Holder(count, sources, targets)
    print(json.dumps({"open": holder.open()}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(holder.ask()), flush=True)


if __name__ == "__main__":
    places = [target.rsplit(":", 1) for target in sys.argv[3:]]
    main(int(sys.argv[1]), sys.argv[2].split(","), [(address, int(port)) for address, port in places])
