"""Measure tinycnn against its peers on this machine: training steps, inference, kernels, the whole job, and growth.

Every competitor runs in a process of its own; they take turns, so that a busy moment of the machine meets all of them,
and the ratio of the medians is what counts. Peers that are not installed are left out: `pip install -e ".[bench]"`.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from statistics import median

SCRIPTS = Path(__file__).parent
PEERS = {
    "PyTorch": "torch",
    "PyTorch channels_last": "torch",
    "Keras epoch": "tensorflow",
    "Keras epoch, XLA": "tensorflow",
}
# glibc keeps what a peer frees: else the system would clear the same pages again at every step, which takes long.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "",
    "ATEN_CPU_CAPABILITY": "avx2",
    "DNNL_MAX_CPU_ISA": "AVX2",
}
MOST_THREADS = 1024  # far more would be refused by the libraries, each in its own words
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen sections, print their tables, write the JSON; return the exit status."""
    options = parser().parse_args(arguments)
    if not 1 <= options.threads <= MOST_THREADS:
        parser().error(f"--threads must be at least 1, and at most {MOST_THREADS}")
    files = [options.json] if options.json else []
    if "growth" in (options.only or SECTIONS):
        files.append(options.plot)
    for file in files:  # an error is to come before anything is measured: that takes long
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    results = {"machine": machine(options.threads)}
    print(", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    if missing := sorted({peer for peer in PEERS.values() if importlib.util.find_spec(peer) is None}):
        print(f'not installed, so not measured: {", ".join(missing)} (python -m pip install -e ".[bench]")')
    for name in options.only or SECTIONS:
        print(f"\n{name}: {SECTIONS[name].__doc__ or ''}")
        results[name] = SECTIONS[name](options)
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--plot", type=Path, metavar="FILE", default=Path("runs/growth.png"), help="the picture of section growth")
    add("--threads", type=int, default=_cores(), metavar="N", help="of every competitor (default: all cores)")
    add("--quick", action="store_true", help="few repetitions and sizes: to see that it works, not for figures")
    return result


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(threads: int) -> dict:
    """What the figures depend on."""
    versions = {}
    for package in ("numpy", "numba", "torch", "tensorflow-cpu", "keras"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"processor": _processor(), "threads": threads, "Python": platform.python_version(), **versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# ----------------------------------------------------------------------------------------------------------- workers


class Worker:
    """A competitor in a process of its own, which times functions when told to."""

    def __init__(self, name: str, threads: int, environment: dict | None = None):
        self.name = name
        keep = KEEP_MEMORY if name in PEERS else {}
        with _environment({**dict.fromkeys(THREAD_VARIABLES, str(threads)), **keep, **(environment or {})}):
            context = multiprocessing.get_context("spawn")
            self.pipe, other_end = context.Pipe()
            self.process = context.Process(target=work, args=(other_end, name, threads), daemon=True)
            self.process.start()

    def ask(self, *request):
        """Send a request, wait for the answer. Raises RuntimeError if the worker could not do it."""
        try:
            self.pipe.send(request)
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"the process of {self.name} has died") from None
        if isinstance(answer, Exception):
            raise RuntimeError(f"{self.name}: {answer!r}")
        return answer

    def close(self) -> None:
        """Ask the process to end; end it if it does not."""
        with suppress(OSError):
            self.pipe.send(("stop",))
        self.process.join(timeout=10)
        self.process.kill()


@contextmanager
def workers(names, threads: int, environment: dict | None = None) -> Iterator[list[Worker]]:
    """A worker for each of the competitors that are installed."""
    installed = [name for name in names if importlib.util.find_spec(PEERS.get(name, "numpy"))]
    result = [Worker(name, threads, environment) for name in installed]
    try:
        yield result
    finally:
        for worker in result:
            worker.close()


def work(pipe, name: str, threads: int) -> None:
    """In the worker's process: make functions from sizes and time them, until told to stop."""
    sys.path.insert(0, str(SCRIPTS))
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    import competitors

    if PEERS.get(name) == "torch":
        import torch

        torch.set_num_threads(threads)
    if PEERS.get(name) == "tensorflow":
        from tensorflow import config

        config.threading.set_intra_op_parallelism_threads(threads)
        config.threading.set_inter_op_parallelism_threads(threads)
    functions = {}
    while True:
        command, *request = pipe.recv()
        if command == "stop":
            return
        try:
            if command == "make":
                functions = competitors.COMPETITORS[name](*request)
                pipe.send(None)
            elif command in ("step", "inference"):
                pipe.send(seconds(functions[command], *request))
            elif command == "epoch":  # no warming up: it takes long enough
                started = time.perf_counter()
                functions[command]()
                pipe.send(time.perf_counter() - started)
            else:
                pipe.send(functions[command](*request))
        except Exception as error:  # the parent decides what to do about it
            pipe.send(error)


def seconds(function, repetitions: int) -> list[float]:
    """How long each call takes; one more goes before them, to wake everything up."""
    function()
    result = []
    for _ in range(repetitions):
        started = time.perf_counter()
        function()
        result.append(time.perf_counter() - started)
    return result


def compare(competitors: list[Worker], function: str, sizes: tuple, rounds: int, turn: float) -> dict[str, float]:
    """Median seconds of each competitor's function. They take turns of about so many seconds."""
    times = {}
    for worker in competitors:
        worker.ask("make", *sizes)
        worker.ask(function, 2)  # compile, allocate
        times[worker.name] = []
    once = min(median(worker.ask(function, 3)) for worker in competitors)
    repetitions = max(1, min(500, round(turn / once)))
    for _ in range(rounds):
        for worker in competitors:
            times[worker.name] += worker.ask(function, repetitions)
    return {name: median(values) for name, values in times.items()}


@contextmanager
def _environment(changes: dict):
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def table(header: list[str], rows: list[list]) -> None:
    """Print rows under a header, numbers to three digits. (Not by tinycnn: what loads it is no longer small.)"""
    cells = [header, *[[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for i, row in enumerate(cells):
        print(
            "  ".join(f"{c:<{w}}" if j == 0 else f"{c:>{w}}" for j, (c, w) in enumerate(zip(row, widths, strict=True)))
        )
        if i == 0:
            print("─" * (sum(widths) + 2 * len(widths) - 2))


def ratio(times: dict[str, float]) -> float | None:
    """How many times longer the fastest peer takes than tinycnn."""
    others = [value for name, value in times.items() if not name.startswith("tinycnn")]
    own = next(value for name, value in times.items() if name.startswith("tinycnn"))
    return min(others) / own if others else None


# ---------------------------------------------------------------------------------------------------------- sections


def steps(options) -> list[dict]:
    """Milliseconds of a training step (forward, loss, backward, Adam), and the megabytes that tinycnn allocates."""
    batches = (64,) if options.quick else (32, 64, 128, 256, 512)
    return _against_pytorch(options, "step", ("keras-net", "standard", "lenet"), batches)


def inference(options) -> list[dict]:
    """Milliseconds to recognise a batch, and the megabytes that tinycnn allocates."""
    return _against_pytorch(options, "inference", ("keras-net", "standard", "lenet"), (1, 256))


def avx2(options) -> list[dict]:
    """Milliseconds of a training step with everybody held to AVX2 (vectors of half the size)."""
    return _against_pytorch(options, "step", ("keras-net",), (64, 128, 256), AVX2)


def _against_pytorch(options, function, networks, batches, environment=None) -> list[dict]:
    rounds, turn = (2, 0.05) if options.quick else (11, 0.25)
    results = []
    with workers(("tinycnn", "PyTorch", "PyTorch channels_last"), options.threads, environment) as competitors:
        for network in networks:
            for batch in batches:
                times = compare(competitors, function, (network, batch), rounds, turn)
                result = {"network": network, "batch": batch, "seconds": times, "ratio": ratio(times)}
                result["allocated"] = competitors[0].ask("allocated", function)  # by tinycnn
                results.append(result)
        names = [worker.name for worker in competitors]
    rows = [
        [
            r["network"],
            r["batch"],
            *(f"{1e3 * r['seconds'][n]:.3f}" for n in names),
            r["ratio"] or "",
            f"{r['allocated'] / 1e6:.2f}",
        ]
        for r in results
    ]
    table(["network", "batch", *names, "ratio", "MB allocated"], rows)
    return results


def epoch(options) -> dict:
    """Seconds of an epoch of keras-net (of 2,000 images with --quick), batch 128, everybody with their own loop."""
    images, rounds = (2000, 1) if options.quick else (60000, 3)
    with workers(("tinycnn epoch", "Keras epoch", "Keras epoch, XLA"), options.threads) as competitors:
        for worker in competitors:
            worker.ask("make", "keras-net", 128, images)
            worker.ask("epoch")  # compiles
        turns = [[worker.ask("epoch") for worker in competitors] for _ in range(rounds)]
        names = [worker.name for worker in competitors]
    times = dict(zip(names, map(median, zip(*turns, strict=True)), strict=True))
    table(["images", *times, "ratio"], [[images, *times.values(), ratio(times) or ""]])
    return {"images": images, "seconds": times, "ratio": ratio(times)}


def scaling(options) -> dict:
    """Milliseconds of a keras-net step, batch 128, with one thread and with all."""
    rounds, turn = (2, 0.05) if options.quick else (11, 0.25)
    alone, together = Worker("tinycnn", 1), Worker("tinycnn", options.threads)
    alone.name, together.name = "1 thread", f"{options.threads} threads"
    times = compare([alone, together], "step", ("keras-net", 128), rounds, turn)
    alone.close()
    together.close()
    speedup = times[alone.name] / times[together.name]
    table([*times, "speed-up"], [[*(f"{1e3 * t:.3f}" for t in times.values()), speedup]])
    return {"seconds": times, "speedup": speedup}


def kernels(options) -> dict:
    """GFLOP/s of convolutions (backward: dw and dx together), also as shares of the peak; and NumPy's product."""
    directions = "forward", "dw", "dx", "backward"
    with workers(("kernels", "matrix product"), options.threads) as (ours, numpy):
        ours.ask("make")
        numpy.ask("make")
        shapes = _kernel_shapes(options.quick)
        peaks, rates = defaultdict(list), {shape: defaultdict(list) for shape in shapes}
        # All shapes, then all once more: what disturbs some seconds then spoils one figure in five.
        for _ in range(1 if options.quick else 5):
            for shape in shapes:
                rates[shape]["sgemm"].append(numpy.ask("sgemm", shape))
            for _ in range(10):  # until the threads of NumPy's library, which go on looking for work, are asleep
                ours.ask("peak")
            for shape in shapes:
                peaks[shape].append(ours.ask("peak"))
                for direction in directions:
                    for kind in (direction, f"{direction} roof"):
                        rates[shape][kind].append(ours.ask(kind, shape))
    peak = median(map(max, peaks.values()))
    results = [{"shape": shape} | {kind: median(figures) for kind, figures in rates[shape].items()} for shape in shapes]
    print(f"peak of the multiply-add units, measured beside the kernels: {peak:.0f} GFLOP/s")
    rows = [
        [
            "{0}² × {1} → {2}, {3}×{3}{4}".format(*r["shape"][:4], ", padded" if r["shape"][4] else ""),
            *(f"{r[d]:.0f}" for d in (*directions, "sgemm")),
            *(f"{r[d] / peak:.0%}" for d in directions),
            f"{min(1, *(r[f'{d} roof'] / peak for d in directions)):.0%}",
        ]
        for r in results
    ]
    table(["image and channels, kernel", *directions, "sgemm", *directions, "at most"], rows)
    _say_how_many_reach(results, peak)
    return {"peak": peak, "shapes": results}


def _say_how_many_reach(results: list[dict], peak: float) -> None:
    """In how many shapes all directions reach a good share of the peak, and in how many they can."""
    wanted = [r for r in results if r["shape"][2] >= 8]

    def reach(r, kind=""):
        least = {"forward": 0.35, "dw": 0.2 if r["shape"][1] == 1 else 0.35, "dx": 0.35}
        return all(r[direction + kind] >= share * peak for direction, share in least.items())

    slowest = median(min(r[d] for d in ("forward", "dw", "dx")) / peak for r in wanted)
    print(
        f"Of {len(wanted)} shapes with 8 filters or more, {sum(map(reach, wanted))} reach 35 % of the peak in every "
        f"direction (dw of one channel 20 %), the median {slowest:.0%} in its slowest one. "
        f"If they only moved their numbers, {sum(reach(r, ' roof') for r in wanted)} would; "
        "then the slowest direction has the share in the last column."
    )


def _kernel_shapes(quick: bool) -> list[tuple[int, int, int, int, int]]:
    """(side, channels, filters, kernel size, padding): those of the presets and keras-net, then a grid."""
    presets = [
        (28, 1, 32, 3, 0),  # keras-net, classic
        (13, 32, 64, 3, 0),
        (28, 1, 16, 5, 0),  # standard
        (12, 16, 32, 3, 1),
        (12, 32, 32, 3, 1),
        (6, 32, 64, 3, 0),
        (28, 1, 24, 5, 0),  # fast
        (12, 24, 32, 3, 0),
        (28, 1, 6, 5, 2),  # lenet
        (14, 6, 16, 5, 0),
    ]
    if quick:
        return presets[1:2]
    channels = [(1, 8), (1, 32), (3, 8), (3, 32), (8, 8), (16, 16), (24, 24), (32, 32), (32, 64), (64, 64), (128, 128)]
    grid = [(side, *c, k, k // 2) for k in (1, 3, 5) for c in channels for side in (7, 14, 28, 56)]
    return presets + grid


def job(options) -> dict:
    """The whole job, `--preset fast` from process start to end; and the first training step."""
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        # Elsewhere, to stay small: on Linux the peak memory of a process is no less than its starter's.
        writer = multiprocessing.get_context("spawn").Process(target=_write_mnist, args=(Path(directory),))
        writer.start()
        writer.join()
        arguments = ["--data-dir", directory, "--threads", str(options.threads)]
        train = [sys.executable, SCRIPTS / "train_mnist.py", "--preset", "fast", "--quiet", "--out", f"{directory}/out"]
        commands = {"tinycnn": [*train, *arguments]}
        if importlib.util.find_spec("torch"):
            commands["PyTorch"] = [sys.executable, SCRIPTS / "train_mnist_pytorch.py", *arguments]
        threads = dict.fromkeys(THREAD_VARIABLES, str(options.threads))
        with _environment({**threads, "NUMBA_CACHE_DIR": f"{directory}/cache"}):
            results["tinycnn, cold cache"] = [_measured(commands["tinycnn"])]
            for _ in range(1 if options.quick else 5):
                for name, command in commands.items():
                    results.setdefault(name, []).append(_measured(command))
        for preset in ("fast", "standard"):
            code = [sys.executable, "-c", FIRST_STEP, str(SCRIPTS), preset, directory]
            with _environment({**threads, "NUMBA_CACHE_DIR": f"{directory}/cache of {preset}"}):
                results[f"first step of {preset}, cold cache"] = [_measured(code)]
                results[f"first step of {preset}"] = [_measured(code) for _ in range(1 if options.quick else 5)]
    figures = {name: [median(column) for column in zip(*runs, strict=True)] for name, runs in results.items()}
    table(["what", "seconds", "peak memory, MB"], [[n, f"{s:.2f}", f"{m / 1e6:.0f}"] for n, (s, m) in figures.items()])
    result = {name: {"seconds": s, "peak_memory": m} for name, (s, m) in figures.items()}
    if "PyTorch" in figures:
        result["ratio"] = [own / peer for own, peer in zip(figures["tinycnn"], figures["PyTorch"], strict=True)]
        print("tinycnn takes {:.2f} of PyTorch's time and {:.2f} of its memory".format(*result["ratio"]))
    return result


FIRST_STEP = """
import sys
from math import ceil
from tinycnn import SoftmaxCrossEntropy, load_mnist
from tinycnn.preparation import make_model, make_optimizer
from tinycnn.presets import PRESETS
(images, labels), _ = load_mnist(sys.argv[3])
recipe = PRESETS[sys.argv[2]](10)
model, loss = make_model(recipe, images[:1000], seed=0), SoftmaxCrossEntropy()
optimizer = make_optimizer(recipe, model)
loss.forward(model.forward(images[: recipe.batch_size], training=True), labels[: recipe.batch_size])
model.parameter_gradients(loss.backward())
optimizer.step()
"""


def _write_mnist(directory: Path) -> None:
    """The four files, unpacked."""
    from tinycnn import load_mnist, write_idx
    from tinycnn.mnist import FILES

    arrays = [array for pair in load_mnist() for array in pair]
    for file, array in zip(FILES, arrays, strict=True):
        write_idx(directory / file.name, array)


def _measured(command: list) -> tuple[float, float]:
    """(seconds, bytes of peak resident memory) of a command. Raises RuntimeError if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} failed:\n{errors.decode()}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - started, usage.ru_maxrss * unit


def growth(options) -> dict:
    """Milliseconds of a keras-net step against batch, channels, image side and threads; drawn with --plot."""
    passes, turn = (1, 0.02) if options.quick else (5, 0.1)
    sweeps = {
        "batch": [("keras-net 32 28", n) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)],
        "channels": [(f"keras-net {c} 28", 64) for c in (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)],
        "image side": [(f"keras-net 32 {s}", 64) for s in (10, 12, 14, 20, 28, 40, 56, 80)],
    }
    if options.quick:
        sweeps = {name: points[3:5] for name, points in sweeps.items()}
    import competitors

    times = defaultdict(list)
    with workers(("tinycnn",), options.threads) as ours:
        for _ in range(passes):  # all points, then all once more, as in `kernels`
            for point in chain(*sweeps.values()):
                times[point].append(compare(ours, "step", point, 1, turn)["tinycnn"])
    result = {}
    for sweep, points in sweeps.items():
        result[sweep] = []
        for network, batch in points:
            model = competitors.network(network)
            multiply_adds = 3 * batch * sum(layer.multiply_adds() for layer in model.layers)
            value = {"batch": batch, "channels": model.layers[0].filters, "image side": model.input_shape[0]}[sweep]
            once = median(times[network, batch])
            result[sweep].append({"value": value, "seconds": once, "multiply_adds": multiply_adds})
    result["threads"] = []
    for threads in range(1, options.threads + 1):
        with workers(("tinycnn",), threads) as ours:
            once = compare(ours, "step", ("keras-net", 128), passes, turn)["tinycnn"]
        result["threads"].append({"value": threads, "seconds": once})
    for sweep, points in result.items():
        table([sweep, "ms"], [[p["value"], f"{1e3 * p['seconds']:.3f}"] for p in points])
    from tinycnn import plots

    plots.save(plots.growth(result), options.plot)
    print(f"drawn in {options.plot}")
    return result


SECTIONS = {
    "steps": steps,
    "inference": inference,
    "epoch": epoch,
    "scaling": scaling,
    "avx2": avx2,
    "kernels": kernels,
    "job": job,
    "growth": growth,
}

if __name__ == "__main__":
    from tinycnn import command_line  # not for the workers, who import this file as well

    command_line.run(main)
