"""Tiles fit the registers of any processor, and none is a loop.

What this file is not: a look at machine code; whether a compiler keeps in registers what fits there is not tested.
"""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from tinycnn.kernels import convolution, convolution_backward, narrow_convolution, tile_shape, winograd

X86 = platform.machine() == "x86_64"  # for which others of the family can be compiled as well


@pytest.mark.parametrize(
    ("machine", "features", "cpu_name", "cpu_features", "expected"),
    [
        ("aarch64", "", None, None, (16, 32)),
        ("arm64", "", None, None, (16, 32)),
        ("x86_64", "+sse4.2,+avx,+avx2,+avx512f", None, None, (64, 32)),
        ("x86_64", "+sse4.2,+avx,+avx2", None, None, (32, 16)),
        ("x86_64", "+sse4.2", None, None, (16, 16)),
        ("x86_64", "+avx512f", "haswell", None, (32, 16)),  # told to compile for a CPU without
        ("x86_64", "+avx512f", "haswell", "", (32, 16)),
        ("x86_64", "+avx512f", "generic", "", (16, 16)),
        ("x86_64", "+avx512f", "nehalem", "+sse4.2", (16, 16)),
        ("x86_64", "+avx512f", None, "+avx,+avx2,-avx512f", (32, 16)),
        ("x86_64", "+avx2", "skylake-avx512", "+avx2,+avx512f", (64, 32)),
    ],
)
def test_vector_registers_of_other_processors(monkeypatch, machine, features, cpu_name, cpu_features, expected):
    """cpu_name, cpu_features: what Numba was told by NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""
    monkeypatch.setattr(tile_shape.platform, "machine", lambda: machine)
    host = type("Features", (), {"flatten": lambda self: features})
    monkeypatch.setattr(tile_shape.llvmlite.binding, "get_host_cpu_features", host)
    monkeypatch.setattr(tile_shape.config, "CPU_NAME", cpu_name)
    monkeypatch.setattr(tile_shape.config, "CPU_FEATURES", cpu_features)
    assert tile_shape.vector_registers.__wrapped__() == expected


@pytest.mark.parametrize(
    ("registers", "rows", "columns", "expected"),
    [
        ((64, 32), 24, 16, (12, 16)),  # AVX-512, one vector a row
        ((64, 32), 12, 32, (12, 32)),  # two vectors a row
        ((64, 32), 13, 64, (13, 32)),  # one tile of 13, not two of 7: nothing sticks out
        ((64, 32), 26, 32, (13, 32)),
        ((64, 32), 4, 64, (4, 64)),  # few rows: four vectors each keep the multipliers busy
        ((64, 32), 12, 10, (12, 16)),  # fewer channels than lanes
        ((64, 32), 12, 40, (12, 16)),  # three blocks of one vector: of four, one would multiply zeros
        ((64, 32), 12, 8, (12, 8)),  # half a vector, filled
        ((64, 32), 1, 1, (1, 8)),
        ((32, 16), 7, 16, (4, 16)),  # a tile of 7 × 2 vectors would fill all sixteen registers, and spill
        ((32, 16), 24, 16, (6, 16)),  # AVX2: 12 sums, 2 vectors of w and a number of x in 16 registers
        ((32, 16), 24, 8, (8, 8)),  # sixteen registers hold a dozen sums, but not the numbers that are read ahead too
        ((32, 16), 14, 24, (7, 8)),  # three blocks of one vector, not two of two
        ((16, 32), 24, 16, (12, 8)),  # NEON: vectors of four
        ((16, 32), 6, 16, (6, 16)),
        ((16, 16), 24, 32, (6, 8)),  # SSE
    ],
)
def test_tile_shape_fits_the_registers(monkeypatch, registers, rows, columns, expected):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    assert tile_shape.tile_shape.__wrapped__(rows, columns, np.dtype(np.float32)) == expected


@pytest.mark.parametrize(
    ("registers", "rows", "columns", "steps", "expected"),
    [
        ((64, 32), 24, 40, np.inf, (12, 16)),
        ((64, 32), 24, 40, 3, (6, 64)),  # fewer tiles, though one of their vectors multiplies zeros
        ((32, 16), 7, 10, np.inf, (4, 16)),
        ((32, 16), 7, 10, 3, (7, 8)),  # with AVX2 a row that is not full takes long to write
    ],
)
def test_few_steps_take_another_tile(monkeypatch, registers, rows, columns, steps, expected):
    """One that begins less often: each time its sums are to be read and written."""
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    assert tile_shape.tile_shape.__wrapped__(rows, columns, np.dtype(np.float32), steps) == expected


@pytest.mark.parametrize(
    ("registers", "columns", "expected"),
    [((64, 32), 8, 8), ((64, 32), 9, 16), ((64, 32), 24, 16), ((32, 16), 5, 8), ((32, 16), 4, 4), ((16, 32), 1, 2)],
)
def test_filled_lanes(monkeypatch, registers, columns, expected):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    assert tile_shape.filled_lanes(columns, np.dtype(np.float32)) == expected


@pytest.mark.parametrize(
    ("registers", "kernel_w", "channels", "out_channels", "expected"),
    [
        ((64, 32), 5, 8, 8, 2),  # two terms for each of eight channels fill sixteen lanes
        ((64, 32), 5, 8, 9, 1),
        ((64, 32), 5, 8, 5, 2),
        ((64, 32), 5, 8, 4, 4),
        ((64, 32), 5, 1, 8, 2),  # three steps for five terms
        ((64, 32), 5, 1, 1, 8),  # one; sixteen at once would be no fewer
        ((64, 32), 1, 16, 1, 16),
        ((64, 32), 1, 15, 8, 1),  # for a single column T divides them
        ((64, 32), 1, 6, 4, 2),
        ((32, 16), 5, 8, 8, 1),
        ((32, 16), 5, 8, 4, 2),
        ((16, 32), 5, 8, 2, 2),  # NEON
        ((16, 32), 5, 8, 3, 1),
    ],
)
def test_terms_at_once(monkeypatch, registers, kernel_w, channels, out_channels, expected):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    w_shape = 3, kernel_w, channels, out_channels
    assert convolution.terms_at_once(w_shape, np.dtype(np.float32)) == expected


@pytest.mark.parametrize(
    ("registers", "rows", "held", "multiple", "expected"),
    [
        ((64, 32), 24, 5, 1, 12),  # two tiles of 12, none sticks out
        ((64, 32), 26, 3, 1, 13),
        ((64, 32), 52, 3, 4, 12),  # whole windows of a pool
        ((64, 32), 5, 3, 1, 5),
        ((32, 16), 24, 5, 1, 8),  # fifteen registers: eight sums, five of w, a number of x
        ((32, 16), 26, 3, 2, 10),
        ((32, 16), 48, 5, 4, 8),
        ((32, 16), 48, 9, 4, 4),
        ((32, 16), 24, 9, 1, 5),
        ((16, 32), 24, 5, 1, 12),  # NEON
    ],
)
def test_holding_tile_fits_the_registers(monkeypatch, registers, rows, held, multiple, expected):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    assert tile_shape.holding_tile(rows, held, multiple) == expected


@pytest.mark.parametrize(
    ("registers", "w_shape", "expected"),
    [
        ((64, 32), (5, 5, 1, 16), (5, 5, 16, 1)),  # 25 sums, 4 pixels of dy and a number of x in 30 registers
        ((64, 32), (3, 3, 1, 16), (3, 3, 16, 1)),
        ((64, 32), (3, 3, 1, 32), (3, 3, 32, 1)),  # 18 sums, 8 vectors of dy and a number of x
        ((64, 32), (3, 3, 3, 16), (1, 9, 16, 1)),  # two kernel rows would fit, but the third be alone
        ((64, 32), (3, 3, 2, 8), (3, 3, 16, 2)),  # two terms at once: three rows of dw for each of three kernel rows
        ((64, 32), (6, 6, 1, 8), (6, 3, 16, 2)),
        ((64, 32), (2, 3, 2, 8), (2, 3, 16, 2)),
        ((64, 32), (5, 5, 8, 8), (1, 10, 16, 2)),  # rows enough in one kernel row
        ((32, 16), (5, 5, 1, 16), (2, 5, 8, 1)),  # three tiles of ten sums, not five of five, which would wait in turn
        ((32, 16), (3, 3, 1, 32), (3, 3, 8, 1)),
        ((32, 16), (4, 4, 3, 4), (1, 6, 8, 2)),
        ((32, 16), (4, 4, 1, 4), (4, 2, 8, 2)),
    ],
)
def test_weight_gradient_tile_of_few_rows(monkeypatch, registers, w_shape, expected):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    assert convolution_backward._weight_gradient_tile(w_shape, np.dtype(np.float32)) == expected


@pytest.mark.parametrize(
    ("registers", "out_w", "kernel_w", "out_channels", "L", "expected"),
    [
        ((64, 32), 28, 3, 1, 16, (14, 3)),
        ((64, 32), 28, 3, 1, 8, (14, 3)),  # two rows of sums
        ((64, 32), 28, 5, 3, 16, (4, 5)),  # 12 sums and 15 rows of w, and three of z, in 30 registers
        ((64, 32), 14, 5, 6, 16, (2, 1)),  # 30 rows of w are too many, those for one column are not
        ((64, 32), 1, 3, 7, 16, (1, 1)),
        ((32, 16), 28, 3, 1, 8, (7, 3)),  # nine sums would fit; four tiles of seven are as many as of nine
        ((32, 16), 28, 3, 3, 8, (3, 1)),
        ((16, 32), 28, 3, 1, 4, (7, 3)),  # NEON
    ],
)
def test_narrow_tile_fits_the_registers(monkeypatch, registers, out_w, kernel_w, out_channels, L, expected):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    P, B = narrow_convolution._tile(out_w, kernel_w, out_channels, L)
    assert expected == (P, B)
    assert P * out_channels <= 2 * L
    assert P * out_channels + B * out_channels + 3 <= registers[1] * 15 // 16


@pytest.mark.parametrize(
    ("registers", "columns", "rows", "expected"),
    [
        ((64, 32), 32, 10, (10, 32)),
        ((64, 32), 16, 10, (10, 16)),  # ten sums, ten numbers of V and one row of U in 30 registers
        ((32, 16), 32, 10, (5, 16)),
        ((32, 16), 24, 10, (7, 8)),  # seven, seven and one in 15
        ((32, 16), 8, 8, (7, 8)),
        ((32, 16), 8, 6, (6, 8)),
        ((16, 32), 4, 10, (10, 4)),  # NEON
    ],
)
def test_tile_of_winograd_products_fits_the_registers(monkeypatch, registers, columns, rows, expected):
    monkeypatch.setattr(tile_shape, "vector_registers", lambda: registers)
    monkeypatch.setattr(winograd, "tile_shape", tile_shape.tile_shape.__wrapped__)
    assert winograd.products_tile(columns, np.dtype(np.float32), rows) == expected


# Tiles of every kind of task, the first the largest: 13 × 32 numbers with AVX-512, 6 × 16 with AVX2.
COUNT_MULTIPLY_ADDS = """
import numpy as np
from tinycnn.kernels import convolution, convolution_backward, dense, input_gradient, narrow_convolution
from tinycnn.kernels import tile_shape, winograd, winograd_backward
float32 = np.dtype(np.float32)
P, L = tile_shape.tile_shape(26, 64, float32)
S = tile_shape.register_lanes(float32)
one = tile_shape.tile_shape(28, S, float32)
dw, dx = tile_shape.tile_shape(8, 64, float32), tile_shape.tile_shape(10, 64, float32)
for name, rows, task in (
    ("convolution", P, convolution._convolve_task(P, L, 1, False, float32)),
    ("with a pool", P // 4 * 4, convolution._convolve_task(P // 4 * 4, L, 1, True, float32, 2, 2, True)),
    ("its weight gradient", P, convolution_backward._weight_gradient_task(1, P, L, 1, True, float32)),
    ("terms", one[0], convolution._convolve_task(*one, 2, True, float32, 1, 1, False, 0, 8)),
    ("terms, dw", one[0], convolution_backward._weight_gradient_task(1, *one, 2, True, float32)),
    ("terms, dw by turns", 8, convolution_backward._weight_gradient_task(1, 4, S, 2, False, float32, 2, 2, True)),
    ("terms, dx", one[0], input_gradient._gather_task(*one, 2, True, float32)),
    ("few rows", 3 * P, convolution._convolve_task(P, L, 1, True, float32, 1, 1, False, 0, 3, 3)),
    ("held", 12 * 5, convolution._convolve_task(12, S, 1, True, float32, 1, 1, False, 5, 1)),
    ("held, with a pool", 8 * 3, convolution._convolve_task(8, S, 1, False, float32, 2, 2, True, 3, 1)),
    ("held, terms", 12 * 3, convolution._convolve_task(12, S, 2, True, float32, 2, 2, True, 3, 1)),
    ("held, terms, dw", 36, convolution_backward._weight_gradient_task(3, 3, S, 2, True, float32, 2, 2, True, 4, 1)),
    ("held, dw", 40, convolution_backward._weight_gradient_task(2, 5, S, 1, True, float32, 2, 2, True, 4, 1)),
    ("its input gradient", P, input_gradient._gather_task(P, L, 1, False, float32)),
    ("narrow", 2 * 2 * 3, narrow_convolution._task(2, 3, S, 3, S + 3, 2, (1, 1), (1, 1), (1, 2), float32)),
    ("dense", P, dense._product_task(P, L, float32)),
    ("its weight gradient", P, dense._product_task(P, L, float32, True)),
    ("patches", dx[0], winograd._convolve_task(*dx, True, S, float32)),
    ("their gradients", dw[0] + dx[0], winograd_backward._backward_task(*dw, True, *dx, False, True, S, float32)),
):
    print(name, task.compiled.inspect_llvm().count("@llvm.fmuladd.v"), rows)
"""


@pytest.mark.parametrize("processor", ["haswell", "skylake-avx512"] if X86 else [None])
def test_tiles_are_unrolled(tmp_path, processor):
    """Each running sum has a multiply-add of its own in the code: in a loop they'd be in memory, not in registers."""
    features = {"haswell": "+avx2,+fma", "skylake-avx512": "+avx512f,+avx512vl,+avx512bw,+avx512dq,+avx2,+fma"}
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    if processor:
        variables |= {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features[processor]}
    printed = subprocess.run(
        [sys.executable, "-c", COUNT_MULTIPLY_ADDS], capture_output=True, text=True, env=variables, check=True
    ).stdout
    assert len(printed.splitlines()) == 19
    for line in printed.splitlines():
        _, count, rows = line.rsplit(" ", 2)
        assert int(count) >= int(rows), printed
