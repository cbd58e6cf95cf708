"""Get a file whose size and SHA-256 are known from the first mirror that has it, whatever the mirrors do.

Nothing that a server says is believed. The file is collected in memory, where a connection that was cut is continued
and a body without end is left; only when its SHA-256 has been found right does it come to the disk, and to its name.

What this file is not: it knows nothing of MNIST, and it is not for files that are large for the memory.
"""

import functools
import hashlib
import http.client
import io
import re
import ssl
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from tinycnn.files import replacing

STALL_SECONDS = 30  # a mirror has failed if in this time
STALL_BYTES = 1 << 15  # it did not bring us so much further into the file (or to its end),
FUTILE_REQUESTS = 3  # or if so many requests in a row were cut before they brought us any further
# No reason to leave a mirror at once; TLS has two ways to end.
CUTS = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError, http.client.HTTPException)
LEFTOVER_SECONDS = 3600  # a temporary file this old was left by a process that was killed


def download(name: str, size: int, sha256: str, directory: Path, mirrors: Sequence[str]) -> Path:
    """Get the file `name` from the first of the mirrors, directories on the web, that has it; return where it is now.

    Raises FileNotFoundError, with the reason of each mirror, if none has it, and OSError if the directory, which is
    made if need be, can't be written. In both cases, and when interrupted, nothing is left behind.
    """
    if not mirrors:
        raise FileNotFoundError(f"could not get {name} from any mirror: none was given")
    with _blaming(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):  # better to know before the download than after it
            pass
    content = _fetch_from_any(mirrors, name, size, sha256)
    with _blaming(directory):
        _keep(content, directory / name)
    return directory / name


def check_address(url: str) -> None:
    """Raises ValueError unless the URL begins with http:// or https:// and a host."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0  # .port is checked when asked
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{url!r} is not an address that begins with http:// or https:// and names a host")


# --------------------------------------------------------------------------------------------------------------- disk


@contextmanager
def _blaming(directory: Path) -> Iterator[None]:
    """What goes wrong in the with block is the fault of the directory, not of a mirror."""
    try:
        yield
    except OSError as error:
        raise OSError(f"can't write to {directory}: {error}") from error


def _keep(content: bytearray, path: Path) -> None:
    """Write the file, whole or not at all; another process may be doing the same."""
    for leftover in path.parent.glob(f".{path.name}.*.part"):
        with suppress(OSError):  # another process may be quicker
            if leftover.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                leftover.unlink()
    with replacing(path) as file:
        file.write(content)


# ------------------------------------------------------------------------------------------------------------ mirrors


def _fetch_from_any(mirrors: Sequence[str], name: str, size: int, sha256: str) -> bytearray:
    failures = []
    with tqdm(total=size, unit="B", unit_scale=True, desc=name) as bar:
        for mirror in mirrors:
            try:
                return _fetch(mirror.rstrip("/") + "/" + name, size, sha256, bar)
            except (OSError, ValueError) as error:
                # A server may have written parts of this text: one line, and nothing that a terminal would obey.
                reason = textwrap.shorten(str(error) or type(error).__name__, 300)
                failures.append(f"\n  {mirror}: {''.join(filter(str.isprintable, reason))}")
    raise FileNotFoundError(f"could not get {name} from any mirror:" + "".join(failures))


def _fetch(url: str, size: int, sha256: str, bar: tqdm) -> bytearray:
    """The content of the file. Raises OSError or ValueError, and both are the mirror's fault."""
    clock = _Clock()
    opener = _opener(clock)
    content, futile = bytearray(), 0
    while len(content) < size:
        furthest_before, fault = clock.furthest, "answer ended early"
        try:
            _receive_rest(opener, url, size, content, clock, bar)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 416:
                raise
            content.clear()  # it knows no such range: from the beginning, then
            fault = error
        except urllib.error.URLError as error:
            if not isinstance(error.reason, CUTS):
                raise
            fault = error.reason
        except CUTS as error:
            fault = error
        except TimeoutError as error:
            raise TimeoutError(f"{error} after {clock.furthest:,} of {size:,} bytes") from error
        futile = 0 if clock.furthest > furthest_before else futile + 1
        if futile == FUTILE_REQUESTS:
            raise ConnectionError(f"{futile} requests in vain ({fault}) after {clock.furthest:,} of {size:,} bytes")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"sent {len(content):,} bytes that are not the file: their SHA-256 is another")
    return content


def _receive_rest(opener, url: str, size: int, content: bytearray, clock: "_Clock", bar: tqdm) -> None:
    """Ask for what is missing of the content, and append what comes, until it ends or the size is reached."""
    headers = {"Range": f"bytes={len(content)}-"} if content else {}
    with opener.open(urllib.request.Request(url, headers=headers), timeout=clock.seconds_left()) as answer:
        if answer.status == 206:
            _check_range(answer.headers.get("Content-Range", ""), len(content), size)
        else:
            _check_length(answer.headers, size)
            content.clear()
        # read1: what is there now. read would wait until it has all it asked for, and lose it if the answer is cut.
        while len(content) < size and (piece := answer.read1(min(1 << 16, size - len(content)))):
            content += piece
            clock.reached(len(content))
            bar.update(len(content) - bar.n)


def _check_range(content_range: str, start: int, size: int) -> None:
    if not re.fullmatch(rf"bytes {start}-\d+/({size}|\*)", content_range):
        raise ValueError(f"asked for the bytes from {start:,} of {size:,}, it sent {content_range or 'no range'!r}")


def _check_length(headers: http.client.HTTPMessage, size: int) -> None:
    length = headers.get("Content-Length")
    if length is not None and length.strip() != str(size):
        raise ValueError(f"offers {length} bytes of {headers.get_content_type()}, not the file of {size}")


# --------------------------------------------------------------------------------------------------------- connections


class _Clock:
    """How long a mirror still has: STALL_SECONDS, and again as long for every STALL_BYTES of the file."""

    def __init__(self):
        self.furthest = self.paid_for = 0
        self.deadline = time.monotonic() + STALL_SECONDS

    def reached(self, position: int) -> None:
        self.furthest = max(self.furthest, position)
        if self.furthest >= self.paid_for + STALL_BYTES:
            self.paid_for, self.deadline = self.furthest, time.monotonic() + STALL_SECONDS

    def seconds_left(self) -> float:
        """Raises TimeoutError if there are none."""
        if (left := self.deadline - time.monotonic()) <= 0:
            raise TimeoutError("timed out")
        return left


def _opener(clock: _Clock) -> urllib.request.OpenerDirector:
    """What opens a URL. Not urllib's `build_opener`: that would open file: and ftp: as well."""
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(urllib.request.HTTPErrorProcessor())
    opener.add_handler(urllib.request.HTTPDefaultErrorHandler())
    opener.add_handler(_SafeRedirects())
    opener.add_handler(_TimedConnections(clock))
    return opener


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but neither from https to http nor to anything else than those two."""

    def redirect_request(self, request, answer, code, message, headers, url):
        answer.close()  # or urllib would read its body to the end, and there may be none
        check_address(url)
        if urlsplit(request.full_url).scheme == "https" and urlsplit(url).scheme != "https":
            raise ValueError(f"redirects from https to {url}")
        return super().redirect_request(request, answer, code, message, headers, url)


class _TimedConnections(urllib.request.AbstractHTTPHandler):
    """Opens http and https, with answers that obey the clock."""

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, clock: _Clock):
        super().__init__()
        self.clock = clock

    def http_open(self, request):
        return self._open(http.client.HTTPConnection, request)

    def https_open(self, request):
        return self._open(http.client.HTTPSConnection, request)

    def _open(self, kind, request):
        def connection(*arguments, **options):
            result = kind(*arguments, **options)
            result.response_class = functools.partial(_TimedAnswer, self.clock)
            return result

        return self.do_open(connection, request)


class _TimedAnswer(http.client.HTTPResponse):
    """An answer that is read through a _TimedReader, and that is no answer if it is cut before its headers' end."""

    def __init__(self, clock: _Clock, socket, *arguments, **options):
        super().__init__(socket, *arguments, **options)
        self.reader = _TimedReader(clock, socket, self.fp.detach())
        self.fp = io.BufferedReader(self.reader)

    def begin(self):
        super().begin()
        if self.reader.ended:
            raise http.client.RemoteDisconnected("cut in the headers")


class _TimedReader(io.RawIOBase):
    """What comes from a socket while the clock has seconds left.

    The timeout of a socket is for each read alone: headers that come byte by byte, or without end, would hold us.
    """

    def __init__(self, clock: _Clock, socket, raw: io.RawIOBase):
        self.clock, self.socket, self.raw, self.ended = clock, socket, raw, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self.socket.settimeout(self.clock.seconds_left())
        count = self.raw.readinto(buffer)
        self.ended = count == 0
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()
