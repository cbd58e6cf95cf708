"""The operations as Numba hot loops, one file an operation. No state, no layers: arrays in, arrays out.

Start with `vector.py` (the register tile) and `parallel.py` (how a kernel gets onto all cores), then `convolution.py`.
"""
