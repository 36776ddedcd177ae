"""udp_client.py ADDRESS PORT COUNT: sends COUNT datagrams, each from a socket of its own.

Prints the backend that answered each, one line per answer that came from the address and port that
were asked and repeats what was sent. Datagrams that get no answer within 5 s have no line.
"""

import selectors
import socket
import sys
import time

SO_NO_CHECK = 11  # asm-generic/socket.h


def main(address, port, count):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    selector = selectors.DefaultSelector()
    for number in range(count):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if number % 4 == 0:
            # No checksum, which IPv4 allows (RFC 768) and which must stay none; IPv6 ignores it.
            sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        # Connected: the kernel shows only datagrams from this address and port.
        sock.connect((address, port))
        payload = f"datagram {number}".encode() * (1 + number % 40)
        sock.send(payload)
        selector.register(sock, selectors.EVENT_READ, payload)
    end = time.monotonic() + 5
    while selector.get_map() and time.monotonic() < end:
        for key, _ in selector.select(end - time.monotonic()):
            backend, _, echo = key.fileobj.recv(65535).partition(b" ")
            if echo == key.data:
                print(backend.decode())
            selector.unregister(key.fileobj)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
