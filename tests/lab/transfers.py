"""transfers.py BIG SECONDS COUNT VIP...: COUNT connections to each VIP, busy for SECONDS seconds.

A third of them are conversations (a request every 50 ms), a third download a part of BIG, the file that
backends serve as /big, and a third upload. Every byte is compared. Prints "running" when all are under
way, and at the end a line of JSON: connections, those that broke, and the longest answer time of a
conversation, which is how long nothing was forwarded.
"""

import asyncio
import itertools
import json
import sys

# Bytes of a download or an upload.
PART = 400_000
# A connection is broken when nothing moves for this long.
PATIENCE_S = 20


class Broken(Exception):
    pass


class Transfers:
    def __init__(self, big, seconds):
        with open(big, "rb") as file:
            self.part = file.read(PART)
        self.seconds = seconds
        self.gap = 0.0

    async def response(self, reader):
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        status = int(lines[0].split()[1])
        fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        return status, fields, int(fields.get("content-length", 0))

    async def get(self, reader, writer, path, extra=""):
        writer.write(f"GET {path} HTTP/1.1\r\nHost: lab\r\n{extra}\r\n".encode())
        status, fields, length = await self.response(reader)
        return status, fields["x-backend"], length

    async def conversation(self, reader, writer, _name, started):
        loop = asyncio.get_running_loop()
        end = loop.time() + self.seconds
        first = None
        while loop.time() < end:
            asked = loop.time()
            status, backend, length = await self.get(reader, writer, "/id")
            body = await reader.readexactly(length)
            first = first or backend
            if (status, backend, body.decode().strip()) != (200, first, first):
                raise Broken(f"{status} of {backend}, begun at {first}")
            self.gap = max(self.gap, loop.time() - asked)
            started.set()
            await asyncio.sleep(0.05)

    async def download(self, reader, writer, _name, started):
        rate = PART // self.seconds
        extra = f"Range: bytes=0-{PART - 1}\r\n"
        status, _, length = await self.get(reader, writer, f"/big?rate={rate}", extra)
        started.set()
        if status != 206 or await reader.readexactly(length) != self.part:
            raise Broken(f"download: {status}, other bytes")

    async def upload(self, reader, writer, name, started):
        steps = self.seconds * 20
        size = PART // steps
        whole = self.part[: size * steps]
        head = f"PUT /upload/{name} HTTP/1.1\r\nHost: lab\r\nContent-Length: {len(whole)}\r\n\r\n"
        writer.write(head.encode())
        for step in range(steps):
            writer.write(whole[step * size : (step + 1) * size])
            await writer.drain()
            started.set()
            await asyncio.sleep(0.05)
        status, _, _ = await self.response(reader)
        if status not in (201, 204):
            raise Broken(f"upload: {status}")
        _, _, length = await self.get(reader, writer, f"/upload/{name}")
        if await reader.readexactly(length) != whole:
            raise Broken("upload: other bytes")

    async def run(self, kind, vip, name, started):
        try:
            reader, writer = await asyncio.open_connection(vip, 80)
            limit = self.seconds + PATIENCE_S
            await asyncio.wait_for(kind(reader, writer, name, started), limit)
            writer.close()
        finally:
            started.set()


async def main(big, seconds, count, vips):
    transfers = Transfers(big, seconds)
    kinds = itertools.cycle([transfers.conversation, transfers.download, transfers.upload])
    plan = [(next(kinds), vip) for vip in vips for _ in range(count)]
    started = [asyncio.Event() for _ in plan]
    running = [
        asyncio.create_task(transfers.run(kind, vip, f"t{number}", started[number]))
        for number, (kind, vip) in enumerate(plan)
    ]
    for event in started:
        await event.wait()
    print("running", flush=True)
    ends = await asyncio.gather(*running, return_exceptions=True)
    broken = [
        f"{vip}: {kind.__name__}: {end!r}"
        for (kind, vip), end in zip(plan, ends, strict=True)
        if end is not None
    ]
    print(json.dumps({"transfers": len(plan), "broken": broken, "gap_ms": int(transfers.gap * 1000)}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
