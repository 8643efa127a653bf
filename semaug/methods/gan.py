r"""GANs for few images: generator, discriminator, and the loop in which they play, with DiffAugment where it acts.

With logits $D$ of images and a generator $G$ of images from $z \sim \mathcal N(0, I)$, the hinge losses are

$$L_D = \mathbb E \max(0, 1 - D(x)) + \mathbb E \max(0, 1 + D(G(z))), \qquad L_G = -\mathbb E\,D(G(z)), \tag{1}$$

and the non-saturating ones, with $\mathrm{softplus}(a) = \log(1 + e^a)$,

$$L_D = \mathbb E\,\mathrm{softplus}(-D(x)) + \mathbb E\,\mathrm{softplus}(D(G(z))), \qquad
  L_G = \mathbb E\,\mathrm{softplus}(-D(G(z))). \tag{2}$$

The penalty R1 holds the discriminator's slope at real images down, whatever transformation $T$ stands before it:

$$\frac\gamma2\, \mathbb E\, \bigl|\nabla_x D(T(x))\bigr|^2. \tag{3}$$

$T$ (module ``diffaugment``) stands nowhere, on the reals, on all that the discriminator is trained with, or everywhere,
also where the generator learns: DiffAugment is the last. Images are in [-1, 1] inside this module, in [0, 1] outside.
What a discriminator remembers of its training images shows in its logits: :func:`memory`.

* Goodfellow et al., NeurIPS 2014, https://arxiv.org/abs/1406.2661; hinge: Lim, Ye, 2017,
  https://arxiv.org/abs/1705.02894; R1: Mescheder, Geiger, Nowozin, ICML 2018, https://arxiv.org/abs/1801.04406
* the average of the generator's weights: Karras, Aila, Laine, Lehtinen, ICLR 2018, https://arxiv.org/abs/1710.10196
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import NotFiniteError, check_choice, check_count, check_number, require
from semaug.core.metrics import evaluating
from semaug.core.tensors import follow
from semaug.data.sets import Data
from semaug.data.split import Split
from semaug.methods._dcgan import Discriminator, Generator, Images
from semaug.methods.diffaugment import DiffAugment, ada_step
from semaug.training.checkpoint import Checkpoint
from semaug.training.common import check_seed, configuration, global_generators, make_optimizer, peak_memory, prepared
from semaug.training.objective import Setting, grouped
from semaug.training.progress import Progress
from semaug.training.recipe import Recipe
from semaug.training.record import Record, environment
from semaug.training.streams import Stream, generator_for

Kind = Literal["hinge", "nonsaturating"]

Where = Literal["nowhere", "reals", "discriminator", "everywhere"]

KINDS: tuple[Kind, ...] = ("hinge", "nonsaturating")

PLACES: tuple[Where, ...] = ("nowhere", "reals", "discriminator", "everywhere")


def discriminator_loss(real: Float[Tensor, " N"], fake: Float[Tensor, " M"], kind: Kind = "hinge") -> Float[Tensor, ""]:
    """The discriminator's loss (1) or (2) of its logits, the two means added.

    Args:
        real: logits of real images, (N,).
        fake: logits of generated images, (M,).
        kind: "hinge" (1) or "nonsaturating" (2).

    Raises:
        ValueError: for another kind.
    """
    if check_choice("kind", kind, KINDS) == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Float[Tensor, " N"], kind: Kind = "hinge") -> Float[Tensor, ""]:
    """The generator's loss (1) or (2) of the discriminator's logits; raises ValueError for another kind."""
    return -fake.mean() if check_choice("kind", kind, KINDS) == "hinge" else F.softplus(-fake).mean()


def r1_penalty(logits: Float[Tensor, " N"], images: Images) -> Float[Tensor, ""]:
    r"""(3) for $\gamma = 2$, differentiable: the mean squared slope of the logits at the images they come from.

    Args:
        logits: of the images; an image's logit is its own.
        images: before $T$, with ``requires_grad`` set before the logits were computed.
    """
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean()


class Memory(NamedTuple):
    """Shares of logits above 0 among training and held-out images, and the area under their ROC curve."""

    accepted_train: float
    accepted_held_out: float
    auc: float


def memory(train_logits: Float[Tensor, " N"], held_out_logits: Float[Tensor, " M"]) -> Memory:
    """What a discriminator remembers of the images it was trained on.

    Args:
        train_logits: of images it was trained on.
        held_out_logits: of other real images.

    Returns:
        Shares of accepted images and $P(D(x_{train}) > D(x_{other}))$; ties count a half.

    Raises:
        ValueError: for logits that are not (N,) and (M,), at least one each, or NaN.
    """
    for name, logits in (("train_logits", train_logits), ("held_out_logits", held_out_logits)):
        if logits.ndim != 1 or len(logits) == 0:
            raise ValueError(f"{name}: got shape {tuple(logits.shape)}; takes (N,), at least one")
        require(not bool(logits.isnan().any()), name, math.nan, "numbers", NotFiniteError)
    held_out = held_out_logits.sort().values.contiguous()
    ranks = [torch.searchsorted(held_out, train_logits.contiguous(), right=right) for right in (False, True)]
    auc = (ranks[0] + ranks[1]).double().mean() / (2 * len(held_out))
    accepted, others = (float((logits > 0).double().mean()) for logits in (train_logits, held_out_logits))
    return Memory(accepted, others, float(auc))


class GAN(nn.Module):
    r"""Two players, the average of the generator's weights, and what decides how they play.

    Args:
        generator: codes to images; its average over the steps is what :meth:`sample` shows.
        discriminator: images of the same shape to logits. Layers of it that are frozen stay frozen.
        kind: of the losses, "hinge" (1) or "nonsaturating" (2).
        where: $T$ stands: "nowhere", "reals", "discriminator" or "everywhere".
        policy: of :class:`DiffAugment`.
        r1: $\gamma$ of (3).
        ratio: steps of the discriminator for one of the generator.
        generator_lr: the generator's learning rate; None: the recipe's.
        ema: momentum of the average at every step of the generator; its BatchNorm has the generator's running
            statistics.
        ada_span: of :func:`ada_step`, taken at every step of the discriminator by its logits of a batch; None: $T$
            always.

    Raises:
        ValueError: for players of different image shapes and settings outside their ranges.
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
        super().__init__()
        if generator.image_shape != discriminator.image_shape:
            takes = f"the generator's, {generator.image_shape}"
            raise ValueError(f"discriminator: got images {discriminator.image_shape}; takes {takes}")
        self.kind, self.where = check_choice("kind", kind, KINDS), check_choice("where", where, PLACES)
        self.r1, self.ratio = check_number("r1", r1, 0), check_count("ratio", ratio)
        self.ema = check_number("ema", ema, 0, 1, without=(1,))
        lr = generator_lr
        self.generator_lr = None if lr is None else check_number("generator_lr", lr, 0, without=(0,))
        self.ada_span = None if ada_span is None else check_number("ada_span", ada_span, 1)
        nowhere = where == "nowhere"
        require(ada_span is None or not nowhere, "ada_span", ada_span, "None where there is no transformation")
        self.generator, self.discriminator = generator, discriminator
        self.average = copy.deepcopy(generator).requires_grad_(False).eval()
        self.augment = None if nowhere else DiffAugment(policy, probability=None if ada_span is None else 0.0)
        settings: dict[str, Setting] = {"kind": kind, "where": where, "r1": self.r1, "ratio": self.ratio}
        settings |= {"ema": self.ema, "generator_lr": self.generator_lr, "ada_span": self.ada_span}
        settings |= {"policy": self.augment.policy} if self.augment else {}
        self.settings = {name: value for name, value in settings.items() if value is not None}

    def codes(self, n: int, draws: torch.Generator) -> Float[Tensor, "n K"]:
        """$z$, standard normal, on the device of the generator ``draws``."""
        return torch.randn(n, self.generator.latent, generator=draws, device=draws.device)

    def discriminator_step(
        self, reals: Images, latent: torch.Generator, draws: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The discriminator's loss and its terms; no gradient reaches the generator.

        Args:
            reals: real images in [-1, 1].
            latent: draws the codes of as many generated images.
            draws: of $T$.

        Raises:
            FloatingPointError: for generated images, or logits under ADA, that are not finite.
        """
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
        if self.augment is not None and self.augment.probability is not None and self.ada_span is not None:
            self.augment.probability.copy_(ada_step(self.augment.probability, real, len(real), span=self.ada_span))
            terms["probability"] = self.augment.probability.clone()
        return loss, terms

    def generator_step(
        self, n: int, latent: torch.Generator, draws: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The generator's loss and its terms, of n images; the discriminator's parameters take no gradient."""
        learned = [parameter for parameter in self.discriminator.parameters() if parameter.requires_grad]
        try:
            for parameter in learned:
                parameter.requires_grad_(False)
            fakes = self._transformed(self.generator(self.codes(n, latent)), self.where == "everywhere", draws)
            loss = generator_loss(self.discriminator(fakes), self.kind)
        finally:
            for parameter in learned:
                parameter.requires_grad_(True)
        return loss, {"generator_loss": loss.detach()}

    def _transformed(self, images: Tensor, here: bool, draws: torch.Generator) -> Tensor:
        return self.augment(images, draws) if here and self.augment is not None else images

    @torch.no_grad()
    def follow(self) -> None:
        """The average moves on towards the generator."""
        follow(self.average, self.generator, 1 - self.ema)

    @torch.no_grad()
    def sample(self, codes: Float[Tensor, "N K"], batch_size: int = 500) -> Images:
        """Images in [0, 1] of the averaged generator; ``codes(n, generator)`` draws some."""
        with evaluating(self.average):
            return torch.cat([(self.average(part) + 1) / 2 for part in codes.split(batch_size)])

    @torch.no_grad()
    def logits(self, split: Split, batch_size: int = 500) -> Float[Tensor, " N"]:
        """The discriminator's, of real images as they are, in evaluation mode; the split is on its device."""
        with evaluating(self.discriminator):
            return torch.cat([self.discriminator(2 * part.floats() - 1) for part in split.batches(batch_size)])


def fit_gan(
    gan: GAN,
    data: Data,
    recipe: Recipe,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool = True,
    measure: Callable[[GAN], dict[str, float]] | None = None,
) -> Record:
    """Train both players in place on ``data.train``, without its labels; one process, in float32.

    Every batch is one step of the discriminator; after ``gan.ratio`` of them comes one of the generator. One optimiser
    holds both, and steps those who have a gradient; Adam's first beta is ``recipe.momentum``. Named generators are
    those of :func:`training.fit`: same seed, same machine, the same bits, also of a run that was resumed.

    Args:
        gan: the players, on their device.
        data: images of their shape.
        recipe: after every ``evaluate_every`` epochs (0: after the last alone) the curves get a value each, and a
            checkpoint is written.
        seed: decides order, codes and draws.
        resume: a checkpoint file, as of :func:`training.fit`.
        progress: one line that is updated while it runs.
        measure: what else the curves say of the players, by name.

    Returns:
        The record of the run. Curves: ``epoch``, the means of the losses since the last value, ``lr``, what
        :func:`memory` says of training images and held-out ones (validation, else test), and what ``measure`` finds.
        Metrics: the last values.

    Raises:
        ValueError: for images of another shape, more images a batch than there are, and another precision.
        FloatingPointError: where losses, logits or generated images stop being finite.
    """
    device = next(gan.parameters()).device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
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
                started = clock()
                values = loop.epochs(epochs)
                record.seconds += clock() - started
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
        size, batch = len(data.train), recipe.batch_size
        require(batch <= size, "Recipe.batch_size", batch, f"at most the {size} training images")
        require(recipe.precision == "float32", "Recipe.precision", recipe.precision, "'float32' in fit_gan")
        self.steps = size // batch
        require(gan.ratio <= (total := self.steps * recipe.epochs), "ratio", gan.ratio, f"at most the {total} steps")
        self.objective, self.gan, self.recipe, self.device = gan, gan, recipe, device
        groups = grouped((gan.discriminator, None), (gan.generator, gan.generator_lr))
        self.optimizer = make_optimizer(groups, recipe, device)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.stream = Stream(data.train, "train", batch, recipe, seed, device)
        self.latent, self.draws = (generator_for(seed, name, device) for name in ("latent", "diffaugment"))
        self.generators = {"latent": self.latent, "diffaugment": self.draws}
        self.generators |= {"order/train": self.stream.order, "augment/train": self.stream.draws}
        self.train, self.held_out = (split.to(device) for split in (data.train, data.validation or data.test))

    def epochs(self, numbers: range) -> dict[str, float]:
        """Passes over the training set; means of the losses and their terms, and the last learning rate."""
        self.gan.train()
        self.gan.average.eval()
        sums, counts = dict[str, Tensor](), Counter[str]()
        scale = 1.0
        for number in numbers:
            for i, rows in enumerate(self.stream.epoch(self.steps), number * self.steps):
                scale = self.recipe.lr_at((i + 0.5) / (self.steps * self.recipe.epochs))
                for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                    group["lr"] = peak * scale
                reals = 2 * self.stream.batch(rows, slice(None)).images - 1
                terms = self._move(*self.gan.discriminator_step(reals, self.latent, self.draws))
                if (i + 1) % self.gan.ratio == 0:
                    terms |= self._move(*self.gan.generator_step(len(reals), self.latent, self.draws))
                    self.gan.follow()
                for name, value in terms.items():
                    sums[name] = value.double() + sums.get(name, 0.0)
                counts.update(terms.keys())
        _check_finite(sums)
        return {name: float(total) / counts[name] for name, total in sums.items()} | {"lr": self.peaks[0] * scale}

    def _move(self, loss: Tensor, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of the players whose parameters the loss reaches."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return terms

    def remembered(self) -> dict[str, float]:
        """What the discriminator says of training and of held-out images, at most 2000 of each, and as they are."""
        train, held_out = (self.gan.logits(split.take(slice(0, 2000))) for split in (self.train, self.held_out))
        samples = self.gan.sample(self.gan.codes(8, torch.Generator(self.device).manual_seed(0)))
        _check_finite({"logits": torch.cat([train, held_out]), "generated images": samples})
        return memory(train, held_out)._asdict()


def _check_finite(values: Mapping[str, Tensor]) -> None:
    for name, tensor in values.items():
        if not bool(tensor.isfinite().all()):
            remedy = "a lower Recipe.lr usually mends this"
            raise FloatingPointError(f"{name}: got numbers that are not finite; takes finite ones, {remedy}")
