"""The benchmark runs and reports: its figures are not judged here, since a busy machine must not fail a test."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinycnn import write_idx
from tinycnn.preparation import make_model
from tinycnn.presets import fast

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_sections_of_our_own(tmp_path):
    command = [sys.executable, SCRIPTS / "benchmark.py", "--quick", "--json", tmp_path / "out" / "out.json"]
    command += ["--plot", tmp_path / "growth.png", "--only", "scaling", "kernels", "growth"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "GFLOP/s" in printed
    results = json.loads((tmp_path / "out" / "out.json").read_text())
    assert set(results) == {"machine", "scaling", "kernels", "growth"}
    assert results["scaling"]["speedup"] > 0
    (shape,) = results["kernels"]["shapes"]
    assert all(shape[name] > 0 for name in ("forward", "dw", "dx", "backward", "sgemm", "dx roof"))
    assert [point["value"] for point in results["growth"]["batch"]] == [8, 16]
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"


def test_options(script, capsys):
    with pytest.raises(SystemExit):
        script("benchmark").main(["--threads", "0"])
    assert "--threads must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_place_that_can_not_be_written_is_an_error_before_anything_is_measured(script, tmp_path, monkeypatch, option):
    benchmark = script("benchmark")
    monkeypatch.setattr(benchmark, "SECTIONS", {"growth": lambda options: pytest.fail("it was measured")})
    with pytest.raises(OSError, match=tmp_path.name):
        benchmark.main([option, str(tmp_path)])


def test_the_job_runs_with_as_many_threads_as_are_asked_for(script, tmp_path, monkeypatch):
    """Every command of it, and however many processors there are."""
    benchmark, asked = script("benchmark"), []

    def note(command):
        asked.append(os.environ["NUMBA_NUM_THREADS"])
        assert "--threads" not in command or command[command.index("--threads") + 1] == "5"
        return 1.0, 1.0

    monkeypatch.setattr(benchmark, "_measured", note)
    monkeypatch.setattr(benchmark, "_write_mnist", print)  # a stand-in that a new process can find
    benchmark.job(benchmark.parser().parse_args(["--quick", "--threads", "5"]))
    assert set(asked) == {"5"}


def test_what_a_step_allocates(script):
    competitors = script("competitors")
    assert competitors._allocated(lambda: np.ones(1 << 20, np.uint8)) >= 1 << 20
    functions = competitors.tinycnn("keras-net", 64)
    for name in ("step", "inference"):
        for _ in range(3):
            functions[name]()
        assert functions["allocated"](name) < 1 << 20


def test_a_worker_that_dies_is_named(script):
    worker = script("benchmark").Worker("kernels", 1)
    worker.ask("make")
    worker.process.kill()
    worker.process.join()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="process of kernels has died"):
            worker.ask("peak", 1)
    worker.close()


def test_ratio_and_comparison(script):
    benchmark = script("benchmark")
    assert benchmark.ratio({"tinycnn": 2.0, "PyTorch": 5.0, "PyTorch channels_last": 4.0}) == 2
    assert benchmark.ratio({"tinycnn": 2.0}) is None

    class Stand:  # a worker whose function takes as long as its name says
        def __init__(self, name):
            self.name, self.asked = name, []

        def ask(self, *request):
            self.asked.append(request)
            return None if request[0] == "make" else [float(self.name)] * request[1]

    stands = [Stand("0.5"), Stand("0.25")]
    times = benchmark.compare(stands, "step", ("net", 8), rounds=3, turn=1.0)
    assert times == {"0.5": 0.5, "0.25": 0.25}
    for stand in stands:  # made, tried, then as many repetitions as fill a turn of the fastest
        assert stand.asked == [("make", "net", 8), ("step", 2), ("step", 3)] + 3 * [("step", 4)]


@pytest.mark.parametrize("name", ["keras-net", "standard", "lenet"])
def test_peers_get_the_same_network(script, name):
    torch = pytest.importorskip("torch")
    competitors = script("competitors")
    original = competitors.network(name)
    model = competitors.torch_model(original)
    assert sum(p.numel() for p in model.parameters()) == sum(p.value.size for p in original.parameters())
    assert tuple(model(torch.zeros(2, 1, 28, 28)).shape) == (2, 10)
    for functions in (competitors.tinycnn(name, 4), competitors.pytorch(name, 4, channels_last=True)):
        functions["step"]()
        assert tuple(functions["inference"]().shape) == (4, 10)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_the_pytorch_job_is_the_same_job(tmp_path, random, monkeypatch, script):
    job = script("train_mnist_pytorch")
    recipe = fast(10)
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (job.EPOCHS, job.BATCH, job.PEAK_RATE)
    assert (recipe.beta1, recipe.beta2) == job.BETAS
    assert (recipe.warm_up, recipe.weight_decay, recipe.shift) == (job.WARM_UP, job.WEIGHT_DECAY, job.SHIFT)
    assert (recipe.optimizer, recipe.schedule) == ("adam", "one-cycle")
    assert not any((recipe.distortion, recipe.label_smoothing, recipe.averaging))
    _, *ours = make_model(recipe, np.zeros((1, 28, 28), np.uint8), seed=0).layers  # the first is Normalize
    for layer, other in zip(ours, job.network(), strict=True):
        assert type(other).__name__.lower() == type(layer).__name__.lower().replace("dense", "linear")
        assert [p.numel() for p in other.parameters()] == [p.value.size for p in layer.parameters()]
    for part, count in (("train", 200), ("t10k", 50)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", random.integers(0, 10, count, dtype=np.uint8))
    monkeypatch.setattr(sys, "argv", ["train_mnist_pytorch.py", "--data-dir", str(tmp_path)])
    job.main()
