"""What the page is answered, asked of the Studio itself: other networks than the trained one."""

import json

import numpy as np

from tinycnn import Conv2D, GlobalAveragePool2D, MaxPool2D, Normalize, ReLU, Sequential
from tinycnn.studio import Studio


def test_a_network_without_flatten_is_looked_into_and_taught():
    layers = [Normalize(0.1, 0.3), Conv2D(4, 5), MaxPool2D(2), ReLU(), Conv2D(10, 3), GlobalAveragePool2D()]
    studio = Studio(Sequential(layers, (28, 28, 1), seed=2))
    about = json.loads(json.dumps(studio.describe({})))["layers"]
    assert about[-1] == {"name": "globalaveragepool2d_6", "shape": [10]}  # sees all: no step from feature to feature
    assert about[-2]["sees"] == {"start": [0, 0], "step": [2, 2], "size": [10, 10]}
    ink = np.zeros((56, 56), int)
    ink[10:46, 24:32] = 255
    question = {"ink": ink.tolist(), "label": 4, "maps": True, "saliency": 4}
    taught = json.loads(json.dumps(studio.teach(question)))
    assert [m["shape"] for m in taught["maps"]] == [layer["shape"] for layer in about]
    assert np.shape(taught["saliency"]["gradient"]) == (28, 28)
    assert np.abs(taught["saliency"]["gradient"]).max() == 1
    assert taught["course"][-1]["probabilities"][4] > taught["course"][0]["probabilities"][4]
