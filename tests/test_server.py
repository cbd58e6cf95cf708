"""The drawing page's server, asked over HTTP: what it answers, what it refuses, and whom it does not wait for."""

import base64
import contextlib
import gc
import http.client
import json
import re
import socket
import struct
import threading
import time
import tracemalloc

import load_server
import numba
import numpy as np
import pytest
from drawn_seven import SEVEN
from hypothesis import given
from hypothesis import strategies as st

from tinycnn import Sequential
from tinycnn import server as tinycnn_server
from tinycnn import studio as tinycnn_studio
from tinycnn.server import make_server
from tinycnn.studio import Studio
from tinycnn.trained import TRAINED

GOOD = {"ink": SEVEN.tolist()}


@pytest.fixture(scope="module")
def server():
    samples = np.full((3, 28, 28), 7, np.uint8), np.array([1, 2, 3])
    server = make_server(Studio(Sequential.load(TRAINED), samples))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(server):
    """ask(method, path, body, **headers) -> (status, answer)."""
    port = server.server_address[1]

    def ask(method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)  # the first saliency compiles kernels
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        is_json = response.getheader("Content-Type") == "application/json"
        return response.status, json.loads(content) if is_json else content.decode()

    yield ask
    ask("POST", "/reset", {})


def test_the_page_and_nothing_else(ask):
    status, page = ask("GET", "/")
    assert status == 200
    assert page.startswith("<!doctype html>")
    for path in ("/index.html", "/page.html", "/?a", "/look", "/x"):
        assert ask("GET", path)[0] == 404, path
    for path in ("/", "/describe", "/x"):
        assert ask("POST", path, {})[0] == 404, path


def test_look_answers_only_what_is_asked(ask):
    status, answer = ask("POST", "/look", {"ink": SEVEN.tolist()})
    assert status == 200
    assert answer["digit"] == 7
    assert set(answer) == {"digit", "probabilities", "seen"}
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-3)
    assert np.shape(answer["seen"]) == (28, 28)


def test_maps_and_saliency(ask):
    _, answer = ask("POST", "/look", {"ink": SEVEN.tolist(), "maps": True, "saliency": 3})
    assert answer["saliency"]["label"] == 3
    assert np.abs(answer["saliency"]["gradient"]).max() == 1
    model, seen = Sequential.load(TRAINED), np.array(answer["seen"], np.uint8)
    x = seen[None]
    for layer, packed in zip(model.layers, answer["maps"], strict=True):
        x = layer.forward(x)
        shades = np.frombuffer(base64.b64decode(packed["shades"]), np.uint8).reshape(packed["shape"])
        values = packed["low"] + (packed["high"] - packed["low"]) * shades / 255
        np.testing.assert_allclose(values, x[0], atol=0.003 * (packed["high"] - packed["low"]) + 1e-6)


def test_the_largest_drawing_is_looked_at(ask):
    side = tinycnn_studio.LARGEST_SIDE
    status, answer = ask("POST", "/look", {"ink": [[255] * side] * side, "maps": True, "saliency": True})
    assert (status, answer["digit"]) == (200, None)


def test_a_blank_drawing_has_no_digit(ask):
    status, answer = ask("POST", "/look", {"ink": [[0] * 20] * 20})
    assert status == 200
    assert answer["digit"] is None
    assert "no digit found" in answer["message"]


def test_teaching_changes_this_network_and_reset_returns_it(ask):
    _, before = ask("POST", "/look", {"ink": SEVEN.tolist()})
    status, taught = ask("POST", "/teach", {"ink": SEVEN.tolist(), "label": 4, "steps": 30})
    assert status == 200
    assert taught["digit"] == 4
    losses = [step["loss"] for step in taught["course"]]
    assert losses[-1] < losses[0]
    assert ask("POST", "/look", {"ink": SEVEN.tolist()})[1]["digit"] == 4
    ask("POST", "/reset", {})
    assert ask("POST", "/look", {"ink": SEVEN.tolist()})[1] == before


def test_describe_and_sample(ask):
    _, about = ask("GET", "/describe")
    assert about["input_shape"] == [28, 28, 1]
    assert [layer["shape"] for layer in about["layers"]][1] == [24, 24, 16]
    assert about["layers"][2]["sees"] == {"start": [0, 0], "step": [2, 2], "size": [6, 6]}
    assert np.shape(about["first"]["weights"]) == (5, 5, 1, 16)
    _, sample = ask("GET", "/sample")
    assert np.unique(sample["ink"]).tolist() == [7]
    assert sample["label"] in (1, 2, 3)


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/look", b"", "ink must be a list"),
        ("/look", b"{", "not JSON"),
        ("/look", b"\xff\xfe", "not JSON"),
        ("/look", b"[" * 50_000, "too deeply"),
        ("/look", b'{"a":' * 13_000, "too deeply"),
        ("/look", b'{"ink": [[' + b"9" * 60_000 + b"]]}", "not JSON"),  # Python reads no number of so many digits
        ("/look", b'{"ink": [[' + b"9" * 4_000 + b"]]}", "0 to 255"),
        ("/look", b'{"ink": [[1.' + b"9" * 60_000 + b']], "saliency": -1}', "saliency"),
        ("/look", json.dumps(GOOD)[:-1].encode(), "not JSON"),
        ("/look", json.dumps(GOOD).encode() + b"}", "not JSON"),
        ("/look", [1], "must be a JSON object"),
        ("/look", {"ink": 5}, "list of rows"),
        ("/look", {"ink": []}, "list of rows"),
        ("/look", {"ink": [[]]}, "rectangle"),
        ("/look", {"ink": [[1], [1, 2]]}, "rectangle"),
        ("/look", {"ink": [[0] * 161]}, "at most 160"),
        ("/look", {"ink": [[256]]}, "0 to 255"),
        ("/look", {"ink": [[-1]]}, "0 to 255"),
        ("/look", {"ink": [["1"]]}, "0 to 255"),
        ("/look", {"ink": [[True]]}, "0 to 255"),
        ("/look", b'{"ink": [[NaN]]}', "not a number"),
        ("/look", b'{"ink": [[-Infinity]]}', "not a number"),
        ("/look", b'{"ink": [[1e999]]}', "finite"),
        ("/look", {"ink": [[None]]}, "0 to 255"),
        ("/look", {"ink": [[1], None]}, "list of rows"),
        ("/look", {**GOOD, "maps": "yes"}, "maps must be"),
        ("/look", {**GOOD, "saliency": None}, "saliency must be"),
        ("/look", {**GOOD, "saliency": [1]}, "saliency must be"),
        ("/look", {**GOOD, "saliency": "\ud800"}, "saliency must be"),
        ("/look", {**GOOD, "saliency": 10}, "saliency must be"),
        ("/look", {**GOOD, "saliency": "x"}, "saliency must be"),
        ("/teach", GOOD, "label must be"),
        ("/teach", {**GOOD, "label": 10}, "label must be"),
        ("/teach", {**GOOD, "label": 1.0}, "label must be"),
        ("/teach", {**GOOD, "label": True}, "label must be"),
        ("/teach", {**GOOD, "label": 1, "steps": 51}, "steps must be"),
        ("/teach", {"ink": [[0]], "label": 1}, "no digit found"),
    ],
)
def test_nonsense_is_refused_with_a_reason(ask, path, body, reason):
    status, answer = ask("POST", path, body)
    assert status == 400
    assert reason in answer["error"]
    assert ask("POST", "/look", GOOD)[1]["digit"] == 7  # and it goes on


def test_what_is_refused_teaches_nothing(ask):
    _, before = ask("POST", "/look", GOOD)
    assert ask("POST", "/teach", {**GOOD, "label": 4, "steps": 50, "saliency": 10})[0] == 400
    assert ask("POST", "/look", GOOD)[1] == before


@pytest.fixture
def send(server):
    """send(bytes) -> all that comes back. PORT in them becomes the server's; after them the client says no more."""

    def send(*parts: bytes) -> bytes:
        with socket.create_connection(server.server_address, timeout=20) as client:
            for part in parts:
                client.sendall(part.replace(b"PORT", str(server.server_address[1]).encode()))
            client.shutdown(socket.SHUT_WR)
            return everything(client)

    return send


def everything(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


HOST = b"\r\nHost: 127.0.0.1:PORT"
GET = b"GET / HTTP/1.1"
POST = b"POST /look HTTP/1.1" + HOST
BODY = json.dumps(GOOD).encode()
END = b"\r\n\r\n"


def posted(length: bytes, body: bytes = BODY) -> bytes:
    return POST + b"\r\nContent-Length: " + length + END + body


HOSTILE = {
    "nothing but an empty line": (END, 400),
    "nothing but space": (b"\xa0\r\n", 400),
    "one word": (b"nonsense" + END, 400),
    "four words": (b"GET / / HTTP/1.1" + END, 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\n\x00", 400),
    "no such version": (b"GET / HTTP/x" + END, 400),
    "a version of many digits": (b"GET / HTTP/1." + b"1" * 5000 + END, 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM" + END, 505),
    "HTTP/0.9": (b"GET /" + END, 403),
    "a long line": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1" + END, 414),
    "a long header": (GET + HOST + b"\r\nX: " + b"a" * 70_000 + END, 431),
    "long headers": (GET + HOST + (b"\r\nX: " + b"a" * 10_000) * 7 + END, 431),
    "no end": (GET + HOST + b"\r\nX: a", 400),
    "many headers": (GET + HOST + b"\r\nX: a" * 120 + END, 431),
    "a header without a colon": (GET + HOST + b"\r\nnonsense\r\nOrigin: http://example.org" + END, 400),
    "a header before the first": (GET + b"\r\n nonsense" + HOST + END, 400),
    "bytes of no text": (GET + HOST + b"\r\nX: \x00\xff\x85" + END, 200),
    "an unknown method": (b"BREW / HTTP/1.1" + HOST + END, 405),
    "PUT": (b"PUT /look HTTP/1.1" + HOST + b"\r\nContent-Length: 2\r\n\r\n{}", 405),
    "OPTIONS": (b"OPTIONS * HTTP/1.1" + HOST + END, 405),
    "get": (b"get / HTTP/1.1" + HOST + END, 405),
    "another's address": (b"GET http://example.org/ HTTP/1.1" + HOST + END, 404),
    "no host": (GET + END, 403),
    "another host": (GET + b"\r\nHost: example.org" + END, 403),
    "another port": (GET + b"\r\nHost: 127.0.0.1" + END, 403),
    "two hosts": (GET + HOST + b"\r\nHost: example.org" + END, 403),
    "a folded host": (GET + b"\r\nHost: 127.0.0.1:PORT\r\n example.org" + END, 403),
    "a host that begins well": (GET + b"\r\nHost: 127.0.0.1:PORT.example.org" + END, 403),
    "a host in capitals": (GET + b"\r\nHOST: LOCALHOST:PORT" + END, 200),
    "our origin": (GET + HOST + b"\r\nOrigin: http://localhost:PORT" + END, 200),
    "two origins": (GET + HOST + b"\r\nOrigin: http://localhost:PORT\r\nOrigin: null" + END, 403),
    "an origin of another port": (GET + HOST + b"\r\nOrigin: http://localhost" + END, 403),
    "an origin of another scheme": (GET + HOST + b"\r\nOrigin: https://localhost:PORT" + END, 403),
    "an empty origin": (GET + HOST + b"\r\nOrigin: " + END, 403),
    "no length": (POST + END + BODY, 411),
    "an empty length": (posted(b""), 411),
    "a negative length": (posted(b"-5"), 411),
    "a signed length": (posted(b"+5"), 411),
    "two lengths in one": (posted(b"5, 5"), 411),
    "two lengths": (posted(b"5\r\nContent-Length: 5"), 411),
    "a length in other digits": (posted("²".encode("latin-1")), 411),
    "chunks": (POST + b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0" + END, 411),
    "chunks and a length": (posted(b"2\r\nTransfer-Encoding: chunked"), 411),
    "a length of many digits": (posted(b"9" * 5000), 413),
    "a byte too many": (posted(b"131073", b" " * 131073), 413),
    "megabytes": (posted(b"20000000", b" " * 20_000_000), 413),
    "a body shorter than it says": (posted(b"131072"), 400),
    "a body longer than it says": (posted(b"50"), 400),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests(send, ask, capsys, name):
    """An answer of the status, with a reason; what follows is not taken for another request; and the server goes on."""
    sent, status = HOSTILE[name]
    head, _, body = send(sent).partition(END)
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    if status != 200:
        assert b"\r\nConnection: close\r\n" in head
        assert b"\r\nContent-Type: application/json\r\n" in head
        assert json.loads(body)["error"]
    assert not re.search(rb"Traceback|Python|\.py\b", head + body)
    assert ask("POST", "/look", GOOD)[1]["digit"] == 7
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "path", ["/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "//etc/passwd", "/./page.html", "..", "/\0", "*"]
)
def test_there_is_no_way_to_other_files(send, path):
    for method in ("GET", "HEAD", "POST"):
        head = send(f"{method} {path} HTTP/1.1".encode() + HOST + b"\r\nContent-Length: 0" + END)
        assert head.startswith(b"HTTP/1.1 404 ")


def test_requests_in_a_row_and_the_first_nonsense_ends_it(send):
    ordinary = posted(str(len(BODY)).encode())
    answers = send(ordinary + GET + HOST + b"\r\nContent-Length: 2\r\n\r\n{}" + ordinary + b"nonsense" + END + ordinary)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200", b"200", b"400"]


def test_what_http_asks_for(send):
    head, _, body = send(b"HEAD / HTTP/1.1" + HOST + END).partition(END)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert int(re.search(rb"Content-Length: (\d+)", head)[1]) > 10_000
    assert body == b""
    assert b"\r\nAllow: GET, HEAD, POST\r\n" in send(b"PUT / HTTP/1.1" + HOST + END)
    assert send(posted(b"%d\r\nExpect: 100-continue" % len(BODY))).startswith(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200"
    )
    old = send(b"GET / HTTP/1.0\r\nConnection: keep-alive" + HOST + END + b"GET / HTTP/1.0" + HOST + END)
    assert re.findall(rb"HTTP/1.1 200|Connection: [-\w]+", old) == [
        b"HTTP/1.1 200",
        b"Connection: keep-alive",
        b"HTTP/1.1 200",
        b"Connection: close",
    ]


@given(st.integers(0, 200), st.integers(0, 20), st.binary(max_size=30))
def test_damaged_requests(server, place, less, more):
    """Part of an ordinary request replaced by anything: an answer, or an end; and no fault of ours."""
    request = posted(str(len(BODY)).encode()).replace(b"PORT", str(server.server_address[1]).encode())
    with socket.create_connection(server.server_address, timeout=20) as client:
        client.sendall(request[:place] + more + request[place + less :])
        client.shutdown(socket.SHUT_WR)
        assert re.match(rb"HTTP/1.1 [24]|HTTP/1.1 100|HTTP/1.1 505", everything(client))


BEGINNINGS = [b"", GET, GET + HOST, GET + HOST + b"\r\n", posted(b"50000", b""), posted(b"50000")]


def test_slow_clients_keep_nobody_waiting(server, ask, monkeypatch):
    """Whatever they have begun to say; and when they have been silent for a while they are told so, or left."""
    monkeypatch.setattr(server.RequestHandlerClass, "timeout", 2)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(server.server_address, timeout=20)) for _ in range(60)]
        for number, client in enumerate(slow):
            client.sendall(BEGINNINGS[number % len(BEGINNINGS)].replace(b"PORT", b"%d" % server.server_address[1]))
        assert ask("POST", "/look", GOOD)[1]["digit"] == 7
        assert len(client_threads()) >= len(slow)  # so nobody had been left yet
        answers = [everything(client) for client in slow]
    assert [answer[9:12] for answer in answers] == 10 * [b"", b"", b"408", b"408", b"408", b"408"]
    until(lambda: not client_threads() and not server.waited_for)


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "process_request" in thread.name]


def until(holds) -> None:
    """Wait for something that another thread does."""
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in ten seconds")


def test_a_request_in_drops_comes_to_an_end(server, monkeypatch):
    monkeypatch.setattr(tinycnn_server, "PATIENCE", 1)
    with socket.create_connection(server.server_address, timeout=0.1) as client:
        client.sendall(posted(b"50000").replace(b"PORT", b"%d" % server.server_address[1]))
        for _ in range(100):
            client.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                assert client.recv(12) == b"HTTP/1.1 400"
                return
    raise AssertionError("it could go on for ten seconds")


def test_of_too_many_idle_clients_the_first_are_left(server, ask, monkeypatch):
    monkeypatch.setattr(server.RequestHandlerClass, "timeout", 60)  # or all are left soon
    monkeypatch.setattr(tinycnn_server, "MOST_WAITED_FOR", 10)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(server.server_address, timeout=20)) for _ in range(40)]
        assert ask("POST", "/look", GOOD)[1]["digit"] == 7
        assert idle[0].recv(1) == b""
        until(lambda: len(server.waited_for) <= 10)
        idle[-1].sendall(GET + b"\r\nHost: 127.0.0.1:%d" % server.server_address[1] + END)
        assert idle[-1].recv(12) == b"HTTP/1.1 200"


def test_who_waits_for_the_network_is_not_waited_for(server, ask, monkeypatch):
    """However long it takes: many others may come meanwhile."""
    began, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(Studio, "_look", lambda *_: began.set() or {"waited": go_on.wait(20)})
    client = threading.Thread(target=ask, args=("POST", "/look", GOOD))
    client.start()
    try:
        assert began.wait(20)
        until(lambda: not server.waited_for)  # nor for those of the tests before
    finally:
        go_on.set()
        client.join()


def test_clients_that_go_away(server, ask, capsys):
    """Before, while and after they are answered: nothing is said about it, and nothing is left of them."""
    request = posted(b"%d" % len(BODY)).replace(b"PORT", b"%d" % server.server_address[1])
    for sent in (b"", request[:100], request[:-1], request, 20 * request, posted(b"131073"), b"nonsense" + END):
        for _ in range(5):
            with socket.create_connection(server.server_address, timeout=20) as client:
                client.sendall(sent)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, do not end
    until(lambda: not client_threads() and not server.waited_for)
    assert ask("POST", "/look", GOOD)[1]["digit"] == 7
    assert capsys.readouterr() == ("", "")


def test_nothing_of_a_request_stays(server, ask):
    """Neither its body (7 kB here) nor its thread."""

    def some() -> int:
        for _ in range(30):
            assert ask("POST", "/look", {"ink": [[0] * 48] * 48})[0] == 200
            assert ask("POST", "/look", b"{" + b" " * 7000)[0] == 400
        until(lambda: not client_threads())
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        some()  # the first leave something that the next ones use again
        before = some()
        assert some() - before < 60 * 500
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine has one CPU")
def test_the_network_works_in_one_thread(server, ask, monkeypatch):
    """Numba's kernels may not be called by two threads at once."""
    forward, seen = Sequential.forward, set()

    def watched(self, x, training=False):
        seen.add((threading.get_ident(), numba.get_num_threads()))
        return forward(self, x, training)

    monkeypatch.setattr(Sequential, "forward", watched)
    questions = [
        ("/look", GOOD),
        ("/look", {**GOOD, "saliency": True}),
        ("/teach", {**GOOD, "label": 7}),
        ("/reset", {}),
    ]
    asking = [threading.Thread(target=ask, args=("POST", *question)) for question in 5 * questions]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(seen) == 1
    assert seen.pop()[1] == 1


def test_many_clients_at_once():
    """The short form of `python tests/load_server.py`: the server as its own process, test images, right answers."""
    with load_server.running_server() as (_, port):
        outcome = load_server.load(port, load_server.questions(5), clients=40, requests=100)
    assert outcome.errors == []
    assert len(outcome.seconds) == 100


@pytest.mark.parametrize("headers", [{"Host": "example.org"}, {"Origin": "http://example.org"}, {"Origin": "null"}])
def test_other_pages_may_not_ask(ask, headers):
    assert ask("GET", "/", **headers)[0] == 403
    assert ask("POST", "/look", GOOD, **headers)[0] == 403


@pytest.mark.parametrize(
    ("probabilities", "error"),
    [(lambda self, x: 1 / 0, "ZeroDivisionError"), (lambda self, x: np.full((1, 10), np.nan), "not JSON compliant")],
)
def test_a_fault_of_ours_shows_no_trace(ask, monkeypatch, capsys, probabilities, error):
    monkeypatch.setattr(Sequential, "predict_proba", probabilities)
    status, answer = ask("POST", "/look", GOOD)
    assert (status, answer) == (500, {"error": "the network could not answer"})
    assert error in capsys.readouterr().err


def test_only_this_machine_can_ask(server):
    assert server.server_address[0] == "127.0.0.1"
