"""speaker.py NAME PORT: a TCP server that speaks first, and alone: a line with NAME and a seed, then 64 bytes of
that pseudo-random sequence every quarter of a second, until the client has gone."""

import asyncio
import random
import sys

PAUSE_S = 0.25


async def speak(name, writer):
    seed = random.getrandbits(32)
    draw = random.Random(seed)
    try:
        writer.write(f"{name} {seed}\n".encode())
        while True:
            writer.write(draw.randbytes(64))
            await writer.drain()
            await asyncio.sleep(PAUSE_S)
    except OSError:
        writer.close()


async def main(name, port):
    async def accept(_reader, writer):
        await speak(name, writer)

    servers = [await asyncio.start_server(accept, address, port, backlog=1024) for address in ("0.0.0.0", "::")]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
