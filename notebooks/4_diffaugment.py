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
# [Open in Colab](https://colab.research.google.com/github/OWNER/semaug/blob/main/notebooks/4_diffaugment.ipynb) · [Open in Binder](https://mybinder.org/v2/gh/OWNER/semaug/main?urlpath=lab/tree/notebooks/4_diffaugment.ipynb)
#
# S. Zhao, Z. Liu, J. Lin, J.-Y. Zhu, S. Han, *Differentiable Augmentation for Data-Efficient GAN Training*, NeurIPS
# 2020 ([arXiv:2006.10738](https://arxiv.org/abs/2006.10738)). [Their
# code](https://github.com/mit-han-lab/data-efficient-gans).

# %% jupyter={"source_hidden": true} tags=["remove-cell", "skip-slide"]
# For a page outside its repository: fetches it on Colab, says elsewhere how to get it.
import subprocess
import sys
from importlib.util import find_spec

if find_spec("companion") is None:
    if "google.colab" not in sys.modules:
        raise ModuleNotFoundError("companion: got no checkout; takes git clone https://github.com/OWNER/semaug && cd semaug && make lab")  # fmt: skip
    subprocess.run("git clone -q --depth 1 https://github.com/OWNER/semaug /content/semaug; pip install -q jaxtyping jupytext && pip install -q --no-deps -e /content/semaug", shell=True, check=True)  # fmt: skip
    sys.path.insert(0, "/content/semaug")

# %% tags=["nbval-ignore-output"]
from companion import lesson

lesson.figure("4_diffaugment", "faces")

# %% [markdown]
# **Two GANs, trained on the same hundred photographs of George W. Bush (data set LFW).** Below each sample stands the
# nearest of the hundred. The copies look sharp, but these six have only three different nearest photographs. FID (lower
# is better) also compares variety. We show the only one of three seeds that ends in near
# copies; section 6 has the numbers of all. Samples are of an *averaged* generator: a running mean of G's weights.
#
# **In one sentence: with DiffAugment, D separates plain training images from new ones later; after long training, G's
# samples are better.**
#
# A forger learns from a critic. Shown the same hundred photographs for long, the critic may in the end separate them
# from all other photographs. The forger can then end in copies, or get worse. Section 6 shows both, and a case where it
# does neither. DiffAugment shows the critic only images that were randomly recoloured, shifted and cut, real and forged
# alike. The forger's gradient passes through the same kind of random transformation, drawn anew for every image. The
# critic is the *discriminator* D of a GAN, the forger its *generator* G, and the transformation is $T$.
#
# At the end you can
#
# - say for four places of $T$ what G learns, and prove it for two;
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
# [appendix](appendix/4_diffaugment_more.ipynb) checks the claims of the source, a reading note.
#
# <details><summary>For the lecturer</summary>
#
# Clear all outputs before the class. The live training of section 5 takes about 20 seconds: start it, then ask. If time
# is short, leave out the check of (5) and the film.
#
# Expected answers. *Section 1:* place 2 draws transformed images, place 3 whatever fools D, place 4 faces. *Section 2:*
# $Tp$, $p$, any $q$. *Section 3:* rounding shows 0. *Section 5:* about .65 for the plain GAN, .5 for DiffAugment.
# *Section 6:* these runs do not decide it. Recorded, on portraits only: in all three seeds D's hinge loss is above .1
# at 1,200 steps and below .1 at 5,400. A loss of 0 means that D gets no more correction. It does not mean that G gets
# no gradient.
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
from semaug.methods import diffaugment, gan

show = functools.partial(lesson.show, "4_diffaugment")  # keeps a picture and shows it
SEEDS = range(first_seed, first_seed + seeds)
SHOWN = (study.BASELINE, study.DIFFAUGMENT)
f64 = torch.float64

# %% [markdown]
# ## 1 · The game, and four places of T (4–8 min)
#
# A step of a GAN has two halves. First D sees real images and generated ones, and learns to separate them. Then G
# learns: D is asked about new generated images, and G follows D's gradient. So D has three inputs where $T$ can stand.
# Here are four of the combinations.

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
# In a world where everything can be computed, an "image" is one of $n$ states. $p(x)$ is the probability of a real
# image $x$, $q(x)$ that of a generated one. D gives each state a logit $D(x)$. With the logistic function
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
#
# ### T on the reals only (place 2), and T everywhere (place 4)
#
# A random transformation acts *linearly* on distributions. In a world of $n$ states $T$ is an $n \times n$ matrix:
# column $x$ holds the distribution of $T(x)$. Transformed real images have the distribution $Tp$. So (3) becomes
#
# $$\text{place 2, reals only:}\quad \min_q \mathrm{JS}(Tp,\, q), \qquad\qquad
#   \text{place 4, everywhere:}\quad \min_q \mathrm{JS}(Tp,\, Tq). \tag{4}$$
#
# **Predict, then run.** The data have two sharp peaks on a circle of twelve states. $T$ moves an image by up to two
# states at random. Where does $q$ end in each case, and which property of the matrix decides it? And where, if $T$
# moves to *any* state with equal probability?

# %%
n = 12
states = torch.arange(n, dtype=f64)
p = torch.softmax(3 * torch.cos(2 * math.pi * 2 * states / n), 0)  # two peaks on a circle


def js(p, q):
    """(3) in nats."""
    middle = ((p + q) / 2).log()
    return 0.5 * (torch.xlogy(p, p) - p * middle).sum() + 0.5 * (torch.xlogy(q, q) - q * middle).sum()


def circulant(steps):
    """The matrix of a random step on the circle: {step: probability}."""
    return sum(weight * torch.eye(n, dtype=f64).roll(step, 0) for step, weight in steps.items())


def best_q(loss, seed=0):
    """The distribution that minimises loss(q), found numerically (L-BFGS) from a random start."""
    start = torch.randn(n, generator=seeded(seed), dtype=f64)
    # the search ends at small slopes, so the loss is scaled
    (change,) = lesson.least(lambda change: 1e6 * loss((start + change).softmax(0)), n, steps=1000)
    return (start + change).softmax(0)


assert js(p, p).abs() < 1e-12  # 0 at q = p


# %% jupyter={"outputs_hidden": true}
def distance(one, other):
    """Total variation: the largest difference in the probability of any event."""
    return float((one - other).abs().sum() / 2)


T = circulant({0: 0.4, 1: 0.2, -1: 0.2, 2: 0.1, -2: 0.1})
erasing = circulant(dict.fromkeys(range(n), 1 / n))
on_reals = best_q(lambda q: js(T @ p, q))
everywhere = best_q(lambda q: js(T @ p, T @ q))
erased = [best_q(lambda q: js(erasing @ p, erasing @ q), seed) for seed in (0, 1)]
print(f"place 2:           q is {distance(on_reals, T @ p):.3f} from Tp and {distance(on_reals, p):.3f} from p")
print(f"place 4:           q is {distance(everywhere, p):.3f} from p")
print(f"place 4, T erases: two starts end {distance(*erased):.3f} from each other")
assert distance(on_reals, T @ p) < 1e-4 < 0.2 < distance(on_reals, p)
assert distance(everywhere, p) < 1e-3 < 0.2 < distance(*erased)


# %% [markdown]
# The minimisers, beside the data and the data under T:


# %% jupyter={"outputs_hidden": true, "source_hidden": true}
@plots.styled
def figure_minimisers():
    figure = plots.Picture(figsize=(7.5, 2.9))
    panels = figure.subplots(1, 3, sharey=True)
    shown = {"place 2: T on reals only": (T, on_reals), "place 4: T everywhere": (T, everywhere)}
    shown["place 4, T erases"] = erasing, erased[0]
    x, turned = range(-3, n - 3), functools.partial(torch.roll, shifts=3)  # both peaks inside
    for axes, (title, (matrix, values)) in zip(panels, shown.items(), strict=True):
        axes.bar(x, turned(p), color=plots.GREY, alpha=0.35, label="data p")
        axes.step(x, turned(matrix @ p), where="mid", color="#C05000", label="Tp")
        axes.plot(x, turned(values), "o", color=plots.BLUE, label="minimiser q")
        axes.set(title=title, xlabel="state on the circle", xticks=range(-3, n - 3, 3))
    panels[0].set_ylabel("probability")
    handles, names = panels[0].get_legend_handles_labels()
    labels = dict(zip(names, handles, strict=True))
    plots.headline(figure, "T on the reals alone moves the target; T everywhere keeps it, unless T erases", labels)
    return figure


assert torch.linalg.eigvalsh(T).min() > 0.05  # T is invertible
show(figure_minimisers(), "minimisers")

# %% [markdown]
# <details><summary>After you ran it</summary>
#
# At place 2 the loss is 0 at $q = Tp$: G ends at the blurred data. At place 4 it is 0 where $Tq = Tp$. If the matrix is
# invertible, that is $q = p$ alone. If $T$ erases the image, every $q$ has the loss 0.
#
# </details>
#
# - **Place 2, reals only**, aims at transformed images.
# - **Place 3, D only**, has no loss that both players share. D learns about $T(x)$ and $T(G(z))$, and is then asked
#   about $G(z)$. Cutout never gives an uncut image, so D's answer there is arbitrary. (On the circle D also sees
#   unmoved states. At $q = p$, $D^* = \log(Tp / Tq)$ is 0 in every state, so G stays there: the circle cannot show this
#   failure.)
# - **Place 4, DiffAugment**, has its minimum at $q = p$, and nowhere else if $T$ is invertible: even though a single
#   draw may destroy information (Bora et al. 2018, AmbientGAN; Karras et al. 2020, ADA).
# - **This proof does not cover the released method.** Cutout hides a part of *every* image, so $T$ is not invertible;
#   translation that fills with zeros can be singular too. Then (4) allows other minima; the appendix constructs one.
# - **A probability below 1 mends cutout** (ADA). Cut an image with probability $\pi < 1$. The cutouts $C_k$ are
#   commuting projections, so their mean $C$ has eigenvalues in $[0, 1]$. Then $(1 - \pi) I + \pi C$ has none below
#   $1 - \pi$: it is invertible.
# - **The hinge loss**, with which we shall train, leads to the same places. Its best D is the sign of $p - q$. With
#   this D, G descends $2\,\mathrm{TV}(p, q) = \sum |p - q|$ in place of $2\,\mathrm{JS}$; both are 0 only at $q = p$.
#
# ### The answer: portraits after 1,350 steps (committed runs)

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "four_places")

# %% [markdown]
# *FID* is the Fréchet distance of two Gaussians, fitted to features of generated and of test images. Our features are
# of a small classifier trained here: our FIDs compare only our runs. *Grey windows*: a sample counts if its flattest
# window is flatter than in 99% of the test images.


# %% jupyter={"source_hidden": true}
def at_places(index):
    """Portraits after 1,350 steps, by the place of T: the mean FID of three seeds, in a line."""
    found = index.by_arm(study.COLOURED[0], study.PLACE_NAMES)
    for name, of in found.items():
        assert len(of) == 3
        assert all((run.metrics["logit_fake"] > 2) == (name == "discriminator only") for run in of)
        assert all((run.metrics["leak"] > 0.5) == (name == "reals only") for run in of)
    means = " / ".join(f"{stats.summary(run.metrics['fid'] for run in of).mean:.2f}" for of in found.values())
    return f"FID of {' / '.join(map(study.short, found))}, mean of three seeds: {means}"


lesson.table("4_diffaugment", at_places)

# %% [markdown]
# *D only*: G finds one image that fools D. D's mean logit of plain samples is above 2 in every seed. The plain GAN and
# DiffAugment both draw faces. At this early stage the plain GAN has the lower FID. Does it stay ahead?
#
# ## 3 · The operations and their gradient (18–22 min)
#
# $T$ is a chain of three operations, drawn at random: colour (brightness, saturation, contrast), translation by up to
# an eighth of the side, and cutout: a square with half the image's side, clipped at the border. Cutout's window is set
# to 0, which is *grey* in $[-1, 1]$; so is what translation uncovers. In a live session the picture has sliders.

# %%
faces = torch.from_numpy(study.training_faces(committed("4_diffaugment"))) / 127.5 - 1  # some of the hundred
assert faces.abs().max() <= 1


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
# central differences are exact up to floating-point error, and there is a sharp test: for random $u$ and $v$,
# $\langle u, Av \rangle$ by differences must equal $\langle A^\top u, v \rangle$ by autograd.
#
# **Predict.** The last line rounds pixels to the levels of an 8-bit file. What does autograd say?

# %% jupyter={"outputs_hidden": true}
x = faces.double()
u, v = (torch.randn(x.shape, generator=seeded(k), dtype=f64) for k in (1, 2))
tested = {"rounding": lambda x: torch.round(127.5 * (x + 1)) / 127.5 - 1}
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
# Then D's view of images, its loss, and the players, a DCGAN: G doubles the side of its maps, D halves it.


# %%
def sees(D, T, images, rng):
    """D's logits of transformed images; every call draws anew."""
    return D(plain_T(images, T.draw(images, rng)))


def discriminator_loss(D, T, real, fake, rng):
    """L_D of (6)."""
    return F.relu(1 - sees(D, T, real, rng)).mean() + F.relu(1 + sees(D, T, fake, rng)).mean()


def players(where, seed, size=28, channels=1):
    """A GAN at its start; the same seed gives the same weights."""
    torch.manual_seed(seed)
    generator, discriminator = gan.Generator(size, channels), gan.Discriminator(size, channels)
    return gan.GAN(generator, discriminator, where=where, generator_lr=5e-4)


undecided = discriminator_loss(lambda images: torch.zeros(len(images)), DiffAugment(), faces, faces, seeded(0))
assert undecided == 2  # (6) of a D that is 0 everywhere


# %% [markdown]
# **Fill in (2 min).** Replace `None` by the generator's loss; `sees` and (6) are all you need.


# %%
def your_generator_loss(D, T, fake, rng):
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
# `-sees(D, T, fake, rng).mean()`. Without $T$ in this line it is *D only*.
#
# </details>


# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
def generator_loss(D, T, fake, rng):
    """L_G of (6)."""
    return -sees(D, T, fake, rng).mean()


assert torch.isclose(generator_loss(example.discriminator, example.augment, fake, seeded(2)), wanted, atol=1e-5)

# %% [markdown]
# One step of both players; the package takes it faster (appendix, section 4).


# %%
def update(optimizer, loss):
    optimizer.zero_grad()  # also what the other player's loss has left
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def step(G, D, T, optimizers, real, latent, rng):
    """D learns from real and generated images, then G from D."""
    fake = G(torch.randn(len(real), G.latent, generator=latent)).detach()
    loss_D = update(optimizers["D"], discriminator_loss(D, T, real, fake, rng))
    fake = G(torch.randn(len(real), G.latent, generator=latent))
    loss_G = update(optimizers["G"], generator_loss(D, T, fake, rng))
    return loss_D, loss_G


sgd = {"G": torch.optim.SGD(example.generator.parameters(), 0.05)}
sgd["D"] = torch.optim.SGD(example.discriminator.parameters(), 0.05)
package = float(example.discriminator_step(real, seeded(1), seeded(2))[0].detach())
ours = step(example.generator, example.discriminator, example.augment, sgd, real, seeded(1), seeded(2))
assert math.isclose(ours[0], package, rel_tol=1e-4)

# %% [markdown]
# ## 5 · A live pair: what has D memorised? (28–34 min)
#
# With a hundred images, $p$ in (4) is a sum of a hundred spikes. A generator that copies them all has $q = p$, the
# minimum of (4) with $T$ and without. So $T$ does not forbid copies. It changes what a D of finite size learns in
# finite time: $Tp$ is spread over many more images. We expect that $T$ *delays* memorising.
#
# A plain GAN and DiffAugment start from the same weights, with the same images and noise. We ask both discriminators
# about the hundred, and about *held-out* real images. Our measure is the *AUC*, the probability that a training image
# gets a larger logit than a held-out one. It is 0.5 if D cannot separate them, 1 if it separates all. DiffAugment's D
# has never seen such *plain* images, so the cell asks again under $T$ (mean logit over 16 draws).
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
    T, rng, logits = DiffAugment(), torch.Generator(where_run).manual_seed(0), []
    for part in (few.train, few.validation):
        images = 2 * part.to(where_run).floats() - 1
        logits.append(torch.stack([D(T(images, rng)) for _ in range(draws)]).mean(0))
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
# With the plain GAN the two sets of logits begin to part. With DiffAugment they lie over each other. Under $T$ neither
# D separates them.
#
# </details>
#
# ## 6 · What longer runs show (34–41 min)
#
# A film of a wider generator, on portraits, for 4,050 steps:

# %% jupyter={"source_hidden": true} tags=["nbval-ignore-output"]
filmed = [study.kept(committed("4_diffaugment"))[name][0] for name in SHOWN]
films, steps = [arrays["frames"] for _, arrays in filmed], [0, *study.steps(filmed[0][0])]


def frame(rows, columns, title):
    """Tiles of two images each, with a white line between."""
    tiles = [np.concatenate([row[::2], np.full_like(row[::2, ..., :1], 255), row[1::2]], 3) for row in rows]
    return plots.sheet(torch.from_numpy(np.stack(tiles)), list(map(study.short, SHOWN)), columns, title, size=1.3)


def frames():
    chosen = (1, 3, 6, 9)  # for print
    title = "Seed 0: the plain GAN is sharp first and ends nearer to photographs"
    columns = [f"{steps[k]:,.0f} steps" for k in chosen]
    yield frame([np.concatenate([film[k][:2] for k in chosen]) for film in films], columns, title)
    columns = [f"codes {k}, {k + 1}" for k in (1, 3, 5, 7)]
    for number in (*range(2, len(steps)), len(steps) - 1, len(steps) - 1):
        yield frame([film[number] for film in films], columns, f"After {steps[number]:,.0f} steps")


lesson.animation("4_diffaugment", frames(), "frames")
assert [round(run.metrics["copy_ratio"], 2) for run, _ in filmed] == [0.71, 0.98]

# %% [markdown]
# The *copy ratio* divides a sample's distance to the nearest training image by that to the nearest of a hundred test
# images (median of 200 samples). It is about 1 if nothing is copied, 0 for copies. In this seed the plain faces get
# sharp first, then move nearer to training photographs (copy ratio .71 at the end; DiffAugment .98). All three seeds of
# this wider generator at their end:

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "seeds")

# %% [markdown]
# Now the generator of section 4, trained longer:

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "longer")


# %% [markdown]
# The ends of short and long runs: means with 95% t intervals, and for n = 3 the three values. Differences DiffAugment -
# plain GAN are paired by seed. A log₂ of −1 halves the FID. The AUC is of plain images.


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


# %% jupyter={"source_hidden": true}
lesson.table("4_diffaugment", long_runs)


def curve(title, arm, key):
    """Of the long runs of an arm, (seeds, measured)."""
    return np.array([run.curves[key] for run in committed("4_diffaugment").of(PARTS[title][1], SHOWN[arm])])


for title, k, stopped, ours, side in (("fashion-mini", 6, 4.55, 2.5, -1), ("portraits", 1, 0.62, 0.55, 0)):
    fids = [curve(title, arm, "fid") for arm in (0, 1)]
    assert fids[0].mean(0).argmin() == k  # where we stop the plain GAN; after 1,200 steps on portraits
    assert [round(values.mean(), 2) for values in (fids[0][:, k], fids[1][:, -1])] == [stopped, ours]
    assert stats.summary(np.log2(fids[1][:, -1] / fids[0][:, k])).side == side
copies, fids, aucs = (curve("portraits", 0, key)[:, -1].round(2).tolist() for key in ("copy_ratio", "fid", "auc"))
assert (copies, fids[0], aucs[0]) == ([0.41, 1.05, 0.99], min(fids), min(aucs)) == ([0.41, 1.05, 0.99], 2.47, 0.81)
plain, ours = (curve("portraits", arm, "auc").mean(0).round(2).tolist() for arm in (0, 1))
assert (plain[1], ours[0], ours[-1]) == (0.98, 0.59, 0.69)
assert round(curve("fashion-mini", 0, "auc").mean(0)[-1], 2) == 0.97
losses = curve("portraits", 0, "discriminator_loss")
assert losses[:, -1].max() < 0.1 < losses[:, 1].min()

# %% [markdown]
# - **On plain images, DiffAugment's D separates the hundred later.** The AUC is significantly lower in all four rows.
#   Caution: its D never saw plain images, and the long runs kept no AUC under $T$ (in section 5 about .5). The AUC
#   still rises with the steps, on portraits from .59 to .69.
# - **Images gain only in long runs.** After 1,350 steps the FIDs on fashion-mini are not significantly different, and
#   on portraits DiffAugment is *worse*. After 5,400 steps it is significantly better on both.
# - **Early stopping is a rival.** Stop the plain GAN where its mean test FID is lowest. On portraits that is .62, at
#   1,200 steps; the end of DiffAugment, .55, is not significantly different (n = 3). On fashion-mini it is 4.55;
#   DiffAugment's 2.50 is significantly better.
# - **Three seeds end differently.** On portraits one plain GAN ends near copies (copy ratio .41); two do not (1.05,
#   .99). The copying run has the lowest AUC (.81) and the lowest FID (2.47) of the three. A likely reason: when G's
#   samples are near the hundred, D must also reject what looks like them. So the AUC measures what D separates, and the
#   copy ratio what G copies: read both.
#
# **A question for the class.** Samples can still be good when D knows its images. On portraits the AUC is .98 at 1,200
# steps, the checkpoint where the plain GAN is best. On fashion-mini it ends at .97, and hardly anything is copied. Why
# does a D that has memorised still teach G something?
#
# The wider generator again, with $T$ at each place (seed 0). At place 3 a distorted face fools D:

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "places_long")

# %% [markdown]
# ## 7 · Limits, and the paper's numbers (41–45 min)
#
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
#   84](https://github.com/mit-han-lab/data-efficient-gans/issues/84)). The proof does not cover cutout.
# - **ADA** ([arXiv:2006.06676](https://arxiv.org/abs/2006.06676)) adapts the probability of each operation to how much
#   D overfits. Below 1, cutout is invertible (section 2); the other operations need their own check.
# - **Ours are small**, and all runs share one set of a hundred images.
#
# > **Take away.** Put the same random, differentiable $T$ before D everywhere, also where G learns. D then separates
# > plain training images later. In our long runs G beats a plain GAN trained equally long. Against one stopped in time
# > the gain is significant on fashion-mini, and not on portraits (n = 3). With $T$ on the reals alone, G draws
# > transformed images.
#
# **Question (at home).** Suppose D gets the draw of $T$ together with each image. Is $q = p$ still a minimum? Is more
# hidden from D, or less?
#
# <details><summary>Solution</summary>
#
# It is still a minimum. But D now compares $p$ and $q$ under each draw separately. On the circle every draw is a shift,
# which hides nothing: JS does not shrink at all. So less is hidden.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
q = torch.softmax(torch.cos(2 * math.pi * states / n), 0)  # another than p
weights = {0: 0.4, 1: 0.2, -1: 0.2, 2: 0.1, -2: 0.1}
known = sum(weight * js(p.roll(k), q.roll(k)) for k, weight in weights.items())
print(f"JS of p and q {js(p, q):.3f}; draw known to D {known:.3f}, draw hidden from D {js(T @ p, T @ q):.3f}")
assert abs(float(known - js(p, q))) < 1e-12
assert js(T @ p, T @ q) < known

# %% [markdown]
# **Next.** [SLA](5_sla.ipynb) asks what a transformation does to a label.
