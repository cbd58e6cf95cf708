"""evaluate.py, predict.py and draw.py as commands: what they print, and what they make of bad input."""

import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_mnist import noise, write_files

from tinycnn import Conv2D, Dense, Flatten, Sequential, load_mnist
from tinycnn.trained import TRAINED

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def pictures(tmp_path):
    """Three test images as large dark-on-light PNGs; and their labels."""
    _, (images, labels) = load_mnist()
    paths = []
    for k in range(3):
        paths.append(tmp_path / f"{k}.png")
        Image.fromarray(255 - images[k]).resize((150, 150), Image.Resampling.BICUBIC).save(paths[-1])
    return paths, labels[:3]


def test_predict(script, pictures, capsys, tmp_path):
    paths, labels = pictures
    assert script("predict").main([*map(str, paths), "--plot", str(tmp_path / "seen.png")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    for line, path, label in zip(lines, paths, labels, strict=True):
        assert line.startswith(f"{path}: {label} (")
    assert [(tmp_path / f"seen-{k}.png").exists() for k in (1, 2, 3)] == [True] * 3


def test_a_picture_is_written_where_it_was_asked_for(script, pictures, capsys, tmp_path):
    """Whatever its name ends in."""
    for plot in (tmp_path / "seen", tmp_path / "seen.txt"):
        assert script("predict").main([str(pictures[0][0]), "--plot", str(plot)]) == 0
        assert f"drawn in {plot}\n" in capsys.readouterr().out
        assert plot.read_bytes()[:4] == b"\x89PNG"


def test_predict_does_not_draw_over_a_picture_that_it_was_given(script, pictures, capsys):
    """As where --plot was taken for a switch."""
    path = str(pictures[0][0])
    before = Path(path).read_bytes()
    with pytest.raises(SystemExit):
        script("predict").main([path, "--plot", path])
    assert f"--plot would replace the picture {path}" in capsys.readouterr().err
    assert Path(path).read_bytes() == before
    with pytest.raises(SystemExit):
        script("predict").main([path, "--model", "model.npz", "--plot", "model.npz"])
    assert "--plot would replace the model" in capsys.readouterr().err


def test_without_a_display_show_says_so(script, pictures, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    plot = tmp_path / "seen.png"
    assert script("predict").main([str(pictures[0][0]), "--plot", str(plot), "--show"]) == 1
    assert "there is no display" in capsys.readouterr().err
    assert plot.exists()


@pytest.mark.parametrize(("name", "option"), [("predict", "--plot"), ("evaluate", "--plots")])
def test_show_without_pictures_says_so(script, capsys, name, option):
    with pytest.raises(SystemExit):
        script(name).main(["a file", "--show"])
    assert f"--show needs {option}" in capsys.readouterr().err


def test_predict_goes_on_after_a_bad_picture(script, pictures, capsys, tmp_path):
    (first, *_), labels = pictures
    Image.new("L", (50, 50), 200).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("no picture")
    files = [tmp_path / "text.png", tmp_path / "nothing.jpg", tmp_path / "blank.png", first]
    assert script("predict").main([*map(str, files)]) == 1
    printed = capsys.readouterr()
    assert "text.png is not a picture" in printed.err
    assert "there is no picture" in printed.err
    assert "blank.png: no digit found" in printed.out
    assert f"{first}: {labels[0]} (" in printed.out


def test_predict_with_a_bad_model(script, pictures, capsys, tmp_path):
    assert script("predict").main([str(pictures[0][0]), "--model", str(tmp_path / "no.npz")]) == 1
    assert "there is no tinycnn model file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_a_model_without_classes_is_refused(script, pictures, capsys, tmp_path, name):
    model = tmp_path / "model.npz"
    Sequential([Conv2D(2, 3)], (28, 28, 1)).save(model)
    assert script(name).main([str(pictures[0][0]), "--model", str(model)] if name == "predict" else [str(model)]) == 1
    assert "ends in (26, 26, 2) numbers, not in one for each class" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["predict", "evaluate", "draw"])
def test_a_model_for_other_numbers_than_pixels_is_refused(script, pictures, capsys, tmp_path, name):
    """Its answers to raw images would be nonsense."""
    model = str(tmp_path / "model.npz")
    Sequential([Flatten(), Dense(10)], (28, 28, 1)).save(model)
    arguments = {"predict": [str(pictures[0][0]), "--model", model], "draw": ["--no-browser", "--model", model]}
    assert script(name).main(arguments.get(name, [model])) == 1
    assert "model.npz does not begin with Normalize" in capsys.readouterr().err


def test_evaluate_takes_such_a_model_for_data_of_its_kind(script, capsys, tmp_path):
    arrays = [a.astype(np.float32) / 255 if a.ndim == 3 else a for a in noise(20, 10, size=(28, 28))]
    write_files(tmp_path / "data", arrays)
    Sequential([Flatten(), Dense(10)], (28, 28)).save(tmp_path / "model.npz")
    assert script("evaluate").main([str(tmp_path / "model.npz"), "--data-dir", str(tmp_path / "data")]) == 0
    assert "on 10 test images" in capsys.readouterr().out


def test_predict_shows_only_what_it_has_drawn(script, pictures, tmp_path, monkeypatch):
    Image.new("L", (50, 50), 200).save(tmp_path / "blank.png")
    (tmp_path / "seen-1.png").write_bytes(b"of an earlier run")
    shown, predict = [], script("predict")
    monkeypatch.setattr(predict, "show", lambda paths: shown.extend(paths) or 0)
    files = [str(tmp_path / "blank.png"), str(pictures[0][0])]
    assert predict.main([*files, "--plot", str(tmp_path / "seen.png"), "--show"]) == 0
    assert shown == [tmp_path / "seen-2.png"]
    with pytest.raises(SystemExit):
        predict.main([*files, "--plot", "."])


def test_evaluate(script, capsys, tmp_path):
    assert script("evaluate").main([str(TRAINED), "--plots", str(tmp_path / "plots")]) == 0
    printed = capsys.readouterr().out
    accuracy, loss = re.search(r"accuracy (\d\d\.\d\d)%, loss (\d\.\d{4})", printed).groups()
    assert float(accuracy) > 99.3
    assert float(loss) < 0.02
    assert 0 < float(re.search(r"expected calibration error (\d\.\d\d)%", printed)[1]) < 1
    assert "precision" in printed
    assert "true \\ taken for" in printed
    names = {"calibration", "confusion", "mistakes", "predictions", "feature_maps", "saliency"}
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == names


def test_evaluate_means_the_probabilities_of_several(script, capsys):
    evaluate = script("evaluate")

    class Sure:
        def __init__(self, *p):
            self.p = np.array([p])

        def predict_proba(self, images):
            return self.p

    np.testing.assert_allclose(evaluate.mean_probabilities([Sure(0.9, 0.1), Sure(0.2, 0.8)], None), [[0.55, 0.45]])
    with pytest.raises(ValueError, match="different numbers of classes"):
        evaluate.mean_probabilities([Sure(0.9, 0.1), Sure(1.0)], None)
    assert evaluate.main([str(TRAINED), str(TRAINED)]) == 0
    assert "the mean of 2 models" in capsys.readouterr().out
    assert evaluate.main(["nothing.npz"]) == 1


def test_draw_serves_the_page():
    process = subprocess.Popen(
        [sys.executable, SCRIPTS / "draw.py", "--no-browser"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
        with urllib.request.urlopen(address, timeout=60) as response:
            assert b"Draw a digit" in response.read()
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_draw_serves_a_browser_that_stays_in_the_foreground(tmp_path):
    """As those in a terminal do."""
    code = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=60).read(15), flush=True)"
    (tmp_path / "browse.py").write_text(f"{code}; input()")
    process = subprocess.Popen(
        [sys.executable, SCRIPTS / "draw.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "BROWSER": f"{sys.executable} {tmp_path / 'browse.py'} %s"},
    )
    try:
        assert "draw a digit at" in process.stdout.readline()
        assert "<!doctype html>" in process.stdout.readline()
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_draw_refuses_a_port_that_cannot_be(script, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert script("draw").main(["--no-browser", "--port", str(port)]) == 1
    assert f"port {port} is in use; without --port a free one is taken" in capsys.readouterr().err
    assert script("draw").main(["--no-browser", "--port", "70000"]) == 1
    assert "port must be 0-65535" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "size"), [(0, (28, 28)), (3, (12, 12))])
def test_draw_refuses_test_images_that_are_no_drawings(script, capsys, tmp_path, count, size):
    write_files(tmp_path, noise(3, count, size=size))
    assert script("draw").main(["--no-browser", "--data-dir", str(tmp_path)]) == 1
    assert "the page wants grey images of 28 × 28 bytes" in capsys.readouterr().err


def test_draw_refuses_a_bad_model(script, capsys):
    assert script("draw").main(["--no-browser", "--model", "nothing.npz"]) == 1
    assert "there is no tinycnn model file" in capsys.readouterr().err
