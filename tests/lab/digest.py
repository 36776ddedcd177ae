#!/usr/bin/python3
"""What a stream was when it arrived. `serve PORT` answers each connection with the SHA-256 of all that
came, when the client has sent everything; `send HOST PORT FILE [SOURCE]` sends a file and prints that."""

import hashlib
import socket
import socketserver
import sys


class Digest(socketserver.StreamRequestHandler):
    def handle(self):
        digest = hashlib.sha256()
        while chunk := self.rfile.read(65536):
            digest.update(chunk)
        self.wfile.write(digest.hexdigest().encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


def send(host, port, name, source=None):
    with socket.create_connection((host, int(port)), 30, (source, 0) if source else None) as stream:
        with open(name, "rb") as file:
            stream.sendfile(file)
        stream.shutdown(socket.SHUT_WR)
        print(stream.makefile().readline().strip())


if sys.argv[1] == "serve":
    Server(("::", int(sys.argv[2])), Digest).serve_forever()
else:
    send(*sys.argv[2:])
