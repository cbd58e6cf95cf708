"""The drawing page's server, asked over HTTP: what it answers, and what it refuses."""

import base64
import http.client
import json
import threading

import numpy as np
import pytest

from tinycnn import Conv2D, GlobalAveragePool2D, MaxPool2D, Normalize, ReLU, Sequential
from tinycnn.server import Studio, make_server
from tinycnn.trained import TRAINED

SEVEN = np.zeros((56, 56), int)
SEVEN[10:15, 14:42] = 255
for row in range(15, 46):
    SEVEN[row, 39 - (row - 10) // 2 : 44 - (row - 10) // 2] = 255
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
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
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
    for path in (
        "/index.html",
        "/page.html",
        "/../server.py",
        "/%2e%2e/server.py",
        "//etc/passwd",
        "/?a",
        "/look",
        "/x",
    ):
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
    for layer, given in zip(model.layers, answer["maps"], strict=True):
        x = layer.forward(x)
        shades = np.frombuffer(base64.b64decode(given["shades"]), np.uint8).reshape(given["shape"])
        values = given["low"] + (given["high"] - given["low"]) * shades / 255
        np.testing.assert_allclose(values, x[0], atol=0.003 * (given["high"] - given["low"]) + 1e-6)


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


def test_a_network_without_flatten_is_looked_into_and_taught():
    layers = [Normalize(0.1, 0.3), Conv2D(4, 5), MaxPool2D(2), ReLU(), Conv2D(10, 3), GlobalAveragePool2D()]
    studio = Studio(Sequential(layers, (28, 28, 1), seed=2))
    about = json.loads(json.dumps(studio.describe()))["layers"]
    assert about[-1] == {"name": "globalaveragepool2d_6", "shape": [10]}  # sees all: no step from feature to feature
    assert about[-2]["sees"] == {"start": [0, 0], "step": [2, 2], "size": [10, 10]}
    taught = json.loads(json.dumps(studio.teach({**GOOD, "label": 4, "maps": True, "saliency": 4})))
    assert [m["shape"] for m in taught["maps"]] == [layer["shape"] for layer in about]
    assert np.shape(taught["saliency"]["gradient"]) == (28, 28)
    assert np.abs(taught["saliency"]["gradient"]).max() == 1
    assert taught["course"][-1]["probabilities"][4] > taught["course"][0]["probabilities"][4]


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/look", b"", "ink must be a list"),
        ("/look", b"{", "not JSON"),
        ("/look", b"\xff\xfe", "not JSON"),
        ("/look", b"[" * 50_000, "not JSON"),
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
        ("/look", b'{"ink": [[1e999]]}', "finite"),
        ("/look", {**GOOD, "saliency": 10}, "saliency must be"),
        ("/look", {**GOOD, "saliency": "x"}, "saliency must be"),
        ("/teach", GOOD, "label must be"),
        ("/teach", {**GOOD, "label": 10}, "label must be"),
        ("/teach", {**GOOD, "label": 1.0}, "label must be"),
        ("/teach", {**GOOD, "label": 1, "steps": 51}, "steps must be"),
        ("/teach", {"ink": [[0]], "label": 1}, "no digit found"),
    ],
)
def test_nonsense_is_refused_with_a_reason(ask, path, body, reason):
    status, answer = ask("POST", path, body)
    assert status == 400
    assert reason in answer["error"]
    assert ask("POST", "/look", GOOD)[1]["digit"] == 7  # and it goes on


def test_too_long_or_of_unknown_length(ask):
    assert ask("POST", "/look", b" " * ((1 << 16) + 1))[0] == 413
    assert ask("POST", "/look", b"{}", Content_Length="x")[0] == 411
    assert ask("POST", "/look", b"{}", Content_Length="-5")[0] == 411


@pytest.mark.parametrize("headers", [{"Host": "example.org"}, {"Origin": "http://example.org"}, {"Origin": "null"}])
def test_other_pages_may_not_ask(ask, headers):
    assert ask("GET", "/", **headers)[0] == 403
    assert ask("POST", "/look", GOOD, **headers)[0] == 403


def test_a_fault_of_ours_shows_no_trace(ask, server, monkeypatch, capsys):
    monkeypatch.setattr(Sequential, "predict_proba", lambda self, x: 1 / 0)
    status, answer = ask("POST", "/look", GOOD)
    assert (status, answer) == (500, {"error": "the network could not answer"})
    assert "ZeroDivisionError" in capsys.readouterr().err
