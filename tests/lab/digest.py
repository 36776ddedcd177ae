#!/usr/bin/python3
"""SHA-256 of a stream on arrival. `serve PORT` answers each connection with the SHA-256 of all that
came, when the client has sent everything; `serve-proxy PORT` takes a PROXY protocol header off before, and
`send HOST PORT FILE` sends a file and prints the answer."""

import hashlib
import socket
import socketserver
import sys


class Digest(socketserver.StreamRequestHandler):
    def handle(self):
        digest = hashlib.sha256()
        if sys.argv[1] == "serve-proxy":
            fixed = self.rfile.read(16)
            assert fixed.startswith(b"\r\n\r\n\0\r\nQUIT\n\x21"), fixed
            self.rfile.read(int.from_bytes(fixed[14:], "big"))
        while chunk := self.rfile.read(65536):
            digest.update(chunk)
        self.wfile.write(digest.hexdigest().encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


def send(host, port, name):
    with socket.create_connection((host, int(port)), 30) as stream:
        with open(name, "rb") as file:
            stream.sendfile(file)
        stream.shutdown(socket.SHUT_WR)
        print(stream.makefile().readline().strip())


if sys.argv[1] == "send":
    send(*sys.argv[2:])
else:
    Server(("::", int(sys.argv[2])), Digest).serve_forever()
