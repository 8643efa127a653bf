"""Checkpoints: everything a run needs to go on as if it had never stopped, in one file that is always whole."""

from __future__ import annotations

import hashlib
import io
import pickle
import tempfile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from semaug.training.common import global_generators
from semaug.training.record import Record, write_whole


@runtime_checkable
class Resumable(Protocol):
    """What a loop owns that has to go on where it stopped."""

    optimizer: torch.optim.Optimizer
    generators: dict[str, torch.Generator]
    device: torch.device

    @property
    def objective(self) -> nn.Module:
        """All that is trained."""


class Checkpoint:
    """Everything a run needs to go on as if it had never stopped, in one file that is whole at any time."""

    def __init__(self, path: Path, loop: Resumable, record: Record) -> None:
        self.path, self.record, self.device = path, record, loop.device
        self.objective, self.optimizer, self.generators = loop.objective, loop.optimizer, loop.generators

    def save(self, epochs_done: int) -> None:
        """Write the state after an epoch, behind its checksum; on an error the last good checkpoint stays."""
        content = {
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
        buffer = io.BytesIO()
        torch.save(content, buffer)
        payload = buffer.getvalue()
        write_whole(self.path, hashlib.sha256(payload).digest() + payload)

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The content of a checkpoint; raises ValueError naming a file that is none, or not whole to the last bit."""
        try:
            content = path.read_bytes()
            digest, payload = content[:32], content[32:]
            if hashlib.sha256(payload).digest() != digest:
                raise ValueError("its checksum differs")
            return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
            raise ValueError(f"resume: {path} is no whole checkpoint ({error}); delete it to start anew") from error

    def load(self) -> int:
        """Put the state back, where the file exists; epochs already done (0 without a file).

        Where the run began in another environment, the record's ``environment`` has it as ``resumed_from``. Raises
        OSError where the folder cannot be written, before anything was trained.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.path.parent):
            pass
        for part in self.path.parent.glob(f".{self.path.name}.*.part"):  # of a process killed while it wrote
            part.unlink(missing_ok=True)
        if not self.path.exists():
            return 0
        content = self.read(self.path)
        state = self.objective.state_dict()
        mine = {
            "config": self.record.config,
            "seed": self.record.seed,
            "device": self.device.type,
            "generators": list(self.generators),
            "objective": {name: list(value.shape) for name, value in state.items()},
        }
        theirs = {name: content.get(name) for name in mine} | {
            "generators": list(content.get("generators", ())),
            "objective": {name: list(value.shape) for name, value in content.get("objective", {}).items()},
        }
        for name, value in mine.items():  # all of it, before anything is put back
            if theirs[name] != value:
                other = f"its {name} is {theirs[name]}, this run's is {value}"
                raise ValueError(f"resume: {self.path} is of another run: {other}; delete it or name another file")
        self.objective.load_state_dict(content["objective"])
        self.optimizer.load_state_dict(content["optimizer"])
        for name, generator in self.generators.items():
            generator.set_state(content["generators"][name])
        for generator, saved in zip(global_generators(self.device), content["global"], strict=True):
            generator.set_state(saved)
        self.record.curves, self.record.seconds = content["curves"], content["seconds"]
        before = content.get("environment", self.record.environment)
        if before != self.record.environment:
            self.record.environment["resumed_from"] = before
        return content["epochs_done"]
