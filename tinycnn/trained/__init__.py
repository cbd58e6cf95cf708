"""A network that comes with the package; README.md beside it says how it was trained."""

from pathlib import Path

TRAINED = Path(__file__).parent / "standard.npz"
