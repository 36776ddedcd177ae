"""probe.py ADDRESS: a datagram per millisecond to the UDP echo behind the VIP, until standard input ends.

Prints a line of JSON for each time of more than LEAST_MS without an echo: when it began (CLOCK_MONOTONIC), and
how many milliseconds it lasted.
"""

import json
import select
import socket
import sys
import threading
import time

LEAST_MS = 4
INTERVAL_S = 0.001
ECHO = 7


def main(address):
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    probe.connect((address, ECHO))
    last = time.monotonic()
    while not ended.is_set():
        try:
            probe.send(b"probe")
        except OSError:
            # The path to the balancer is down: that is what is measured.
            pass
        if select.select([probe], [], [], INTERVAL_S)[0]:
            try:
                probe.recv(64)
            except OSError:
                continue
            now = time.monotonic()
            if (now - last) * 1000 > LEAST_MS:
                print(json.dumps({"at": last, "ms": round((now - last) * 1000, 1)}), flush=True)
            last = now
            time.sleep(INTERVAL_S)


if __name__ == "__main__":
    main(sys.argv[1])
