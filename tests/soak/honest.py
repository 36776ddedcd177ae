"""honest.py PER_SECOND ADDRESS...: new connections, one after the other to each VIP, until standard input ends.

Each is a request of curl's kind to nginx: GET /id. Prints {"address": A, "tried": N, "failed": N} for each VIP.
"""

import asyncio
import json
import sys

# A client gives up then.
PATIENCE_S = 10
WEB = 80
REQUEST = b"GET /id HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"


async def ask(address):
    """Returns whether the server has answered."""
    writer = None
    try:
        reader, writer = await asyncio.open_connection(address, WEB)
        writer.write(REQUEST)
        return (await reader.readline()).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
    finally:
        if writer:
            writer.close()


async def patient(address):
    try:
        return await asyncio.wait_for(ask(address), PATIENCE_S)
    except asyncio.TimeoutError:
        return False


async def main(per_second, addresses):
    ending = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    asked = {address: [] for address in addresses}
    while not ending.done():
        for address, tasks in asked.items():
            tasks.append(asyncio.create_task(patient(address)))
        await asyncio.sleep(1 / per_second)
    for address, tasks in asked.items():
        answered = await asyncio.gather(*tasks)
        print(json.dumps({"address": address, "tried": len(answered), "failed": answered.count(False)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2:]))
