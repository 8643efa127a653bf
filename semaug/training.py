"""One training loop for every objective: recipe in, record out.

``fit`` owns what a paper does not change: optimiser and schedule, the order of the data, crop and flip, every random
generator, checkpoints, the record. The data set lies on the device as uint8 and is augmented there, without workers.

Reproducible: one seed decides the data order, the augmentation and the objective's draws, each from a generator of
its own. On one CPU machine two runs of a seed are bitwise equal, also when one of them was killed and resumed.

Data-parallel: start the script with ``torchrun``, initialise the process group, call ``fit``. ``batch_size`` is the
global batch; every rank takes its contiguous share of it and of the draws made for the whole of it. The objective's
own generator is in the same state on all ranks, so that a draw for the batch (mixup's ratio) agrees.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import io
import math
import pickle
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from semaug.data import Data, Split
from semaug.evaluation import accuracy
from semaug.objective import Batch, Objective, Step
from semaug.records import Record, environment, write_whole

SCHEDULES: dict[str, Callable[[Recipe, float], float]] = {
    "constant": lambda recipe, fraction: 1.0,
    "cosine": lambda recipe, fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
    "linear": lambda recipe, fraction: 1 - fraction,
    "step": lambda recipe, fraction: recipe.factor ** sum(fraction > milestone for milestone in recipe.milestones),
}
"""Learning rate over its peak, as a function of the fraction of training done (after the warm-up) in [0, 1]."""

OPTIMIZERS = ("sgd", "adam")
AUGMENTS = ("none", "flip", "crop", "crop+flip")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train, apart from the objective; part of every record.

    epochs: passes over the training set; the last, smaller batch of each is dropped (static shapes).
    batch_size, meta_batch_size: images a step in the two streams, over all ranks together.
    optimizer: 'sgd' (momentum, nesterov) or 'adam' (momentum is its first beta). weight_decay: L2, as in the papers.
    lr: peak learning rate. schedule: 'constant', 'cosine', 'linear' or 'step' (times ``factor`` after each of
        ``milestones``, fractions of training). warmup: the first fraction of training, in which lr rises linearly.
    augment: 'none', 'flip', 'crop' or 'crop+flip'; padding: pixels on each side before the crop; padding_mode:
        'reflect' or 'zeros'.
    precision: 'float32', or 'bfloat16' (autocast).
    evaluate_every: epochs between evaluations on the validation split (the test split where there is none) during
        training; 0: only after the last epoch.
    """

    epochs: int = 20
    batch_size: int = 128
    meta_batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1
    warmup: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    augment: str = "none"
    padding: int = 4
    padding_mode: str = "reflect"
    precision: str = "float32"
    evaluate_every: int = 0

    def __new__(cls, *args: Any, **fields: Any) -> Recipe:
        """Name an unknown field, and the one that was probably meant, before the dataclass sees it."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
                raise TypeError(f"Recipe has no field {name!r}; {hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check every field; raises ValueError naming the field, what it got and what it takes."""
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name in ("epochs", "batch_size", "meta_batch_size"):
            _require(
                isinstance(getattr(self, name), int) and getattr(self, name) >= 1, self, name, "a whole number from 1"
            )
        for name in ("padding", "evaluate_every"):
            _require(
                isinstance(getattr(self, name), int) and getattr(self, name) >= 0, self, name, "a whole number from 0"
            )
        _require(math.isfinite(self.lr) and self.lr > 0, self, "lr", "a finite number above 0")
        _require(0 <= self.momentum < 1, self, "momentum", "a number in [0, 1)")
        _require(0 <= self.warmup < 1, self, "warmup", "a fraction in [0, 1)")
        _require(math.isfinite(self.weight_decay) and self.weight_decay >= 0, self, "weight_decay", "a number from 0")
        _require(all(0 < m < 1 for m in self.milestones), self, "milestones", "fractions of training in (0, 1)")
        choices = {"optimizer": OPTIMIZERS, "schedule": tuple(SCHEDULES), "augment": AUGMENTS}
        choices |= {"precision": tuple(PRECISIONS), "padding_mode": ("reflect", "zeros")}
        for name, allowed in choices.items():
            _require(getattr(self, name) in allowed, self, name, f"one of {', '.join(allowed)}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Recipe:
        """A paper's recipe (see ``PRESETS``), with some fields changed."""
        if name not in PRESETS:
            raise ValueError(f"preset: got {name!r}, takes one of {', '.join(PRESETS)}")
        return cls(**(PRESETS[name] | changes))

    def lr_at(self, progress: float) -> float:
        """Learning rate over its peak at a fraction of training in [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        return SCHEDULES[self.schedule](self, (progress - self.warmup) / (1 - self.warmup))


def _require(condition: bool, recipe: Recipe, name: str, takes: str) -> None:
    if not condition:
        raise ValueError(f"Recipe.{name}: got {getattr(recipe, name)!r}, takes {takes}")


PRESETS: dict[str, dict[str, Any]] = {
    # Wang et al. (NeurIPS 2019) and their released code: Nesterov 0.9, reflect-pad-4 crop and flip, batch 128.
    "isda/resnet": dict(epochs=160, schedule="step", augment="crop+flip"),
    "isda/se-resnet": dict(epochs=200, schedule="step", milestones=(0.4, 0.6, 0.8), augment="crop+flip"),
    "isda/wide-resnet": dict(
        epochs=240, schedule="step", milestones=(0.25, 0.5, 2 / 3, 5 / 6), factor=0.2, weight_decay=5e-4, augment="crop+flip"
    ),
}  # fmt: skip


def resolve_device(device: str = "auto") -> torch.device:
    """'auto' is the GPU where there is one and the CPU elsewhere; anything else is taken by its torch name."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {device!r}, but this torch sees no CUDA device; takes 'auto' or 'cpu' here")
    return resolved


def generator_for(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one named purpose of one seed: independent streams, the same on every machine of a kind."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _reflected(side: int, padding: int, device: torch.device) -> Int64[Tensor, " padded"]:
    """Pixel numbers of one axis padded on both ends by reflection."""
    if padding >= side:
        raise ValueError(f"Recipe.padding: got {padding}, takes less than the image's side of {side} to reflect it")
    distance = torch.arange(-padding, side + padding, device=device).abs()
    return (side - 1) - (side - 1 - distance).abs()


class Stream:
    """A split on the device and its batches: shuffled, cropped and flipped in one gather from padded uint8 images."""

    def __init__(
        self, split: Split, name: str, batch_size: int, recipe: Recipe, seed: int, device: torch.device
    ) -> None:
        self.name, self.batch_size, self.recipe = name, batch_size, recipe
        self.target = split.target.to(device)
        images = split.images.to(device)
        self.height, self.width = images.shape[-2:]
        self.padding = recipe.padding if "crop" in recipe.augment else 0
        if self.padding and recipe.padding_mode == "zeros":
            images = F.pad(images, (self.padding,) * 4)
        elif self.padding:  # by index: F.pad does not reflect bytes
            y, x = (_reflected(side, self.padding, device) for side in (self.height, self.width))
            images = images[..., y, :][..., x]
        self.images: UInt8[Tensor, "N channels H W"] = images
        # Orders on the CPU: the same data order on every device. Draws on the device: no copy at every step.
        self.order = generator_for(seed, f"order/{name}")
        self.draws = generator_for(seed, f"augment/{name}", device)

    def epoch(self, steps: int) -> Int64[Tensor, "steps batch"]:
        """Row numbers of the next ``steps`` batches: permutations of the split, one after the other."""
        passes = -(-steps * self.batch_size // len(self.target))
        order = torch.cat([torch.randperm(len(self.target), generator=self.order) for _ in range(passes)])
        return order[: steps * self.batch_size].view(steps, self.batch_size).to(self.target.device)

    def batch(self, rows: Int64[Tensor, " batch"], share: slice) -> Batch:
        """This rank's share of one batch, augmented, in [0, 1]."""
        rows, device = rows[share], rows.device
        y, x = torch.arange(self.height, device=device), torch.arange(self.width, device=device)
        y, x = y.expand(len(rows), -1), x.expand(len(rows), -1)
        if "flip" in self.recipe.augment:
            flip = self._draw(2)[share, None].bool()
            x = torch.where(flip, self.width - 1 - x, x)
        if self.padding:
            y = y + self._draw(2 * self.padding + 1)[share, None]
            x = x + self._draw(2 * self.padding + 1)[share, None]
        if self.recipe.augment == "none":
            images = self.images[rows]
        else:
            channel = torch.arange(self.images.shape[1], device=device)[None, :, None, None]
            images = self.images[rows[:, None, None, None], channel, y[:, None, :, None], x[:, None, None, :]]
        return Batch(images.float().div_(255), self.target[rows])

    def _draw(self, high: int) -> Int64[Tensor, " batch"]:
        """One whole number in [0, high) for each image of the global batch."""
        return torch.randint(high, (self.batch_size,), generator=self.draws, device=self.draws.device)


def fit(
    objective: Objective,
    data: Data,
    recipe: Recipe,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Record:
    """Train an objective in place, on the device its parameters are on; the record of the run comes back.

    The objective is left in evaluation mode.

    resume: a checkpoint file, written whole after every epoch and continued from where it exists; it refuses a
        checkpoint of another configuration or seed. progress: one line that is updated while it runs.

    The test split is evaluated after the last epoch and that value is reported, never the best. Raises ValueError for
    an objective and data that do not fit together, FloatingPointError when the loss stops being finite (the last
    good checkpoint stays), OSError when a checkpoint cannot be written (likewise).
    """
    device = next(objective.parameters()).device
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    _check(objective, data, recipe, world)

    streams = [Stream(data.train, "train", recipe.batch_size, recipe, seed, device)]
    if "meta" in objective.streams:
        assert data.meta is not None  # _check
        size = min(recipe.meta_batch_size, len(data.meta))
        streams.append(Stream(data.meta, "meta", size, recipe, seed, device))
    steps = len(data.train) // recipe.batch_size
    total = steps * recipe.epochs
    groups = objective.parameter_groups(recipe)
    optimizer = _optimizer(groups, recipe)
    peaks = [group["lr"] for group in optimizer.param_groups]
    draws = generator_for(seed, "objective", device)
    generators = {f"{s.name}/{kind}": getattr(s, kind) for s in streams for kind in ("order", "draws")} | {
        "objective": draws
    }
    fractions = (torch.arange(total, device=device) + 0.5) / total

    config = {
        "objective": type(objective).__name__,
        "settings": dict(objective.settings),
        "network": getattr(objective.network, "name", type(objective.network).__name__),
        "data": {"name": data.name, **data.settings},
        "recipe": dataclasses.asdict(recipe) | {"milestones": list(recipe.milestones)},
    }
    record = Record(config, seed, environment=environment(device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    state = Checkpoint(Path(resume), objective, optimizer, generators, record) if resume is not None else None

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator_for(seed, "global").initial_seed())
        epochs_done = state.load() if state is not None else 0
        model = _parallel(objective, device) if world > 1 else objective
        label = f"{config['objective']}, {data.name}, seed {seed}"
        with Progress(label, recipe.epochs, epochs_done, enabled=progress and rank == 0) as bar:
            for epoch in range(epochs_done, recipe.epochs):
                objective.train()
                started = time.perf_counter()
                orders = [stream.epoch(steps) for stream in streams]
                sums: dict[str, Tensor] = {}
                for i in range(steps):
                    done = epoch * steps + i
                    scale = recipe.lr_at((done + 0.5) / total)
                    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                        group["lr"] = peak * scale
                    batches = [
                        s.batch(rows[i], _share(s.batch_size, rank, world))
                        for s, rows in zip(streams, orders, strict=True)
                    ]
                    step = Step(fractions[done], optimizer.param_groups[0]["lr"], draws, *batches[1:])
                    with torch.autocast(
                        device.type, PRECISIONS[recipe.precision], enabled=recipe.precision != "float32"
                    ):
                        loss, terms = model(*batches[0], step)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    with torch.no_grad():
                        objective.after_step(step)
                        for name, value in {"train_loss": loss.detach(), **terms}.items():
                            sums[name] = sums.get(name, 0) + value
                _log_epoch(record, sums, steps, world, optimizer.param_groups[0]["lr"], started)
                if recipe.evaluate_every and (epoch + 1) % recipe.evaluate_every == 0:
                    name = "validation" if data.validation is not None else "test"
                    record.curves.setdefault(f"{name}_accuracy", []).append(
                        _evaluate(objective, data.validation or data.test)
                    )
                if state is not None and rank == 0:
                    state.save(epoch + 1)
                bar.update(record, epoch + 1)

            record.metrics = {
                "train_loss": record.curves["train_loss"][-1],
                "test_accuracy": _evaluate(objective, data.test),
            }
            if data.validation is not None:
                record.metrics["validation_accuracy"] = _evaluate(objective, data.validation)
            record.peak_memory = _peak_memory(device)
            objective.eval()
            bar.update(record, recipe.epochs)
    return record


def _check(objective: Objective, data: Data, recipe: Recipe, world: int) -> None:
    """What cannot train is said before the first step."""
    if recipe.batch_size > len(data.train):
        raise ValueError(
            f"Recipe.batch_size: got {recipe.batch_size}, takes at most the {len(data.train)} training images"
        )
    if recipe.batch_size % world:
        raise ValueError(f"Recipe.batch_size: got {recipe.batch_size}, takes a multiple of the {world} processes")
    if unknown := set(objective.streams) - {"train", "meta"}:
        raise ValueError(f"{type(objective).__name__}.streams: got {sorted(unknown)}, takes 'train' and 'meta'")
    if "meta" in objective.streams and (data.meta is None or min(recipe.meta_batch_size, len(data.meta)) % world):
        got = "none" if data.meta is None else f"{len(data.meta)} images"
        raise ValueError(f"data.meta: got {got}; {type(objective).__name__} asks for a second stream (load(..., meta=10)), "
                         f"a batch of which divides among {world} process(es)")  # fmt: skip
    named = {id(p): name for name, p in objective.named_parameters() if p.requires_grad}
    for group in objective.parameter_groups(recipe):
        for parameter in group["params"]:
            named.pop(id(parameter), None)
    if named:
        raise ValueError(
            f"parameter_groups: {', '.join(named.values())} would never be trained; add them to a group, or freeze them"
        )
    device, was_training = next(objective.parameters()).device, objective.training
    with torch.no_grad():
        logits = objective.eval().predict(data.test.take(slice(0, 2)).to(device).floats())
    objective.train(was_training)
    if logits.shape[1:] != (data.num_classes,):
        raise ValueError(
            f"objective: predicts logits of shape {tuple(logits.shape)}, takes (N, {data.num_classes}) for data {data.name!r}"
        )


def _optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), weight_decay=recipe.weight_decay)
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, weight_decay=recipe.weight_decay
    )


def _parallel(objective: Objective, device: torch.device) -> DistributedDataParallel:
    """DDP that leaves buffers alone: moments are reduced by their room; DDP would overwrite every rank's with rank 0's."""
    name = "forward_sync_buffers"  # torch 2.13; before it the same was called broadcast_buffers
    if name not in inspect.signature(DistributedDataParallel.__init__).parameters:
        name = "broadcast_buffers"
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(objective, device_ids=devices, **{name: False})


def _share(batch_size: int, rank: int, world: int) -> slice:
    return slice(rank * batch_size // world, (rank + 1) * batch_size // world)


def _log_epoch(record: Record, sums: dict[str, Tensor], steps: int, world: int, lr: float, started: float) -> None:
    """Epoch means into the curves: one wait for the device an epoch, and the place where a loss that is not finite stops."""
    means = torch.stack([value.detach().double() for value in sums.values()]) / (steps * world)
    if world > 1:
        dist.all_reduce(means)
    values = dict(zip(sums, means.tolist(), strict=True))
    if not math.isfinite(values["train_loss"]):
        epoch = len(record.curves.get("train_loss", [])) + 1
        raise FloatingPointError(f"the loss became {values['train_loss']} in epoch {epoch} (lr {lr:.3g}); a lower Recipe.lr or "
                                 "a Recipe.warmup usually mends this")  # fmt: skip
    for name, value in {**values, "lr": lr}.items():
        record.curves.setdefault(name, []).append(value)
    record.seconds += time.perf_counter() - started


def _evaluate(objective: Objective, split: Split) -> float:
    return accuracy(objective.predict, split.to(next(objective.parameters()).device))


def _peak_memory(device: torch.device) -> int:
    """Bytes: the device's peak allocation, or the process's peak resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Checkpoint:
    """Everything a run needs to go on as if it had never stopped, in one file that is whole at any time."""

    def __init__(
        self,
        path: Path,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        generators: dict[str, torch.Generator],
        record: Record,
    ) -> None:
        self.path, self.objective, self.optimizer = path, objective, optimizer
        self.generators, self.record = generators, record

    def save(self, epochs_done: int) -> None:
        """Write the state after an epoch; on an error the last good checkpoint stays."""
        content = {
            "config": self.record.config,
            "seed": self.record.seed,
            "epochs_done": epochs_done,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
            "global": torch.get_rng_state(),
            "global_cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "curves": self.record.curves,
            "seconds": self.record.seconds,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(self.path, buffer.getvalue())

    def load(self) -> int:
        """Put the state back, where the file exists; epochs already done (0 without a file)."""
        if not self.path.exists():
            return 0
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
            raise ValueError(
                f"resume: {self.path} is no whole checkpoint ({type(error).__name__}); delete it to start anew"
            ) from error
        for name in ("config", "seed"):
            if content[name] != getattr(self.record, name):
                raise ValueError(f"resume: {self.path} is of another run: its {name} is {content[name]}, this run's is "
                                 f"{getattr(self.record, name)}; delete it or name another file")  # fmt: skip
        self.objective.load_state_dict(content["objective"])
        self.optimizer.load_state_dict(content["optimizer"])
        for name, state in content["generators"].items():
            self.generators[name].set_state(state)
        torch.set_rng_state(content["global"])
        if content["global_cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(content["global_cuda"])
        self.record.curves, self.record.seconds = content["curves"], content["seconds"]
        return content["epochs_done"]


class Progress:
    """One line on the state of a run: tqdm's bar in a terminal, one plain-text output in a notebook.

    tqdm's notebook bar is a widget, of which a saved notebook keeps nothing readable; its text bar leaves every state
    it ever had. A display handle is updated in place: JupyterLab shows it move, a saved notebook shows its last state.
    """

    def __init__(self, label: str, epochs: int, done: int, enabled: bool) -> None:
        self.label, self.epochs, self.handle, self.bar = label, epochs, None, None
        if enabled and _in_kernel():
            from IPython.display import display

            self.handle = display({"text/plain": f"{label}: starting"}, raw=True, display_id=True)
        elif enabled:
            # silent where nobody watches: a log file wants no bar
            self.bar = tqdm(total=epochs, initial=done, desc=label, unit="epoch", disable=None)

    def update(self, record: Record, done: int) -> None:
        """Show the state after an epoch, and the result after the last."""
        loss = record.curves["train_loss"][-1] if record.curves.get("train_loss") else math.nan
        if self.handle is not None:
            filled = round(20 * done / self.epochs)
            result = "".join(
                f", {name.replace('_', ' ')} {value:.3f}" for name, value in record.metrics.items() if "acc" in name
            )
            text = f"{self.label}: {'█' * filled}{'·' * (20 - filled)} epoch {done}/{self.epochs}, {record.seconds:.0f} s, train loss {loss:.3f}{result}"
            self.handle.update({"text/plain": text}, raw=True)
        elif self.bar is not None:
            self.bar.set_postfix(
                {"loss": f"{loss:.3f}", **{k: f"{v:.3f}" for k, v in record.metrics.items()}}, refresh=False
            )
            self.bar.update(done - self.bar.n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()


def _in_kernel() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
