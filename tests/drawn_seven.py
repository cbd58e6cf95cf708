"""A seven, drawn by hand, as the page sends it."""

import numpy as np

SEVEN = np.zeros((56, 56), int)
SEVEN[10:15, 14:42] = 255
for row in range(15, 46):
    SEVEN[row, 39 - (row - 10) // 2 : 44 - (row - 10) // 2] = 255
