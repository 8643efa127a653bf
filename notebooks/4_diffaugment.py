# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · DiffAugment: a transformation that the generator learns through
#
# S. Zhao, Z. Liu, J. Lin, J.-Y. Zhu, S. Han, *Differentiable Augmentation for Data-Efficient GAN Training*, NeurIPS
# 2020 ([arXiv:2006.10738](https://arxiv.org/abs/2006.10738)). [Their
# code](https://github.com/mit-han-lab/data-efficient-gans).

# %% tags=["nbval-ignore-output"]
from companion import lesson

lesson.figure("4_diffaugment", "faces")

# %% [markdown]
# **Two GANs, trained on the same hundred photographs of George W. Bush (data set LFW).** Below each sample stands the
# nearest of the hundred. We show the only one of three seeds that ends in near copies; section 6 has all. The paper
# reports FID 80.20 → 46.87 (lower is better) for a hundred portraits.
#
# **In one sentence: DiffAugment delays memorising.**
#
# A forger learns from a critic. Show the critic the same hundred photographs a few hundred times, and it knows them by
# heart. In the end it no longer asks whether an image looks real, but whether it *is one of the hundred*. The forger
# can then only copy, or stops learning. DiffAugment shows the critic only images that were randomly recoloured, shifted
# and cut, real and forged alike. The forger's gradient passes through the same kind of random transformation, drawn
# anew for every image. The critic is the *discriminator* D of a GAN, the forger its *generator* G, and the
# transformation is $T$.
#
# At the end you can
#
# - say for four places of $T$ what the generator learns, and prove it for two;
# - test whether an operation lets the right gradient through;
# - write the method in about forty lines;
# - measure what D has memorised, and say when DiffAugment helps.
#
# | minutes | section |
# |---|---|
# | 0–4 | this page |
# | 4–8 | 1 · the game, and four places of $T$ |
# | 8–18 | 2 · what each place leads to |
# | 18–22 | 3 · the operations and their gradient |
# | 22–28 | 4 · the method in about forty lines |
# | 28–34 | 5 · a live pair |
# | 34–41 | 6 · what longer runs show |
# | 41–45 | 7 · limits, the paper's numbers |
#
# **You need** cross-entropy, a training step in PyTorch, and matrices. The
# [appendix](appendix/4_diffaugment_more.ipynb) checks the claims of the reading note that this lesson belongs to.
#
# <details><summary>For the lecturer</summary>
#
# Clear all outputs before the class. The live training of section 5 takes about 20 seconds: start it, then ask. If time
# is short, leave out the check of (5) and the film.
#
# Expected answers. *Section 1:* place 2 draws transformed images, place 3 whatever fools D, place 4 faces. *Section 2:*
# $Tp$, $p$, any $q$. *Section 3:* rounding shows 0. *Section 5:* about .65 for the plain GAN, .5 for DiffAugment.
# *Section 6:* these runs do not decide it. One explanation: while D's loss is far from 0, its gradient still leads
# towards the data. At the end of the plain runs it is close to 0.
#
# </details>

# %% tags=["parameters"]
profile = "quick"  # "quick" trains the live pair of section 5; "cpu" and "paper" also add missing records (hours)
dataset = "fashion-mini"  # the 10,000 images of Fashion-MNIST inside the package; or cifar10, mnist, ...
train_size = 100  # training images of the live pair
epochs = 100  # of the live pair: three steps of 32 images each
seeds = 1  # live pairs
first_seed = 0  # of them
strength = 1.0  # of the operations that section 3 draws; 1: as released
device = "auto"  # "cpu", "cuda", or whichever there is

# %%
lesson.parameters("4_diffaugment")

import functools
import math

import numpy as np
import torch
from torch.nn import functional as F

from companion import plots, runs, stats
from companion.lesson import seeded
from companion.records import committed, markdown
from companion.studies import diffaugment as study
from semaug import DiffAugment, Recipe, load, resolve_device
from semaug.core import pixels
from semaug.methods import diffaugment, gan

show = functools.partial(lesson.show, "4_diffaugment")  # keeps a picture and shows it
SEEDS = range(first_seed, first_seed + seeds)
SHOWN = (study.BASELINE, study.DIFFAUGMENT)
f64 = torch.float64

# %% [markdown]
# ## 1 · The game, and four places of T (4–8 min)
#
# A step of a GAN has two halves. First D sees real
# images and generated ones, and learns to separate them. Then G learns: D is asked about new generated images, and G
# follows D's gradient. So D has three inputs where $T$ can stand. Here are four of the combinations.

# %%
show(study.places(), "places")

# %% [markdown]
# The green dashed arrows are the path of G's gradient.
#
# **Predict (1 min).** Place 1 is the plain GAN. What will samples look like with $T$ at place 2, 3 and 4? The end of
# section 2 answers.
#
# ## 2 · What each place leads to (8–18 min)
#
# ### The best discriminator, in three lines
#
# In a world where everything can be computed, an "image" is one of $n$ states. $p(x)$ is the probability of a real image
# $x$, $q(x)$ that of a generated one. D gives each state a logit $D(x)$. With the logistic function
# $\sigma(a) = 1/(1 + e^{-a})$, D maximises its log-likelihood
#
# $$V(D) = \sum_x p(x) \log \sigma(D(x)) + q(x) \log\bigl(1 - \sigma(D(x))\bigr). \tag{1}$$
#
# Each $D(x)$ appears in only two terms. As $\sigma' = \sigma (1 - \sigma)$, the derivative is
#
# $$\frac{\partial V}{\partial D(x)} = p\,(1 - \sigma) - q\,\sigma = 0 \ \iff\ \sigma = \frac{p}{p + q} \ \iff\
#   D^*(x) = \log \frac{p(x)}{q(x)}. \tag{2}$$
#
# Put $\sigma = p / (p + q)$ back into (1), and compare with the mean distribution $(p + q)/2$:
#
# $$V(D^*) = -2 \log 2 + 2\, \mathrm{JS}(p, q), \qquad \mathrm{JS}(p, q) = \tfrac12 \mathrm{KL}\bigl(p \,\|\,
#   \tfrac{p + q}2\bigr) + \tfrac12 \mathrm{KL}\bigl(q \,\|\, \tfrac{p + q}2\bigr). \tag{3}$$
#
# If D is optimal, G minimises this: the Jensen–Shannon divergence. It is 0 where $q = p$, and nowhere else.

# %%
n = 12
states = torch.arange(n, dtype=f64)
p = torch.softmax(3 * torch.cos(2 * math.pi * 2 * states / n), 0)  # two peaks on a circle
q = torch.softmax(torch.cos(2 * math.pi * states / n), 0)


def js(p, q):
    """(3) in nats."""
    middle = ((p + q) / 2).log()
    return 0.5 * (torch.xlogy(p, p) - p * middle).sum() + 0.5 * (torch.xlogy(q, q) - q * middle).sum()


def V(D):
    """(1)"""
    return (p * F.logsigmoid(D) + q * F.logsigmoid(-D)).sum()


D_best = (p / q).log().requires_grad_()  # (2)
(slope,) = torch.autograd.grad(V(D_best), D_best)
print(f"at D*: largest slope {slope.abs().max():.0e}, V {V(D_best):.6f}, by (3) {2 * js(p, q) - 2 * math.log(2):.6f}")
assert slope.abs().max() < 1e-12
assert torch.isclose(V(D_best), 2 * js(p, q) - 2 * math.log(2))

# %% [markdown]
# ### T on the reals, and T on both
#
# A random transformation acts *linearly* on distributions. In a world of $n$ states $T$ is an $n \times n$ matrix:
# column $x$ holds the distribution of $T(x)$. Transformed real images have the distribution $Tp$. So (3) becomes
#
# $$\text{reals only:}\quad \min_q \mathrm{JS}(Tp,\, q), \qquad\qquad
#   \text{both:}\quad \min_q \mathrm{JS}(Tp,\, Tq). \tag{4}$$
#
# **Predict, then run.** The data have two sharp peaks on a circle of twelve states. $T$ moves an image by up to two
# states at random. G may choose any $q$. Where does $q$ end in each case, and which property of the matrix decides it?
# And where, if $T$ moves to *any* state with equal probability?


# %%
def circulant(steps):
    """The matrix of a random step on the circle: {step: probability}."""
    return sum(weight * torch.eye(n, dtype=f64).roll(step, 0) for step, weight in steps.items())


def best_q(loss, seed=0):
    """The distribution that minimises loss(q), found numerically (L-BFGS) from a random start."""
    logits = torch.randn(n, generator=seeded(seed), dtype=f64).requires_grad_()
    options = {"max_iter": 1000, "tolerance_grad": 1e-14, "tolerance_change": 0}
    search = torch.optim.LBFGS([logits], line_search_fn="strong_wolfe", **options)

    def closure():
        search.zero_grad()
        value = loss(logits.softmax(0))
        value.backward()
        return value

    search.step(closure)
    return logits.detach().softmax(0)


# %% jupyter={"outputs_hidden": true}
def distance(one, other):
    """Total variation: the largest difference in the probability of any event."""
    return float((one - other).abs().sum() / 2)


T = circulant({0: 0.4, 1: 0.2, -1: 0.2, 2: 0.1, -2: 0.1})
erasing = circulant(dict.fromkeys(range(n), 1 / n))
on_reals = best_q(lambda q: js(T @ p, q))
on_both = best_q(lambda q: js(T @ p, T @ q))
erased = [best_q(lambda q: js(erasing @ p, erasing @ q), seed) for seed in (0, 1)]
print(f"T on the reals: q is {distance(on_reals, T @ p):.3f} from Tp and {distance(on_reals, p):.3f} from p")
print(f"T on both:      q is {distance(on_both, p):.3f} from p")
print(f"T erases:       two starts end {distance(*erased):.3f} from each other")
assert distance(on_reals, T @ p) < 1e-4 < 0.2 < distance(on_reals, p)
assert distance(on_both, p) < 1e-3 < 0.2 < distance(*erased)
assert torch.linalg.eigvalsh(T).min() > 0.05  # T is invertible


# %% [markdown]
# The three minimisers, beside the data and the data under T:


# %% jupyter={"outputs_hidden": true, "source_hidden": true}
@plots.styled
def figure_minimisers():
    figure = plots.Picture(figsize=(7.5, 2.9))
    panels = figure.subplots(1, 3, sharey=True)
    shown = {"T on reals only": (T, on_reals), "T on both": (T, on_both), "T on both, erasing": (erasing, erased[0])}
    x, turned = range(-3, n - 3), functools.partial(torch.roll, shifts=3)  # both peaks inside
    for axes, (title, (matrix, values)) in zip(panels, shown.items(), strict=True):
        axes.bar(x, turned(p), color=plots.GREY, alpha=0.35, label="data p")
        axes.step(x, turned(matrix @ p), where="mid", color="#C05000", label="Tp")
        axes.plot(x, turned(values), "o", color=plots.BLUE, label="minimiser q")
        axes.set(title=title, xlabel="state on the circle", xticks=range(-3, n - 3, 3))
    panels[0].set_ylabel("probability")
    handles, names = panels[0].get_legend_handles_labels()
    labels = dict(zip(names, handles, strict=True))
    plots.headline(figure, "T on the reals alone moves the target; T on both sides keeps it, unless T erases", labels)
    return figure


show(figure_minimisers(), "minimisers")

# %% [markdown]
# <details><summary>After you ran it</summary>
#
# With $T$ on the reals, the loss is 0 at $q = Tp$: G ends at the blurred data. With $T$ on both it is 0 where
# $Tq = Tp$. If the matrix is invertible, that is $q = p$ alone. If $T$ erases the image, every $q$ has the loss 0.
#
# </details>
#
# - **Place 2, reals only**, has transformed images as its aim.
# - **Place 3, D only**, has no loss that both players share. D learns about $T(x)$ and $T(G(z))$, and is then asked
#   about $G(z)$. Cutout never gives an uncut image, so D's answer there is arbitrary. (On the circle $T$ may leave a
#   state as it is, and $q = p$ is a fixed point of this place too.)
# - **Place 4, DiffAugment**, has its minimum at $q = p$, and nowhere else if $T$ is invertible: even though a single
#   draw may destroy information (Bora et al. 2018, AmbientGAN; Karras et al. 2020, ADA).
# - **This proof does not cover the released method.** Cutout hides a part of *every* image, so $T$ is not invertible.
#   Then (4) allows other minima; the appendix constructs one. ADA applies each operation with a probability below 1,
#   which makes cutout invertible again.
# - **The hinge loss**, with which we shall train, leads to the same places. Its best D is the sign of $p - q$. At this
#   fixed D, G's loss $-\sum q D$ has the gradient of $\max_{|D| \le 1} \sum (p - q) D = 2\,\mathrm{TV}(p, q)$, twice the
#   total variation.
#
# ### The answer: portraits after 1,350 steps (committed runs)

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "four_places")

# %% [markdown]
# All three seeds in numbers. *FID* is the Fréchet distance of two Gaussians, fitted to features of generated and of test
# images. Our features are of a small classifier trained here, so our FIDs compare our runs, and no others. *Grey
# windows*: a sample counts if its flattest window is flatter than in 99% of the test images.


# %% jupyter={"source_hidden": true}
def at_places(index):
    """Portraits after 1,350 steps, by the place of T: the values of three seeds."""
    rows = []
    for number, (name, found) in enumerate(index.by_arm(study.COLOURED[0], study.PLACE_NAMES).items(), 1):
        columns = [[run.metrics["fid"] for run in found], [run.metrics["logit_fake"] for run in found]]
        leaks = ", ".join(f"{100 * run.metrics['leak']:.0f}" for run in found)
        cells = [", ".join(f"{value:.2f}" for value in values).replace("-", "−") for values in columns]
        rows.append([f"{number}: {study.short(name)}", *cells, leaks])
        assert len(found) == 3
        assert all((run.metrics["logit_fake"] > 2) == (name == "discriminator only") for run in found)
        assert all((run.metrics["leak"] > 0.5) == (name == "reals only") for run in found)
    return markdown(["place of T", "FID", "D's mean logit of plain samples", "grey windows (%)"], rows)


lesson.table("4_diffaugment", at_places)

# %% [markdown]
# - **Reals only** draws the grey of cutout, in every seed in more than half of its samples.
# - **D only**: G finds one image that fools D, with logits above 2 in every seed. D has never seen an uncut image.
# - **The plain GAN and DiffAugment** both draw faces. At this early stage the plain GAN has the lower FID. Does it stay
#   ahead?
#
# ## 3 · The operations and their gradient (18–22 min)
#
# $T$ is a chain of three operations: colour (brightness, saturation, contrast), translation by up to an eighth of the
# side, and cutout: a square with half the image's side, clipped at the border.

# %% jupyter={"source_hidden": true}
faces = torch.from_numpy(study.training_faces(committed("4_diffaugment"))) / 127.5 - 1  # some of the hundred
zero = torch.zeros(1, dtype=torch.int64)


def at_fraction(name, image, f):
    """An image (1, 3, H, W) under one operation at the fraction f of its range, from -1 to 1."""
    height, ranges = image.shape[2], {"brightness": 0.5, "saturation": 1.0, "contrast": 0.5}
    if name in ranges:
        draws = {"brightness": torch.zeros(1), "saturation": torch.ones(1), "contrast": torch.ones(1)}
        return diffaugment.color(image, **{**draws, name: draws[name] + f * ranges[name]})
    if name == "translation":
        return diffaugment.translation(image, zero, zero + round(f * height / 8))
    return pixels.cutout(image, zero + height // 2, zero + round((0.5 + f / 2) * height), height // 2)


names = {"brightness": "−0.5 to 0.5", "saturation": "0 to 2", "contrast": "0.5 to 1.5"}
names |= {"translation": "−4 to 4 pixels", "cutout": "middle at 0 to 32"}
fractions = (-1.0, -0.5, 0.0, 0.5, 1.0)
rows = [torch.cat([at_fraction(name, faces[k : k + 1], f) for f in fractions]) for k, name in enumerate(names)]
sheet = (torch.stack(rows) / 2 + 0.5).clamp(0, 1)
assert torch.allclose(torch.stack(rows)[:4, 2], faces[:4], atol=1e-6)  # the middle changes nothing
title = "Each operation, over its range"
show(plots.sheet(sheet, [f"{name}, {ends}" for name, ends in names.items()], (), title, size=0.7), "operations")

# %% [markdown]
# Cutout's window is set to 0, which is *grey* in $[-1, 1]$; so is what translation uncovers. Next, all three are drawn
# at random (with sliders in a live session).


# %%
def figure_draws(operation="color,translation,cutout", strength=strength, image=0):
    ranges = {"brightness": 0.5, "saturation": 1.0, "contrast": 0.5, "translation": 0.125, "cutout": 0.5}
    most = {"brightness": 1.0, "saturation": 1.0}  # the others would erase the image
    chosen = {name: min(strength * value, most.get(name, 0.95)) for name, value in ranges.items()}
    seen = DiffAugment(operation, **chosen)(faces[image].expand(7, -1, -1, -1), seeded(0))
    tiles = (torch.cat([faces[image][None], seen]) / 2 + 0.5).clamp(0, 1)
    return plots.sheet(tiles.unflatten(0, (2, 4)), (), ["image", "seven draws of T", "", ""], size=1.1)


# %% tags=["nbval-ignore-output"]
operations = ["color,translation,cutout", *diffaugment.OPERATIONS]
plots.slider(figure_draws, operation=operations, strength=[0.25, 0.5, 1.0, 1.5], image=list(range(len(faces))))

# %% [markdown]
# ### The gradient through T
#
# When G learns, the chain rule gives
#
# $$\nabla_\theta\, D\bigl(T(G_\theta(z))\bigr) = J_G^\top\, J_T^\top\, \nabla D. \tag{5}$$
#
# G needs the *transpose* of the Jacobian of $T$. For fixed draws all three operations are affine, $T(x) = Ax + a$. Then
# central differences are exact up to rounding, and there is a sharp test: for random $u$ and $v$,
# $\langle u, Av \rangle$ by differences must equal $\langle A^\top u, v \rangle$ by autograd.
#
# **Predict.** The last line rounds pixels to 256 levels, as saving a file does. What does autograd say?

# %% jupyter={"outputs_hidden": true}
x = faces.double()
u, v = (torch.randn(x.shape, generator=seeded(k), dtype=f64) for k in (1, 2))
tested = {"rounding": lambda x: torch.round(127.5 * x) / 127.5}
for name in operations:
    tested[name] = functools.partial(DiffAugment(name).apply_draws, draws=DiffAugment(name).draw(x, seeded(3)))
for name in (*operations, "rounding"):
    by_difference = (u * (tested[name](x + v) - tested[name](x - v)) / 2).sum()
    at = x.clone().requires_grad_()
    (transposed,) = torch.autograd.grad((u * tested[name](at)).sum(), at)
    print(f"{name:24s} ⟨u, Av⟩ {by_difference:9.3f}   ⟨Aᵀu, v⟩ {(transposed * v).sum() + 0:9.3f}")
    assert torch.isclose(by_difference, (transposed * v).sum(), rtol=1e-10) == (name in operations)

# %% [markdown]
# $T$ passes. Rounding does not: its gradient is 0 almost everywhere, and G would learn nothing.
#
# ## 4 · The method in about forty lines (22–28 min)
#
# The hinge losses with $T$ at place 4 are
#
# $$L_D = \mathbb E \max\bigl(0, 1 - D(T(x))\bigr) + \mathbb E \max\bigl(0, 1 + D(T(G(z)))\bigr), \qquad
#   L_G = -\mathbb E\, D(T(G(z))). \tag{6}$$
#
# First $T$, image by image, as one writes it from the paper:


# %%
def plain_T(x, draws):
    """DiffAugment's transformation of images (N, channels, H, W) in [-1, 1]."""
    height, width = x.shape[2:]
    b, s, c = (draw[:, None, None, None] for draw in draws[:3])
    x = x + b  # brightness
    m = x.mean(1, keepdim=True)
    x = s * (x - m) + m  # saturation, around the mean of a pixel
    M = x.mean((1, 2, 3), keepdim=True)
    x = c * (x - M) + M  # contrast, around the mean of the image
    seen = []
    for image, dy, dx, cy, cx in zip(x, *draws[3:], strict=True):
        padded = F.pad(image, (width, width, height, height))
        moved = padded[:, height + dy : 2 * height + dy, width + dx : 2 * width + dx]
        keep = torch.ones(height, width)
        top, left = cy - height // 4, cx - width // 4
        keep[max(top, 0) : max(top + height // 2, 0), max(left, 0) : max(left + width // 2, 0)] = 0
        seen.append(moved * keep)
    return torch.stack(seen)


draws = DiffAugment().draw(faces, seeded(0))
assert torch.allclose(plain_T(faces, draws), DiffAugment().apply_draws(faces, draws), atol=1e-5)


# %% [markdown]
# Then D's view of images, its loss, and the two players, a DCGAN: G doubles the side of its maps, D halves it.


# %%
def sees(D, T, images, draws):
    """D's logits of transformed images; every call draws anew."""
    return D(plain_T(images, T.draw(images, draws)))


def discriminator_loss(D, T, real, fake, draws):
    """L_D of (6)."""
    return F.relu(1 - sees(D, T, real, draws)).mean() + F.relu(1 + sees(D, T, fake, draws)).mean()


def players(where, seed, size=28, channels=1):
    """A GAN at its start; the same seed gives the same weights."""
    torch.manual_seed(seed)
    generator, discriminator = gan.Generator(size, channels), gan.Discriminator(size, channels)
    return gan.GAN(generator, discriminator, where=where, generator_lr=5e-4)


# %% [markdown]
# **Fill in (2 min).** Replace `None` by the generator's loss. `sees` and (6) are all you need. The package's
# number decides.


# %%
def your_generator_loss(D, T, fake, draws):
    """L_G of (6)."""
    return None  # your line


few = load(dataset, validation=0.1, train_size=train_size)
real = 2 * few.train.floats(slice(0, 16)) - 1
example = players("everywhere", 0, few.image_shape[1], few.image_shape[0])
fake = example.generator(example.codes(16, seeded(1)))
yours = your_generator_loss(example.discriminator, example.augment, fake, seeded(2))
wanted, _ = example.generator_step(16, seeded(1), seeded(2))
if yours is None:
    print("not yet")
elif yours.ndim:
    print("one number for each image: did you average?")
else:
    print("right" if torch.isclose(yours, wanted, atol=1e-5) else "another value")

# %% [markdown]
# <details><summary>Solution</summary>
#
# `-sees(D, T, fake, draws).mean()`. Without $T$ in this line it is *D only*. The next cell has it as `generator_loss`.
#
# </details>


# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
def generator_loss(D, T, fake, draws):
    """L_G of (6)."""
    return -sees(D, T, fake, draws).mean()


assert torch.isclose(generator_loss(example.discriminator, example.augment, fake, seeded(2)), wanted, atol=1e-5)

# %% [markdown]
# One step of both players. The package takes the same step faster: three colour passes are one formula, translation and
# cutout one gather (see the appendix).


# %%
def step(G, D, T, optimizers, real, latent, draws):
    """D learns from real and generated images, then G from D."""
    losses = []
    for player in ("D", "G"):
        fake = G(torch.randn(len(real), G.latent, generator=latent))
        if player == "D":
            loss = discriminator_loss(D, T, real, fake.detach(), draws)
        else:  # the package freezes D here; we clear the gradients that D gets before it learns again
            loss = generator_loss(D, T, fake, draws)
        optimizers[player].zero_grad()
        loss.backward()
        optimizers[player].step()
        losses.append(float(loss.detach()))
    return losses


ours, theirs = (players("everywhere", 0, few.image_shape[1], few.image_shape[0]) for _ in range(2))
sgd = {"G": torch.optim.SGD(ours.generator.parameters(), 0.05)}
sgd["D"] = torch.optim.SGD(ours.discriminator.parameters(), 0.05)
mine = step(ours.generator, ours.discriminator, ours.augment, sgd, real, seeded(1), seeded(2))

# %%
latent, draws = seeded(1), seeded(2)
loss, _ = theirs.discriminator_step(real, latent, draws)
loss.backward()
torch.optim.SGD(theirs.discriminator.parameters(), 0.05).step()
package = [float(value.detach()) for value in (loss, theirs.generator_step(16, latent, draws)[0])]
print(f"our lines {mine[0]:.4f} {mine[1]:+.4f}   package {package[0]:.4f} {package[1]:+.4f}")
assert np.allclose(mine, package, atol=1e-4)

# %% [markdown]
# ## 5 · A live pair: what has D memorised? (28–34 min)
#
# With a hundred images, $p$ in (4) is a sum of a hundred spikes. A generator that copies them all has $q = p$, the
# minimum of (4) with $T$ and without. So $T$ does not forbid copies. It changes what a D of finite size learns in
# finite time: $Tp$ is spread over many more images. We expect that $T$ *delays* memorising.
#
# A plain GAN and DiffAugment start from the same weights, on the same hundred images, with the same noise. We ask both
# discriminators about the hundred, and about *held-out* real images. Our measure is the *AUC*, the probability that a
# training image gets a larger logit than a held-out one. It is 0.5 if D cannot separate them, 1 if it knows its images
# by heart.
#
# DiffAugment's D has never seen such *plain* images: our own objection against *D only*. So the cell asks a second time
# under $T$, with an image's mean logit over 16 draws.
#
# **Predict, then run.** After 300 steps each image was shown about a hundred times. Which of .5, .65 and .95 is the AUC
# of the plain GAN, and which that of DiffAugment?

# %% jupyter={"outputs_hidden": true} tags=["nbval-ignore-output"]
recipe = Recipe(
    epochs=epochs, batch_size=32, optimizer="adam", lr=1e-3, momentum=0.5, schedule="constant", weight_decay=0.0,
    evaluate_every=max(1, epochs // 8),
)  # fmt: skip
where_run, pairs = resolve_device(device), {}
for seed, where in lesson.counted([(seed, where) for seed in SEEDS for where in ("nowhere", "everywhere")]):
    pair = players(where, seed, few.image_shape[1], few.image_shape[0]).to(where_run)
    pairs[where, seed] = pair, gan.fit_gan(pair, few, recipe, seed=seed, progress=False)


@torch.no_grad()
def auc_under_T(D, draws=16):
    """As the AUC on plain images, of the mean logit over draws of T."""
    T, generator, logits = DiffAugment(), torch.Generator(where_run).manual_seed(0), []
    for part in (few.train, few.validation):
        images = 2 * part.to(where_run).floats() - 1
        logits.append(torch.stack([D(T(images, generator)) for _ in range(draws)]).mean(0))
    return gan.memory(*logits).auc


under = {where: auc_under_T(pairs[where, SEEDS[0]][0].discriminator) for where in ("nowhere", "everywhere")}
for where, name in zip(under, ("plain GAN", "DiffAugment"), strict=True):
    print(f"{name:12s} AUC plain {pairs[where, SEEDS[0]][1].curves['auc'][-1]:.2f}, under T {under[where]:.2f}")

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
for run in runs.planned(profile, "4_diffaugment") if profile != "quick" else []:
    runs.complete([run], device)
lesson.keep("4_diffaugment", [record for _, record in pairs.values()])
last = {where: pairs[where, SEEDS[0]][1].curves["auc"][-3:] for where in ("nowhere", "everywhere")}
if (profile, dataset, train_size, epochs, *SEEDS) == ("quick", "fashion-mini", 100, 100, 0):
    assert min(last["nowhere"]) > 0.6 > max(*last["everywhere"], *under.values())

# %% [markdown]
# The pair, asked about plain images:


# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["nbval-ignore-output"]
@plots.styled
def figure_pair():
    figure = plots.Picture(figsize=(7.5, 3.0))
    axes, *panels = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    for panel, where, name in zip(panels, ("nowhere", "everywhere"), SHOWN, strict=True):
        pair, record = pairs[where, SEEDS[0]]
        steps = np.array(record.curves["epoch"]) * (len(few.train) // 32)
        style = {"markersize": 3, "color": study.COLOURS[name], "label": study.short(name)}
        axes.plot(steps, record.curves["auc"], "o-", **style)
        logits = [pair.logits(part.to(where_run)).cpu() for part in (few.train, few.validation)]
        bins = np.linspace(min(map(torch.min, logits)).item(), max(map(torch.max, logits)).item(), 16)
        panel.hist(logits[0], bins, density=True, color=plots.CYAN, alpha=0.7, label="the hundred")
        panel.hist(logits[1], bins, density=True, color=plots.PURPLE, histtype="step", linewidth=1.8, label="held out")
        panel.set(title=study.short(name), xlabel="logit", yticks=[])
    axes.axhline(0.5, color=plots.GREY, linestyle=":")
    axes.set(xlabel="steps", ylabel="AUC on plain images", ylim=(0.4, 1))
    axes.legend(loc="upper left")
    panels[0].legend(loc="upper left", fontsize=8)
    values = [last[where][-1] for where in ("nowhere", "everywhere")]
    plots.headline(figure, f"AUC of one pair: {values[0]:.2f} of the plain GAN, {values[1]:.2f} of DiffAugment")
    return figure


show(figure_pair(), "live_pair")

# %% [markdown]
# <details><summary>After you ran it</summary>
#
# With the plain GAN the two sets of logits begin to part. With DiffAugment they lie over each other, also under $T$,
# where D was trained. (Under $T$ the plain GAN's D, which never saw such images, does not separate them either.)
#
# </details>
#
# ## 6 · What longer runs show (34–41 min)
#
# All samples are of an *averaged* generator: an exponential mean of G's weights over the steps. First a film of a wider
# generator, trained on the portraits:

# %% jupyter={"source_hidden": true} tags=["nbval-ignore-output"]
filmed = {name: study.kept(committed("4_diffaugment"))[name][0] for name in SHOWN}
films, steps = [filmed[name][1]["frames"] for name in SHOWN], [0, *study.steps(filmed[SHOWN[0]][0])]


def frame(rows, title):
    return plots.sheet(torch.from_numpy(np.stack(rows)), list(map(study.short, SHOWN)), (), title, size=0.66)


def frames():
    chosen = (1, 3, 6, 9)  # for print
    title = f"Two codes, each after {', '.join(f'{steps[k]:,.0f}' for k in chosen)} steps"
    yield frame([np.concatenate([film[k][:2] for k in chosen]) for film in films], title)
    for number in (*range(2, len(steps)), len(steps) - 1, len(steps) - 1):
        yield frame([film[number] for film in films], f"Eight codes after {steps[number]:,.0f} steps")


lesson.animation("4_diffaugment", frames(), "frames")
ratios = [round(run.metrics["copy_ratio"], 2) for run, _ in filmed.values()]
assert ratios == [0.71, 0.98]

# %% [markdown]
# Without $T$ the faces get sharp first. Then they gather around a few photographs. The *copy ratio* divides a sample's
# distance to the nearest training image by that to the nearest of a hundred test images (median of 200 samples). It is
# about 1 if nothing is copied, 0 for copies. Here it ends at .71 for the plain GAN, and at .98 for DiffAugment. Now the
# generator of section 4:

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "longer")


# %% [markdown]
# The ends of short and long runs. ± is the half-width of the 95% t interval of the mean over n seeds; for n = 3 the
# three values are listed. Differences DiffAugment - plain GAN are paired by seed. A log₂ of −1 halves the FID. The AUC
# is of plain images.


# %% jupyter={"source_hidden": true}
PARTS = {"fashion-mini": (study.GREYS[0], study.LONGER[0]), "portraits": (study.COLOURED[0], study.LONGER[1])}


def listed(values):
    """Three values, or the mean and its interval."""
    values = list(values)
    return ", ".join(f"{value:.2f}" for value in values) if len(values) == 3 else stats.summary(values).text(".2f")


def long_runs(index):
    """FID and AUC of both arms at their end, and their paired differences."""
    rows, sides, scores = [], [], {"fid": study._log_fid, "auc": lambda run: run.metrics["auc"]}
    for title, k in (("fashion-mini", 0), ("portraits", 0), ("fashion-mini", 1), ("portraits", 1)):
        plain, ours = (index.of(PARTS[title][k], name) for name in SHOWN)
        rows.append([f"{title}, {study.steps(plain[0])[-1]:,.0f} (n = {len(plain)})"])
        for key, score in scores.items():
            rows[-1] += [listed(run.metrics[key] for run in side) for side in (plain, ours)]
            change = stats.summary(stats.gains(ours, plain, score))
            rows[-1].append(change.text("+.2f"))
            sides.append(change.side)
    assert sides == [0, -1, 1, -1, -1, -1, -1, -1]
    heads = ["FID: plain GAN", "DiffAugment", "log₂ of the ratio", "AUC: plain GAN", "DiffAugment", "difference"]
    return markdown(["data, steps", *heads], rows)


# %%
lesson.table("4_diffaugment", long_runs)

# %% [markdown]
# Means over the seeds, along the long runs:


# %% jupyter={"source_hidden": true}
def along(index):
    """What the long runs pass through: means over seeds."""
    rows, means = [], {}
    for title, (_, part) in PARTS.items():
        for name in SHOWN:
            found = index.of(part, name)
            curves = {key: np.mean([run.curves[key] for run in found], 0) for key in ("fid", "auc", "copy_ratio")}
            best = int(curves["fid"].argmin())
            cells = [f"{curves['fid'][best]:.2f} at {study.steps(found[0])[best]:,.0f}", f"{curves['fid'][-1]:.2f}"]
            cells += [f"{curves['auc'][k]:.2f}" for k in (0, 1, -1)] + [f"{curves['copy_ratio'][-1]:.2f}"]
            rows.append([title, study.short(name), *cells])
            means[title, name] = curves
    plain, ours = (means["portraits", name]["fid"] for name in SHOWN)
    assert (plain < ours).tolist()[1:] == [True, True] + [False] * 6  # crossing between 1,800 and 2,400 steps
    ends = index.of(study.LONGER[1], study.BASELINE)
    assert [round(run.metrics["copy_ratio"], 2) for run in ends] == [0.41, 1.05, 0.99]
    assert all(max(run.curves["discriminator_loss"][-1:]) < 0.1 < run.curves["discriminator_loss"][1] for run in ends)
    heads = ["lowest FID, at step", "FID at 5,400", "AUC at 600", "at 1,200", "at 5,400", "copy ratio at 5,400"]
    return markdown(["data", "", *heads], rows)


lesson.table("4_diffaugment", along)

# %% [markdown]
# - **DiffAugment delays memorising.** The AUC is significantly lower in all four rows. It still rises with the steps,
#   on portraits from .59 to .69.
# - **Images gain only in long runs.** After 1,350 steps the FIDs on fashion-mini are not significantly different, and
#   on portraits DiffAugment is *worse*. After 5,400 steps it is significantly better on both.
# - **Early stopping is a rival.** On portraits the plain GAN reaches .62 at 1,200 steps, chosen by the test FID; the
#   best of DiffAugment is .55. The curves cross between 1,800 and 2,400 steps. On fashion-mini stopping helps less: 4.55
#   against 2.50.
# - **Three seeds end differently.** On portraits one plain GAN ends near copies (copy ratio .41). Two do not (1.05 and
#   .99), with FIDs above 3.
#
# **A question for the class.** D knows its images long before samples suffer. On portraits the AUC is .98 at 1,200
# steps, where the plain GAN is best. On fashion-mini it ends at .97, and hardly anything is copied. Why does a D that
# has memorised still teach G something?
#
# In long runs of the wider generator, *reals only* draws what (4) says:

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "places_long")

# %% [markdown]
# ## 7 · Limits, and the paper's numbers (41–45 min)
#
# BigGAN on all of CIFAR-10, as we remember the paper's Table 1: FID 9.59 (plain GAN), 19.16 to 49.38 (reals only),
# 100.13 to 126.96 (D only), 8.59 to 9.04 (DiffAugment). Ours have other features: only the order compares.


# %% jupyter={"source_hidden": true}
def by_place(index):
    """Our two shortcuts against the plain GAN, after 1,350 steps, in a sentence."""
    found = [index.by_arm(part, study.PLACE_NAMES) for part in (study.COLOURED[0], study.GREYS[0])]
    means = [{name: stats.summary(run.metrics["fid"] for run in each) for name, each in part.items()} for part in found]
    plain, reals, d_only, _ = study.PLACE_NAMES
    assert all(part[plain].mean < min(part[reals].mean, part[d_only].mean) for part in means)
    words = f"{means[1][d_only].text('.2f')} (n = {means[1][d_only].n}) against {means[1][plain].text('.2f')}"
    return (
        "*Reals only* and *D only* have a higher mean FID than the plain GAN in the paper, on our portraits and on "
        f"fashion-mini. How much higher varies: *D only* on fashion-mini has {words} (n = {means[1][plain].n})."
    )


lesson.table("4_diffaugment", by_place)

# %% [markdown]
# FIDs of the authors' README:
#
# | data | network | FID without T | with DiffAugment |
# |---|---|---|---|
# | CIFAR-10, 10% / 20% / 100% | BigGAN | 39.78 / 21.58 / 9.59 | 22.40 / 14.04 / 8.70 |
# | 100 portraits / grumpy cats / pandas | StyleGAN2 | 80.20 / 48.90 / 34.27 | 46.87 / 27.08 / 12.06 |
# | 70,000 faces (FFHQ) | StyleGAN2 | 3.81 | 4.24 |
#
# - **Many images.** On 70,000 faces it costs (one reported pair); on all of CIFAR-10 it still helps slightly.
# - **It can leak.** Cutout's grey shows in samples of the authors' own network for 10% of CIFAR-10 ([issue
#   84](https://github.com/mit-han-lab/data-efficient-gans/issues/84)). The proof does not cover cutout, so it does not
#   exclude this.
# - **ADA** ([arXiv:2006.06676](https://arxiv.org/abs/2006.06676)) adapts the probability of each operation to how much
#   D overfits. Below 1, the proof holds for cutout too.
# - **Ours are small**, and all runs share one set of a hundred images.
#
# > **Take away.** Put the same random, differentiable $T$ before D everywhere, also where G learns. D then memorises
# > later; with few images and long training the images gain. With $T$ on the reals alone, G draws $T$.
#
# **Question (at home).** Suppose D gets the draw of $T$ together with each image. Is $q = p$ still a minimum? Is more
# hidden from D, or less? And if D does not get it, but all images of a batch share one draw?
#
# <details><summary>Solution</summary>
#
# It is still a minimum. But D now compares $p$ and $q$ under each draw separately. On the circle every draw is a shift,
# which hides nothing: JS does not shrink at all. So less is hidden. A shared draw alone changes nothing for a D that
# judges images one by one: its expected loss is the same. Only the gradient gets noisier.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
weights = {0: 0.4, 1: 0.2, -1: 0.2, 2: 0.1, -2: 0.1}
known = sum(weight * js(p.roll(k), q.roll(k)) for k, weight in weights.items())
print(f"JS of p and q {js(p, q):.3f}; draw known to D {known:.3f}, draw hidden from D {js(T @ p, T @ q):.3f}")
assert abs(float(known - js(p, q))) < 1e-12
assert js(T @ p, T @ q) < known

# %% [markdown]
# **Next.** [SLA](5_sla.ipynb) asks what a transformation does to a label. The
# [appendix](appendix/4_diffaugment_more.ipynb) has DANN, learned augmentation, MixStyle and more.
