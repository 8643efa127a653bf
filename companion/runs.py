"""One training run by plain values: what it is built of, executed, and where its record and its state lie.

A :class:`Run` names an objective, a network, a data set, a recipe and a seed. Executing it leaves a record in
``figures/records/<notebook>/``. One that was stopped goes on from its last epoch, one whose record is there is never
run again, and two processes beside each other never take the same one. The ledger (room ``ledger``) is a list of them.
"""

from __future__ import annotations

import fcntl
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from companion import records
from semaug import data, networks
from semaug.measures import codes as gvae_measures
from semaug.measures import gans as gan_measures
from semaug.measures.robustness import measures
from semaug.methods import gan, learned, mixup
from semaug.methods.augmented import Augmented
from semaug.methods.automix import AutoMix
from semaug.methods.gvae import GVAE, VAE, AutoEncoder, ConditionalVAE
from semaug.methods.isda import ISDA
from semaug.methods.long_tail import LongTailed
from semaug.methods.metasaug import MetaSAug
from semaug.methods.puzzlemix import CoMixup, PuzzleMix
from semaug.methods.sla import SLA, DataAugmentation, LongTailedSLA, MultiTask
from semaug.training.checkpoint import Checkpoint
from semaug.training.loop import Recipe, fit, fit_together, resolve_device
from semaug.training.objective import CrossEntropy, Objective, Setting, Smoothed
from semaug.training.record import Record, config_hash, write_whole

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "CrossEntropy": CrossEntropy,
    "ISDA": ISDA,
    "LongTailed": LongTailed,
    "MetaSAug": MetaSAug,
    "DataAugmentation": DataAugmentation,
    "MultiTask": MultiTask,
    "SLA": SLA,
    "LongTailedSLA": LongTailedSLA,
    "VAE": VAE,
    "ConditionalVAE": ConditionalVAE,
    "GVAE": GVAE,
    "Augmented": Augmented,
    "Mixup": mixup.Mixup,
    "CutMix": mixup.CutMix,
    "ManifoldMixup": mixup.ManifoldMixup,
    "ResizeMix": mixup.ResizeMix,
    "SaliencyMix": mixup.SaliencyMix,
    "Cutout": mixup.Cutout,
    "MixStyle": mixup.MixStyle,
    "PuzzleMix": PuzzleMix,
    "CoMixup": CoMixup,
    "AutoMix": AutoMix,
    "FixedAugmentation": learned.FixedAugmentation,
    "FeatureAugmentation": learned.FeatureAugmentation,
    "TeachAugment": learned.TeachAugment,
    "Smoothed": Smoothed,
}

Measured = tuple[dict[str, float], dict[str, list[float]]]


def _of_codes(objective: Any, of: data.Data, device: torch.device) -> Measured:
    return (gvae_measures.measures(objective, of, device) if isinstance(objective, GVAE) else {}), {}


def _of_predictions(objective: Any, of: data.Data, device: torch.device) -> Measured:
    return measures(objective.predict, of.test.to(device))


MEASURES: dict[str, Callable[[Any, data.Data, torch.device], Measured]] = {
    "2_gvae": _of_codes,
    "3_automix": _of_predictions,
}
"""What the records of a notebook's runs say beside accuracy: metrics and curves, of a trained objective."""

PICTURES = {"2_gvae": gvae_measures.pictures}

"""What the figures of a notebook show of a trained objective itself: arrays, kept beside the record of seed 0 in a file
of its name that ends in .npz. A record holds numbers and no network."""

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "small": networks.small,
    "resnet20": partial(networks.resnet, depth=20),
    "resnet32": partial(networks.resnet, depth=32),
    "resnet110": partial(networks.resnet, depth=110),
    "resnet18": networks.resnet18,
    "wrn-28-10": partial(networks.wide_resnet, depth=28, width=10, dropout=0.3),
    "resnext50": networks.resnext,
    "vit": networks.vit,
    "resnet9": networks.resnet9,
    "autoencoder16": partial(AutoEncoder, latent=16),
    "autoencoder64": partial(AutoEncoder, latent=64),
    "autoencoder128": partial(AutoEncoder, latent=128, width=32, blocks=(1, 2)),
    "autoencoder2048": partial(AutoEncoder, latent=2048, width=32, size=(32, 32), blocks=(3, 4, 6, 3)),
    "autoencoder2048-faces": partial(AutoEncoder, latent=2048, width=32, size=(64, 64), blocks=(1, 2, 4, 4, 2)),
}

PLAYERS: dict[str, tuple[int, int, bool]] = {"dcgan": (8, 24, False), "dcgan-wide": (64, 96, True)}

"""Widths of generator and discriminator, and whether the latter's layers are spectrally normalised."""


def build(objective: str, network: str, of: data.Data, seed: int, **settings: Setting) -> Objective:
    """An objective by its names, for a data set, initialised from a seed; leaves the global generator alone.

    Two objectives built with one network and seed start from the same weights: what paired seeds need. One that takes
    ``counts`` or ``image_shape`` is given the set's, a network that takes ``size`` the images' sides. Raises ValueError
    for a name that is not in ``OBJECTIVES`` or ``NETWORKS``.
    """
    for argument, name, known in (("objective", objective, OBJECTIVES), ("network", network, NETWORKS)):
        if name not in known:
            raise ValueError(f"{argument}: got {name!r}; takes one of {', '.join(known)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        make = OBJECTIVES[objective]
        channels, *size = of.image_shape
        sides = {"size": tuple(size)} if "size" in inspect.signature(NETWORKS[network]).parameters else {}
        body = NETWORKS[network](of.num_classes, channels=channels, **sides)
        told = {"counts": of.counts, "image_shape": of.image_shape}
        told = {name: value for name, value in told.items() if name in inspect.signature(make).parameters}
        return make(body, **told, **settings)


@dataclass(frozen=True)
class Run:
    """One training run by plain values. seconds: its estimate on the profile's device (one core; one H100)."""

    notebook: str
    profile: str
    objective: str
    network: str
    of: Mapping[str, Any]
    recipe: Recipe
    seconds: float
    settings: Mapping[str, Setting] = field(default_factory=dict)
    seed: int = 0

    @property
    def name(self) -> str:
        """One line for a list; runs whose recipes differ in more than epochs and augmentation share it."""
        settings, of = (
            "".join(f" {key}={value}" for key, value in values.items() if key != "name")
            for values in (self.settings, self.of)
        )
        what = f"{self.of['name']}{of} {self.network} {self.objective}{settings}"
        recipe = f"{self.recipe.epochs} epochs, {self.recipe.augment}"
        return f"{self.notebook} {self.profile} {what}, {recipe}, seed {self.seed}"

    @property
    def key(self) -> str:
        """Name of its files while it runs: changes with anything that changes the result."""
        plain = {"name": self.name, "recipe": repr(self.recipe)}
        return config_hash(plain)

    @property
    def checkpoint(self) -> Path:
        """Where its state is kept while it runs."""
        return state_folder() / f"{self.key}.pt"

    def execute(self, device: str = "auto", folder: Path | None = None, root: str | None = None) -> Record:
        """Train (or go on training) and write the record; the checkpoint is removed once the record is there.

        Raises what loading the set, building and training raise, ValueError for what does not go together, OSError
        where a file cannot be written; its state is kept.
        """
        record, arrays = self._trained(resolve_device(device), self.checkpoint, root)
        return self._keep(record, arrays, folder)

    def _keep(self, record: Record, arrays: dict[str, np.ndarray], folder: Path | None = None) -> Record:
        """Write what a run leaves, and remove its checkpoint."""
        record.profile = self.profile
        folder = folder or records.committed(self.notebook)
        if arrays:  # before the record, whose being there means that all is done
            write_whole(folder / f"{record.stem}.npz", records.pack(arrays))
        record.save(folder)
        self.checkpoint.unlink()
        return record

    def complete(self, device: str = "auto", root: str | None = None) -> Record | None:
        """Execute it, unless it is done or another process is at it: then None."""
        return next((record for _, record in complete([self], device, root)), None)

    def left(self) -> float:
        """Seconds by its estimate, less the share of its epochs that a checkpoint has behind it."""
        behind = Checkpoint.read(self.checkpoint)["epochs_done"] if self.checkpoint.exists() else 0
        return self.seconds * (1 - behind / self.recipe.epochs)

    def build(self, of: data.Data) -> nn.Module:
        """What is trained, as it starts."""
        return build(self.objective, self.network, of, self.seed, **self.settings)

    def _trained(
        self, device: torch.device, checkpoint: Path, root: str | None
    ) -> tuple[Record, dict[str, np.ndarray]]:
        """The record, and the pictures for seed 0."""
        of = data.load(**self.of, root=root)
        objective: Any = self.build(of).to(device)
        record = fit(objective, of, self.recipe, seed=self.seed, resume=checkpoint)
        return self._measured(record, objective, of, device)

    def _measured(
        self, record: Record, objective: Any, of: data.Data, device: torch.device
    ) -> tuple[Record, dict[str, np.ndarray]]:
        """The record with what its notebook measures, and the pictures for seed 0."""
        if self.notebook in MEASURES:
            metrics, curves = MEASURES[self.notebook](objective, of, device)
            record.metrics, record.curves = record.metrics | metrics, record.curves | curves
        return record, PICTURES[self.notebook](objective, of) if self.seed == 0 and self.notebook in PICTURES else {}

    def done(self, folder: Path | None = None) -> bool:
        """Whether its record is there: of the same configuration throughout, with today's defaults filled in."""
        found = records.load(folder or records.committed(self.notebook), profile=self.profile, seed=self.seed)
        configs = [_filled(record.config) for record in found]
        for config in configs if "size" not in self.of else []:
            config["data"]["size"] = None  # a record says the side of its images, this run takes the set's own
        return self._wanted() in configs

    def _wanted(self) -> dict[str, Any]:
        """Its configuration as its record will have it."""
        return _filled(
            {
                "objective": self.objective,
                "settings": self.settings,
                "network": self._network_name(),
                "data": self.of,
                "recipe": vars(self.recipe),
            }
        )

    def _network_name(self) -> str:
        return _network_name(self.network)


def execute_together(runs: Sequence[Run], device: str = "auto", root: str | None = None) -> list[Record]:
    """Execute runs of one set and recipe as one (``training.fit_together``): a GPU is hardly busy with a small one.

    Raises what :meth:`Run.execute` raises, where one of them fails.
    """
    there, of = resolve_device(device), data.load(**runs[0].of, root=root)
    objectives: list[Any] = [run.build(of).to(there) for run in runs]
    seeds, resume = [run.seed for run in runs], [run.checkpoint for run in runs]
    found = fit_together(objectives, of, runs[0].recipe, seeds, resume)
    measured = zip(runs, found, objectives, strict=True)
    return [run._keep(*run._measured(record, objective, of, there)) for run, record, objective in measured]


@dataclass(frozen=True)
class GANRun(Run):
    """One training of two players; ``network`` is one of ``PLAYERS``, ``settings`` are those of :class:`gan.GAN`.

    judged: the set, as arguments of ``data.load``, whose classifier's features FID and KID are of: larger than the set
    that is learned, of which a hundred images make no classifier.
    """

    judged: Mapping[str, Any] = field(default_factory=dict)

    def build(self, of: data.Data) -> gan.GAN:
        """The players, initialised from the seed."""
        channels, side, _ = of.image_shape
        width, against, spectral = PLAYERS[self.network]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            players = gan.Generator(side, channels, width=width), gan.Discriminator(side, channels, against, spectral)
            return gan.GAN(*players, **dict[str, Any](self.settings))

    def _trained(
        self, device: torch.device, checkpoint: Path, root: str | None
    ) -> tuple[Record, dict[str, np.ndarray]]:
        of, judged = data.load(**self.of, root=root), data.load(**self.judged, root=root)
        players = self.build(of).to(device)
        judge: Any = gvae_measures.judge(judged, device)
        extract = judge.features
        quality = gan_measures.Quality(of, extract, device=device)
        record = gan.fit_gan(players, of, self.recipe, seed=self.seed, resume=checkpoint, measure=quality)
        record.metrics |= quality.augmented(players) | quality.real_images()
        return record, quality.pictures(players) if self.seed == 0 else {}

    def _network_name(self) -> str:
        width, against, spectral = PLAYERS[self.network]
        with torch.device("meta"):
            return f"{gan.Generator(width=width).name} against {gan.Discriminator(32, 1, against, spectral).name}"


def _filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with every default written out, so that an old record and a new run can be compared."""
    makes = OBJECTIVES | {"GAN": gan.GAN}
    settings = _defaults(makes[config["objective"]]) if config["objective"] in makes else {}
    settings = {name: value for name, value in (settings | config["settings"]).items() if value is not None}
    of = _defaults(data.load) | config["data"]
    of = {name: value for name, value in of.items() if name not in ("root", "download")}
    return {**config, "settings": settings, "data": of, "recipe": Recipe(**config["recipe"])}


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@cache
def _network_name(network: str) -> str:
    with torch.device("meta"):
        return str(NETWORKS[network](2).name)


def state_folder() -> Path:
    """Where runs keep their checkpoints and locks; ignored by git."""
    return Path(__file__).parents[1] / "build" / "runs"


@contextmanager
def claimed(run: Run) -> Iterator[bool]:
    """True for the one process that may execute this run now; the claim ends with the process, however it ends."""
    state_folder().mkdir(parents=True, exist_ok=True)
    with open(state_folder() / f"{run.key}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def complete(runs: Sequence[Run], device: str = "auto", root: str | None = None) -> list[tuple[Run, Record]]:
    """Execute these, of one set and recipe, together, but for those that are done or that another process is at.

    Returns those executed, with their records. Raises what :meth:`Run.execute` raises.
    """
    with ExitStack() as claims:
        mine = [run for run in runs if claims.enter_context(claimed(run)) and not run.done()]
        if len(mine) > 1:
            return [*zip(mine, execute_together(mine, device, root), strict=True)]
        return [(run, run.execute(device, root=root)) for run in mine]
