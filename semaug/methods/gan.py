r"""GANs for few images: generator, discriminator, and the loop in which they play, with DiffAugment where it acts.

With logits $D$ of images and a generator $G$ of images from $z \sim \mathcal N(0, I)$, the hinge losses are

$$L_D = \mathbb E \max(0, 1 - D(x)) + \mathbb E \max(0, 1 + D(G(z))), \qquad L_G = -\mathbb E\,D(G(z)), \tag{1}$$

and the non-saturating ones, with $\mathrm{softplus}(a) = \log(1 + e^a)$,

$$L_D = \mathbb E\,\mathrm{softplus}(-D(x)) + \mathbb E\,\mathrm{softplus}(D(G(z))), \qquad
  L_G = \mathbb E\,\mathrm{softplus}(-D(G(z))). \tag{2}$$

The penalty R1 holds the discriminator's slope at real images down, whatever transformation $T$ stands before it:

$$\frac\gamma2\, \mathbb E\, \bigl|\nabla_x D(T(x))\bigr|^2. \tag{3}$$

$T$ (room ``diffaugment``) stands nowhere, on the reals, on all that the discriminator is trained with, or everywhere,
also where the generator learns: DiffAugment is the last. Images are in [-1, 1] inside this room, in [0, 1] outside.

* Goodfellow et al., NeurIPS 2014, https://arxiv.org/abs/1406.2661; hinge: Lim, Ye, 2017,
  https://arxiv.org/abs/1705.02894; R1: Mescheder, Geiger, Nowozin, ICML 2018, https://arxiv.org/abs/1801.04406
* DCGAN: Radford, Metz, Chintala, ICLR 2016, https://arxiv.org/abs/1511.06434; spectral normalisation: Miyato, Kataoka,
  Koyama, Yoshida, ICLR 2018, https://arxiv.org/abs/1802.05957
* the average of the generator's weights: Karras, Aila, Laine, Lehtinen, ICLR 2018, https://arxiv.org/abs/1710.10196
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from semaug._checks import check_count
from semaug.core.metrics import evaluating
from semaug.data.sets import Data
from semaug.data.split import Split
from semaug.methods.diffaugment import DiffAugment, ada_step
from semaug.training.checkpoint import Checkpoint
from semaug.training.common import check_seed, configuration, global_generators, make_optimizer, peak_memory, prepared
from semaug.training.objective import Setting
from semaug.training.progress import Progress
from semaug.training.recipe import Recipe
from semaug.training.record import Record, environment
from semaug.training.streams import Stream, generator_for

Images = Float[Tensor, "N channels H W"]

Kind = Literal["hinge", "nonsaturating"]

Where = Literal["nowhere", "reals", "discriminator", "everywhere"]

KINDS = ("hinge", "nonsaturating")

PLACES = ("nowhere", "reals", "discriminator", "everywhere")


class Generator(nn.Module):
    """Images in [-1, 1] from codes: a linear layer to small maps, doubled by transposed convolutions, as in DCGAN.

    size: side of the images, 7 or 4 doubled once or more: 28, 32, 64. latent: numbers of a code. width: channels of the
    last maps, twice as many at each smaller size.
    """

    def __init__(self, size: int = 28, channels: int = 1, latent: int = 64, width: int = 8) -> None:
        super().__init__()
        for argument, value in {"channels": channels, "latent": latent, "width": width}.items():
            check_count(argument, value)
        base, doublings = _halvings(size)
        self.image_shape, self.latent = (channels, size, size), latent
        self.name = f"dcgan(latent={latent}, width={width})"
        widest = width * 2**doublings
        layers: list[nn.Module] = [
            nn.Linear(latent, widest * base**2, bias=False),
            nn.Unflatten(1, (widest, base, base)),
        ]
        for k in reversed(range(doublings)):
            wide, narrow = width * 2 ** (k + 1), width * 2**k
            layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, codes: Float[Tensor, "N K"]) -> Images:
        """Raises ValueError for codes of another width."""
        if codes.ndim != 2 or codes.shape[1] != self.latent:
            raise ValueError(f"codes: got shape {tuple(codes.shape)}; takes (N, {self.latent})")
        return self.layers(codes)


class Discriminator(nn.Module):
    """A logit of each image in [-1, 1], above 0 for real: convolutions of stride 2 down to 7 or 4 pixels, and a layer.

    width: channels of the first maps, doubled at each halving. spectral: every layer divided by its largest singular
    value, as a power iteration has it. No normalisation over the batch: an image's logit is its own, as R1 asks.
    """

    def __init__(self, size: int = 28, channels: int = 1, width: int = 24, spectral: bool = False) -> None:
        super().__init__()
        for argument, value in {"channels": channels, "width": width}.items():
            check_count(argument, value)
        base, halvings = _halvings(size)
        self.image_shape = (channels, size, size)
        self.name = f"dcgan(width={width}{', spectral' if spectral else ''})"
        widths = [channels, *(width * 2**k for k in range(halvings))]
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 4, 2, 1), nn.LeakyReLU(0.2)]
        layers += [nn.Flatten(), nn.Linear(widths[-1] * base**2, 1)]
        if spectral:
            layers = [spectral_norm(part) if hasattr(part, "weight") else part for part in layers]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Images) -> Float[Tensor, " N"]:
        """Raises ValueError for images of another shape."""
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"images: got shape {tuple(images.shape)}; takes (N, {', '.join(map(str, self.image_shape))})"
            )
        return self.layers(images).squeeze(1)


def discriminator_loss(real: Float[Tensor, " N"], fake: Float[Tensor, " M"], kind: Kind = "hinge") -> Float[Tensor, ""]:
    """The discriminator's loss (1) or (2) of its logits, the two means added; raises ValueError for another kind."""
    if _known("kind", kind, KINDS) == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Float[Tensor, " N"], kind: Kind = "hinge") -> Float[Tensor, ""]:
    """The generator's loss (1) or (2) of the discriminator's logits; raises ValueError for another kind."""
    return -fake.mean() if _known("kind", kind, KINDS) == "hinge" else F.softplus(-fake).mean()


def r1_penalty(logits: Float[Tensor, " N"], images: Images) -> Float[Tensor, ""]:
    r"""(3) for $\gamma = 2$, differentiable: the mean squared slope of the logits at the images they come from.

    images: before $T$, with ``requires_grad`` set before the logits were computed; an image's logit its own.
    """
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean()


class GAN(nn.Module):
    r"""Two players, the average of the generator's weights, and what decides how they play.

    kind: of the losses. where: $T$ stands; policy: which, see :class:`DiffAugment`. r1: $\gamma$ of (3).
    ratio: steps of the discriminator for one of the generator. generator_lr: its learning rate; None: the recipe's.
    ema: momentum of the average at every step of the generator; its BatchNorm has the generator's running statistics.
    ada_span: of :func:`ada_step`, taken at every step of the discriminator by its logits of a batch; None: $T$ always.

    Raises ValueError for players of different image shapes and settings that are none.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        *,
        kind: Kind = "hinge",
        where: Where = "everywhere",
        policy: str = "color,translation,cutout",
        r1: float = 0.0,
        ratio: int = 1,
        generator_lr: float | None = None,
        ema: float = 0.99,
        ada_span: float | None = None,
    ) -> None:
        if generator.image_shape != discriminator.image_shape:
            takes = f"the generator's, {generator.image_shape}"
            raise ValueError(f"discriminator: got images {discriminator.image_shape}; takes {takes}")
        _known("kind", kind, KINDS)
        _known("where", where, PLACES)
        check_count("ratio", ratio)
        adaptive = ada_span is not None
        for name, value, good, takes in (
            ("r1", r1, math.isfinite(r1) and r1 >= 0, "a finite number from 0"),
            ("generator_lr", generator_lr, generator_lr is None or 0 < generator_lr < math.inf, "a number above 0"),
            ("ema", ema, 0 <= ema < 1, "a fraction in [0, 1)"),
            ("ada_span", ada_span, ada_span is None or 1 <= ada_span < math.inf, "a number of images from 1"),
            ("ada_span", ada_span, not adaptive or where != "nowhere", "None where there is no transformation"),
        ):
            if not good:
                raise ValueError(f"{name}: got {value!r}; takes {takes}")
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.average = copy.deepcopy(generator).requires_grad_(False).eval()
        self.augment = DiffAugment(policy, probability=0.0 if adaptive else 1.0) if where != "nowhere" else None
        self.kind, self.where, self.r1, self.ratio, self.ema = kind, where, r1, ratio, ema
        self.generator_lr, self.ada_span = generator_lr, ada_span
        settings: dict[str, Setting] = {"kind": kind, "where": where, "r1": r1, "ratio": ratio, "ema": ema}
        settings |= {"generator_lr": generator_lr, "ada_span": ada_span}
        settings |= {"policy": ",".join(self.augment.names)} if self.augment else {}
        self.settings = {name: value for name, value in settings.items() if value is not None}

    def codes(self, n: int, draws: torch.Generator) -> Float[Tensor, "n K"]:
        """$z$, standard normal, on the generator's device."""
        return torch.randn(n, self.generator.latent, generator=draws, device=draws.device)

    def discriminator_step(
        self, reals: Images, latent: torch.Generator, draws: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The discriminator's loss and its terms; no gradient reaches the generator. reals: in [-1, 1]."""
        with torch.no_grad():
            fakes = self.generator(self.codes(len(reals), latent))
        reals = reals.detach().requires_grad_(self.r1 > 0)
        shown = [self._transformed(reals, self.where != "nowhere", draws)]
        shown.append(self._transformed(fakes, self.where in ("discriminator", "everywhere"), draws))
        real, fake = self.discriminator(torch.cat(shown)).chunk(2)
        loss = discriminator_loss(real, fake, self.kind)
        terms = {"discriminator_loss": loss.detach()}
        if self.r1:
            penalty = r1_penalty(real, reals)
            terms["r1"], loss = penalty.detach(), loss + self.r1 / 2 * penalty
        if self.augment is not None and self.ada_span is not None:
            self.augment.probability.copy_(ada_step(self.augment.probability, real, len(real), span=self.ada_span))
            terms["probability"] = self.augment.probability.clone()
        return loss, terms

    def generator_step(
        self, n: int, latent: torch.Generator, draws: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The generator's loss and its terms, of n images; the discriminator's parameters take no gradient."""
        self.discriminator.requires_grad_(False)
        fakes = self._transformed(self.generator(self.codes(n, latent)), self.where == "everywhere", draws)
        loss = generator_loss(self.discriminator(fakes), self.kind)
        self.discriminator.requires_grad_(True)
        return loss, {"generator_loss": loss.detach()}

    def _transformed(self, images: Tensor, here: bool, draws: torch.Generator) -> Tensor:
        return self.augment(images, draws) if here and self.augment is not None else images

    @torch.no_grad()
    def follow(self) -> None:
        """The average moves on towards the generator."""
        for mine, theirs in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.ema)
        for running, current in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            running.copy_(current)

    @torch.no_grad()
    def sample(self, codes: Float[Tensor, "N K"], batch_size: int = 500) -> Images:
        """Images in [0, 1] of the averaged generator; ``codes(n, generator)`` draws some."""
        with evaluating(self.average):
            return torch.cat([(self.average(part) + 1) / 2 for part in codes.split(batch_size)])

    @torch.no_grad()
    def logits(self, split: Split, batch_size: int = 500) -> Float[Tensor, " N"]:
        """The discriminator's, of real images as they are, in evaluation mode; the split is on its device."""
        parts = [slice(start, start + batch_size) for start in range(0, len(split), batch_size)]
        with evaluating(self.discriminator):
            return torch.cat([self.discriminator(2 * split.floats(part) - 1) for part in parts])


def fit_gan(
    gan: GAN,
    data: Data,
    recipe: Recipe,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool = True,
    measure: Callable[[GAN], dict[str, float]] | None = None,
) -> Record:
    """Train both players in place on ``data.train``, without its labels; the record of the run comes back.

    Every batch is one step of the discriminator; after ``gan.ratio`` of them comes one of the generator. One optimiser
    holds both, and steps those who have a gradient; Adam's first beta is ``recipe.momentum``.

    After every ``recipe.evaluate_every`` epochs (0: after the last alone) curves get a value each: ``epoch``, the means
    of the losses since the last, the learning rate, what :func:`gan_measures.memory` says of training images and held
    out ones (validation, else test), and what ``measure`` finds; then a checkpoint is written. metrics: the last
    values. resume, progress, named generators and errors as of :func:`training.fit`; same seed, same machine: the same
    bits, also of a run that was stopped and resumed. One process, in float32.

    Raises ValueError for images of another shape, more images a batch than there are, and another precision.
    """
    device = next(gan.parameters()).device
    network = f"{gan.generator.name} against {gan.discriminator.name}"
    config = configuration("GAN", gan.settings, network, data, recipe)
    record = Record(config, check_seed(seed), environment=environment(str(device)))
    period = recipe.evaluate_every or recipe.epochs
    with prepared(device):
        for generator in global_generators(device):
            generator.manual_seed(generator_for(seed, "global").initial_seed())
        loop = _Players(gan, data, recipe, seed, device)
        checkpoint = Checkpoint(Path(resume), loop, record) if resume is not None else None
        done = checkpoint.load() if checkpoint else 0
        label = f"GAN, {data.name}, seed {seed}"
        with Progress(label, recipe.epochs, done, progress, "discriminator_loss") as bar:
            while done < recipe.epochs:
                epochs = range(done, min(done + period, recipe.epochs))
                started = time.process_time() if device.type == "cpu" else time.perf_counter()
                values = loop.epochs(epochs)
                ended = time.process_time() if device.type == "cpu" else time.perf_counter()
                record.seconds += ended - started
                done = epochs.stop
                values |= {"epoch": float(done)} | loop.remembered()
                with torch.random.fork_rng(devices=[]):
                    values |= measure(gan) if measure is not None else {}
                for name, value in values.items():
                    record.curves.setdefault(name, []).append(value)
                if checkpoint:
                    checkpoint.save(done)
                bar.update(record, done)
            gan.eval()
            record.train_counts = data.counts.tolist()
            record.metrics = {name: values[-1] for name, values in record.curves.items() if name not in ("epoch", "lr")}
            record.peak_memory = peak_memory(device)
    return record


class _Players:
    """What fit_gan owns while it trains, and some epochs of it."""

    def __init__(self, gan: GAN, data: Data, recipe: Recipe, seed: int, device: torch.device) -> None:
        if data.image_shape != gan.generator.image_shape:
            raise ValueError(f"data: got images {data.image_shape}; takes the players', {gan.generator.image_shape}")
        if recipe.batch_size > len(data.train):
            takes = f"takes at most the {len(data.train)} training images"
            raise ValueError(f"Recipe.batch_size: got {recipe.batch_size}, {takes}")
        if recipe.precision != "float32":
            raise ValueError(f"Recipe.precision: got {recipe.precision!r}; fit_gan takes 'float32'")
        if gan.ratio > (steps := len(data.train) // recipe.batch_size * recipe.epochs):
            raise ValueError(f"ratio: got {gan.ratio}; takes at most the {steps} steps of this recipe")
        self.objective, self.gan, self.recipe, self.device = gan, gan, recipe, device
        own = {} if gan.generator_lr is None else {"lr": gan.generator_lr}
        groups: list[dict[str, Any]] = [
            {"params": list(gan.discriminator.parameters())},
            {"params": list(gan.generator.parameters()), **own},
        ]
        self.optimizer = make_optimizer(groups, recipe, device)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.stream = Stream(data.train, "train", recipe.batch_size, recipe, seed, device)
        self.latent, self.draws = (generator_for(seed, name, device) for name in ("latent", "diffaugment"))
        self.generators = {"latent": self.latent, "diffaugment": self.draws}
        self.generators |= {"order/train": self.stream.order, "augment/train": self.stream.draws}
        self.steps = len(data.train) // recipe.batch_size
        self.train, self.held_out = (split.to(device) for split in (data.train, data.validation or data.test))

    def epochs(self, numbers: range) -> dict[str, float]:
        """Passes over the training set; means of the losses and their terms, and the last learning rate."""
        self.gan.train()
        self.gan.average.eval()
        total, sums = self.steps * self.recipe.epochs, dict[str, list[Tensor]]()
        scale = 1.0
        for number in numbers:
            for i, rows in enumerate(self.stream.epoch(self.steps), number * self.steps):
                scale = self.recipe.lr_at((i + 0.5) / total)
                for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                    group["lr"] = peak * scale
                reals = 2 * self.stream.batch(rows, slice(None)).images - 1
                terms = self._move(*self.gan.discriminator_step(reals, self.latent, self.draws))
                if (i + 1) % self.gan.ratio == 0:
                    terms |= self._move(*self.gan.generator_step(len(reals), self.latent, self.draws))
                    self.gan.follow()
                for name, value in terms.items():
                    sums.setdefault(name, []).append(value)
        found = {name: float(torch.stack(values).double().mean()) for name, values in sums.items()}
        for name, mean in found.items():
            if not math.isfinite(mean):
                raise FloatingPointError(f"the {name} became {mean} by epoch {numbers.stop}; try a lower Recipe.lr")
        return {**found, "lr": self.peaks[0] * scale}

    def _move(self, loss: Tensor, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of the players whose parameters the loss reaches."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return terms

    def remembered(self) -> dict[str, float]:
        """What the discriminator says of training and of held-out images, at most 2000 of each, and as they are."""
        few = slice(0, 2000)
        return memory(self.gan.logits(self.train.take(few)), self.gan.logits(self.held_out.take(few)))._asdict()


def _halvings(size: int) -> tuple[int, int]:
    """The smallest maps, of 7 or 4 pixels, and how often they are doubled; raises ValueError for other sides."""
    for base in (7, 4):
        doublings = (size // base).bit_length() - 1
        if doublings >= 1 and size == base * 2**doublings:
            return base, doublings
    raise ValueError(f"size: got {size}; takes 7 or 4, doubled once or more: 28, 32, 64")


def _known(name: str, value: str, takes: tuple[str, ...]) -> str:
    if value not in takes:
        raise ValueError(f"{name}: got {value!r}; takes one of {', '.join(takes)}")
    return value


class Memory(NamedTuple):
    """Shares of logits above 0 among training and held-out images, and the area under their ROC curve."""

    accepted_train: float
    accepted_held_out: float
    auc: float


def memory(train_logits: Float[Tensor, " N"], held_out_logits: Float[Tensor, " M"]) -> Memory:
    """What a discriminator remembers of the images it was trained on; ties count a half.

    Raises ValueError for logits that are not (N,) and (M,), at least one each.
    """
    for name, logits in (("train_logits", train_logits), ("held_out_logits", held_out_logits)):
        if logits.ndim != 1 or len(logits) == 0:
            raise ValueError(f"{name}: got shape {tuple(logits.shape)}; takes (N,), at least one")
    held_out = held_out_logits.sort().values.contiguous()
    ranks = [torch.searchsorted(held_out, train_logits.contiguous(), right=right) for right in (False, True)]
    auc = (ranks[0] + ranks[1]).double().mean() / (2 * len(held_out))
    accepted, others = (float((logits > 0).double().mean()) for logits in (train_logits, held_out_logits))
    return Memory(accepted, others, float(auc))
