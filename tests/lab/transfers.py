#!/usr/bin/env python3
"""Many checksummed TCP transfers at a steady pace, which outlive whatever happens in between.

    transfers.py serve SECONDS PORT ADDRESS...
    transfers.py run SECONDS TARGET...          TARGET = name,address,port,source,count

Each transfer lasts SECONDS and goes one way: the client sends (up), the server sends (down), or the
server sends at once, before the client has sent anything ("first", on PORT + 1). Every byte is
compared with the expected pseudo-random stream. `run` prints a line of JSON: for each target the
transfers, those that broke, and the longest time without data that any of them saw, in ms.
"""

import asyncio
import json
import random
import sys
import time

# Bytes per step and seconds between steps: slow enough for hundreds of transfers on one core.
CHUNK = 700
STEP = 0.01


def stream(seed):
    """The bytes of a transfer, chunk by chunk."""
    source = random.Random(seed)
    while True:
        yield source.randbytes(CHUNK)


async def send(writer, seed, seconds):
    end = time.monotonic() + seconds
    for chunk in stream(seed):
        if time.monotonic() >= end:
            break
        writer.write(chunk)
        await writer.drain()
        await asyncio.sleep(STEP)
    writer.write_eof()


async def receive(reader, seed, seconds):
    """Returns the longest time without data, in seconds; raises if the bytes are wrong."""
    gap, last, end = 0.0, time.monotonic(), time.monotonic() + seconds + 30
    expected = stream(seed)
    left = b""
    total = 0
    while True:
        data = await asyncio.wait_for(reader.read(1 << 16), max(0.1, end - time.monotonic()))
        now = time.monotonic()
        gap, last = max(gap, now - last), now
        if not data:
            break
        total += len(data)
        while data:
            left = left or next(expected)
            size = min(len(left), len(data))
            if left[:size] != data[:size]:
                raise ValueError("other bytes than were sent")
            left, data = left[size:], data[size:]
    # Half of what an idle machine sends: a transfer that stopped early is broken.
    if total < seconds / STEP * CHUNK / 4:
        raise ValueError(f"only {total} bytes")
    return gap


async def serve(port, addresses):
    async def serve_one(reader, writer):
        try:
            way, seed, seconds = (await reader.readline()).decode().split()
            if way == "up":
                gap = await receive(reader, int(seed), float(seconds))
                writer.write(f"{gap}\n".encode())
            else:
                await send(writer, int(seed), float(seconds))
            await writer.drain()
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            writer.write(f"broken: {error}\n".encode())
        finally:
            writer.close()

    async def serve_first(reader, writer):
        # The seed is known to both: the server sends without a request.
        try:
            await send(writer, 7, SECONDS_FIRST)
        except OSError:
            pass
        finally:
            writer.close()

    servers = []
    for address in addresses:
        servers.append(await asyncio.start_server(serve_one, address, port, backlog=4096))
        servers.append(await asyncio.start_server(serve_first, address, port + 1, backlog=4096))
    print("listening", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


SECONDS_FIRST = 0.0


async def transfer(address, port, source, way, seed, seconds):
    at = port + 1 if way == "first" else port
    reader, writer = await asyncio.open_connection(address, at, local_addr=(source, 0))
    try:
        if way == "first":
            return await receive(reader, 7, seconds)
        writer.write(f"{way} {seed} {seconds}\n".encode())
        if way == "down":
            return await receive(reader, seed, seconds)
        await send(writer, seed, seconds)
        reply = (await asyncio.wait_for(reader.readline(), 30)).decode()
        return float(reply)
    finally:
        writer.close()


async def run(seconds, targets):
    result = {}
    tasks = []
    for target in targets:
        name, address, port, source, count = target.split(",")
        result[name] = {"transfers": 0, "broken": 0, "gap_ms": 0, "errors": []}
        for number in range(int(count)):
            way = ("up", "down", "first")[number % 3]
            seed = number + 1
            args = (address, int(port), source, way, seed, seconds)
            tasks.append((name, asyncio.create_task(transfer(*args))))
            await asyncio.sleep(0.002)
    print("running", flush=True)
    for name, task in tasks:
        entry = result[name]
        entry["transfers"] += 1
        try:
            entry["gap_ms"] = max(entry["gap_ms"], round(1000 * await task))
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            entry["broken"] += 1
            if len(entry["errors"]) < 3:
                entry["errors"].append(f"{type(error).__name__}: {error}")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        SECONDS_FIRST = float(sys.argv[2])
        asyncio.run(serve(int(sys.argv[3]), sys.argv[4:]))
    else:
        asyncio.run(run(float(sys.argv[2]), sys.argv[3:]))
