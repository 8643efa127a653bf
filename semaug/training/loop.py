"""One training loop for every objective: recipe in, record out.

``fit`` owns what a paper does not change: optimiser and schedule, the order of the data, crop and flip, every random
generator, checkpoints, the record. The data set lies on the device as uint8 and is augmented there, without workers.

Reproducible: one seed decides the data order, the augmentation and the objective's draws, each from a generator of
its own. On one CPU machine two runs of a seed are bitwise equal, also when one of them was killed and resumed.

Data-parallel: start the script with ``torchrun``, initialise the process group, call ``fit``. ``batch_size`` is the
global batch; every rank takes its contiguous share of it and of the draws made for the whole of it (``Step.share``).
Two processes then equal one, except where a layer looks at its own share alone: BatchNorm (each rank normalises by, and
keeps the running statistics of, its share) and dropout (the masks of one rank are repeated on the others).
"""

from __future__ import annotations

import inspect
import math
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from semaug.core.metrics import accuracy, class_accuracy, confusion, predictions
from semaug.data.sets import Data
from semaug.training.capture import Captured, capturable
from semaug.training.checkpoint import Checkpoint
from semaug.training.common import check_seed, configuration, global_generators, make_optimizer, peak_memory, prepared
from semaug.training.objective import Objective, Step, check_fit, check_result, trainable
from semaug.training.progress import Progress
from semaug.training.recipe import PRECISIONS, Recipe
from semaug.training.record import Record, environment
from semaug.training.streams import Stream, generator_for

MOST_TOGETHER = 10

"""torch has 32 streams to give, round robin, and a run takes one, and one more for each phase it captures."""


def resolve_device(device: str = "auto") -> torch.device:
    """'auto' is the GPU where there is one and the CPU elsewhere; anything else is taken by its torch name.

    Of several GPUs it is the one of this process, by torchrun's LOCAL_RANK.
    """
    if device == "auto":
        own = f":{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else ""
        return torch.device(f"cuda{own}" if torch.cuda.is_available() else "cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {device!r}, but this torch sees no CUDA device; takes 'auto' or 'cpu' here")
    return resolved


def fit(
    objective: Objective,
    data: Data,
    recipe: Recipe,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Record:
    """Train an objective in place, on the device its parameters are on; it is left in evaluation mode.

    The test split is evaluated after the last epoch and that value is reported, never the best.

    Args:
        objective: what is trained.
        data: what it is trained and tested on.
        recipe: how.
        seed: of the data order, the augmentation and the objective's draws.
        resume: a checkpoint file, written whole after every epoch and continued from where it exists; it refuses a
            checkpoint of another configuration or seed, and data-parallel all processes have to see it.
        progress: one line that is updated while it runs.

    Returns:
        The record of the run.

    Raises:
        ValueError: for an objective and data that do not fit together.
        FloatingPointError: when the loss, a weight or a logit stops being a number; the last good checkpoint stays.
            Where ``objective.metrics`` fails, the record says so in its environment.
        OSError: when a checkpoint cannot be written; the last good one stays.
    """
    device = trainable(objective)
    with prepared(device):
        steps = _training(objective, data, recipe, seed, device, resume, progress)
        return next(record for record in steps if record is not None)


def fit_together(
    objectives: Sequence[Objective],
    data: Data,
    recipe: Recipe,
    seeds: Sequence[int],
    resume: Sequence[str | Path] | None = None,
    progress: bool = True,
) -> list[Record]:
    """:func:`fit` for several objectives on one device at a time, a step of each in turn.

    On a GPU each has a stream of its own: the kernels of a small network leave most of it idle, and those of five
    together are done in less than half the time (``make bench``). Each run is the one it would be alone. Time and
    memory cannot be separated: ``seconds`` of a record are those of its epochs, in which all have their steps, over
    the number of runs, and ``peak_memory`` is that of all.

    Args:
        objectives: at most ten, with parameters of their own.
        data, recipe, progress: as of :func:`fit`, for all.
        seeds, resume: one for each objective.

    Returns:
        The records of the runs, in their order.

    Raises:
        ValueError: for lengths that differ, none or more than ten, parameters or files that two of them share, dropout,
            which draws from a generator that all share, objectives on several devices, or a data-parallel run.
        Exception: what :func:`fit` raises, for the first that does; the others' checkpoints stay.
    """
    device = _check_together(objectives, seeds, resume)
    files = [None] * len(objectives) if resume is None else resume
    with prepared(device):
        lanes = [_lane(device) for _ in objectives]
        waiting = {
            number: _training(objective, data, recipe, seed, device, file, progress and not number, len(objectives))
            for number, (objective, seed, file) in enumerate(zip(objectives, seeds, files, strict=True))
        }
        records: dict[int, Record] = {}
        try:
            while waiting:
                for number, training in [*waiting.items()]:
                    with lanes[number]():
                        record = next(training)
                    if record is not None:
                        records[number] = record
                        del waiting[number]
        finally:  # nothing is at work on what the caller has, however this ends
            for training in waiting.values():
                training.close()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    return [records[number] for number in range(len(objectives))]


def _check_together(
    objectives: Sequence[Objective], seeds: Sequence[int], resume: Sequence[str | Path] | None
) -> torch.device:
    """The device of them all; raises what ``fit_together`` says."""
    given = [len(objectives), len(seeds), len(objectives if resume is None else resume)]
    if len(set(given)) > 1 or not 1 <= len(objectives) <= MOST_TOGETHER:
        raise ValueError(f"objectives, seeds, resume: got {given} of them; takes as many of each, 1 to {MOST_TOGETHER}")
    parameters = [id(parameter) for objective in objectives for parameter in objective.parameters()]
    if len(set(parameters)) < len(parameters):
        raise ValueError("objectives: got two that share parameters; takes networks of their own")
    if resume is not None and len({Path(file).resolve() for file in resume}) < len(resume):
        raise ValueError(f"resume: got {', '.join(map(str, resume))}; takes a file for each")
    if any(isinstance(module, nn.Dropout) and module.p for objective in objectives for module in objective.modules()):
        raise ValueError("objectives: got one with dropout, whose generator all would share; takes it alone, by fit")
    if dist.is_available() and dist.is_initialized():
        raise ValueError("fit_together: got a data-parallel process; takes one run at a time there, on all devices")
    devices = {trainable(objective) for objective in objectives}
    if len(devices) > 1:
        raise ValueError(f"objectives: got them on {', '.join(sorted(map(str, devices)))}; takes one device")
    return devices.pop()


def _lane(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """What a run's work is done within, again and again: a stream of its own on a GPU."""
    if device.type != "cuda":
        return nullcontext
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return lambda: torch.cuda.stream(stream)


def _training(
    objective: Objective,
    data: Data,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    resume: str | Path | None,
    progress: bool,
    beside: int = 1,
) -> Generator[Record | None, None, None]:
    """What ``fit`` does, with a pause after every step, and its record; ``beside``: runs that share its time."""
    network = getattr(objective.network, "name", type(objective.network).__name__)
    config = configuration(type(objective).__name__, objective.settings, network, data, recipe)
    record = Record(config, check_seed(seed), environment=environment(str(device)))
    if beside > 1:
        record.environment["together"] = beside
    clock = time.process_time if device.type == "cpu" else time.perf_counter  # the cores may have other work too
    for generator in global_generators(device):
        generator.manual_seed(generator_for(seed, "global").initial_seed())
    loop = _Loop(objective, data, recipe, seed, device)
    checkpoint = Checkpoint(Path(resume), loop, record) if resume is not None else None
    done = loop.agreed(checkpoint.load()) if checkpoint else 0
    label = f"{type(objective).__name__}, {data.name}, seed {seed}" + (f" and {beside - 1} more" if beside > 1 else "")
    with (
        closing(loop),  # graphs hold the loop, and the loop holds them
        Progress(label, recipe.epochs, done, enabled=progress and loop.rank == 0) as bar,
    ):
        for epoch in range(done, recipe.epochs):
            started = clock()
            values = yield from loop.epoch(epoch)
            record.seconds += (clock() - started) / beside
            if recipe.evaluate_every and (epoch + 1) % recipe.evaluate_every == 0:
                name, split = ("test", data.test) if data.validation is None else ("validation", data.validation)
                values[f"{name}_accuracy"] = accuracy(objective.predict, split.to(device))
            for name, value in values.items():
                record.curves.setdefault(name, []).append(value)
            if checkpoint and loop.rank == 0:
                checkpoint.save(epoch + 1)
            bar.update(record, epoch + 1)
        loop.close()
        _conclude(record, objective.eval(), data, device)
        bar.update(record, recipe.epochs)
    yield record


def _conclude(record: Record, objective: Objective, data: Data, device: torch.device) -> None:
    """What a record says of a trained objective."""
    test = data.test.to(device)
    matrix = confusion(predictions(objective.predict, test), test.target)
    record.train_counts, record.class_accuracy = data.counts.tolist(), class_accuracy(matrix).tolist()
    record.metrics["train_loss"] = record.curves["train_loss"][-1]
    record.metrics["test_accuracy"] = int(matrix.trace()) / len(test)
    if data.validation is not None:
        record.metrics["validation_accuracy"] = accuracy(objective.predict, data.validation.to(device))
    own = dict[str, float]()
    with record.measuring("metrics"):
        own = {name: float(value) for name, value in objective.metrics(data).items()}
    if taken := own.keys() & record.metrics.keys():
        got = f"{type(objective).__name__}.metrics: got {sorted(taken)[0]!r}"
        raise ValueError(f"{got}; takes other names, fit records this itself")
    record.metrics |= own
    record.peak_memory = peak_memory(device)


class _Loop:
    """What fit owns while it trains, and one epoch of it."""

    def __init__(self, objective: Objective, data: Data, recipe: Recipe, seed: int, device: torch.device) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        check_fit(objective, data, recipe, self.world)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            for module in objective.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the images come
        self.objective, self.recipe, self.device = objective, recipe, device
        self.optimizer = make_optimizer(objective.parameter_groups(recipe), recipe, device)
        self.peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.streams = [Stream(data.train, "train", recipe.batch_size, recipe, seed, device)]
        if data.meta is not None and "meta" in objective.streams:
            size = min(recipe.meta_batch_size, len(data.meta))
            self.streams.append(Stream(data.meta, "meta", size, recipe, seed, device))
        self.draws = generator_for(seed, "objective", device)
        self.generators = {"objective": self.draws}
        for stream in self.streams:
            self.generators |= {f"order/{stream.name}": stream.order, f"augment/{stream.name}": stream.draws}
        self.steps = len(data.train) // recipe.batch_size
        self.total = self.steps * recipe.epochs
        self.model = _parallel(objective, device) if self.world > 1 else objective
        # What differs between two steps, in tensors: a step captured as a CUDA graph finds it where it was.
        self.rows = [torch.zeros(stream.batch_size, dtype=torch.int64, device=device) for stream in self.streams]
        self.progress = torch.zeros((), device=device)
        self.phase: str | None = None
        self.rates = [torch.zeros((), device=device) for _ in self.peaks]
        static = capturable(objective, recipe) and not torch.are_deterministic_algorithms_enabled()
        self.captures = device.type == "cuda" and self.world == 1 and static
        self.captured: dict[str, Captured[dict[str, Tensor]]] = {}

    def agreed(self, done: int) -> int:
        """The epochs behind the checkpoint; raises ValueError where other processes have read another one."""
        if self.world > 1:
            all_of = [torch.zeros_like(self.rows[0][:1]) for _ in range(self.world)]
            dist.all_gather(all_of, torch.full_like(all_of[0], done))
            if len(seen := {int(one) for one in all_of}) > 1:
                raise ValueError(f"resume: got {sorted(seen)} epochs behind; takes one file that all processes see")
        return done

    def close(self) -> None:
        """Let go of the captured steps and their memory."""
        self.captured.clear()

    def epoch(self, number: int) -> Generator[None, None, dict[str, float]]:
        """One pass over the training set; means of the loss and its terms, and the last learning rate.

        A pause after every step: other runs may have theirs.
        """
        self.objective.train()
        orders = [stream.epoch(self.steps) for stream in self.streams]
        sums: dict[str, Tensor] = {}
        for i in range(self.steps):
            for mine, rows in zip(self.rows, orders, strict=True):
                mine.copy_(rows[i])
            values = self.advance(number * self.steps + i)
            if i and values.keys() != sums.keys():
                before, got = (sorted(each - {"train_loss"}) for each in (sums.keys(), values.keys()))
                raise ValueError(f"terms: got {got}, at the step before {before}; takes the same always")
            sums = {name: value + sums[name] if i else value.clone() for name, value in values.items()}
            yield
        means = torch.stack([value.double() for value in sums.values()]) / (self.steps * self.world)
        if self.world > 1:
            dist.all_reduce(means)
        logged = dict(zip(sums, means.tolist(), strict=True))  # one of two waits for the device in an epoch
        rate = self.peaks[0] * self.recipe.lr_at(((number + 1) * self.steps - 0.5) / self.total)
        where = f"in epoch {number + 1} (lr {rate:.3g}); a lower Recipe.lr or a Recipe.warmup usually mends this"
        if not math.isfinite(logged["train_loss"]):
            raise FloatingPointError(f"the loss became {logged['train_loss']} {where}")
        weights = dict(self.objective.named_parameters())  # the last step's loss does not show what it did
        sound = torch.stack([weight.detach().isfinite().all() for weight in weights.values()]).tolist()
        if not all(sound):
            raise FloatingPointError(f"{[*weights][sound.index(False)]} became NaN or infinite {where}")
        return {**logged, "lr": rate}

    def advance(self, number: int) -> dict[str, Tensor]:
        """Step ``number`` on the rows that are set: captured where this is possible."""
        fraction = (number + 0.5) / self.total
        scale = self.recipe.lr_at(fraction)
        self.progress.fill_(fraction)
        self.phase = phase = self.objective.phase(fraction)
        for group, peak, rate in zip(self.optimizer.param_groups, self.peaks, self.rates, strict=True):
            rate.fill_(peak * scale)
            group["lr"] = rate if self.captures else peak * scale
        if phase is None or not self.captures:
            return self.step()
        if phase not in self.captured:
            self.captured.clear()  # a phase does not come back: its graph's memory may go
            drawn = [generator for generator in self.generators.values() if generator.device.type == "cuda"]
            self.captured[phase] = Captured(self.step, drawn)
        return self.captured[phase]()

    def step(self) -> dict[str, Tensor]:
        """One optimiser step; the loss and its terms, detached."""
        batches = []
        for stream, rows in zip(self.streams, self.rows, strict=True):
            first, last = (rank * stream.batch_size // self.world for rank in (self.rank, self.rank + 1))
            batches.append(stream.batch(rows, slice(first, last)))
        meta = batches[1] if len(batches) > 1 else None
        step = Step(self.progress, self.rates[0], self.draws, meta, self.rank, self.world, self.phase)
        precision = PRECISIONS[self.recipe.precision]
        with torch.autocast(self.device.type, precision, enabled=precision is not None):
            loss, terms = self.model(*batches[0], step)
        check_result(self.objective, loss, terms)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.objective.after_step(step)
        return {"train_loss": loss.detach(), **terms}


def _parallel(objective: Objective, device: torch.device) -> DistributedDataParallel:
    """DDP that leaves buffers alone: moments are reduced by their module, DDP would overwrite all with rank 0's."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.13
    options: dict[str, Any] = {name: False, "device_ids": [device] if device.type == "cuda" else None}
    return DistributedDataParallel(objective, **options)
