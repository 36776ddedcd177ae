"""UDP datagrams of many lengths, there and back.

    lengths.py serve ADDRESS PORT         sends back what comes
    lengths.py sweep ADDRESS PORT LONGEST sends each length, and exits with 1 unless all come back whole
"""

import random
import socket
import sys

# A packet may be lost while a switch or a neighbour table learns.
ATTEMPTS = 5
PATIENCE_S = 2
# Bytes of IPv4, UDP and Ethernet headers.
HEADERS = 42
# Limits of packet lengths: sizes of buffers and frames, and frames less their headroom.
BUFFERS = (1024, 1536, 1792, 2048, 3072, 3840, 4096)
# Datagrams in transit at a time: fewer than any ring has slots.
WINDOW = 16


def lengths(longest):
    """Some of all, and those around each size of a buffer."""
    edges = {size - HEADERS + off for size in BUFFERS for off in range(-6, 7)}
    some = set(range(0, longest + 1, 61)) | {1, 982, 990, longest}
    return sorted(length for length in edges | some if 0 <= length <= longest)


def serve(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, port))
        while True:
            data, sender = server.recvfrom(65536)
            server.sendto(data, sender)


def exchange(client, missing):
    """Sends datagrams, and takes out of `missing` what comes back whole within the time."""
    for data in missing:
        client.send(data)
    try:
        while missing:
            missing.discard(client.recv(65536))
    except (socket.timeout, ConnectionRefusedError):
        pass


def lost(client, datagrams):
    """Lengths of those that do not come back, or not whole."""
    missing = set(datagrams)
    for _ in range(ATTEMPTS):
        exchange(client, missing)
    return sorted(len(data) for data in missing)


def sweep(address, port, longest):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE_S)
        client.connect((address, port))
        # An emulated NIC that has just been configured may take half a minute on a busy machine.
        if all(lost(client, [b"first"]) for _ in range(3)):
            sys.exit("no datagram comes back")
        datagrams = [random.randbytes(length) for length in lengths(longest)]
        for begin in range(0, len(datagrams), WINDOW):
            if missing := lost(client, datagrams[begin:begin + WINDOW]):
                sys.exit(f"datagrams of {missing} bytes do not come back, or not whole")


if sys.argv[1] == "serve":
    serve(sys.argv[2], int(sys.argv[3]))
else:
    sweep(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
