"""The drawing page's server: one static page and a few questions about a drawing, answered by the network.

    GET  /           the page (tinycnn/page.html)
    GET  /describe   the network: its layers, what each sees, the first convolution's weights
    GET  /sample     a random test image and its label
    POST /look       {"ink": rows of numbers 0 … 255, "maps": true, "saliency": true or a class}
                     -> probabilities and what the network saw; maps and saliency only if asked for
    POST /teach      {"ink": …, "label": 7, "steps": 5}  -> the probabilities after each step of gradient descent
    POST /reset      forget what was taught

`Studio` holds the network and answers, `handler` speaks HTTP, `Server` gives every client a thread. The network works
in a thread of its own, on one question after the other.

What this file is not: a web server for more than one person on this machine.
"""

import base64
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
import numpy as np

from tinycnn.digits import NoDigitFound, to_mnist
from tinycnn.explain import feature_maps, for_looking, receptive_step, saliency
from tinycnn.layers import Conv2D
from tinycnn.loss import SoftmaxCrossEntropy
from tinycnn.model import Sequential
from tinycnn.optim import SGD

PAGE = Path(__file__).parent / "page.html"
LARGEST_HEAD = LARGEST_BODY = 1 << 16  # bytes
LARGEST_SIDE = 160  # of a drawing, in pixels
MOST_STEPS = 50
SILENCE, PATIENCE = 5, 30  # seconds that a client may pause within a request, and take for a whole one
MOST_WAITED_FOR = 500  # clients that have a connection but have not sent a whole request


class Refused(ValueError):
    """A request that makes no sense; the text says why."""

    def __init__(self, reason: str, status: int = 400):
        super().__init__(reason)
        self.status = status


class Studio:
    """A network that looks at drawings, and can be taught. For one thread: `handler` sees to it."""

    def __init__(self, model: Sequential, test_set: tuple[np.ndarray, np.ndarray] | None = None, rate: float = 0.02):
        self.original, self.test_set, self.rate = model, test_set, rate
        self.random = np.random.default_rng()
        self.model = for_looking(model)

    def reset(self, question: dict) -> dict:
        """Back to the network as it was loaded."""
        self.model = for_looking(self.original)
        return {}

    def describe(self) -> dict:
        """What the page needs to know about the network."""
        layers = []
        for number, (layer, shape) in enumerate(zip(self.model.layers, self.model.output_shapes, strict=True)):
            about = {"name": layer.name, "shape": shape, **layer.arguments()}
            if len(shape) == 3:
                about["sees"] = receptive_step(self.model, number)
            layers.append(about)
        first = next((i for i, layer in enumerate(self.model.layers) if isinstance(layer, Conv2D)), None)
        description = {"input_shape": self.model.input_shape, "layers": layers, "samples": self.test_set is not None}
        if first is not None:
            layer = self.model.layers[first]
            bias = layer.bias.value if layer.use_bias else np.zeros(layer.filters)
            description["first"] = {
                "layer": first,
                "weights": layer.weight.value.astype(float).round(5).tolist(),
                "bias": bias.astype(float).round(5).tolist(),
            }
        return description

    def sample(self) -> dict:
        """A random test image (28 × 28) and its label."""
        if self.test_set is None:
            raise Refused("there are no test images here: install tinycnn[mnist], or give --data-dir")
        images, labels = self.test_set
        number = int(self.random.integers(len(images)))
        return {"ink": images[number].tolist(), "label": int(labels[number])}

    def look(self, question: dict) -> dict:
        """What is in the drawing, and why."""
        self._check(question)
        try:
            seen = to_mnist(_ink(question))
        except NoDigitFound as nothing:
            return {"digit": None, "message": str(nothing)}
        return self._look(seen, question)

    def _look(self, seen: np.ndarray, question: dict) -> dict:
        probabilities = self.model.predict_proba(seen[None])[0]
        digit = int(probabilities.argmax())
        answer = {"digit": digit, "probabilities": probabilities.astype(float).round(5).tolist(), "seen": seen.tolist()}
        if question.get("maps"):
            answer["maps"] = [_packed(name, values) for name, values in feature_maps(self.model, seen)]
        wanted = question.get("saliency", False)
        if wanted is not False:
            label = digit if wanted is True else wanted
            gradient = saliency(self.model, seen, label).astype(float)
            answer["saliency"] = {
                "label": label,
                "gradient": (gradient / (np.abs(gradient).max() or 1)).round(3).tolist(),
            }
        return answer

    def teach(self, question: dict) -> dict:
        """Some steps of gradient descent on this one drawing, until the answer is the label."""
        self._check(question)  # before anything is changed
        label = _whole(question.get("label"), "label", self._classes() - 1)
        steps = _whole(question.get("steps", 5), "steps", MOST_STEPS)
        try:
            seen = to_mnist(_ink(question))
        except NoDigitFound as nothing:
            raise Refused(str(nothing)) from None
        loss, optimizer, course = SoftmaxCrossEntropy(), SGD(self.model.parameters(), self.rate), []
        for _ in range(steps):
            logits = self.model.forward(seen[None], training=True)
            value = loss.forward(logits, np.array([label]))
            self.model.parameter_gradients(loss.backward())
            optimizer.step()
            course.append({"loss": round(value, 5), "probabilities": self._probabilities(seen)})
            if course[-1]["probabilities"][label] > 0.9:
                break
        return {**self._look(seen, question), "course": course}

    def _check(self, question: dict) -> None:
        if type(question.get("maps", False)) is not bool:
            raise Refused("maps must be true or false")
        if type(wanted := question.get("saliency", False)) is not bool:
            _whole(wanted, "saliency", self._classes() - 1)

    def _classes(self) -> int:
        return self.model.output_shapes[-1][0]

    def _probabilities(self, seen: np.ndarray) -> list[float]:
        return self.model.predict_proba(seen[None])[0].astype(float).round(5).tolist()


def _ink(question: dict) -> np.ndarray:
    """The drawing as an array. Raises Refused unless it is a rectangle of numbers from 0 to 255."""
    rows = question.get("ink")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise Refused("ink must be a list of rows of numbers")
    if len(rows) > LARGEST_SIDE or len({len(row) for row in rows}) != 1 or not 1 <= len(rows[0]) <= LARGEST_SIDE:
        raise Refused(f"ink must be a rectangle of at most {LARGEST_SIDE} × {LARGEST_SIDE} numbers")
    if not all({*map(type, row)} <= {int, float} and min(row) >= 0 and max(row) <= 255 for row in rows):
        raise Refused("ink must hold numbers from 0 to 255")
    return np.array(rows, np.float32)


def _whole(value, name: str, largest: int) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise Refused(f"{name} must be a whole number from 0 to {largest}")
    return value


def _packed(name: str, values: np.ndarray) -> dict:
    """A layer's output as bytes from its lowest number (0) to its highest (255)."""
    low, high = float(values.min()), float(values.max())
    shades = np.round((values - low) * (255 / ((high - low) or 1))).astype(np.uint8)
    packed = base64.b64encode(shades.tobytes()).decode()
    return {"name": name, "shape": values.shape, "low": low, "high": high, "shades": packed}


def make_server(studio: Studio, port: int = 0) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, not started yet; port 0 takes a free one. Raises OSError if the port is not free."""
    return Server(("127.0.0.1", port), handler(studio))


class Server(ThreadingHTTPServer):
    """A thread for each client. Who keeps it waiting is dropped: after PATIENCE, or when too many others come."""

    request_queue_size = 1024  # clients that may knock at the same moment

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
    # One image is too little work to share out, and Numba's threads are a team for each thread that calls a kernel.
    network = ThreadPoolExecutor(1, initializer=numba.set_num_threads, initargs=(1,))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = default_request_version = "HTTP/1.1"
        requestline = command = request_version = ""  # until there is one
        timeout = SILENCE
        disable_nagle_algorithm = True  # or an answer waits 40 ms for the client to confirm its headers

        def handle_one_request(self):
            self.server.waited_for[self.connection] = monotonic()
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
            own = [f"{name}:{self.server.server_address[1]}" for name in ("127.0.0.1", "localhost")]
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
                self._answer(questions, lambda question: question())

        do_HEAD = do_GET

        def do_POST(self):
            self._answer(orders, lambda order: order(_parsed(self.body)))

        def _answer(self, known: dict, ask) -> None:
            """What `ask` finds out from the question of this path, as JSON. Raises Refused."""
            if self.path not in known:
                raise Refused("there is no such page", 404)
            question = known[self.path]
            try:
                answer = network.submit(lambda: json.dumps(ask(question), allow_nan=False).encode()).result()
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
