"""A connection that its client has half closed, and that goes on from the other side.

`serve PORT NAME` answers each connection, when its client has sent everything, with lines that begin with
NAME: one after each of the seconds that the client has sent. `ask ADDRESS PORT SECONDS...` is such a client:
prints each line as it comes, and then "closed", or the name of the error.
"""

import errno
import socket
import socketserver
import sys
import time


class Slow(socketserver.StreamRequestHandler):
    def handle(self):
        # A health check sends nothing.
        for number, seconds in enumerate(self.rfile.read().split()):
            time.sleep(float(seconds))
            self.wfile.write(f"{sys.argv[3]} {number}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


def ask(address, port, *seconds):
    with socket.create_connection((address, int(port)), 10) as connection:
        connection.sendall(" ".join(seconds).encode())
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(60)
        try:
            for line in connection.makefile():
                print(line.strip(), flush=True)
            print("closed", flush=True)
        except OSError as error:
            print(errno.errorcode.get(error.errno, repr(error)), flush=True)


if sys.argv[1] == "ask":
    ask(*sys.argv[2:])
else:
    Server(("::", int(sys.argv[2])), Slow).serve_forever()
