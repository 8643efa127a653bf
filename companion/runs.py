"""Runs: one arm of a study trained with one seed, executed once, by one process, and resumed where it was stopped.

Executing a run leaves a record in ``figures/records/<notebook>/``. A run whose record is there is never executed again,
one that was stopped goes on from its last epoch, and two processes beside each other never take the same one.
"""

from __future__ import annotations

import io
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from companion.records import FIGURES, committed, pack, problems
from companion.studies import Arm, Study, studies
from semaug import networks
from semaug._checks import check_choice
from semaug.core.files import write_whole
from semaug.data.sets import Data, load
from semaug.measures import codes, gans
from semaug.methods import gan, gvae, objectives
from semaug.training.checkpoint import Checkpoint
from semaug.training.loop import fit, fit_together, resolve_device
from semaug.training.objective import Objective, Setting
from semaug.training.recipe import Recipe
from semaug.training.record import Record, config_hash

Builder = Callable[[Data], nn.Module]


def _network(build: Callable[..., nn.Module], **options: Any) -> Builder:
    return lambda dataset: build(dataset.num_classes, channels=dataset.image_shape[0], **options)


def _autoencoder(**options: Any) -> Builder:
    return lambda dataset: gvae.AutoEncoder(
        dataset.num_classes, channels=dataset.image_shape[0], **{"size": dataset.image_shape[1:], **options}
    )


NETWORKS: dict[str, Builder] = {
    "small": _network(networks.small),
    "resnet32": _network(networks.resnet, depth=32),
    "resnet18": _network(networks.resnet18),
    "resnext50": _network(networks.resnext),
    "vit": _network(networks.vit),
    "resnet9": _network(networks.resnet9),
    "autoencoder2": _autoencoder(latent=2),
    "autoencoder16": _autoencoder(latent=16),
    "autoencoder64": _autoencoder(latent=64),
    "autoencoder128": _autoencoder(latent=128, width=32, blocks=(1, 2)),
    "autoencoder512-plain": _autoencoder(latent=512, width=12, blocks=(0, 0)),
    "autoencoder2048-plain": _autoencoder(latent=2048, width=12, blocks=(0, 0, 0)),
    "autoencoder256-faces": _autoencoder(latent=256, width=16, blocks=(0, 0, 0, 0)),
    "autoencoder2048": _autoencoder(latent=2048, width=32, size=(32, 32), blocks=(3, 4, 6, 3)),
    "autoencoder2048-faces": _autoencoder(latent=2048, width=32, size=(64, 64), blocks=(1, 2, 4, 4, 2)),
}
"""Networks by the name a study gives them, built for a data set."""

PLAYERS: dict[str, tuple[int, int, bool]] = {
    "dcgan": (8, 24, False),
    "dcgan-middle": (16, 24, False),
    "dcgan-32": (32, 24, False),
    "dcgan-wide": (64, 96, True),
}
"""Widths of generator and discriminator, and whether the latter's layers are spectrally normalised."""


def build(objective: str, network: str, dataset: Data, seed: int, **settings: Setting) -> Objective:
    """An objective by its names, for a data set, initialised from a seed; leaves the global generator alone.

    Two objectives built with one network and seed start from the same weights: what paired seeds need. Raises
    ValueError for a name that is no objective or not in ``NETWORKS``.
    """
    check_choice("objective", objective, objectives())
    check_choice("network", network, NETWORKS)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return objectives()[objective].build(NETWORKS[network](dataset), dataset, **settings)


@dataclass(frozen=True)
class Run:
    """One arm of a study with one seed."""

    study: Study
    arm: Arm
    seed: int

    @cached_property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return self.study.recipe_of(self.arm)

    @property
    def name(self) -> str:
        """One line for a list."""
        return f"{self.study.notebook} {self.study.name}: {self.arm.name}, seed {self.seed}"

    @property
    def seconds(self) -> float:
        """Its estimate, on one core or one GPU."""
        times = self.recipe.epochs / self.study.recipe.epochs
        return self.study.seconds * times * (self.arm.passes if self.arm.cost is None else self.arm.cost)

    @property
    def plan(self) -> dict[str, Any]:
        """All that decides its result but the seed and the code, in plain values."""
        plan = {
            "objective": self.arm.objective,
            "settings": {name: value for name, value in self.arm.settings.items() if value is not None},
            "network": self.study.network,
            "data": dict(self.study.data),
            "recipe": asdict(self.recipe) | {"milestones": list(self.recipe.milestones)},
        }
        return plan if self.study.judge is None else {**plan, "judge": dict(self.study.judge)}

    @property
    def key(self) -> str:
        """Name of its files while it runs: changes with anything that changes the result."""
        return config_hash({"run": f"{self.name} {self.study.profile}", **self.plan})

    @property
    def checkpoint(self) -> Path:
        """Where its state is kept while it runs."""
        return state_folder() / f"{self.key}.pt"

    def done(self) -> bool:
        """Whether its record is there; a record of another plan under its names is an error (see :meth:`agrees`)."""
        runs = committed(self.study.notebook).of(self.study, self.arm)
        return any(record.seed == self.seed for record in runs)

    def agrees(self, record: Record) -> bool:
        """Whether a record is of this plan: whatever the plan says, the record's configuration says too.

        The network is left out, which a configuration describes and a plan names.
        """
        plan, config = self.plan, record.config
        parts = [part for part in ("settings", "data", "judge") if part in plan]
        same = all(plan[part].items() <= config.get(part, {}).items() for part in parts)
        recipe = {**plan["recipe"], **config["recipe"]}  # a field that came later has its default
        return same and plan["objective"] == config["objective"] and plan["recipe"] == recipe

    def left(self) -> float:
        """Seconds by its estimate that a checkpoint has not behind it."""
        behind = Checkpoint.read(self.checkpoint)["epochs_done"] if self.checkpoint.exists() else 0
        return self.seconds * (1 - behind / self.recipe.epochs)

    def build(self, dataset: Data) -> nn.Module:
        """What is trained, as it starts."""
        if self.arm.objective != "GAN":
            return build(self.arm.objective, self.study.network, dataset, self.seed, **self.arm.settings)
        channels, side, _ = dataset.image_shape
        width, against, spectral = PLAYERS[self.study.network]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            players = gan.Generator(side, channels, width=width), gan.Discriminator(side, channels, against, spectral)
            return gan.GAN(*players, **dict[str, Any](self.arm.settings))

    def execute(self, device: str = "auto", folder: Path | None = None, root: str | None = None) -> Record:
        """Train (or go on training) and write the record; the checkpoint is removed once the record is there.

        Raises what loading the set, building and training raise, OSError where a file cannot be written; its state is
        kept.
        """
        if self.study.execute is not None:
            return self.keep(*self.study.execute(self, root), folder)
        there, dataset = resolve_device(device), load(**self.study.data, root=root)
        model: Any = self.build(dataset).to(there)
        if self.arm.objective == "GAN":
            record, arrays = self._play(model, dataset, there, root)
        else:
            record = fit(model, dataset, self.recipe, seed=self.seed, resume=self.checkpoint)
            arrays = self.measure(record, model, dataset, there)
        return self.keep(record, arrays, folder)

    def measure(self, record: Record, model: Any, dataset: Data, device: torch.device) -> dict[str, np.ndarray]:
        """Add what the study measures to the record; the pictures for seed 0.

        A measure that fails leaves the record of the training, and says so in its environment.
        """
        if self.study.measure is not None:
            with record.measuring("measure"):
                metrics, curves = self.study.measure(model, dataset, device)
                record.metrics, record.curves = record.metrics | metrics, record.curves | curves
        if self.study.pictures is not None and self.seed == 0:
            with record.measuring("pictures"):
                return self.study.pictures(model, dataset)
        return {}

    def keep(self, record: Record, arrays: Mapping[str, np.ndarray], folder: Path | None = None) -> Record:
        """Write what a run leaves, and remove its checkpoint."""
        record.profile, record.study, record.arm = self.study.profile, self.study.name, self.arm.name
        folder = folder or FIGURES / "records" / self.study.notebook
        if arrays:  # before the record, whose being there means that all is done
            write_whole(folder / f"{record.stem}.npz", pack(arrays))
        record.save(folder)
        self.checkpoint.unlink(missing_ok=True)
        return record

    def _play(
        self, players: gan.GAN, dataset: Data, device: torch.device, root: str | None
    ) -> tuple[Record, dict[str, np.ndarray]]:
        """Train two players; FID and KID are of the features of a classifier of the study's judge."""
        assert self.study.judge is not None
        for weight in players.parameters():
            if weight.ndim == 4:  # a quarter less time on a CPU
                weight.data = weight.data.to(memory_format=torch.channels_last)
        judged = load(**self.study.judge, root=root)
        judge: Any = codes.judge(judged, device)
        quality = gans.Quality(dataset, judge.features, device=device)
        frames = _Frames(self) if self.study.frames else None
        if frames is not None and not frames.images:
            frames.add(quality.samples(players))

        def measure(players: gan.GAN) -> dict[str, float]:
            if frames is not None:
                frames.add(quality.samples(players))
            return quality(players)

        record = gan.fit_gan(players, dataset, self.recipe, seed=self.seed, resume=self.checkpoint, measure=measure)
        record.config["judge"] = judged.identity
        with record.measuring("quality"):
            record.metrics |= quality.augmented(players) | quality.real_images()
            arrays = _pictures(players, quality) if self.seed == 0 or frames is not None else {}
            if frames is not None:
                training = {"training": dataset.train.images[:8].cpu().numpy()}
                arrays |= training | {"frames": frames.whole(), "between": _between(players)}
            return record, arrays
        return record, {}


class _Frames:
    """What two players draw from the same codes while they learn, at the start and at every measurement.

    The pictures lie beside the checkpoint, as many as it has measurements behind it, so that a run that was stopped
    goes on with them.
    """

    def __init__(self, run: Run) -> None:
        self.count, self.path = run.study.frames, run.checkpoint.with_suffix(".frames.npy")
        self.images: list[np.ndarray] = []
        if run.checkpoint.exists():
            behind = Checkpoint.read(run.checkpoint)["epochs_done"] // run.recipe.evaluate_every
            self.images = list(np.load(self.path)[: 1 + behind])

    def add(self, samples: torch.Tensor) -> None:
        """One frame more, of the first samples."""
        self.images.append(_as_bytes(samples[: self.count]))
        buffer = io.BytesIO()
        np.save(buffer, np.stack(self.images))
        write_whole(self.path, buffer.getvalue())

    def whole(self) -> np.ndarray:
        """All frames, uint8 (measurements + 1, codes, channels, H, W); their file is not needed any more."""
        self.path.unlink(missing_ok=True)
        return np.stack(self.images)


def _pictures(players: gans.Players, quality: gans.Quality, count: int = 8) -> dict[str, np.ndarray]:
    """The first samples, uint8 (count, channels, H, W), and of each the nearest image of all it was trained on."""
    samples = quality.samples(players)[:count]
    rows = gans.nearest(samples, quality.train.floats()).rows[:, 0]
    return {"samples": _as_bytes(samples), "nearest": quality.train.images[rows].cpu().numpy()}


def _between(players: gan.GAN, steps: int = 8) -> np.ndarray:
    """Images on the way from the first code to the second, and from the third to the fourth, (2, steps, ...).

    The lengths of the codes change as evenly as their directions: the middle of two normal codes would be too short.
    """
    device = next(players.parameters()).device
    start, end = players.codes(4, torch.Generator(device).manual_seed(0)).view(2, 2, 1, -1).unbind(1)
    share = torch.linspace(0, 1, steps, device=device)[:, None]
    way = torch.lerp(start, end, share)
    long = torch.lerp(start.norm(dim=2, keepdim=True), end.norm(dim=2, keepdim=True), share)
    images = _as_bytes(players.sample((way / way.norm(dim=2, keepdim=True) * long).flatten(0, 1)))
    return images.reshape(2, steps, *images.shape[1:])


def _as_bytes(images: torch.Tensor) -> np.ndarray:
    return (images * 255).round().byte().cpu().numpy()


def planned(profile: str | None = None, notebook: str | None = None) -> list[Run]:
    """All runs, or those of a profile or notebook: one seed of every arm first, then three, then the rest."""
    runs = [
        Run(study, arm, seed)
        for study in studies(notebook, profile)
        for seed in range(max(map(len, map(study.seeds_of, study.arms))))
        for arm in study.arms
        if seed in study.seeds_of(arm)
    ]
    return sorted(runs, key=lambda run: (run.seed >= 1) + (run.seed >= 3))


def show(runs: Sequence[Run]) -> int:
    """List runs: saved or missing, their estimate, their name. The exit status: 1 where a file is no record."""
    missing = 0.0
    for run in runs:
        saved = run.done()
        missing += 0 if saved else run.seconds
        print(f"{'saved  ' if saved else 'missing'} {run.seconds:6.0f} s  {run.name}")
    print(f"missing: about {missing / 3600:.1f} hours")
    return int(problems(run.study.notebook for run in runs))


def execute_together(runs: Sequence[Run], device: str = "auto", root: str | None = None) -> list[Record]:
    """Execute runs of one study and recipe as one (``fit_together``): a GPU is hardly busy with a small one.

    Raises what :meth:`Run.execute` raises, where one of them fails.
    """
    there, dataset = resolve_device(device), load(**runs[0].study.data, root=root)
    models: list[Any] = [run.build(dataset).to(there) for run in runs]
    seeds, resume = [run.seed for run in runs], [run.checkpoint for run in runs]
    records = fit_together(models, dataset, runs[0].recipe, seeds, resume)
    measured = zip(runs, records, models, strict=True)
    return [run.keep(record, run.measure(record, model, dataset, there)) for run, record, model in measured]


def state_folder() -> Path:
    """Where runs keep their checkpoints and locks; ignored by git."""
    return Path(__file__).parents[1] / "build" / "runs"


@contextmanager
def claimed(run: Run) -> Iterator[bool]:
    """True for the one process that may execute this run now; the claim ends with the process, however it ends.

    Its file goes with the claim: who opened it before, and locks what is no longer there, has not got the run. Where
    the system has no such locks, as Windows, every process gets it: run one at a time there.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    state_folder().mkdir(parents=True, exist_ok=True)
    path = state_folder() / f"{run.key}.lock"
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            mine = os.fstat(file.fileno()).st_nlink > 0
            try:
                yield mine
            finally:
                if mine:
                    path.unlink(missing_ok=True)


def complete(runs: Sequence[Run], device: str = "auto", root: str | None = None) -> list[tuple[Run, Record]]:
    """Execute these, of one study and recipe, together, but for those that are done or that another process is at.

    Returns those executed, with their records. Raises what :meth:`Run.execute` raises.
    """
    index = committed(runs[0].study.notebook)
    with ExitStack() as claims:
        mine = [run for run in runs if claims.enter_context(claimed(run))]
        index.refresh()  # another process may have been at them since
        mine = [run for run in mine if not run.done()]
        several = len(mine) > 1
        records = execute_together(mine, device, root) if several else [run.execute(device, root=root) for run in mine]
        index.refresh()
        return [*zip(mine, records, strict=True)]


def _seconds(runs: Sequence[Run], device: str) -> float:
    """Estimate for runs executed together: on a GPU each after the first is a third of one alone (``make bench``)."""
    more = 1 if resolve_device(device).type == "cpu" else 1 / 3
    return max(run.left() for run in runs) * (1 + (len(runs) - 1) * more)


def run_for(
    minutes: float, runs: Sequence[Run], device: str = "auto", root: str | None = None, together: int = 1
) -> int:
    """Execute the missing runs that fit into so many minutes, in their order; the exit status.

    A run that fails is named with its error, and the others still run; one that was not finished in time goes on from
    its last epoch next time.
    """
    torch.set_num_threads(1)
    end, ran, failed, waiting = time.monotonic() + 60 * minutes, 0, list[Run](), list[float]()
    with _time_up(60 * minutes):
        missing = [run for run in runs if not run.done()]
        for at, run in enumerate(missing):
            if run.done():
                continue
            alike = [one for one in missing[at:] if one.study is run.study and one.recipe == run.recipe]
            most = 1 if run.arm.objective == "GAN" or run.study.execute is not None else together
            try:
                some = [one for one in alike if one not in failed and not one.done()][:most]
                while time.monotonic() + (left := _seconds(some, device)) > end and len(some) > 1:
                    some.pop()
                if time.monotonic() + left > end:
                    waiting.append(left)
                    continue  # a shorter one further down may still fit
                try:
                    records = complete(some, device, root)
                except Exception as error:
                    if len(some) == 1:
                        raise
                    print(f"alone, as one of {len(some)} failed together ({error}): {run.name}", flush=True)
                    records = complete([run], device, root)
            except Exception as error:  # whatever it is, the others may still run
                failed.append(run)
                print(f"FAILED  {run.name}: {type(error).__name__}: {error}", flush=True)
                continue
            ran += len(records)
            for one, record in records:
                score = record.metrics.get("test_accuracy", record.metrics.get("fid", math.nan))
                print(f"{record.seconds:6.0f} s  {score:.4f}  {one.name}", flush=True)
    if waiting and not ran:
        print(f"{len(waiting)} runs are longer than that; the shortest takes about {min(waiting) / 60:.0f} minutes")
    return int(problems(run.study.notebook for run in runs) or bool(failed))


@contextmanager
def _time_up(seconds: float) -> Iterator[None]:
    """What stands inside ends after so many seconds, also where an estimate was wrong: a run's checkpoint is there.

    Where the system has no such signal, as Windows, the estimates alone decide.
    """
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    class TimeUp(BaseException):
        pass

    def stop(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TimeUp:
        print("time is up; what was running goes on from its last epoch next time", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
