"""The operations as Numba hot loops, one file an operation. No state, no layers: arrays in, arrays out.

Start with `vector.py` (the register tile), then `convolution.py`.
"""
