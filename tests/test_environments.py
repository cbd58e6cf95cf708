"""Odd surroundings: an output that nobody reads, strict Pythons, no cache, no home, no display, difficult names."""

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import pytest
from numba.core.errors import TypingError
from PIL import Image
from small_mnist import noise, write_files

from tinycnn import mnist
from tinycnn.kernels import parallel

ROOT = Path(__file__).parents[1]
STRICT = ["-W", "error"]
if matplotlib.__version_info__ < (3, 10, 8):  # with a newer pyparsing
    STRICT += ["-W", "ignore::DeprecationWarning"]


def run(script, *options, python=(), shell='exec "$@"', stdout=subprocess.PIPE, stderr=subprocess.PIPE, **variables):
    """A script as a process of its own, started by the shell; variables that are None are not there."""
    environment = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
    command = ["sh", "-c", shell, "sh", sys.executable, *python, ROOT / "scripts" / script, *options]
    return subprocess.run(list(map(str, command)), stdout=stdout, stderr=stderr, env=environment, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a difficult name. It holds data, and in `out` the results of an ordinary training."""
    place = tmp_path_factory.mktemp("mein Übungs dir ö 数")
    write_files(place / "data", noise(60, 20, size=(12, 13), classes=4))
    assert train(place, "out").returncode == 0
    return place


def train(place, out, **surroundings):
    """A training of a second; its results go to place / out."""
    options = ["--preset", "classic", "--batch-size", "20", "--epochs", "1", "--data-dir", place / "data"]
    return run("train_mnist.py", *options, "--out", place / out, **surroundings)


def assert_same_results(place, out):
    """As in an ordinary training: all the files, and in the model the same bits."""
    assert {path.name for path in (place / out).iterdir()} == {path.name for path in (place / "out").iterdir()}
    assert (place / out / "model.npz").read_bytes() == (place / "out" / "model.npz").read_bytes()


@pytest.fixture
def no_reader():
    """A standard output like that of `script | true`."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


# -------------------------------------------------------------------------------------------------------------- output


def test_a_training_that_nobody_watches_goes_on(place, no_reader):
    """As in `train_mnist.py | head -1`."""
    result = train(place, "no reader", stdout=no_reader)
    assert (result.returncode, b"rror" in result.stderr) == (0, False)
    assert_same_results(place, "no reader")


@pytest.mark.parametrize("how", [">&- 2>&- <&-", ">/dev/full 2>/dev/full"])
def test_a_training_that_can_not_print_goes_on(place, how):
    """Nor draw its progress bar."""
    assert train(place, how.replace("/", ""), shell=f'exec "$@" {how}').returncode == 0
    assert_same_results(place, how.replace("/", ""))


@pytest.mark.parametrize("script", ["evaluate.py", "check_gradients.py"])
def test_another_script_ends_in_silence_when_nobody_reads(place, no_reader, script):
    """Even check_gradients, long before its last check."""
    options = [place / "out" / "model.npz", "--data-dir", place / "data"] if script == "evaluate.py" else []
    result = run(script, *options, stdout=no_reader)
    assert (result.returncode, result.stderr) == (141, b"")
    result = run(script, *options, shell='exec "$@" >/dev/full')
    assert result.returncode == 1
    assert result.stderr == b"error: can't write the standard output: [Errno 28] No space left on device\n"


def test_a_closed_output_is_no_error(place):
    result = run("check_gradients.py", "--list", python=STRICT, shell='exec "$@" >&-')
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_file_that_can_not_be_written_is_said_in_one_line(place):
    result = run("check_gradients.py", "--plot", place / "data" / mnist.FILES[0].name / "errors.png")
    assert result.returncode == 1
    assert re.fullmatch(rb"error: .*errors.png.*\n|error: .*train-images-idx3-ubyte.*\n", result.stderr)


def test_an_output_in_ascii(place):
    """The tables' rules become question marks, and so do the letters in the directory's name."""
    result = run("evaluate.py", place / "out" / "model.npz", "--data-dir", place / "data", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"mein ?bungs dir ? ?" in result.stdout
    assert b"\n??????????" in result.stdout


# --------------------------------------------------------------------------------------------------------- interpreter


@pytest.mark.parametrize("python", [[*STRICT, "-bb", "-O"], ["-OO"]], ids=["strict", "-OO"])
def test_options_of_python(place, python):
    result = train(place, python[-1], python=python)
    assert result.returncode == 0, result.stderr
    assert b"Warning" not in result.stderr
    assert_same_results(place, python[-1])


@pytest.mark.parametrize("script", ["draw.py", "check_gradients.py"])
def test_help_without_docstrings(script):
    result = run(script, "--help", python=["-OO"])
    assert result.returncode == 0, result.stderr
    assert b"usage" in result.stdout


def test_benchmark_without_docstrings(monkeypatch, capsys, script):
    benchmark = script("benchmark")
    monkeypatch.setattr(benchmark, "SECTIONS", {"empty": lambda options: {}})  # no docstring, as any under -OO
    assert benchmark.main([]) == 0
    assert capsys.readouterr().out.endswith("\nempty: \n")


# --------------------------------------------------------------------------------------------------------------- Numba


SUM = "import numpy, tinycnn.kernels.elementwise as e; print(e.sum_of_parts(numpy.float32([[1, 2], [4, 8]])))"


@pytest.fixture
def kernels(tmp_path):
    """The kernels' folder in a copy of the package, and a function that adds [1 2] and [4 8] there, in a new process.

    There is no other place for a cache than this folder, as with a read-only site-packages and home (for root nothing
    is: a file stands where a directory should be).
    """
    shutil.copytree(ROOT / "tinycnn", tmp_path / "tinycnn", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "file").touch()
    variables = {"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "file"), "HOME": "/dev/null"}
    environment = {name: value for name, value in {**os.environ, **variables}.items() if name != "NUMBA_CACHE_DIR"}

    def add(expected: str = "[ 5. 10.]") -> str:
        command = [sys.executable, *STRICT, "-c", SUM]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert result.stdout == f"{expected}\n"
        return result.stderr

    return tmp_path / "tinycnn" / "kernels", add


def test_an_edited_kernel_is_compiled_anew(kernels):
    """Also where the edit is in another file, of which Numba's cache knows nothing."""
    folder, add = kernels
    assert add() == ""
    source = (folder / "vector.py").read_text("utf-8")
    (folder / "vector.py").write_text(
        source.replace('_operator(operator.add, "fadd")', '_operator(operator.add, "fsub")'), "utf-8"
    )
    assert add("[-3. -6.]") == ""


def test_without_a_place_for_the_cache_and_with_a_damaged_one(kernels):
    folder, add = kernels
    cache = folder / "__pycache__"
    cache.touch()
    assert re.fullmatch(r"tinycnn: Numba's cache can't be used \(RuntimeError\).*NUMBA_CACHE_DIR.*\n", add())
    cache.unlink()
    assert add() == ""  # writes the cache
    for kind in ("*.nbi", "*.nbc"):
        whole = {path: path.read_bytes() for path in cache.glob(kind)}
        assert len(whole) == 2  # the sum, and what calls it in parallel
        for path, content in whole.items():
            path.write_bytes(content[: len(content) // 2])
        assert "can't be used" in add()
        for path, content in whole.items():
            path.write_bytes(content)
    assert add() == ""


def test_compiling_without_a_cache_is_only_for_faults_of_the_cache(capsys, monkeypatch):
    monkeypatch.setattr(parallel, "cache_faults", set())
    asked = []

    def compiled(fault):
        def compile_it(cache: bool) -> str:
            asked.append(cache)
            if cache:
                raise fault
            return "compiled"

        return compile_it

    for fault in (OSError("the disk is full"), OSError("still"), EOFError("cut short")):
        assert parallel.cached(compiled(fault)) == "compiled"
    assert asked == [True, False] * 3
    assert [re.search(r"\((.*)\)", line)[1] for line in capsys.readouterr().err.splitlines()] == ["OSError", "EOFError"]
    with pytest.raises(TypingError):
        parallel.cached(compiled(TypingError("a mistake in the kernel")))
    assert asked[-1]


def test_more_threads_than_cores_and_another_threading_layer(place):
    assert train(place, "threads", NUMBA_NUM_THREADS="7", NUMBA_THREADING_LAYER="workqueue").returncode == 0
    assert_same_results(place, "threads")


def test_without_a_compiler_the_import_says_so():
    result = run("predict.py", "--help", NUMBA_DISABLE_JIT="1")
    assert result.returncode == 1
    assert b"unset NUMBA_DISABLE_JIT" in result.stderr.splitlines()[-1]


# ---------------------------------------------------------------------------------------------------- home and display


def test_without_a_home(place, monkeypatch, tmp_path):
    """No HOME, and a user whom the system does not know, as in many a container."""
    (tmp_path / "sitecustomize.py").write_text("import pwd\npwd.getpwuid = {}.__getitem__  # raises KeyError\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    result = train(place, "homeless", HOME=None, XDG_CACHE_HOME=None, MPLCONFIGDIR=None)
    assert result.returncode == 0, result.stderr
    assert_same_results(place, "homeless")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(mnist.sys, "platform", "linux")
    assert mnist.cache_directory() == Path(tempfile.gettempdir()) / "tinycnn"


def test_in_somebody_elses_home(monkeypatch):
    """Where a directory must not be looked into, the data are not; other places are still asked."""

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", forbidden)
    assert mnist._in_cache(mnist.FILES[0]) is None
    assert mnist._in_wheel(mnist.FILES[0]) is None


def test_drawing_needs_no_display_and_no_backend(place):
    """A notebook leaves its own backend to the commands it starts, whether or not they know it."""
    Image.new("L", (50, 50), 200).save(place / "leer ö.png")
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "DISPLAY": None, "WAYLAND_DISPLAY": None}
    result = run("evaluate.py", place / "out" / "model.npz", "--data-dir", place / "data", "--plots", place, **backend)
    assert result.returncode == 0, result.stderr
    assert (place / "saliency.png").exists()
