"""The drawing page's server: one static page and a few questions about a drawing, answered by the network.

    GET  /           the page (tinycnn/page.html)
    GET  /describe   the network: its layers, what each sees, the first convolution's weights
    GET  /sample     a random test image and its label
    POST /look       {"ink": rows of numbers 0 … 255, "maps": true, "saliency": true or a class}
                     -> probabilities and what the network saw; maps and saliency only if asked for
    POST /teach      {"ink": …, "label": 7, "steps": 5}  -> the probabilities after each step of gradient descent
    POST /reset      forget what was taught

`Studio` holds the network and answers; `handler` speaks HTTP. What this file is not: a web server for more than one
person on this machine.
"""

import base64
import json
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import isfinite
from pathlib import Path

import numpy as np

from tinycnn.digits import NoDigitFound, to_mnist
from tinycnn.explain import feature_maps, for_looking, receptive_step, saliency
from tinycnn.layers import Conv2D
from tinycnn.loss import SoftmaxCrossEntropy
from tinycnn.model import Sequential
from tinycnn.optim import SGD

PAGE = Path(__file__).parent / "page.html"
LARGEST_BODY = 1 << 16  # bytes
LARGEST_SIDE = 160  # of a drawing, in pixels
MOST_STEPS = 50


class Refused(ValueError):
    """A request that makes no sense; the text says why."""


class Studio:
    """A network that looks at drawings, and can be taught. One question at a time."""

    def __init__(self, model: Sequential, test_set: tuple[np.ndarray, np.ndarray] | None = None, rate: float = 0.02):
        self.original, self.test_set, self.rate = model, test_set, rate
        self.lock, self.random = threading.Lock(), np.random.default_rng()
        self.model = for_looking(model)

    def reset(self, question: dict) -> dict:
        """Back to the network as it was loaded."""
        with self.lock:
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
        try:
            seen = to_mnist(_ink(question))
        except NoDigitFound as nothing:
            return {"digit": None, "message": str(nothing)}
        with self.lock:
            return self._look(seen, question)

    def _look(self, seen: np.ndarray, question: dict) -> dict:
        probabilities = self.model.predict_proba(seen[None])[0]
        digit = int(probabilities.argmax())
        answer = {"digit": digit, "probabilities": probabilities.astype(float).round(5).tolist(), "seen": seen.tolist()}
        if question.get("maps"):
            answer["maps"] = [_packed(name, values) for name, values in feature_maps(self.model, seen)]
        wanted = question.get("saliency", False)
        if wanted is not False and wanted is not None:
            label = digit if wanted is True else _whole(wanted, "saliency", len(probabilities) - 1)
            gradient = saliency(self.model, seen, label).astype(float)
            answer["saliency"] = {
                "label": label,
                "gradient": (gradient / (np.abs(gradient).max() or 1)).round(3).tolist(),
            }
        return answer

    def teach(self, question: dict) -> dict:
        """Some steps of gradient descent on this one drawing, until the answer is the label."""
        try:
            seen = to_mnist(_ink(question))
        except NoDigitFound as nothing:
            raise Refused(str(nothing)) from None
        with self.lock:
            classes = self.model.output_shapes[-1][0]
            label = _whole(question.get("label"), "label", classes - 1)
            steps = _whole(question.get("steps", 5), "steps", MOST_STEPS)
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

    def _probabilities(self, seen: np.ndarray) -> list[float]:
        return self.model.predict_proba(seen[None])[0].astype(float).round(5).tolist()


def _ink(question: dict) -> np.ndarray:
    """The drawing as an array. Raises Refused unless it is a rectangle of numbers from 0 to 255."""
    rows = question.get("ink")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise Refused("ink must be a list of rows of numbers")
    if len(rows) > LARGEST_SIDE or len({len(row) for row in rows}) != 1 or not 1 <= len(rows[0]) <= LARGEST_SIDE:
        raise Refused(f"ink must be a rectangle of at most {LARGEST_SIDE} × {LARGEST_SIDE} numbers")
    if not all(type(n) in (int, float) and 0 <= n <= 255 for row in rows for n in row):
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
    """A server on 127.0.0.1, not started yet; port 0 takes a free one."""
    server = ThreadingHTTPServer(("127.0.0.1", port), handler(studio))
    server.daemon_threads = True
    return server


def handler(studio: Studio) -> type[BaseHTTPRequestHandler]:
    """The class that answers requests about this studio."""
    page = PAGE.read_bytes()
    questions = {"/describe": studio.describe, "/sample": studio.sample}
    orders = {"/look": studio.look, "/teach": studio.teach, "/reset": studio.reset}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10  # seconds that a client may keep silent
        disable_nagle_algorithm = True  # or an answer waits 40 ms for the client to confirm its headers

        def do_GET(self):
            if self._is_foreign():
                return
            if self.path == "/":
                self._send(200, page, "text/html; charset=utf-8")
            elif self.path in questions:
                self._answer(questions[self.path])
            else:
                self._refuse(404, "there is no such page")

        def do_POST(self):
            if self._is_foreign():
                return
            if self.path not in orders:
                self._refuse(404, "there is no such page")
                return
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
                self._refuse(411, "the request must say its length")
            elif int(length) > LARGEST_BODY:
                self._refuse(413, f"a request may have {LARGEST_BODY} bytes")
            else:
                body = self.rfile.read(int(length))
                self._answer(lambda: orders[self.path](_parsed(body)))

        def _is_foreign(self) -> bool:
            """Refuses what another page or another name for this machine asks."""
            port = self.server.server_address[1]
            own = {f"127.0.0.1:{port}", f"localhost:{port}"}
            origin = self.headers.get("Origin")
            foreign = self.headers.get("Host") not in own or (origin and origin not in {f"http://{o}" for o in own})
            if foreign:
                self._refuse(403, "only the page itself may ask")
            return bool(foreign)

        def _answer(self, question) -> None:
            try:
                self._send(200, json.dumps(question()).encode(), "application/json")
            except Refused as error:
                self._refuse(400, str(error))
            except Exception:  # to the terminal, never to the client
                traceback.print_exc()
                self._refuse(500, "the network could not answer")

        def _refuse(self, status: int, reason: str) -> None:
            self.close_connection = True
            self._send(status, json.dumps({"error": reason}).encode(), "application/json")

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            headers = {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data:; connect-src 'self'",
            }
            if self.close_connection:
                headers["Connection"] = "close"
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *arguments):
            """Say nothing about ordinary requests, nor about clients that go away."""

    return Handler


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
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, Refused) else Refused("the request is not JSON") from None
    if not isinstance(question, dict):
        raise Refused("the request must be a JSON object")
    return question
