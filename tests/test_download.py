"""The download against servers that do all that servers do: either a verified file stands in its place, or nothing."""

import contextlib
import errno
import hashlib
import http.client
import http.server
import itertools
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinycnn import download as module
from tinycnn.download import check_address, download

CONTENT = bytes(range(100, 200))
SIZE, SHA256 = len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<html>Sign in to the hotel's network</html>"


class Ask(NamedTuple):
    """What a server is asked: which request it is, 0, 1, …; which file; from which byte on, None without a Range."""

    number: int
    path: str
    start: int | None


class Server:
    """A web server on this machine that answers with the bytes, headers and all, that `behaviour(ask)` yields.

    In a with statement. `asked` lists what it was asked.
    """

    def __init__(self, behaviour: Callable[[Ask], Iterator[bytes]]):
        self.behaviour, self.asked = behaviour, []

    def __enter__(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(handler):
                wanted = handler.headers["Range"]
                start = wanted and int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
                ask = Ask(len(self.asked), handler.path, start)
                self.asked.append(ask)
                with contextlib.suppress(ConnectionError):  # the client may leave when it has had enough
                    for piece in self.behaviour(ask):
                        handler.wfile.write(piece)

            def log_message(handler, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def head(status=200, **headers) -> bytes:
    """Status line and headers; an underscore stands for a dash."""
    lines = [f"HTTP/1.1 {status} Reason", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def range_head(start, end=SIZE - 1, total=SIZE) -> bytes:
    return head(206, Content_Range=f"bytes {start}-{end}/{total}")


def right(start=None, content=CONTENT) -> bytes:
    """What an honest server answers."""
    if start is None:
        return head(Content_Length=len(content)) + content
    return range_head(start, len(content) - 1, len(content)) + content[start:]


def chunked(start=None) -> bytes:
    """The same in two chunks."""
    first, second = CONTENT[start or 0 : 70], CONTENT[max(70, start or 0) :]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (first, second) if chunk)
    of_range = {} if start is None else {"Content_Range": f"bytes {start}-{SIZE - 1}/{SIZE}"}
    return head(206 if of_range else 200, Transfer_Encoding="chunked", **of_range) + chunks + b"0\r\n\r\n"


def honest(ask):
    yield right(ask.start)


def missing(ask):
    yield head(404)


def always(answer: bytes):
    """The behaviour of a server that answers so, whatever it is asked."""
    return lambda ask: [answer]


def in_turn(*answers):
    """The behaviour of a server that gives these answers in turn, and then goes on as an honest one."""
    return lambda ask: [answers[ask.number] if ask.number < len(answers) else right(ask.start)]


def fetch(directory: Path, *servers) -> bytes:
    """What stands under the final name after a download from the servers; there must be nothing beside it."""
    path = download("file.gz", SIZE, SHA256, directory, [server.url for server in servers])
    assert [path] == list(directory.iterdir())
    return path.read_bytes()


def failure(directory: Path, *servers, error=FileNotFoundError) -> str:
    """The message of the error, after which there must be nothing in the directory."""
    with pytest.raises(error) as raised:
        fetch(directory, *servers)
    assert not directory.exists() or not list(directory.iterdir())
    return str(raised.value)


# ---------------------------------------------------------------------------------------------------------------- cuts


def without_length(start=None):
    return head() + CONTENT if start is None else right(start)


@pytest.mark.parametrize("answer", [right, without_length, chunked])
def test_cut_after_any_byte(tmp_path, answer):
    """Also in the middle of the status line or a header, and after the last byte. What came is not asked for again."""
    whole = answer()
    body = whole.index(b"\r\n\r\n") + 4
    with Server(honest) as server:
        for cut in range(len(whole) + 1):
            server.behaviour = lambda ask, cut=cut: [whole[:cut] if ask.number == 0 else answer(ask.start)]
            server.asked.clear()
            assert fetch(tmp_path / str(cut), server) == CONTENT
            starts = [ask.start for ask in server.asked]
            if answer is chunked:  # whose body is more than the content
                assert len(starts) <= 2
            else:
                assert starts == ([None] if cut == len(whole) else [None, cut - body if cut > body else None])


def test_the_continuation_cut_after_any_byte(tmp_path):
    rest = right(60)
    with Server(honest) as server:
        for cut in range(len(rest)):
            server.behaviour = in_turn(right()[:-40], rest[:cut])
            server.asked.clear()
            assert fetch(tmp_path / str(cut), server) == CONTENT
            assert len(server.asked) == 3


def a_byte(ask):
    """The right answer, but cut after one byte."""
    return [right(ask.start)[: 1 - SIZE + (ask.start or 0) or None]]


def test_a_cut_after_every_byte(tmp_path):
    """A hundred cuts are no reason to give up while each answer brings something."""
    with Server(a_byte) as server:
        assert fetch(tmp_path, server) == CONTENT
    assert [ask.start for ask in server.asked] == [None, *range(1, 100)]


def test_requests_in_vain_are_counted_in_a_row(tmp_path):
    with Server(in_turn(b"", b"", right()[:-40], b"", b"")) as server:
        assert fetch(tmp_path, server) == CONTENT
    assert [ask.start for ask in server.asked] == [None, None, None, 60, 60, 60]


@pytest.mark.parametrize(
    ("behaviour", "requests", "reason"),
    [
        (always(b""), 3, "without response"),
        (always(head()), 3, "0 of 100 bytes"),
        (lambda ask: [right(ask.start)[:-SIZE] if ask.start is None else range_head(ask.start)], 3, "0 of 100 bytes"),
        (lambda ask: [right()[:-40] if ask.start is None else range_head(ask.start)], 4, "60 of 100 bytes"),
        (always(right()[:-40]), 4, "60 of 100 bytes"),  # it knows no Range, and ends at the same byte each time
        (lambda ask: [right()[:-40] if ask.start is None else head(416)], 4, "416"),
        (lambda ask: [head() + CONTENT[: 60 - 10 * (ask.number % 2)]], 4, "60 of 100 bytes"),
        (always(b"SSH-2.0-OpenSSH\r\n"), 3, "SSH"),
        (always(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000), 3, "100 headers"),
        (always(head(204)), 3, "0 of 100 bytes"),
        (always(head(416)), 3, "416"),
        (always(head() + PAGE), 4, "43 of 100 bytes"),
    ],
)
def test_no_endless_loop_without_progress(tmp_path, behaviour, requests, reason):
    with Server(behaviour) as server:
        assert re.search(f"3 requests in vain .*{reason}", failure(tmp_path, server))
    assert len(server.asked) == requests


def reset(connection, address) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("refuse", [reset, lambda connection, address: None])
# If the reset comes early, Python's own ssl leaves its half-made socket to be closed when it is forgotten, and warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_connection_closed_before_anything_is_said(tmp_path, scheme, refuse):
    with Server(honest) as server:
        server.url = server.url.replace("http", scheme)
        server.server.verify_request = lambda *connection: server.asked.append(None) or refuse(*connection)
        assert "3 requests in vain" in failure(tmp_path, server)
    assert len(server.asked) == 3


@pytest.mark.parametrize("fault", [ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError])
def test_a_cut_is_no_reason_to_leave_a_mirror_at_once(tmp_path, monkeypatch, fault):
    """Whichever way Python reports the end of a connection, which depends on when it comes."""
    asked = []

    class Opener:
        def open(self, *_, **__):
            asked.append(None)
            raise urllib.error.URLError(fault("cut"))

    monkeypatch.setattr(module, "_opener", lambda clock: Opener())
    with Server(honest) as server:
        assert "3 requests in vain" in failure(tmp_path, server)
    assert len(asked) == 3


def test_a_server_without_range_starts_anew(tmp_path):
    with Server(in_turn(right()[:-40], right()[:-30], right())) as server:
        assert fetch(tmp_path, server) == CONTENT
    assert [ask.start for ask in server.asked] == [None, 60, 70]


def test_a_server_whose_file_has_no_such_range_starts_anew(tmp_path):
    with Server(in_turn(right()[:-40], head(416, Content_Range="bytes */50"))) as server:
        assert fetch(tmp_path, server) == CONTENT
    assert [ask.start for ask in server.asked] == [None, 60, None]


def test_less_than_asked_for_is_continued(tmp_path):
    """A 206 may hold fewer bytes than were asked for; and it may not say how many there are in all."""
    part = head(206, Content_Range="bytes 60-69/*", Content_Length=10) + CONTENT[60:70]
    with Server(in_turn(right()[:-40], part)) as server:
        assert fetch(tmp_path, server) == CONTENT
    assert [ask.start for ask in server.asked] == [None, 60, 70]


# -------------------------------------------------------------------------------------------------------- wrong answers


def endless(ask):
    yield head()
    while True:
        yield bytes(5000)


def redirect(where: str, status=302):
    return always(head(status, Location=where))


def continued_with(answer: bytes):
    return lambda ask: [right()[:-40] if ask.start is None else answer]


WRONG = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
BAD = {
    "a flipped bit": (always(right(content=WRONG)), "not the file"),
    "a page": (always(head(Content_Length=len(PAGE), Content_Type="text/html") + PAGE), "offers 43 bytes of text/html"),
    "a large page": (always(head() + PAGE * 10), "not the file"),
    "another file": (always(right(content=CONTENT + b"more")), "offers 104 bytes"),
    "a shorter file": (always(right(content=CONTENT[:-1])), "offers 99 bytes"),
    "an endless body": (endless, "100 bytes that are not the file"),
    "an endless chunk": (always(head(Transfer_Encoding="chunked") + b"-1\r\n" + bytes(10**6)), "not the file"),
    "a wrong length": (always(head(Content_Length=7) + CONTENT), "offers 7 bytes"),
    "no number as a length": (always(head(Content_Length="many") + CONTENT), "offers many bytes"),
    "403": (always(head(403)), "403"),
    "404": (missing, "404"),
    "500": (always(head(500) + PAGE), "500"),
    "304": (always(head(304)), "304"),
    "an error with an endless page": (lambda ask: itertools.chain([head(500)], endless(ask)), "500"),
    "another range": (continued_with(range_head(59) + CONTENT[59:]), "from 60 of 100, it sent 'bytes 59-99/100'"),
    "no range": (continued_with(head(206) + CONTENT[60:]), "it sent 'no range'"),
    "a range of another file": (continued_with(range_head(60, total=101) + CONTENT[60:]), "'bytes 60-99/101'"),
    "a range nobody asked for": (always(right(60)), "from 0 of 100"),
    "a wrong continuation": (continued_with(range_head(60) + bytes(40)), "not the file"),
    "a failing continuation": (continued_with(head(503)), "503"),
    "a redirect to itself": (redirect("/"), "infinite loop"),
    "redirects without end": (lambda ask: [head(302, Location=f"/{ask.number}")], "infinite loop"),
    "a redirect to a file": (redirect("file:///etc/passwd"), "not allowed"),
    "a redirect to ftp": (redirect("ftp://127.0.0.1/file.gz"), "not an address"),
    "a redirect to no port": (redirect("http://127.0.0.1:99999/"), "not an address"),
    "a redirect to no host": (redirect("http://[/"), "IPv6"),
    "a redirect to nowhere": (always(head(302)), "302"),
    "a reason for the terminal": (always(b"HTTP/1.1 500 \x1b[2J\x07\r\n\r\n"), r"500: \[2J$"),
    "a long reason": (always(b"HTTP/1.1 500 " + b"word " * 1000 + b"\r\n\r\n"), r"500: (word ){50,60}\[\.\.\.\]$"),
}


@pytest.mark.parametrize(("behaviour", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_mirror_is_named_and_the_next_one_is_tried(tmp_path, behaviour, reason):
    with Server(behaviour) as bad, Server(missing) as none, Server(honest) as good:
        lines = failure(tmp_path / "a", bad, none).splitlines()
        assert lines[0] == "could not get file.gz from any mirror:"
        assert re.search(rf"^  {bad.url}: .*{reason}", lines[1])
        assert "in vain" not in lines[1]  # it was not asked again
        assert lines[2:] == [f"  {none.url}: HTTP Error 404: Reason"]
        assert fetch(tmp_path / "b", bad, good) == CONTENT
    assert [ask.start for ask in good.asked] == [None]  # nothing of the bad one's is kept
    assert len(bad.asked) <= 2 * 11  # urllib gives up after ten redirects


def test_a_proxy_of_the_environment_is_used(tmp_path, monkeypatch):
    with Server(honest) as proxy, Server(honest) as mirror:
        monkeypatch.setenv("http_proxy", proxy.url)
        mirror.url = "http://mirror.invalid/mnist/"
        assert fetch(tmp_path, mirror) == CONTENT
    assert [ask.path for ask in proxy.asked] == ["http://mirror.invalid/mnist/file.gz"]


def test_nobody_there(tmp_path):
    with Server(honest) as server:
        pass
    assert "refused" in failure(tmp_path, server)


def test_without_a_mirror_nothing_is_begun(tmp_path, capsys):
    assert "none was given" in failure(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert capsys.readouterr().err == ""  # no bar


@settings(max_examples=60)
@given(st.data())
def test_whatever_the_servers_do(data):
    """Any sequence of faults: a verified file or an error, and nothing else in the directory. Cuts alone: the file."""
    places = st.integers(0, SIZE)
    cuts = st.builds(
        lambda kind, n: lambda start: kind(start)[:n], st.sampled_from([right, chunked]), st.integers(40, 200)
    )
    statuses = st.builds(lambda status: lambda start: head(status), st.sampled_from([200, 206, 302, 403, 416, 500]))
    flips = st.builds(lambda n: lambda start: right(start, CONTENT[:n] + b"\0" + CONTENT[n + 1 :]), places)
    ranges = st.builds(lambda n, m: lambda start: range_head(n) + CONTENT[m:], places, places)
    junk = st.builds(lambda raw: lambda start: raw, st.binary(max_size=50))
    without_range = st.builds(lambda n: lambda start: head() + CONTENT[:n], places)
    faults = st.lists(st.one_of(cuts, statuses, flips, ranges, junk, without_range), max_size=6)
    plans = data.draw(st.lists(faults, min_size=1, max_size=2))
    plans.append(data.draw(st.lists(cuts, max_size=2)))

    def behaviour(plan):
        return lambda ask: [plan[ask.number](ask.start) if ask.number < len(plan) else right(ask.start)]

    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(behaviour(plan))) for plan in plans]
        try:
            assert fetch(Path(directory, "all but the last"), *servers[:-1]) == CONTENT
        except FileNotFoundError:
            assert not list(Path(directory, "all but the last").iterdir())
        for server in servers:
            assert len(server.asked) <= 7
            server.asked.clear()
        assert fetch(Path(directory, "all"), *servers) == CONTENT


# ----------------------------------------------------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307])
def test_redirects_are_followed_also_when_continuing(tmp_path, status):
    """Their own bodies are not waited for: this one has no end."""

    def behaviour(ask):
        if ask.path == "/file.gz":
            return itertools.chain([head(status, Location="/elsewhere")], endless(ask))
        return [right()[:-40] if ask.start is None else right(ask.start)]

    with Server(behaviour) as server, Server(redirect(server.url + "file.gz")) as first:
        assert fetch(tmp_path, first) == CONTENT
    assert [ask.start for ask in server.asked] == [None, None, 60, 60]


def test_https_is_not_left_for_http(tmp_path, monkeypatch):
    """With "https" spoken in the clear here: which way a redirect may lead depends on the addresses alone."""
    monkeypatch.setattr(http.client, "HTTPSConnection", http.client.HTTPConnection)
    with Server(honest) as plain:
        secure_url = plain.url.replace("http:", "https:")
        with Server(redirect(secure_url)) as other:
            assert fetch(tmp_path / "upwards", other) == CONTENT
            plain.asked.clear()
            other.url = other.url.replace("http:", "https:")
            assert fetch(tmp_path / "https to https", other) == CONTENT
            plain.asked.clear()
            other.behaviour = redirect(plain.url)
            assert f"redirects from https to {plain.url}" in failure(tmp_path / "downwards", other)
            assert plain.asked == []


# -------------------------------------------------------------------------------------------------------------- stalls


def drip(whole: bytes) -> Iterator[bytes]:
    """A byte now and then: each comes before the timeout of a socket."""
    for byte in whole:
        yield bytes([byte])
        time.sleep(0.3)


def pause() -> Iterator[bytes]:
    time.sleep(5)
    yield b""


def forever(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece
        time.sleep(0.01)


def slowly_a_byte(ask):
    time.sleep(0.3)
    return a_byte(ask)


STALLS = {
    "no answer": lambda ask: pause(),
    "no last byte": lambda ask: itertools.chain([right()[:-1]], pause()),
    "no continuation": lambda ask: [right()[:-40]] if ask.start is None else pause(),
    "dripping headers": lambda ask: drip(right()),
    "a dripping body": lambda ask: itertools.chain([right()[:-SIZE]], drip(CONTENT)),
    "a dripping half": lambda ask: itertools.chain([right()[:-50]], drip(CONTENT[50:])),
    "a dripping chunk's size": lambda ask: itertools.chain([head(Transfer_Encoding="chunked")], drip(b"0" * 100)),
    "a byte an answer": slowly_a_byte,
    "100 Continue without end": lambda ask: forever(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "trailers without end": lambda ask: itertools.chain(
        [head(Transfer_Encoding="chunked") + b"1\r\nx\r\n0\r\n"], forever(b"a: b\r\n")
    ),
}


def test_a_stalling_mirror_is_left_for_the_next_one(tmp_path, monkeypatch):
    """All of them side by side, to wait but once."""
    monkeypatch.setattr(module, "STALL_SECONDS", 2)
    monkeypatch.setattr(module, "STALL_BYTES", 10)

    def message_after(stall: str) -> str:
        with Server(STALLS[stall]) as slow, Server(missing) as next_one:
            return failure(tmp_path / stall, slow, next_one)

    with ThreadPoolExecutor(len(STALLS)) as pool:
        messages = dict(zip(STALLS, pool.map(message_after, STALLS), strict=True))
    for stall, message in messages.items():
        assert re.search(r"1:\d+/: timed out after \d+ of 100 bytes\n.*/: HTTP Error 404", message), stall


def test_the_end_of_an_answer_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALL_SECONDS", 2)
    with Server(lambda ask: itertools.chain([chunked()[:-7]], pause())) as server:
        assert fetch(tmp_path, server) == CONTENT


def test_slow_but_steady_is_no_stall(tmp_path, monkeypatch):
    """It takes longer than STALL_SECONDS in all, but each STALL_BYTES come in time."""
    monkeypatch.setattr(module, "STALL_SECONDS", 2)
    monkeypatch.setattr(module, "STALL_BYTES", 10)

    def behaviour(ask):
        yield head()
        for i in range(0, SIZE, 10):
            yield CONTENT[i : i + 10]
            time.sleep(0.3)

    with Server(behaviour) as server:
        assert fetch(tmp_path, server) == CONTENT
    assert len(server.asked) == 1


# ---------------------------------------------------------------------------------------------------------------- disk


def test_a_directory_that_can_not_be_made(tmp_path):
    """That is no mirror's fault: none is asked."""
    (tmp_path / "file").write_text("in the way")
    with Server(honest) as server:
        message = failure(tmp_path / "file" / "cache", server, error=OSError)
    assert message.startswith(f"can't write to {tmp_path / 'file' / 'cache'}: ")
    assert server.asked == []


def test_a_directory_that_can_not_be_written(tmp_path, monkeypatch):
    """Permissions don't bind the superuser, and this test should hold for him as well."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with Server(honest) as server:
        assert f"can't write to {tmp_path}: [Errno {errno.EROFS}]" in failure(tmp_path, server, error=OSError)
    assert server.asked == []


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "file.gz").mkdir()
    with Server(honest) as server, pytest.raises(OSError, match=r"can't write to .*file\.gz"):
        fetch(tmp_path, server)
    assert [path.name for path in tmp_path.iterdir()] == ["file.gz"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_disk_full_or_interrupted_while_writing(tmp_path, monkeypatch, moment, fault):
    """All there is by then has a temporary name. The next mirror would not help: it is not asked."""

    def fail(*_):
        assert [(path.suffix, path.stat().st_size) for path in tmp_path.iterdir()] == [(".part", SIZE)]
        raise fault

    monkeypatch.setattr(os, moment, fail)
    with Server(honest) as server, Server(honest) as next_one:
        message = failure(tmp_path, server, next_one, error=type(fault))
    assert message == (f"can't write to {tmp_path}: {fault}" if isinstance(fault, OSError) else "")
    assert (len(server.asked), len(next_one.asked)) == (1, 0)


def test_leftovers_of_killed_processes_go_when_they_are_old(tmp_path):
    old, young, other = (tmp_path / name for name in (".file.gz.abc.part", ".file.gz.def.part", ".other.gz.abc.part"))
    for path in (old, young, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (0, time.time() - 7200))
    with Server(honest) as server:
        download("file.gz", SIZE, SHA256, tmp_path, [server.url])
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, other.name, "file.gz"]


# ----------------------------------------------------------------------------------------------------------- processes


def start(directory: Path, server: Server, first="") -> subprocess.Popen:
    """The download in a process of its own, which begins with the statement `first`."""
    arguments = ("file.gz", SIZE, SHA256, str(directory), [server.url])
    code = "{};import pathlib;from tinycnn.download import download;download({!r},{},{!r},pathlib.Path({!r}),{!r})"
    command = [sys.executable, "-c", code.format(first or "pass", *arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once(tmp_path):
    """Neither is answered before both have asked."""
    both = threading.Barrier(2, timeout=20)

    def behaviour(ask):
        both.wait()
        yield right()[:-40]
        time.sleep(0.2)
        yield right()[-40:]

    with Server(behaviour) as server:
        processes = [start(tmp_path, server) for _ in range(2)]
        for process in processes:
            error = process.communicate(timeout=30)[1]
            assert process.returncode == 0, error
    assert len(server.asked) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file.gz"]
    assert (tmp_path / "file.gz").read_bytes() == CONTENT


@pytest.mark.skipif(sys.platform == "win32", reason="other signals")
def test_a_process_that_is_stopped_leaves_nothing(tmp_path):
    """Interrupted or killed, in the middle of the file."""
    half_sent = threading.Event()
    # A shell that runs the tests in the background has told them, and so their processes, to ignore interrupts.
    heed_interrupts = "import signal;signal.signal(signal.SIGINT,signal.default_int_handler)"

    def behaviour(ask):
        yield right()[:-40]
        half_sent.set()
        yield from pause()

    for with_signal in (signal.SIGINT, signal.SIGKILL):
        half_sent.clear()
        with Server(behaviour) as server:
            process = start(tmp_path, server, heed_interrupts)
            assert half_sent.wait(timeout=20)
            process.send_signal(with_signal)
            error = process.communicate(timeout=20)[1]
        assert process.returncode == -with_signal, error
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
def test_a_disk_that_is_full_in_the_middle_of_the_file(tmp_path):
    """Here it is a limit for the size of files, which the system enforces like the end of the disk."""
    limit = "import resource;resource.setrlimit(resource.RLIMIT_FSIZE,(50,50))"
    with Server(honest) as server:
        error = start(tmp_path, server, limit).communicate(timeout=30)[1]
    assert f"OSError: can't write to {tmp_path}: [Errno {errno.EFBIG}]" in error
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- addresses, progress


@pytest.mark.parametrize("url", ["", "mnist", "//host/", "ftp://host/", "file:///tmp", "http://", "http:///x",
                                 "http://host:99999/", "http://host:x/", "http://[/"])  # fmt: skip
def test_what_is_no_address_of_a_mirror(url):
    with pytest.raises(ValueError, match=re.escape(repr(url))):
        check_address(url)


@pytest.mark.parametrize("url", ["http://host", "https://host:8443/a/b/", "HTTP://127.0.0.1/", "http://[::1]:80/"])
def test_what_is_one(url):
    check_address(url)


def test_the_progress_bar_goes_on_over_a_cut_and_back_for_a_new_beginning(tmp_path, monkeypatch):
    positions = []

    class Bar(module.tqdm):
        def update(self, n):
            super().update(n)
            positions.append(self.n)

    monkeypatch.setattr(module, "tqdm", Bar)
    with Server(in_turn(right()[:-40], right(60)[:-10], right()[:-70])) as server:
        assert fetch(tmp_path, server) == CONTENT
    assert positions == [60, 90, 30, 100]
