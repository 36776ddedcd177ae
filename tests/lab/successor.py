"""successor.py SOCKET STEP: a process that begins to take over from holdfast, and fails.

Connects to the hand-over socket and goes as far as STEP: hello, offer, ready or stopped; prints STEP
and ends there. With "hang" it goes as far as stopped, and then does nothing. With "version" it asks
in another version of the protocol, and prints the reply.
"""

import json
import socket
import sys
import time


def main():
    path, step = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(30)
    connection.connect(path)
    protocol = 0 if step == "version" else 1
    connection.send(json.dumps({"protocol": protocol}).encode())
    if step == "hello":
        return
    text, files, _, _ = socket.recv_fds(connection, 1 << 17, 253)
    reply = json.loads(text)
    if step == "version":
        print(reply["Refused"])
        return
    for _ in reply["Offer"]["workers"]:
        files += socket.recv_fds(connection, 1 << 17, 253)[1]
    if step == "offer":
        return
    connection.send(b'"Ready"')
    if step == "ready":
        return
    assert connection.recv(1 << 17) == b'"Stopped"'
    if step == "hang":
        time.sleep(30)


main()
