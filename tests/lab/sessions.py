"""sessions.py serve NAME PORT: a server of long connections.
sessions.py hold PORT: a client that keeps connections open, by commands on its standard input.

A client begins with the line "download" or "echo", and the server replies with its NAME. To a download it
sends some bytes 20 times a second until the client shuts its side down, and then their number. To an echo
it sends back what it receives. Every byte is compared.

Commands of the server:
    vanish           loses all connections without a packet, as a host does that starts again
Commands of the client, each answered by a line of JSON:
    open DOWNLOADS TALKERS SILENT SOURCE,ADDRESS...
                     opens so many connections from each source to its address: talkers send a byte a
                     second, silent ones nothing; replies with the NAMEs
    progress         waits until each download and each talker has got on since the command
    end              ends every connection; silent ones speak at last
The last two reply with the connections that broke, each with its reason.
"""

import asyncio
import json
import random
import socket
import sys

PATTERN = random.Random(13).randbytes(65_521)
# Two whole segments and a part: packets as long as the path bears, and short ones.
PART = 3_000
PAUSE_S = 0.05
# Parts after which a download counts as one that goes on.
PARTS = 15
PATIENCE_S = 15
TCP_REPAIR = 19  # linux/tcp.h; not in the socket module


def pattern(position, length):
    position %= len(PATTERN)
    repeats = (position + length) // len(PATTERN) + 1
    return (PATTERN * repeats)[position : position + length]


async def lines():
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while line := await reader.readline():
        yield line.decode().split()


class Server:
    def __init__(self, name):
        self.name = name
        self.writers = set()

    async def echo(self, reader, writer):
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()

    async def download(self, reader, writer):
        ended = asyncio.ensure_future(reader.read(1))
        sent = 0
        while not ended.done():
            writer.write(pattern(sent, PART))
            await writer.drain()
            sent += PART
            await asyncio.wait([ended], timeout=PAUSE_S)
        assert ended.result() == b"", "a download says nothing more"
        writer.write(sent.to_bytes(8, "big"))
        await writer.drain()

    async def serve(self, reader, writer):
        self.writers.add(writer)
        try:
            kind = await reader.readline()
            # A health check sends nothing.
            if kind:
                writer.write(self.name.encode() + b"\n")
                await {b"download\n": self.download, b"echo\n": self.echo}[kind](reader, writer)
        except OSError:
            # The client has gone, or the connection has vanished.
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    def vanish(self):
        for writer in self.writers:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            writer.transport.abort()

    async def run(self, port):
        server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        await asyncio.start_server(self.serve, sock=server)
        print("ready", flush=True)
        async for _ in lines():
            self.vanish()
            print("ready", flush=True)


class Session:
    def __init__(self, kind, source, address):
        self.kind = kind
        self.source = source
        self.address = address
        self.ending = asyncio.Event()
        # Parts of a download, or bytes of an echo, that have arrived.
        self.parts = 0

    async def open(self, port):
        self.reader, self.writer = await asyncio.open_connection(self.address, port, local_addr=(self.source, 0))
        self.writer.write(b"download\n" if self.kind == "download" else b"echo\n")
        self.name = (await self.reader.readline()).decode().strip()
        if not self.name:
            raise EOFError("closed at once")
        self.port = self.writer.get_extra_info("sockname")[1]
        self.task = asyncio.create_task(self.run())

    async def run(self):
        await {"download": self.download, "talker": self.talk, "silent": self.wait}[self.kind]()
        self.writer.close()

    async def download(self):
        received = bytearray()
        position = 0
        ending = asyncio.create_task(self.ending.wait())
        reading = asyncio.ensure_future(self.reader.read(65_536))
        while not ending.done():
            await asyncio.wait([ending, reading], return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                data = reading.result()
                if data != pattern(position, len(data)) or not data:
                    raise ValueError(f"other bytes, or the end, at {position}")
                position += len(data)
                self.parts = position // PART
                reading = asyncio.ensure_future(self.reader.read(65_536))
        self.writer.write_eof()
        while data := await reading:
            received += data
            reading = asyncio.ensure_future(self.reader.read(65_536))
        rest, total = received[:-8], int.from_bytes(received[-8:], "big")
        if rest != pattern(position, len(rest)) or total != position + len(rest):
            raise ValueError(f"other bytes at the end: {position} and {len(rest)} of {total}")

    async def exchange(self):
        byte = bytes([self.parts % 251])
        self.writer.write(byte)
        back = await self.reader.readexactly(1)
        if back != byte:
            raise ValueError(f"{back} in the place of {byte}")
        self.parts += 1

    async def talk(self):
        while not self.ending.is_set():
            await self.exchange()
            try:
                await asyncio.wait_for(self.ending.wait(), 1)
            except TimeoutError:
                pass
        await self.exchange()

    async def wait(self):
        await self.ending.wait()
        await self.exchange()

    def needed(self):
        """Parts after which the session has got on; its last exchange may have begun before."""
        return self.parts + {"download": PARTS, "talker": 2, "silent": 0}[self.kind]

    def broken(self, why):
        return f"{self.kind} {self.source} {self.port} {self.address} at {self.name}: {why}"


class Client:
    def __init__(self, port):
        self.port = port
        self.sessions = []

    async def open(self, downloads, talkers, silent, *pairs):
        kinds = ["download"] * int(downloads) + ["talker"] * int(talkers) + ["silent"] * int(silent)
        new = [Session(kind, *pair.split(",")) for pair in pairs for kind in kinds]
        await asyncio.wait_for(asyncio.gather(*(session.open(self.port) for session in new)), PATIENCE_S)
        self.sessions += new
        return [session.name for session in new]

    async def progress(self):
        needed = {session: session.needed() for session in self.sessions}
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE_S
        waiting = list(self.sessions)
        while waiting and loop.time() < end:
            await asyncio.sleep(PAUSE_S)
            waiting = [one for one in waiting if one.parts < needed[one] and not one.task.done()]
        broken = [one.broken("no progress") for one in waiting]
        return broken + [one.broken(repr(one.task.exception())) for one in self.sessions if one.task.done()]

    async def end(self):
        for session in self.sessions:
            session.ending.set()
        tasks = [asyncio.wait_for(session.task, PATIENCE_S) for session in self.sessions]
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        return [one.broken(repr(end)) for one, end in zip(self.sessions, ends, strict=True) if end is not None]

    async def run(self):
        commands = {"open": self.open, "progress": self.progress, "end": self.end}
        async for command, *arguments in lines():
            print(json.dumps(await commands[command](*arguments)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(Server(sys.argv[2]).run(int(sys.argv[3])))
    else:
        asyncio.run(Client(int(sys.argv[2])).run())
