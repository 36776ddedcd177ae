"""keepalive_client.py ADDRESS: one HTTP connection, one request for every line on stdin.

Prints the backend that answered each, or what went wrong; never connects a second time.
"""

import http.client
import sys


def main(address):
    connection = http.client.HTTPConnection(address, 80, timeout=10)
    connection.connect()
    connection.auto_open = 0  # a second connection would hide that the first is dead
    for _ in sys.stdin:
        try:
            connection.request("GET", "/id")
            answer = connection.getresponse()
            answer.read()
            print(answer.getheader("X-Backend"), flush=True)
        except (OSError, http.client.HTTPException) as error:
            print(repr(error), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
