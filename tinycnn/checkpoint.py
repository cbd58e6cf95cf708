"""A training that was stopped goes on as if it had not been: all that it consists of, in one file.

That is the arrays of the model, of the optimizer and of the average of weights, the states of the random generators,
and the position with the history. Beside them stand the settings: with others it would be another training, which is
refused.

What this file is not: it decides neither when to save nor where; `tinycnn/experiment.py` does.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tinycnn import archive
from tinycnn.arguments import not_negative, whole
from tinycnn.averaging import WeightAverage
from tinycnn.files import printable
from tinycnn.model import Sequential
from tinycnn.optim import SGD, Adam
from tinycnn.training import COLUMNS, Position


@dataclass
class Checkpoint:
    """The file of one training.

    settings: all that makes the training what it is, by name; anything JSON can hold. generators: those that it draws
    from, by name, besides those of the model's own layers.
    """

    path: Path
    settings: dict
    model: Sequential
    optimizer: SGD | Adam
    generators: dict[str, np.random.Generator]
    average: WeightAverage | None = None

    def save(self, position: Position) -> None:
        """Write the file, whole or not at all."""
        description = {
            "settings": self.settings,
            "position": asdict(position),
            "generators": {name: g.bit_generator.state for name, g in self._all_generators().items()},
            "optimizer_steps": getattr(self.optimizer, "t", 0),
            "averaged": self.average.updates if self.average else 0,
        }
        archive.write(self.path, archive.CHECKPOINT, description, self.arrays())

    def is_there(self) -> bool:
        """Whether the file is there, and of a training with these settings."""
        try:
            with archive.reading(self.path, archive.CHECKPOINT) as (description, _):
                return not list(self._differences(description))
        except (FileNotFoundError, ValueError):
            return False

    def restore(self) -> Position:
        """Put model, optimizer and generators where the file's were; return its position.

        Raises FileNotFoundError, and ValueError, with nothing changed: naming the settings that differ, or the fault if
        the file is damaged.
        """
        with archive.reading(self.path, archive.CHECKPOINT) as (description, arrays):
            differences = list(self._differences(description))
            if not differences:
                position = _position(description["position"])
                steps, averaged = (whole(description[name], name, 0) for name in ("optimizer_steps", "averaged"))
                states = description["generators"]
                restored = {name: _generator(states[name]) for name in self._all_generators()}
                archive.copy_all(arrays, self.arrays())
        if differences:
            raise ValueError(f"{self.path} is of another training: {printable('; '.join(differences)[:400])}")
        for name, generator in self._all_generators().items():
            generator.bit_generator.state = restored[name].bit_generator.state
        if isinstance(self.optimizer, Adam):
            self.optimizer.t = steps
        if self.average:
            self.average.updates = averaged
        return position

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by name: the model's own, their averages, and one or two of the optimizer for each parameter."""
        arrays = dict(self.model.state() + (self.average.state() if self.average else []))
        for kind in ("velocities",) if isinstance(self.optimizer, SGD) else ("means", "squares"):
            for parameter, array in zip(self.optimizer.parameters, getattr(self.optimizer, kind), strict=True):
                arrays[f"{parameter.name}.{kind}"] = array
        return arrays

    def _differences(self, description: dict) -> Iterator[str]:
        """What the file's settings and these have different."""
        then, now = description["settings"], json.loads(json.dumps(self.settings))
        for name in {**then, **now}:
            if then.get(name) != now.get(name):
                yield f"{name} was {then.get(name)}, is {now.get(name)} now"

    def _all_generators(self) -> dict[str, np.random.Generator]:
        """Also those of layers such as Dropout."""
        own = {layer.name: layer.generator for layer in self.model.layers if hasattr(layer, "generator")}
        return {**self.generators, **own}


def _position(found: dict) -> Position:
    """The position that `asdict` made the dict of. Raises ValueError, TypeError or KeyError if none could have."""
    position = Position(**found)
    for name, least in (("epoch", 1), ("step", 0), ("correct", 0), ("seen", 0)):
        whole(found[name], name, least)
    for name in ("loss", "seconds"):
        not_negative(found[name], name)
    if position.step or position.shuffling is not None:
        _generator(position.shuffling)
    if position.seen < position.step:
        raise ValueError(f"{position.step} steps have seen {position.seen} images")
    if len(position.history) != position.epoch - 1 or any(tuple(row) != COLUMNS for row in position.history):
        raise ValueError("the history does not fit the epoch")
    for row in position.history:
        for name, value in row.items():
            if value is not None or not name.startswith("validation_"):
                not_negative(value, name)
    return position


def _generator(state: dict) -> np.random.Generator:
    """A generator in that state. Raises ValueError, TypeError or KeyError if there is no such state."""
    generator = np.random.default_rng(0)
    generator.bit_generator.state = state
    return generator
