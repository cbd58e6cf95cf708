"""How a kernel is compiled and spread over the processor's cores.

A kernel here is a *task*: a plain sequential function that does one part of the work, the `part`-th of `parts`.

    @task(float32, float32)                              the types behind its pointers, for the compiler
    def double(part, sizes, x, y):                       x and y: flat memory, a pointer each
        parts, n = numbers(sizes, 2)
        for i in range(part * n // parts, (part + 1) * n // parts):
            y[i] = 2 * x[i]

    run(double, parts, (parts, n), x, y)                 call it for part = 0 … parts − 1, on all threads

A task that needs memory for itself, *scratch memory*, has a pointer to it before the others: run(…, scratch=how many
numbers).

The parts are fixed by the size of the work, never by the number of threads. So the order of every sum is fixed too, and
results are equal bit for bit on one thread or eight.

Why not simply Numba's `prange` in every kernel? A function with a prange takes three to four times as long to compile.
Here there is one, in `_call_in_parallel`, which calls a task by its address.

What this file is not: it checks nothing; the layers check every shape before they call a kernel. With some of Numba's
threading layers two threads must not call `run` at once: lock around the model if you have several. And a process that
was forked off after a `run` can't call it (RuntimeError), except with NUMBA_THREADING_LAYER=workqueue: start processes
by "spawn".
"""

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba import cfunc, config, get_thread_id, njit, prange, threading_layer, types
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.core.errors import NumbaError
from numba.extending import intrinsic

from tinycnn.kernels.memory import return_scratch, take_scratch
from tinycnn.kernels.waiting import wait_briefly

# More would scale to more cores, but sums over a batch need memory for each part (only a convolution of fewer rows,
# which has no such sums, is cut finer).
PARTS = 8
WORTH_SHARING = 1 << 19  # simple operations: as many as one thread does while a second one gets going
MOST_ARRAYS = 9  # that a task can have, its scratch memory among them

if config.DISABLE_JIT:
    raise ImportError("tinycnn can't run without Numba's compiler: unset NUMBA_DISABLE_JIT")
wait_briefly()  # before anybody starts Numba's threads

Compiled = TypeVar("Compiled")
before_compiling: Callable[["Task"], None] | None = None  # if not None, called before a task is compiled
cache_faults: set[str] = set()  # the errors that kept Numba's cache from being used
_noted: list["Task"] | None = None  # by `noting`
_without_threads = False  # whether this process was forked off one that had started them
_I64 = ir.IntType(64)
_NOTHING = np.empty(0)  # in place of an array that a task doesn't look at
_UNUSED = [id(_NOTHING)] * MOST_ARRAYS


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


_SOURCES = _digest(b"".join(f.read_bytes() for f in sorted(Path(__file__).parent.glob("*.py"))))


class Task:
    """A function that `run` can call. It is compiled when that is first asked for, and then cached on disk."""

    def __init__(self, function: Callable, signature: types.Type, level: int):
        # Numba's cache notices an edit only in the file that the function stands in, but a task also consists of
        # intrinsics from other files: a digest of this folder makes every edit recompile every task. And it keeps all
        # functions of one name in one list, which two processes that write at once would spoil: the constants P, L and
        # the like make it a list for each.
        constants = [cell.cell_contents for cell in function.__closure__ or ()]
        function.__qualname__ += "_" + _digest(f"{_SOURCES} {function.__module__} {constants} {signature}".encode())
        self.function, self.signature, self.level = function, signature, level
        self.name = function.__qualname__  # the same in every process, and no other task's

    @functools.cached_property
    def compiled(self) -> CFunc:
        if wait := before_compiling:
            wait(self)
        with _optimised(self.level):
            return cached(lambda cache: cfunc(self.signature, cache=cache, error_model="numpy")(self.function))

    @functools.cached_property
    def address(self) -> int:
        return self.compiled.address


def task(*dtypes: np.dtype | type, level: int = 3) -> Callable[[Callable], Task]:
    """Decorator: makes a Task of `function(part, sizes, *pointers)`, with a pointer to each of the dtypes.

    level: of LLVM's optimisations. Below 3 large tiles are not unrolled, and then they are not in registers.
    """
    pointers = [types.CPointer(numba.from_dtype(np.dtype(dtype))) for dtype in dtypes]
    signature = types.void(types.intp, types.CPointer(types.int64), *pointers)
    return lambda function: Task(function, signature, level)


# Decorator for functions that tasks are made of: they are compiled into them, and not to be called from Python.
in_tasks = njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@contextmanager
def _optimised(level: int) -> Iterator[None]:
    """What is compiled inside the with block is optimised at this level at most; nothing else is compiled meanwhile."""
    with global_compiler_lock:
        before = config.OPT
        config.OPT = type(before)(min(before, level))
        try:
            yield
        finally:
            config.OPT = before


def cached(compile_it: Callable[[bool], Compiled]) -> Compiled:
    """compile_it(True), with Numba's cache; or compile_it(False), if that has no place on the disk or is damaged."""
    try:
        return compile_it(True)
    except NumbaError:  # a mistake in the function itself
        raise
    except Exception as error:  # a damaged file can make its reader raise nearly anything
        result = compile_it(False)
        _say_once(type(error).__name__)
        return result


def _say_once(why: str) -> None:
    if why not in cache_faults:
        cache_faults.add(why)
        print(
            f"tinycnn: Numba's cache can't be used ({why}), so the kernels are compiled at every start; "
            "set NUMBA_CACHE_DIR to a directory that can be written",
            file=sys.stderr,
        )


def parts_for(pieces: int, operations: int) -> int:
    """How many parts to make of work that can be cut into so many pieces: one if it is too small to share out.

    operations: multiply-adds; a number that is only moved, compared or scaled counts as 8, one that enters a longer
    formula as 32, or as 128 if there is an exp in it.
    """
    return 1 if operations < WORTH_SHARING else min(PARTS, pieces)


def run(
    kernel: Task, parts: int, sizes: tuple[int, ...], *arrays: np.ndarray | None, scratch: int | None = None
) -> None:
    """kernel(part, sizes, *arrays) for each part in 0 … parts − 1, shared out to Numba's threads.

    The arrays must be contiguous and of the dtypes that the kernel takes, or None where it will not look. scratch: None
    if the task has no scratch memory; else so many numbers of the first array's dtype are the part's to write into (0:
    it will not look). They are the thread's, in fact, and still in its core's cache when the next part or kernel
    begins. When the thread begins with its first part, the first of them is 0; all others are arbitrary.
    """
    if _noted is not None:
        _noted.append(kernel)
        return
    if _without_threads:
        raise RuntimeError("tinycnn can't compute in a process that was forked off one in which it has: use 'spawn'")
    of_threads, threads, stride = None, 0, 0  # scratch memory: for how many threads, how far from one to the next
    if scratch:
        threads = config.NUMBA_NUM_THREADS
        of_threads = take_scratch(threads, scratch * arrays[0].dtype.itemsize)
        stride = of_threads.strides[0]
    if scratch is not None:
        arrays = (of_threads, *arrays)
    flags_and_sizes = _flags_and(parts, sizes)
    if parts > 1:
        flags_and_sizes = flags_and_sizes.copy()
    ids = [id(_NOTHING if array is None else array) for array in arrays]
    _in_parallel()(kernel.address, parts, threads, stride, id(flags_and_sizes), *ids, *_UNUSED[len(ids) :])
    if scratch:
        return_scratch(of_threads)


@contextmanager
def noting() -> Iterator[list[Task]]:
    """Inside the with block `run` computes nothing: it notes in the list what it would call."""
    global _noted
    _noted = []
    try:
        yield _noted
    finally:
        _noted = None


@functools.lru_cache(maxsize=1000)
def _flags_and(parts: int, sizes: tuple[int, ...]) -> np.ndarray:
    """`_call_in_parallel`'s numbers: a 0 for each part, then the sizes. They are to be copied if it sets flags."""
    return np.array((*[0] * parts, *sizes), np.int64)


@intrinsic(prefer_literal=True)
def numbers(typing_context, pointer, count):
    """The first `count` numbers at the pointer, as a tuple."""
    result = types.UniTuple(pointer.dtype, count.literal_value)

    def code(context, builder, signature, arguments):
        return builder.load(builder.bitcast(arguments[0], context.get_value_type(result).as_pointer()))

    return result(pointer, count), code


@intrinsic
def memory_at(typing_context, address, like):
    """The memory at the address (a number), as a pointer to numbers of the dtype behind the pointer `like`."""

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(like))

    return like(address, like), code


@intrinsic
def is_last(typing_context, ended, parts):
    """Whether all other parts have asked this before: then what they have written can be read. ended: at first 0."""

    def code(context, builder, signature, arguments):
        before_ = builder.atomic_rmw("add", arguments[0], ir.Constant(_I64, 1), "acq_rel")
        return builder.icmp_signed("==", before_, builder.sub(arguments[1], ir.Constant(_I64, 1)))

    return types.boolean(ended, types.intp), code


def _memory_of(builder, array_):
    """Machine code for the address of an array's numbers, from the array's id.

    In CPython the id is where the object is. It begins with what all objects have, and in an array the address of its
    numbers comes next. (Numba would look at each array's type, shape and strides first: 0.2 µs, nine times a kernel.)
    """
    field_ = builder.inttoptr(builder.add(array_, ir.Constant(_I64, object.__basicsize__)), _I64.as_pointer())
    return builder.inttoptr(builder.load(field_), _I64.as_pointer())


@intrinsic
def _integers(typing_context, array):
    """The numbers of an array of int64, from its id."""

    def code(context, builder, signature, arguments):
        return _memory_of(builder, arguments[0])

    return types.CPointer(types.int64)(array), code


@intrinsic
def _clear(typing_context, array, offset):
    """8 bytes of an array's memory become 0, from its id. (Numba would leave out an assignment that seems unused.)"""

    def code(context, builder, signature, arguments):
        first_ = builder.bitcast(_memory_of(builder, arguments[0]), ir.IntType(8).as_pointer())
        builder.store(ir.Constant(_I64, 0), builder.bitcast(builder.gep(first_, [arguments[1]]), _I64.as_pointer()))
        return context.get_dummy_value()

    return types.void(array, offset), code


@intrinsic
def _call(typing_context, address, part, parts, flags_and_sizes, offset, a, b, c, d, e, f, g, h, i):
    """Call the C function at the address: part, pointers to flags_and_sizes[parts:], a[offset:], the other arrays.

    flags_and_sizes and a … i are the ids of arrays, offset is in bytes. A task that declares fewer pointers does not
    see the others: by the C calling convention the caller cleans up.
    """

    def code(context, builder, signature, arguments):
        address_, part_, parts_, sizes_, offset_, *arrays_ = arguments
        byte = ir.IntType(8).as_pointer()
        first_, *others_ = [builder.bitcast(_memory_of(builder, array_), byte) for array_ in arrays_]
        values_ = [part_, builder.gep(_memory_of(builder, sizes_), [parts_]), builder.gep(first_, [offset_]), *others_]
        function = ir.FunctionType(ir.VoidType(), [value_.type for value_ in values_]).as_pointer()
        builder.call(builder.inttoptr(address_, function), values_)
        return context.get_dummy_value()

    return types.void(address, part, parts, flags_and_sizes, offset, a, b, c, d, e, f, g, h, i), code


@intrinsic
def _is_first(typing_context, flags, part):
    """Whether nobody has asked for this part before: sets its flag. Of several threads only one is told so."""

    def code(context, builder, signature, arguments):
        flag_ = builder.gep(arguments[0], [arguments[1]])
        before_ = builder.atomic_rmw("xchg", flag_, ir.Constant(_I64, 1), "monotonic")
        return builder.icmp_signed("==", before_, ir.Constant(_I64, 0))

    return types.boolean(flags, part), code


def _call_in_parallel(address, parts, threads, stride, flags_and_sizes, a, b, c, d, e, f, g, h, i):
    for thread in range(threads):  # that have scratch memory, each so many bytes behind the one before
        _clear(a, thread * stride)
    if parts == 1:
        _call(address, 0, parts, flags_and_sizes, 0, a, b, c, d, e, f, g, h, i)
        return
    # A thread gets neighbouring parts for its own, the same ones of every kernel, so it finds what it wrote itself in
    # the cache of its core. Then it takes what others have not begun: another program may keep their cores busy.
    for own in prange(parts):
        offset = get_thread_id() * stride
        flags = _integers(flags_and_sizes)
        for turn in range(parts):
            part = (own + turn) % parts
            if flags[part] == 0 and _is_first(flags, part):
                _call(address, part, parts, flags_and_sizes, offset, a, b, c, d, e, f, g, h, i)


def _note_fork() -> None:
    global _without_threads
    try:
        _without_threads = threading_layer() != "workqueue"
    except ValueError:  # they had not been started
        _without_threads = False


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(after_in_child=_note_fork)


@functools.cache
def _in_parallel() -> Callable:
    """`_call_in_parallel`, compiled when it is first needed: that starts Numba's threads."""
    signature = types.void(*(5 + MOST_ARRAYS) * [types.intp])
    return cached(lambda cache: njit(signature, parallel=True, nogil=True, cache=cache)(_call_in_parallel))
