"""tinycnn: a convolutional network by hand, in NumPy and Numba. See README.md for the order to read it in."""

from tinycnn.averaging import WeightAverage
from tinycnn.idx import read_idx, write_idx
from tinycnn.layers import Conv2D, Dense, Flatten, Layer, MaxPool2D, Parameter, ReLU
from tinycnn.loss import SoftmaxCrossEntropy, softmax
from tinycnn.mnist import load_mnist
from tinycnn.model import Sequential
from tinycnn.more_layers import BatchNorm, Dropout, GlobalAveragePool2D, Normalize
from tinycnn.optim import SGD, Adam
from tinycnn.schedules import constant, cosine, one_cycle, step_decay

__all__ = [
    "SGD",
    "Adam",
    "BatchNorm",
    "Conv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAveragePool2D",
    "Layer",
    "MaxPool2D",
    "Normalize",
    "Parameter",
    "ReLU",
    "Sequential",
    "SoftmaxCrossEntropy",
    "WeightAverage",
    "constant",
    "cosine",
    "load_mnist",
    "one_cycle",
    "read_idx",
    "softmax",
    "step_decay",
    "write_idx",
]
