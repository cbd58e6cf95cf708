"""The operations as Numba hot loops. No layers, no parameters: arrays in, arrays out.

Start with `vector.py` (the register tile) and `parallel.py` (how a kernel gets onto all cores), then `dense.py` and
`convolution.py`; the README names the whole order.
"""
