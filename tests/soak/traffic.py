"""traffic.py BIG COUNT SEED ADDRESS...: connections to the VIPs, COUNT at a time, until standard input ends.

Each connection is of a random kind, to a random VIP, for a random time: a conversation (requests to nginx), a
download of a part of BIG, the file that backends serve as /big, an upload, an idle one (a request, a pause, a
request), or one on which only the server sends (speaker.py). Every byte is compared. Prints a line of JSON for
each connection that has ended: begin and end (CLOCK_MONOTONIC), VIP, kind, backend (if known), and the error,
if it broke.
"""

import asyncio
import json
import random
import sys
import time

# Bytes of a download or an upload.
PART = 200_000
# Shortest and longest time of a connection in seconds.
SHORTEST_S, LONGEST_S = 5, 30
# Interval of requests and of parts of an upload in seconds.
PAUSE_S = 0.25
# A connection is broken when nothing moves for this long.
PATIENCE_S = 20
WEB, SPEAKER = 80, 9000


class Broken(Exception):
    """A connection on which something else arrived than had to."""


class Connection:
    """One connection, from its begin to its end."""

    def __init__(self, traffic, number, draw):
        self.traffic, self.number = traffic, number
        self.kind = draw.choice(["conversation", "download", "upload", "idle", "speaker"])
        self.vip = draw.choice(traffic.vips)
        self.seconds = draw.uniform(SHORTEST_S, LONGEST_S)
        self.backend = None
        self.reader = self.writer = None

    async def run(self):
        begin, error = time.monotonic(), None
        try:
            port = SPEAKER if self.kind == "speaker" else WEB
            self.reader, self.writer = await patient(asyncio.open_connection(self.vip, port))
            await getattr(self, self.kind)()
        except (OSError, EOFError, KeyError, ValueError, asyncio.TimeoutError, Broken) as broken:
            error = repr(broken)
        finally:
            if self.writer:
                self.writer.transport.abort() if error else self.writer.close()
        return {"begin": begin, "end": time.monotonic(), "vip": self.vip, "kind": self.kind,
                "backend": self.backend, "error": error}

    async def pause(self, until):
        """Waits an interval; returns whether it is before `until`."""
        await asyncio.sleep(PAUSE_S)
        return time.monotonic() < until and not self.traffic.ending.is_set()

    async def get(self, path, extra=""):
        """Sends a request; returns the status and the body."""
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: lab\r\n{extra}\r\n".encode())
        return await self.response()

    async def response(self):
        head = (await patient(self.reader.readuntil(b"\r\n\r\n"))).decode().lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
        self.comes_from(fields["x-backend"])
        length = int(fields.get("content-length", 0))
        body = bytearray()
        while len(body) < length:
            part = await patient(self.reader.read(length - len(body)))
            if not part:
                raise EOFError(f"after {len(body)} bytes")
            body += part
        return int(head[0].split()[1]), bytes(body)

    def comes_from(self, backend):
        if backend != (self.backend or backend):
            raise Broken(f"begun at {self.backend}, an answer of {backend}")
        self.backend = backend

    async def ask(self):
        status, body = await self.get("/id")
        if (status, body.decode().strip()) != (200, self.backend):
            raise Broken(f"{status} {body!r} of {self.backend}")

    async def conversation(self):
        until = time.monotonic() + self.seconds
        while True:
            await self.ask()
            if not await self.pause(until):
                return

    async def idle(self):
        await self.ask()
        try:
            await asyncio.wait_for(self.traffic.ending.wait(), self.seconds)
        except asyncio.TimeoutError:
            pass
        await self.ask()

    async def download(self):
        rate = int(PART / self.seconds)
        status, body = await self.get(f"/big?rate={rate}", f"Range: bytes=0-{PART - 1}\r\n")
        if status != 206 or body != self.traffic.part:
            raise Broken(f"download: {status}, {len(body)} bytes")

    async def upload(self):
        # The answer that names the backend.
        await self.ask()
        steps = int(self.seconds / PAUSE_S)
        size = PART // steps
        whole = self.traffic.part[: size * steps]
        name = f"/upload/t{self.number}"
        self.writer.write(f"PUT {name} HTTP/1.1\r\nHost: lab\r\nContent-Length: {len(whole)}\r\n\r\n".encode())
        for step in range(steps):
            self.writer.write(whole[step * size : (step + 1) * size])
            await patient(self.writer.drain())
            await asyncio.sleep(PAUSE_S)
        status, _ = await self.response()
        if status not in (201, 204):
            raise Broken(f"upload: {status}")
        status, body = await self.get(name)
        if status != 200 or body != whole:
            raise Broken(f"upload: {status}, {len(body)} bytes came back")
        self.writer.write(f"DELETE {name} HTTP/1.1\r\nHost: lab\r\n\r\n".encode())
        await self.response()

    async def speaker(self):
        until = time.monotonic() + self.seconds
        backend, seed = (await patient(self.reader.readline())).decode().split()
        self.comes_from(backend)
        draw = random.Random(int(seed))
        while time.monotonic() < until and not self.traffic.ending.is_set():
            got = await patient(self.reader.readexactly(64))
            if got != draw.randbytes(64):
                raise Broken("other bytes than the server sent")


async def patient(step):
    return await asyncio.wait_for(step, PATIENCE_S)


class Traffic:
    """All connections."""

    def __init__(self, big, seed, vips):
        with open(big, "rb") as file:
            self.part = file.read(PART)
        self.draw, self.vips, self.number = random.Random(seed), vips, 0
        self.ending = asyncio.Event()

    async def slot(self, first):
        """One connection after the other; the first ones begin at different times."""
        await asyncio.sleep(first)
        while not self.ending.is_set():
            self.number += 1
            ended = await Connection(self, self.number, random.Random(self.draw.random())).run()
            print(json.dumps(ended), flush=True)
            # A VIP that cannot be reached costs a line per pause, not all there is of the machine.
            await asyncio.sleep(PAUSE_S)


async def main(big, count, seed, vips):
    traffic = Traffic(big, seed, vips)
    slots = [asyncio.create_task(traffic.slot(5 * number / count)) for number in range(count)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    traffic.ending.set()
    await asyncio.gather(*slots)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
