"""The drawing page's server: one static page and a few questions about a drawing, for the network to answer.

    GET  /           the page (tinycnn/page.html)
    GET  /describe   the network: its layers, what each sees, the first convolution's weights
    GET  /sample     a random test image and its label
    POST /look       {"ink": rows of numbers 0 … 255, "maps": true, "saliency": true or a class}
                     -> probabilities and what the network saw; maps and saliency only if asked for
    POST /teach      {"ink": …, "label": 7, "steps": 5}  -> the probabilities after each step of gradient descent
    POST /reset      forget what was taught

`Server` gives every client a thread, `handler` speaks HTTP; the network (`tinycnn/studio.py`) works in a thread of its
own, on one question after the other.

What this file is not: a web server for more than one person on this machine.
"""

import json
import socket
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import isfinite
from pathlib import Path
from time import monotonic

import numba

from tinycnn.studio import Refused, Studio

PAGE = Path(__file__).parent / "page.html"
LARGEST_HEAD, LARGEST_BODY = 1 << 16, 1 << 17  # bytes
SILENCE, PATIENCE = 5, 30  # seconds that a client may pause within a request, and take for a whole one
MOST_WAITED_FOR = 500  # clients that have a connection but have not sent a whole request


def make_server(studio: Studio, port: int = 0) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, not started yet; port 0 takes a free one. Raises OSError if the port is not free."""
    return Server(("127.0.0.1", port), handler(studio))


class Server(ThreadingHTTPServer):
    """A thread for each client. Who keeps it waiting is dropped: after PATIENCE, or when too many others come."""

    request_queue_size = 1024  # clients that may knock at the same moment
    allow_reuse_address = sys.platform != "win32"  # where two servers could then have the same port

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.waited_for: dict[socket.socket, float] = {}  # and since when; those who came first are first

    def service_actions(self):
        """Called after each new client, and twice a second."""
        waited_for = self.waited_for.copy()  # other threads change it
        for place, (client, since) in enumerate(waited_for.items(), start=1):
            if place <= len(waited_for) - MOST_WAITED_FOR or monotonic() - since > PATIENCE:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RD)  # to its thread it looks as if the client had ended

    def handle_error(self, request, client_address):
        """Called when a client's thread fails; to go away is no fault of the client's."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def handler(studio: Studio) -> type[BaseHTTPRequestHandler]:
    """The class that answers requests about this studio."""
    page = PAGE.read_bytes()
    questions = {"/describe": studio.describe, "/sample": studio.sample}
    orders = {"/look": studio.look, "/teach": studio.teach, "/reset": studio.reset}
    # One image is too little work for several of Numba's threads: on a busy machine they would wait for each other.
    network = ThreadPoolExecutor(1, initializer=numba.set_num_threads, initargs=(1,))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = default_request_version = "HTTP/1.1"
        requestline = command = request_version = ""  # until there is one
        timeout = SILENCE
        disable_nagle_algorithm = True  # or an answer waits 40 ms for the client to confirm its headers

        def handle_one_request(self):
            self.server.waited_for[self.connection] = monotonic()
            self.command = ""  # not that of the request before
            try:
                super().handle_one_request()
            except Refused as refusal:
                self._refuse(refusal)

        def parse_request(self) -> bool:
            """Take in the whole request with its body. Raises Refused."""
            if not str(self.raw_requestline, "latin-1").split():
                raise Refused("the request is empty")
            try:
                self._read_head()
                self._check_sender()
                self._read_body()
            except TimeoutError:
                raise Refused("the request did not come in time", 408) from None
            self.server.waited_for.pop(self.connection, None)
            return True

        def finish(self):
            self.server.waited_for.pop(self.connection, None)
            super().finish()

        def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
            """How BaseHTTPRequestHandler refuses; its message repeats what the client said."""
            status = HTTPStatus(405 if code == 501 else code)  # a method that we don't know
            raise Refused(status.description or status.phrase, status)

        def _read_head(self) -> None:
            stream, self.rfile = self.rfile, _Head(self.rfile)
            try:
                super().parse_request()
            finally:
                self.rfile = stream

        def _check_sender(self) -> None:
            """Refuses what another page, or one under another name for this machine, asks."""
            port = self.server.server_address[1]
            end = "" if port == 80 else f":{port}"  # which a browser leaves out
            own = ["127.0.0.1" + end, "localhost" + end]
            hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
            if self.headers.defects:
                raise Refused("the headers make no sense")
            if len(hosts) != 1 or hosts[0].lower() not in own or not {*origins} <= {f"http://{name}" for name in own}:
                raise Refused("only the page itself may ask", 403)

        def _read_body(self) -> None:
            length = " and ".join(self.headers.get_all("Content-Length", [] if self.command == "POST" else ["0"]))
            if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
                raise Refused("the request must say its length", 411)
            if len(length) > 9 or int(length) > LARGEST_BODY:
                raise Refused(f"a request may have {LARGEST_BODY} bytes", 413)
            self.body = self.rfile.read(int(length))
            if len(self.body) < int(length):
                raise Refused("the request is shorter than it says")

        def do_GET(self):
            if self.path == "/":
                self._send(200, page, "text/html; charset=utf-8")
            else:
                self._answer(questions)

        do_HEAD = do_GET

        def do_POST(self):
            self._answer(orders)

        def _answer(self, known: dict) -> None:
            """Send what the studio says. Raises Refused."""
            if self.path not in known:
                raise Refused("there is no such page", 404)
            ask = known[self.path]
            try:
                answer = network.submit(lambda: json.dumps(ask(_parsed(self.body)), allow_nan=False).encode()).result()
            except Refused:
                raise
            except Exception:  # to the terminal, never to the client
                traceback.print_exc()
                raise Refused("the network could not answer", 500) from None
            self._send(200, answer, "application/json")

        def _refuse(self, refusal: Refused) -> None:
            """Say why, and close: after half a request nobody knows where another begins."""
            self.close_connection = True
            self._send(refusal.status, json.dumps({"error": str(refusal)}).encode(), "application/json")
            self.connection.shutdown(socket.SHUT_WR)
            self.server.waited_for[self.connection] = now = monotonic()
            while monotonic() < now + self.timeout and self.connection.recv(LARGEST_BODY):
                pass  # to close on what a client is still sending would take the answer away from it

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            headers = {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Connection": "close" if self.close_connection else "keep-alive",
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data:; frame-ancestors 'none'",
            }
            if status == 405:
                headers["Allow"] = "GET, HEAD, POST"
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def version_string(self) -> str:
            """For the header Server: no versions."""
            return "tinycnn"

        def log_message(self, format, *arguments):
            """Say nothing about ordinary requests, nor about clients that go away."""

    return Handler


class _Head:
    """A client's stream as far as the headers go, read line by line."""

    def __init__(self, stream):
        self.stream, self.left = stream, LARGEST_HEAD

    def readline(self, size: int) -> bytes:
        line = self.stream.readline(size)
        self.left -= len(line)
        if not line:
            raise Refused("the request ends within its headers")
        if self.left < 0:
            raise Refused("the headers are too long", 431)
        return line


def _parsed(body: bytes) -> dict:
    """The JSON object of a request. Raises Refused."""

    def number(text: str) -> float:
        if not isfinite(value := float(text)):
            raise Refused("numbers must be finite")
        return value

    def constant(text: str):
        raise Refused(f"{text} is not a number")

    try:
        question = json.loads(body or b"{}", parse_float=number, parse_constant=constant)
    except RecursionError:
        raise Refused("the request is nested too deeply") from None
    except ValueError as error:
        raise error if isinstance(error, Refused) else Refused("the request is not JSON") from None
    if not isinstance(question, dict):
        raise Refused("the request must be a JSON object")
    return question
