"""Many people draw at once: python tests/load_server.py --clients 200 --requests 10000

Starts the real server (`scripts/draw.py`) and lets many clients ask it at the same time what the page asks about a
drawing. The drawings are test images; every answer must be, byte for byte, what the server said to the same drawing
when it was asked alone. Every second client opens a new connection for each request.

Printed are the errors, the requests a second, the time from a request to its answer, and the server's memory before and
after. The exit status is 1 if there was an error, or if the memory grew by more than MOST_GROWTH.

What this file is not: a test that pytest collects; `tests/test_server.py` calls `load` with less.
"""

import argparse
import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinycnn import load_mnist

ROOT = Path(__file__).parents[1]
MOST_GROWTH = 10_000_000  # bytes after the warm-up: a kilobyte for each of 10,000 requests, a fortieth of a drawing
PATIENCE = 60  # seconds until a client gives up


@dataclass
class Outcome:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)  # of each request that was answered
    errors: list[str] = field(default_factory=list)


@contextlib.contextmanager
def running_server() -> Iterator[tuple[int, int]]:
    """The drawing page's server as a process of its own: (process id, port)."""
    command = [sys.executable, ROOT / "scripts" / "draw.py", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.pid, int(re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
        finally:
            process.terminate()


def questions(count: int) -> list[bytes]:
    """Test images as the page would send them, each pixel as 4 × 4."""
    images = load_mnist()[1][0][:count].repeat(4, axis=1).repeat(4, axis=2)
    return [json.dumps({"ink": image.tolist(), "maps": True, "saliency": True}).encode() for image in images]


def load(port: int, bodies: list[bytes], clients: int, requests: int) -> Outcome:
    """So many clients send so many requests in all, with the bodies in turn."""
    return asyncio.run(_load(port, bodies, clients, requests))


async def _load(port: int, bodies: list[bytes], clients: int, requests: int) -> Outcome:
    expected, outcome, numbers = [], Outcome(), iter(range(requests))
    for body in bodies:
        async with _Client(port, keep_alive=False) as alone:
            expected.append(await alone.ask(body))

    async def draw(keep_alive: bool) -> None:
        async with _Client(port, keep_alive) as client:
            for number in numbers:
                which = number % len(bodies)
                start = time.perf_counter()
                try:
                    answer = await asyncio.wait_for(client.ask(bodies[which]), PATIENCE)
                except (OSError, ValueError, EOFError, asyncio.TimeoutError) as error:
                    outcome.errors.append(repr(error))
                    client.close()
                    continue
                outcome.seconds.append(time.perf_counter() - start)
                if answer != expected[which]:
                    outcome.errors.append(f"another answer to drawing {which}: {answer[:100]}")

    await asyncio.gather(*(draw(keep_alive=bool(number % 2)) for number in range(clients)))
    return outcome


class _Client:
    """Asks over one connection, or over a new one each time."""

    def __init__(self, port: int, keep_alive: bool):
        self.port, self.keep_alive, self.writer = port, keep_alive, None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.close()

    def close(self) -> None:
        if self.writer:
            self.writer.close()
        self.writer = None

    async def ask(self, body: bytes) -> bytes:
        """The answer's body. Raises ValueError if it is a refusal."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        connection = "keep-alive" if self.keep_alive else "close"
        head = f"POST /look HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: {connection}\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await self.reader.readuntil(b"\r\n\r\n")
        answer = await self.reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))
        if not self.keep_alive:
            self.close()
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ValueError(f"{head[:40]} {answer[:100]}")
        return answer


def resident(process: int) -> int | None:
    """The bytes of memory that a process has, where the system says so (Linux)."""
    status = Path(f"/proc/{process}/status")
    return int(re.search(r"VmRSS:\s+(\d+) kB", status.read_text())[1]) << 10 if status.exists() else None


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200, metavar="N", help="at the same time (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="in all (default: %(default)s)")
    options = parser.parse_args(arguments)
    bodies = questions(50)
    with running_server() as (process, port):
        warm_up = load(port, bodies, options.clients, max(options.requests // 10, 2 * options.clients))
        before, start = resident(process), time.perf_counter()
        outcome = load(port, bodies, options.clients, options.requests)
        seconds, after = time.perf_counter() - start, resident(process)
    errors = warm_up.errors + outcome.errors
    milliseconds = 1000 * np.quantile(outcome.seconds or [np.nan], [0.5, 0.99, 1])
    print(f"{options.clients} clients, {options.requests} requests, {len(errors)} errors")
    print(f"{options.requests / seconds:.0f} requests/s; median {milliseconds[0]:.0f} ms, 99 % within", end=" ")
    print(f"{milliseconds[1]:.0f} ms, slowest {milliseconds[2]:.0f} ms")
    if before is not None:
        print(f"memory {before / 1e6:.1f} MB after the warm-up, {after / 1e6:.1f} MB after the requests")
    for error in sorted(set(errors))[:10]:
        print(f"error: {error}", file=sys.stderr)
    return int(bool(errors) or (before is not None and after - before > MOST_GROWTH))


if __name__ == "__main__":
    sys.exit(main())
