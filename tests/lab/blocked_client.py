"""blocked_client.py ADDRESS SOURCE MODE: a connection to port 80 whose end is waited for.

MODE is "silent" (sends nothing), "asked" (one request first), or "sending" (a header that goes on and
on). Prints "connected" (when the request is answered, if there is one), and then how it ended: the name
of the error, or "closed".
"""

import errno
import socket
import sys


def main(address, source, mode):
    connection = socket.create_connection((address, 80), timeout=10, source_address=(source, 0))
    if mode == "asked":
        connection.sendall(b"GET /id HTTP/1.1\r\nHost: lab\r\n\r\n")
        connection.recv(4096)
    print("connected", flush=True)
    try:
        if mode == "sending":
            connection.sendall(b"GET /id HTTP/1.1\r\nX-Long: ")
            connection.settimeout(0.02)
            while True:
                connection.sendall(b"more")
                try:
                    end = connection.recv(4096)
                    break
                except TimeoutError:
                    pass
        else:
            connection.settimeout(None)
            end = connection.recv(4096)
        print("closed" if not end else "data", flush=True)
    except OSError as error:
        print(errno.errorcode.get(error.errno, repr(error)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
