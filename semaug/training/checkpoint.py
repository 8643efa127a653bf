"""Checkpoints: everything a run needs to go on as if it had never stopped, in one file that is always whole."""

from __future__ import annotations

import hashlib
import io
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from semaug.core.files import parts_of, write_whole
from semaug.training.common import global_generators
from semaug.training.record import Record


@runtime_checkable
class Resumable(Protocol):
    """What a loop owns that has to go on where it stopped."""

    optimizer: torch.optim.Optimizer
    generators: dict[str, torch.Generator]
    device: torch.device

    @property
    def objective(self) -> nn.Module:
        """All that is trained."""


MAGIC = b"semaug checkpoint 1\n"

"""What a file of ours begins with; after it the SHA-256 of the rest."""


class Checkpoint:
    """Everything a run needs to go on as if it had never stopped, in one file that is whole at any time."""

    def __init__(self, path: Path, loop: Resumable, record: Record) -> None:
        self.path, self.record, self.device = path, record, loop.device
        self.objective, self.optimizer, self.generators = loop.objective, loop.optimizer, loop.generators
        self.saved = False

    def save(self, epochs_done: int) -> None:
        """Write the state after an epoch, behind its checksum; on an error the last good checkpoint stays.

        Raises:
            ValueError: before the first file is written, for a state that could not be read back.
            OSError: where the file cannot be written.
        """
        buffer = io.BytesIO()
        torch.save(self._content(epochs_done), buffer)
        payload = buffer.getvalue()
        if not self.saved:
            try:
                torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                name = type(self.objective).__name__
                raise ValueError(f"{name}: got a state that is no tensors and plain values ({error})") from error
        write_whole(self.path, MAGIC + hashlib.sha256(payload).digest() + payload)
        self.saved = True

    def _content(self, epochs_done: int) -> dict[str, Any]:
        return {
            "config": self.record.config,
            "seed": self.record.seed,
            "device": self.device.type,
            "epochs_done": epochs_done,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
            "global": [generator.get_state() for generator in global_generators(self.device)],
            "curves": self.record.curves,
            "seconds": self.record.seconds,
            "environment": self.record.environment,
        }

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The content of a checkpoint.

        Raises:
            ValueError: naming a file that is none of ours, or not whole to the last bit.
        """
        try:
            if path.is_fifo():
                raise OSError("a pipe")
            whole = path.read_bytes()
        except OSError as error:
            raise ValueError(f"resume: {path} cannot be read ({error}); takes the name of a file") from error
        if not whole.startswith(MAGIC):
            raise ValueError(f"resume: {path} is not one of ours; takes a checkpoint that fit wrote, or a new name")
        digest, payload = whole[len(MAGIC) :][:32], whole[len(MAGIC) + 32 :]
        if hashlib.sha256(payload).digest() != digest:
            raise ValueError(f"resume: {path} is no whole checkpoint (its checksum differs); delete it to start anew")
        try:
            content: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"resume: {path} is of another version ({error!r}); takes a new name") from error
        return content

    def load(self) -> int:
        """Put the state back, where the file exists; epochs already done (0 without a file).

        Where the run began in another environment, the record's ``environment`` has it as ``resumed_from``.

        Raises:
            ValueError: for a file that is none of ours, not whole, or of another run, before anything was changed.
            OSError: where the folder cannot be written, before anything was trained.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.path.parent):
            pass
        for part in parts_of(self.path):  # of a process killed while it wrote
            part.unlink(missing_ok=True)
        if not self.path.exists():
            return 0
        content = self.read(self.path)
        mine = _identity(self._content(0))
        try:
            theirs = _identity(content)
            done, epochs = content["epochs_done"], self.record.config["recipe"]["epochs"]
            differences = [f"its {name} is {its}, this run's is {own}" for name, its, own in _differences(theirs, mine)]
            differences += [] if done in range(epochs + 1) else [f"its epochs_done is {done}, of {epochs} epochs"]
            if not differences:  # what is the loop's own, then the objective: where one does not fit, it is as it was
                self.optimizer.load_state_dict(content["optimizer"])
                for name, state in content["generators"].items():
                    self.generators[name].set_state(state)
                for generator, state in zip(global_generators(self.device), content["global"], strict=True):
                    generator.set_state(state)
                self.record.curves, self.record.seconds = dict(content["curves"]), float(content["seconds"])
                if content["environment"] != self.record.environment:
                    self.record.environment["resumed_from"] = content["environment"]
                self.objective.load_state_dict(content["objective"])
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"resume: {self.path} is of another version ({error!r}); takes a new name") from error
        if differences:
            what = "; ".join(differences[:3]) + ("; and more" if len(differences) > 3 else "")
            raise ValueError(f"resume: {self.path} is of another run: {what}. Name another file")
        return int(done)


def _identity(content: dict[str, Any]) -> dict[str, Any]:
    """What is the same in a run that goes on: of the generators their names, of the objective its shapes."""
    shapes = {name: list(getattr(value, "shape", ())) for name, value in content["objective"].items()}
    same = {name: content[name] for name in ("config", "seed", "device")}
    return same | {"generators": sorted(content["generators"]), "objective": shapes}


def _differences(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two nested dictionaries differ: the path of keys, and what each has there."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        if one != other:
            yield name, one, other
        return
    for key in one | other:
        yield from _differences(one.get(key), other.get(key), f"{name}.{key}" if name else str(key))
