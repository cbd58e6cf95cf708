"""How long a thread that waits for another one stays awake.

Between two kernels the other threads wait for Python. If they sleep, the next kernel has to wake them, which takes as
long as a small kernel. If they don't, they look again and again, and may keep a core busy that they share with the very
thread they wait for, when other programs need the rest.

GNU's OpenMP, which Numba uses on Linux, lets them look 300,000 times, with a pause between two looks. How long x86's
`pause` takes is up to the processor, 10 or 50 ns: so that is some milliseconds. Here it is 0.3.

What this file is not: for other systems and processors; there OpenMP is left as it is.
"""

import ctypes
import importlib
import os
import platform
import sys
import time
from contextlib import suppress

from llvmlite import binding as llvm

AWAKE = 3e-4  # seconds: more than Python takes between two kernels
PAUSES = 200  # that are measured at once
PAUSE = "call void @llvm.x86.sse2.pause()\n"


def wait_briefly() -> None:
    """Load OpenMP, which reads its environment once: its threads sleep after AWAKE, unless the user says when."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return
    os.environ["GOMP_SPINCOUNT"] = str(round(AWAKE / _seconds_of_a_pause()))
    with suppress(ImportError):  # there is no OpenMP
        importlib.import_module("numba.np.ufunc.omppool")
    del os.environ["GOMP_SPINCOUNT"]  # it is not meant for others


def _seconds_of_a_pause() -> float:
    """Measured: the fastest of a few times, because something may come between."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    code = f"declare void @llvm.x86.sse2.pause() define void @pauses() {{ {PAUSES * PAUSE} ret void }}"
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(code), machine)
    pauses, times = ctypes.CFUNCTYPE(None)(engine.get_function_address("pauses")), []
    for _ in range(5):
        started = time.perf_counter()
        pauses()
        times.append(time.perf_counter() - started)
    return min(times) / PAUSES
