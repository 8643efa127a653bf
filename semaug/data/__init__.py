"""Data sets: images as uint8 with their classes, split for training, validation and test."""

from semaug.data.sets import Data, load
from semaug.data.split import Split

__all__ = ["Data", "Split", "load"]
