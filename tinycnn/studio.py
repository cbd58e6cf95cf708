"""A network that looks at drawings and can be taught: what the drawing page asks, and the answers.

Questions and answers are what JSON can say: dicts, lists, numbers, texts. A question comes from anywhere, so nothing in
it is believed.

What this file is not: it speaks no HTTP (`tinycnn/server.py`), and finds no digit in a drawing (`tinycnn/digits.py`).
"""

import base64

import numpy as np

from tinycnn.digits import NoDigitFound, to_mnist
from tinycnn.explain import feature_maps, for_looking, receptive_step, saliency
from tinycnn.layers import Conv2D
from tinycnn.loss import SoftmaxCrossEntropy
from tinycnn.model import Sequential
from tinycnn.optim import SGD

LARGEST_SIDE = 160  # of a drawing, in pixels
MOST_STEPS = 50


class Refused(ValueError):
    """A request that makes no sense; the text says why, the status says it in HTTP's numbers."""

    def __init__(self, reason: str, status: int = 400):
        super().__init__(reason)
        self.status = status


class Studio:
    """A network and what it makes of drawings. For one thread: layers remember, and kernels take turns."""

    def __init__(self, model: Sequential, test_set: tuple[np.ndarray, np.ndarray] | None = None, rate: float = 0.02):
        self.original, self.test_set, self.rate = model, test_set, rate
        self.random = np.random.default_rng()
        self.model = for_looking(model)

    def reset(self, question: dict) -> dict:
        """Back to the network as it was loaded."""
        self.model = for_looking(self.original)
        return {}

    def describe(self, question: dict) -> dict:
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
            description["first"] = {
                "layer": first,
                "weights": layer.weight.value.astype(float).round(5).tolist(),
                "bias": layer.bias.value.astype(float).round(5).tolist(),
            }
        return description

    def sample(self, question: dict) -> dict:
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
        """Some steps of gradient descent on this one drawing, until the label's probability is above 0.9."""
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
        """Refuses what `_look` would stumble over."""
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
