"""Padding: images, or some rows of them, are set inside zeros in scratch memory that stays in the core's cache.

What this file is not: used by every convolution. `input_gradient.py` and `narrow_convolution.py` leave out what would
be zero instead.
"""

from math import prod

from tinycnn.kernels.parallel import in_tasks
from tinycnn.kernels.vector import clear_numbers, copy_numbers


def scratch_size_for(x_shape, z_size, offset) -> int:
    """How many numbers the z has in which images of x are set, one by one; 0 where x can be read as it is."""
    as_it_is = offset == (0, 0) and z_size[0] <= x_shape[1] and z_size[1] <= x_shape[2]
    return 0 if as_it_is else prod(z_size) * x_shape[3]


@in_tasks
def set_inside_zeros(x, image, z, start, rows, x_shape, z_w, offset, back=False):
    """z[offset + i] = x[i] for the given rows of z; those above and below x become zeros, what is beside it is already.

    image, start: where the image begins in x, and z in its memory. back: the other way, x[i] = z[offset + i].
    Callers write np.intp(0) for a 0: with a literal one Numba would compile this once more.
    """
    (first, last), (H, W, C) = rows, x_shape
    left, right = max(0, offset[1]), min(z_w, offset[1] + W)
    top = min(last, max(first, offset[0]))
    bottom = max(top, min(last, offset[0] + H))
    if not back:
        clear_numbers(z, start + first * z_w * C, (top - first) * z_w * C)
        clear_numbers(z, start + bottom * z_w * C, (last - bottom) * z_w * C)
    if left < right:
        for i in range(top, bottom):
            there = image + ((i - offset[0]) * W + left - offset[1]) * C
            here = start + (i * z_w + left) * C
            if back:
                copy_numbers(x, there, z, here, (right - left) * C)
            else:
                copy_numbers(z, here, x, there, (right - left) * C)
