# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · AutoMix, appendix: errata, the other methods, ablations, the authors' benchmark
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/semaug/blob/main/notebooks/appendix/3_automix_more.ipynb) · [Open in Binder](https://mybinder.org/v2/gh/OWNER/semaug/main?urlpath=lab/tree/notebooks/appendix/3_automix_more.ipynb)
#
# This page belongs to the [lesson](../3_automix.ipynb), whose equations it cites as L(1) to L(12). After the first two
# cells of code its sections can be read in any order:
#
# 1. Notation
# 2. Errata of the source, and what the released code does
# 3. The other methods, each by one property
# 4. One term of two; symmetry; a trap of the mask loss
# 5. The copy is an average over the past
# 6. What a step costs
# 7. What the records say: accuracy, networks, ablation
# 8. Calibration, attacks and corruptions
# 9. Where a classifier looks
# 10. What the authors report, and what ran here
# 11. Leaderboard
# 12. Exercises
#
# It trains live for a few seconds. The longer runs are committed records.

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

# %% tags=["parameters"]
profile = "quick"  # "quick" trains what is shown here; "cpu" and "paper" also add missing records (hours)
dataset = "fashion-mini"  # the 10,000 images of Fashion-MNIST inside the package; or cifar10, mnist, ...
train_size = 400  # training images of the live run
epochs = 4  # of the live run
seeds = 1  # runs of it
first_seed = 0  # of them
device = "auto"  # "cpu", "cuda", or whichever there is

# %%
import functools
import itertools
import math

import numpy as np
import torch
from IPython.display import Markdown
from torch.nn import functional as F

from companion import lesson, runs, stats
from companion.lesson import effect, seeded
from companion.records import committed, on_common_seeds
from companion.studies import automix as study
from semaug import Recipe, Step, fit, load, networks, resolve_device
from semaug.core import pixels
from semaug.data import shapes
from semaug.measures import robustness
from semaug.methods import automix, mixing, puzzlemix

figure = functools.partial(lesson.figure, "3_automix")  # drawn from the committed records
lesson.parameters("3_automix_more")
SEEDS = range(first_seed, first_seed + seeds)
f64, index = torch.float64, committed("3_automix")

# %% [markdown]
# ## 1 · Notation
#
# | symbol | in code | meaning | 中文 |
# |---|---|---|---|
# | $x$, $y$; $\tilde x$, $\tilde y$ | `images`, `target`; `Mixed` | image and label; mixture and its label | 样本，标签；混合样本，混合标签 |
# | λ, $\lambda'$ | `lam`, `Mixed.lam` | ratio of the image; in the label, where a method corrects it | 混合比例 |
# | α | `alpha` | of Beta(α, α), from which λ is drawn | |
# | $i$, $j$ | `permutation` | an image and its partner | 样本对 |
# | $M = s_\lambda$ | `mask` | mask of the image; the partner has $s_{1-\lambda} = 1 - s_\lambda$ | 掩码 |
# | $h_\phi$, $g$ | | how images, and labels, are mixed | 样本混合函数，标签混合函数 |
# | $q$, $\theta_q$; $k$, $\theta_k$ | `network`; `momentum_network` | classifier; its momentum copy | 判别模型；动量编码器 |
# | $z$, $z_\lambda$ | `features` | maps of a stage; with the ratio as a channel | 特征图 |
# | $M_\phi$, $W_P$, $W_Z$, $P$ | `MixBlock`, `key`, `value` | Mix Block, its projections, its attention | 混合模块，线性变换矩阵，交叉注意力 |
# | γ, ε | `mask_weight`, `margin` | weight and margin of the mask loss | 损失权重 |
# | $m$ | `momentum` | of the moving average | 动量系数 |
#
# The modules of the package number their equations through: L(1) and L(2) are (30) and (32) there, L(8) to L(10) are
# (33), (34) and (36), L(12) is (37).
#
# ## 2 · Errata of the source, and what the released code does
#
# First some numbers for the table. The authors' benchmark gives one number a setting: the median of the last epochs,
# without a spread. Our rule: a difference of a tenth of a point decides nothing. ResNet-18 on ImageNet:

# %%
others = ("mixup", "CutMix", "Manifold Mixup", "PuzzleMix")
imagenet = {100: (70.04, (69.98, 68.95, 69.98, 70.12)), 300: (71.83, (71.72, 71.01, 71.73, 71.64))}
level = {}
for length, (vanilla, reached) in imagenet.items():
    gains = {name: round(value - vanilla, 2) for name, value in zip(others, reached, strict=True)}
    level[length] = [name for name, gain in gains.items() if abs(gain) <= 0.1]
    print(f"{length} epochs, over vanilla: {gains}")
assert level == {100: ["mixup", "Manifold Mixup", "PuzzleMix"], 300: ["Manifold Mixup"]}
assert max(value - imagenet[300][0] for value in imagenet[300][1]) < 0

# %% [markdown]
# Then rows in which another method is ahead of AutoMix, and hours of training on CIFAR-100 (600 epochs):

# %%
ahead = {"ResNet-50, 100 epochs": ("AlignMix", 78.00, 77.91), "ResNet-50, 300 epochs": ("AlignMix", 79.32, 79.25),
         "DeiT-B": ("TokenMix", 82.90, 82.18)}  # fmt: skip
hours = {"DeiT-S": (27, 35, 59), "Swin-T": (36, 45, 75), "ConvNeXt-T": (10, 53, 28)}
for setting, (name, theirs, ours) in ahead.items():
    print(f"ImageNet, {setting}: {name} − AutoMix {theirs - ours:+.2f}")
    assert theirs > ours
for network, (plain, puzzle, ours) in hours.items():
    print(f"{network}: {plain} h plain, {puzzle} h PuzzleMix, {ours} h AutoMix")
slower = [network for network, (_, puzzle, ours) in hours.items() if ours > puzzle]
assert slower == ["DeiT-S", "Swin-T"]

# %% [markdown]
# **All errata, in the order of the source.** The lesson mentions those that change the method. Its code was read at
# commit 37e1372 of [OpenMixup](https://github.com/Westlake-AI/openmixup), the benchmark in its documentation there.

# %%
errata = r"""
| what it says | what is so | what decides |
|---|---|---|
| "two questions", of which one is printed | the second is missing; before it stands the extra cost | the sentence before |
| all formulas, from CE to the moving average | lost; put back as L(1) to L(12) | paper and code; each is checked in the lesson |
| all other mixups hurt ResNet-18 on ImageNet | at 100 epochs {level} of 4 are level; at 300 all are below vanilla | the numbers above |
| by the symmetry of mixup the second mask follows | it is *defined* as 1 − s; the block is not symmetric | section 4 |
| sigmoid and upsampling, no order | upsampling first | `pmix_block.py`; with nearest neighbours the same |
| γ goes to 0 with training, from 0.1 | by a cosine in the configurations of ResNet-18 and ResNet-50 for ImageNet, of CUB, Aircraft and of Transformers; constant in those of the ResNets for CIFAR-100 and Tiny-ImageNet | `CustomCosineAnnealingHook` is there, or not |
| the ratio is embedded as a channel | not in the ResNet configurations for CIFAR-100 and Tiny-ImageNet: `lam_concat=False` | there the mask is the same at every λ |
| the values of α and of the layer are lost | α = 2, the third stage (8 × 8 places for ResNet-18 on CIFAR) | paper, configurations |
| this setting needs no tuning | stage, decay of γ, λ channel, lowest learning rate and the optimiser of the block vary | the configurations |
| best in every scene | not in {ahead} rows above, by .07 to .72; on fine-grained sets only SAMix, by the same authors, is ahead | the benchmark |
| reduces the extra cost | three passes; slower than PuzzleMix with {slower} of 3 networks | hours above |
"""
Markdown(errata.format(level=len(level[100]), ahead=len(ahead), slower=len(slower)))

# %% [markdown]
# The package follows the code but for four choices. γ falls linearly. The copy runs on images only up to the stage of
# the maps, so its running statistics of later stages are of mixtures alone. The second mask is built without a graph.
# Runs of some hundred steps take $m$ from 0.9, and larger first weights, as section 5 explains.
#
# ## 3 · The other methods, each by one property
#
# *Cutout* sets a window to zero; by L(5) a window of side $2b$ loses $((2b - b^2/H)/H)^2$ of the image. *Manifold Mixup*
# mixes maps, and never the last: pool and head are linear, so there it would mix the logits. *MixStyle* gives the maps
# of an image, by channel, a mean and a deviation between its own and its partner's.

# %%
images = load(dataset, validation=0.1, train_size=train_size, test_size=1000)
C, channels, side = images.num_classes, images.image_shape[0], 32
x, partners = images.train.floats(slice(0, 4)).double(), torch.tensor([1, 0, 3, 2])
centres = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
lost = 1 - pixels.cutout(torch.ones(side**2, 1, side, side), *centres, 8).mean()
torch.manual_seed(0)
network = networks.small(C, channels).double().eval()
with torch.no_grad():
    last, maps = (automix.stage_maps(network, x, stage) for stage in (len(network.stages) - 1, 1))
    ahead_of_pool = network.head(network.pool(mixing.blend(last, torch.tensor(0.3), partners)))
    after = mixing.blend(network(x), torch.tensor(0.3), partners)
    styled = mixing.mixstyle(maps, 0.3, partners)
print(f"Cutout, 8 of 32: lost {lost:.5f}, predicted {((8 - 16 / side) / side) ** 2:.5f}")
print("mixed last maps give mixed logits:", torch.allclose(ahead_of_pool, after, atol=1e-12))
deviation = 0.3 * maps.std((2, 3)) + 0.7 * maps[partners].std((2, 3))
assert math.isclose(lost, ((8 - 16 / side) / side) ** 2, rel_tol=1e-5)
assert torch.allclose(ahead_of_pool, after, atol=1e-12)
assert torch.allclose(styled.std((2, 3)), deviation, atol=1e-3)  # 1e-6 stands under the root

# %% [markdown]
# *PuzzleMix* cuts the images into $n$ blocks. Block $i$ has the share $s_i$ of the image's saliency and $s_{\pi, i}$ of
# its partner's. It looks for the mask $z$ of values 0, ½, 1 that loses little, keeps about λ and changes little between
# neighbours, with $p_\lambda$ binomial:
#
# $$\min_z \sum_i \Bigl[(1 - z_i)\, s_i + z_i\, s_{\pi,i} - \frac{\eta}{n} \log p_\lambda(z_i)\Bigr]
#   + \beta' \sum_{i \sim j} (z_i - z_j)^2. \tag{1}$$
#
# That is one minimal cut of a graph. We compare the cut with all 81 masks of two by two blocks.

# %%
edges, generator = puzzlemix.grid_pairs(2, 2), np.random.default_rng(0)
own, other = generator.dirichlet(np.ones(4), 2)


def energy(z, binomial):
    """(1) of the labels 0, 1, 2, for z = 0, 1/2, 1."""
    labels, z = np.array(z), np.array(z) / 2
    pairs = 1.2 / (16 * 2) * ((z[edges[:, 0]] - z[edges[:, 1]]) ** 2).sum()
    return ((1 - z) * own + z * other - 0.2 / 4 * binomial[labels]).sum() + pairs


for lam in (0.2, 0.5, 0.8):
    binomial = np.log([(1 - lam) ** 2, 2 * lam * (1 - lam), lam**2])
    least = min(energy(z, binomial) for z in itertools.product(range(3), repeat=4))
    cut = puzzlemix.puzzle_mask(own.reshape(2, 2), other.reshape(2, 2), (np.zeros(4),) * 4, lam, gamma=0.0)
    reached = energy(tuple((2 * cut).astype(int).ravel()), binomial)
    print(f"λ = {lam}: mask {cut.ravel().tolist()}, energy of the cut {reached:.4f}, least of all {least:.4f}")
    assert reached - least < 1e-9

# %% [markdown]
# **Do the successors of CutMix mend its faults?** ResizeMix shows the whole partner, small. SaliencyMix aims the box at
# the brightest place. We count both faults of section 3 of the lesson, by drawing: masks are mixed in place of colours.

# %%
drawn = shapes.draw(1000, seed=3)
n, generator, saliency = len(drawn), seeded(12), mixing.fine_grained_saliency(drawn.floats())
masks = drawn.masks.double()[:, None]
both = torch.cat([torch.cat([masks, 0 * masks], 1), torch.cat([0 * masks, masks], 1)])  # own channel, partner's
gone = {name: [] for name in ("CutMix", "ResizeMix", "SaliencyMix")}
for _ in range(10):
    lam, order = torch.rand(n, generator=generator, dtype=f64), torch.randperm(n, generator=generator)
    cy, cx = (torch.randint(32, (n,), generator=generator) for _ in range(2))
    twice, order = [torch.cat([each, each]) for each in (lam, cy, cx)], torch.cat([n + order, torch.arange(n)])
    labels = torch.zeros(2 * n, 1)
    for name in gone:
        if name == "SaliencyMix":
            mixed = mixing.saliencymix(both, labels, twice[0], order, torch.cat([saliency, saliency]))
        else:
            method = mixing.cutmix if name == "CutMix" else mixing.resizemix
            mixed = method(both, labels, twice[0], order, *twice[1:])
        itself, partner = (mixed.images[:n].sum((2, 3)) == 0).T.double()
        left = mixed.lam[:n].flatten()
        partner = partner * (left < 1)
        gone[name].append([float(share.mean()) for share in (partner, partner * (1 - left), itself, itself * left)])

# %%
print("             partner absent: mixtures, weight    own covered: mixtures, weight    weight together")
shares = {name: np.mean(draws, 0) for name, draws in gone.items()}
for name, (a, b, c, d) in shares.items():
    print(f"{name:12s}{a:22.1%}{b:9.1%}{c:24.1%}{d:9.1%}{b + d:19.1%}")
assert max(shares["ResizeMix"][0], shares["SaliencyMix"][0]) < 0.05 < shares["CutMix"][0]
assert shares["SaliencyMix"][2] > 2 * shares["CutMix"][2]

# %% [markdown]
# One cure, another fault. The partner is always to be seen now. But objects lie near the middle in both images, and a
# box that is aimed at the partner's object is put on the own one. To cut well, both images have to be looked at.
#
# ## 4 · One term of two; symmetry; a trap of the mask loss
#
# *One term of two.* AutoMix follows the direct term of the derivative of L(7) alone. Let φ be one number, the mask of the
# lesson's six points at λ = 0.3. The images' own loss has the weight $c$, and weight decay belongs to $\mathcal L$. With
# $c = 0$, $\partial \mathcal L / \partial \theta = 0$ at the inner minimum, so the direct term is the whole. AutoMix has
# $c = 1$.

# %%
six = torch.tensor([[2.2, 0.9], [1.1, 0.2], [-1.2, 1.8], [-0.6, 0.9], [-0.9, -1.9], [0.4, -1.4]], dtype=f64)
classes = F.one_hot(torch.tensor([0, 0, 1, 1, 2, 2])).double()


def outer(V, phi):
    """L(θ, φ) of L(7) for θ = V, weight decay included."""
    points, labels = phi * six[:, None] + (1 - phi) * six, 0.3 * classes[:, None] + 0.7 * classes
    return -(labels * (points @ V.T).log_softmax(-1)).sum(-1).mean() + 0.01 * V.square().sum()


def trained(phi, c):
    """θ*(φ)."""

    def inner(V):
        return outer(V, phi) - c * (classes * (six @ V.T).log_softmax(-1)).sum(-1).mean()

    return lesson.least(inner, (3, 2))[0]


for c, expected in ((0, 1.0), (1, 1.2)):
    up, down = (outer(trained(0.5 + step, c), 0.5 + step) for step in (0.01, -0.01))
    phi = torch.tensor(0.5, dtype=f64, requires_grad=True)
    whole, (direct,) = (up - down) / 0.02, torch.autograd.grad(outer(trained(0.5, c), phi), phi)
    print(f"c = {c}: whole derivative {whole:+.3f}, direct term {direct:+.3f}, direct / whole = {direct / whole:.2f}")
    assert math.isclose(direct / whole, expected, abs_tol=0.01)

# %% [markdown]
# *Symmetry.* Let $\ell_{ij}$ be the logit of the mask of the image. $\frac12(\ell_{ij} - \ell_{ji})$ changes its sign
# when the two images are exchanged, and $\sigma(-\ell) = 1 - \sigma(\ell)$. So two calls make a symmetric block, for
# which L(4) holds.

# %%
torch.manual_seed(1)
block, z = automix.MixBlock(6, std=0.5).double(), torch.randn(4, 6, 3, 3, generator=seeded(20), dtype=f64)


def symmetric(z, lam, partners):
    """The mask of both calls; partners: an involution."""
    one = torch.logit(block(z, lam, partners, (12, 12)))
    two = torch.logit(block(z, 1 - lam, partners, (12, 12)))[partners]
    return ((one - two) / 2).sigmoid()


with torch.no_grad():
    plain, both_calls = (
        make(0.3) + make(0.7)[partners] - 1
        for make in (lambda lam: block(z, lam, partners, (12, 12)), lambda lam: symmetric(z, lam, partners))
    )
print(f"missing to one: the block {plain.abs().max():.2f}, its symmetric form {both_calls.abs().max():.0e}")
assert both_calls.abs().max() < 1e-12 < 0.05 < plain.abs().max()

# %% [markdown]
# *A trap.* With $s_{1-\lambda} = \sigma(\ell)$, $D$ pixels in the batch, and outside of the margin,
#
# $$\frac{\partial \mathcal L_{mask}}{\partial \ell} = -\frac{\gamma}{D}\,
#   \mathrm{sign}(\overline{s_\lambda} - \lambda)\; s_{1-\lambda} (1 - s_{1-\lambda}). \tag{2}$$
#
# Where a mask is near 0 or 1 everywhere, the last factor is almost nothing. A block that shows one image alone, whatever
# λ, pays a mask loss of about $.4\,\gamma$ and hardly feels it. One run of section 7 ends so.

# %%
free = torch.randn(5, 1, 4, 4, generator=seeded(22), dtype=f64, requires_grad=True)
for lam in (0.1, 0.45, 0.9):
    mask = 1 - free.sigmoid()
    (slope,) = torch.autograd.grad(0.1 * automix.mask_loss(mask, lam), free)
    outside = abs(float(mask.mean().detach()) - lam) > 0.1
    by_hand = -0.1 / free.numel() * torch.sign(mask.mean() - lam) * (mask * (1 - mask)) * outside
    print(f"λ = {lam:.2f}, mean mask {mask.mean():.2f}: first slope {slope.flatten()[0] + 0:+.5f}, by (2) the same")
    assert torch.allclose(slope, by_hand, atol=1e-15)
beta22 = np.polynomial.Polynomial([0, 6, -6]) * np.polynomial.Polynomial([-0.1, 1])
alone = beta22.integ()(1) - beta22.integ()(0.1)
print(f"a mask that shows one image alone: mean mask loss {alone:.2f} γ")

# %% [markdown]
# ## 5 · The copy is an average over the past
#
# Put L(12) into itself $t$ times. With one $m$ for all steps the copy is
#
# $$\theta_k^{(t)} = m^t\, \theta_k^{(0)} + \sum_{r=1}^t (1 - m)\, m^{t-r}\, \theta_q^{(r)}. \tag{3}$$
#
# The share $m^t$ is still the random network of the first step. As released, $m$ is 0.999 for a tenth of training and
# then rises by a cosine to 0.999999. That belongs to a hundred thousand steps; a training of a few hundred would be
# judged by random features. So our short runs begin at 0.9.

# %%
theta, path, m = torch.randn(5, generator=seeded(24), dtype=f64), [], 0.9
first = copy_ = theta.clone()
for _ in range(40):
    theta = theta + 0.1 * torch.randn(5, generator=seeded(len(path)), dtype=f64)
    path.append(theta)
    copy_ = m * copy_ + (1 - m) * theta
by_sum = m**40 * first + sum((1 - m) * m ** (39 - r) * each for r, each in enumerate(path))
assert torch.allclose(copy_, by_sum, atol=1e-12)
left = {}
for steps, base in ((200 * 500, 0.999), (300, 0.999), (300, 0.9)):
    each = automix.ema_momentum((torch.arange(steps, dtype=f64) + 0.5) / steps, base)
    left[steps, base] = float(each.prod())
    print(f"{steps:6d} steps, m from {base}: share of the first weights in the copy {left[steps, base]:.1%}")
assert left[300, 0.999] > 0.75 > left[300, 0.9]

# %% [markdown]
# ## 6 · What a step costs
#
# Every image passes $q$ twice and $k$ once, forward and back, and the first stages of $k$ once more, forward. We count
# images at the stem.

# %%
counted, passed = runs.build("AutoMix", "small", images, 0, stage=2), []
for part in (counted.network, counted.momentum_network):
    part.stages[0].register_forward_hook(lambda module, inputs, output: passed.append(len(inputs[0])))
counted(images.train.floats(slice(0, 60)), images.train.target[:60], Step(torch.tensor(0.5), 0.1, seeded(1)))
print(f"images through a stem for each of the batch: {sum(passed) // 60}, one of them for the first stages alone")
assert sum(passed) == 4 * 60

# %% [markdown]
# PuzzleMix takes one pass more than plain training, and then its solvers on the processor. With the small network here
# these cost more than AutoMix's passes; with a ResNet-18 they cost less. mixup and CutMix are free.
#
# ## 7 · What the records say: accuracy, networks, ablation

# %% tags=["nbval-ignore-output"]
figure("accuracy")

# %%
by_arm = index.by_arm(study.FASHION, ["Co-Mixup", "cross-entropy"])
gain = stats.summary(stats.gains(by_arm["Co-Mixup"], by_arm["cross-entropy"]))
cost = np.mean([run.seconds for run in by_arm["Co-Mixup"]]) / np.mean([run.seconds for run in by_arm["cross-entropy"]])
print(f"Co-Mixup − cross-entropy: {effect(gain)}; it takes {cost:.0f} times the time")
assert gain.side == -1
assert 11 < cost < 14

# %% [markdown]
# *Co-Mixup* cuts each mixture from several of twenty images. After forty epochs it is significantly below cross-entropy;
# we do not know why. Its paper trains for 300. It was not run on photographs, for its cost.
#
# The same four methods on a small Vision Transformer, in twenty epochs, by a recipe of its own:

# %% tags=["nbval-ignore-output"]
figure("networks")

# %%
by_arm = on_common_seeds(index.by_arm(study.VIT))
for name in ("mixup", "CutMix", "AutoMix"):
    gain = stats.summary(stats.gains(by_arm[name], by_arm["cross-entropy"]))
    print(f"Transformer, {name} − cross-entropy: {effect(gain)}")
    assert gain.side == (-1 if name == "mixup" else 0)

# %% [markdown]
# AutoMix runs on the Transformer by the same class. That it helps there is not shown.
#
# > 左边的表验证了 cross attention 模块、embedding 和辅助损失的重要性 ·
# > *The left table verifies the importance of cross attention, embedding and auxiliary loss.*
#
# AutoMix with one thing changed (in one row two), seed by seed. In brackets the passes for one of cross-entropy's.

# %% tags=["nbval-ignore-output"]
figure("ablation")

# %%
names = ["cross-entropy", study.SHORT.name, *(arm.name for arm in study.ABLATION)]
by_arm, sides = on_common_seeds(index.by_arm(study.FASHION, names)), {}
without = stats.gains(by_arm[study.NO_PIPELINE.name], by_arm[study.SHORT.name])
assert max(without) < 0 < stats.summary(without).half_width + stats.summary(without).mean
for arm in study.ABLATION:
    difference = stats.summary(stats.gains(by_arm[arm.name], by_arm[study.SHORT.name]))
    sides[arm.name.removeprefix("AutoMix, ")] = difference.side
    print(f"{arm.name} − AutoMix: {effect(difference)}")
worse = [name for name, side in sides.items() if side < 0]
assert worse == ["momentum 0", "no one-hot pass", "no mask loss", study.RELEASED_RATE.name.removeprefix("AutoMix, ")]
assert not any(side > 0 for side in sides.values())

# %% [markdown]
# The mask loss and the averaging of the copy are each worth about a point: the first supports the source's left table.
# Attention and the λ channel show no significant difference in three seeds, which does not contradict it: the intervals
# reach more than one point to either side. Without the pipeline AutoMix is behind in every seed, and not significantly. CutMix
# in the block's place, at two passes for three, is not significantly different. Of ten rows at this level one may be chance.
#
# And the masks. The spread is the mean standard deviation of the pixels of a mask: 0 is one gray.

# %% tags=["nbval-ignore-output"]
figure("mask_spread")

# %%
for arm in study.WATCHED:
    curves = [record.curves["mask_spread"] for record in index.of(study.FASHION, arm)]
    ends = [curve[-1] for curve in curves]
    print(f"{arm.name}: spread in the last epoch {', '.join(f'{end:.2f}' for end in ends)}")
    if arm is study.SHORT:
        assert max(ends) < 0.15
    if arm is study.NO_PIPELINE:
        assert min(ends) > 0.35

# %% [markdown]
# There are two trivial solutions, and a third thing that is neither.
#
# - *One gray.* With the pipeline the spread rises to about .3 and then falls below .15. The mean follows λ. The nearer
#   to gray, the nearer to mixup: the source's trivial solution, approached slowly and *with* the pipeline.
# - *One image alone.* In one seed at the released rate and γ the spread is gone after five epochs, and the mask loss
#   stays near the value of section 4.
# - *All or nothing, pixel by pixel.* Without the pipeline the masks are black and white and follow λ badly.
#
# The source reports the first without the pipeline, and we see the third. The network has 78,000 weights, the maps are
# of 4 × 4 places, and nothing is at the paper's setting. The two runs of section 6 of the lesson, of 8 × 8 places, end
# in neither:

# %% tags=["nbval-ignore-output"]
figure("masks_follow")

# %% [markdown]
# > 这种设置是通用且高效的，无需额外调整 · *This setting is general and efficient and needs no tuning.*

# %% tags=["nbval-ignore-output"]
figure("alpha_and_stage")

# %%
tried = {arm.name: arm for arm in (study.ALPHAS[1], study.ALPHAS[4], study.STAGES[1], study.STAGES[2])}
by_arm, sides = index.by_arm(study.FASHION, [study.SHORT.name, *tried]), []
for name in tried:
    pairs = [by_arm[name], by_arm[study.SHORT.name]]
    seen = stats.summary(stats.gains(*pairs, lambda run: 100 * run.metrics["validation_accuracy"]))
    gain = stats.summary(stats.gains(*pairs))
    sides.append((seen.side, gain.side))
    print(f"{name} − AutoMix (α = 2, stage 3): validation {seen.text('+.1f')}, test {effect(gain)}")
assert sides == [(0, -1), (0, -1), (0, 0), (0, -1)]

# %% [markdown]
# The 800 validation images show no significant difference. On the test set α = 1, α = 4 and stage 2 are about a point
# below the values used here. These were not chosen by accuracy, and no interval is corrected. So a choice can cost
# about a point, and the claim does not hold here without a qualification.
#
# ## 8 · Calibration, attacks and corruptions
#
# > AutoMix 更加贴近红色虚线，起到了最佳的矫正效果 · *AutoMix is nearest to the dashed line and corrects best.*
#
# The expected calibration error (ECE) is the mean distance of accuracy from confidence over bins of confidence, weighted
# by their counts. On the line of the figure both are equal. The gap is mean confidence − accuracy.

# %% tags=["nbval-ignore-output"]
figure("reliability")

# %% [markdown]
# All methods. A perfectly calibrated network does not have an ECE of 0, since the share that is right is off by chance in
# every bin. The floor below is that expectation.

# %% tags=["nbval-ignore-output"]
figure("calibration")

# %%
names, errors, gaps = ("cross-entropy", "mixup", "CutMix", "AutoMix"), {}, {}
for part in study.SETS:
    by_arm = on_common_seeds(index.by_arm(part, names))
    for name, records in by_arm.items():
        gap, ece = stats.summary(map(study.gap, records)), stats.summary(100 * run.metrics["ece"] for run in records)
        floor = stats.summary(100 * study.floor(run) for run in records).mean
        print(f"{part.title}, {name}: gap {gap.text('+.1f')}, ECE {ece.mean:.1f}, floor {floor:.1f}")
        errors[part.name, name], gaps[part.name, name] = round(ece.mean, 1), gap
        assert gap.side == (1 if name == "cross-entropy" else 0 if name == "CutMix" and part is study.FASHION else -1)
assert [errors[study.FASHION.name, name] for name in ("cross-entropy", "CutMix", "AutoMix")] == [9.5, 2.2, 4.7]
assert gaps[study.CIFAR.name, "cross-entropy"].text("+.1f") == "+2.5 ± 1.9"

# %% [markdown]
# On Fashion-MNIST CutMix, not AutoMix, is nearest to the line: ECE 2.2 and 4.7, and 9.5 for cross-entropy. AutoMix is
# underconfident there. On photographs the gap of cross-entropy was small, +2.5 ± 1.9, and all three that mix are
# underconfident. Mixed labels by themselves do not explain this: by L(4) plain labels have the same risk.
#
# FGSM goes one step along the sign of the gradient: $x^* = x + \epsilon\, \mathrm{sign} \nabla_x \mathrm{CE}$. We train
# a network by mixup and compare one step with twenty small ones (PGD) from the same distance.

# %%
recipe = Recipe(epochs=epochs, batch_size=50, lr=0.05, weight_decay=5e-4)
for seed in SEEDS:
    made = runs.build("Mixup", "small", images, seed).to(resolve_device(device))
    record = fit(made, images, recipe, seed=seed, progress=False)
lesson.keep("3_automix_more", [record])
reader, some = made.network.eval().cpu(), images.test.take(slice(0, 200))
free = some.floats().requires_grad_()
(slope,) = torch.autograd.grad(F.cross_entropy(reader(free), some.target, reduction="sum"), free)
by_hand = (free.detach() + 4 / 255 * slope.sign()).clamp(0, 1)
package = robustness.fgsm(reader, free.detach(), some.target, 4 / 255)
print("one step by autograd and by the package:", torch.allclose(by_hand, package, atol=1e-7))
assert torch.allclose(by_hand, package, atol=1e-7)

# %% tags=["nbval-ignore-output"]
attacks = {
    "none": lambda x, y: x,
    "FGSM": lambda x, y: robustness.fgsm(reader, x, y, 4 / 255),
    "PGD": lambda x, y: robustness.pgd(reader, x, y, 4 / 255, 20, 1 / 255),
}
left = {kind: robustness.attacked_accuracy(reader, some, attack) for kind, attack in attacks.items()}
print("accuracy:", {kind: round(value, 2) for kind, value in left.items()})
assert left["PGD"] <= left["FGSM"] + 0.02 <= left["none"] + 0.04

# %% [markdown]
# FGSM is a weak attack, and a network can look robust to it by a gradient that points nowhere. From the records, then
# corruptions: nine of the kinds of CIFAR-10-C, by code of our own.

# %% tags=["nbval-ignore-output"]
figure("fgsm")

# %% tags=["nbval-ignore-output"]
figure("corruption")

# %% [markdown]
# Brightness and contrast stand apart: on a black ground, mixing in another image *is* a change of both. What blends has
# trained on them; what cuts has not. Photographs have no black ground, and no such gain.
#
# ## 9 · Where a classifier looks
#
# A network whose head sees the mean of its last maps $a_k$ has a *class activation map*, whose mean and the bias are
# the logit:
#
# $$m_c(i, j) = \sum_k w_{ck}\, a_k(i, j). \tag{4}$$
#
# The source reports weakly supervised localisation on CUB-200. Here photographs of CIFAR-10 are pasted into larger
# canvases, so that every box is known.
#
# ![Maps of classes find 24% to 31% of the boxes, more than the 12% of a fixed box](../../figures/3_automix/cams.png)

# %%
leads = {}
assert "24% to 31% of the boxes, more than the 12%" in study.FIGURES["cams"](index).get_suptitle()
for arm in study.LOOKING.arms:
    for run in index.of(study.LOOKING, arm):
        leads[arm.name] = run.metrics["box"] - run.metrics["box_guess"]
        print(f"{arm.name}: boxes found {run.metrics['box']:.0%}, peak inside {run.metrics['pointing']:.0%}, ", end="")
        print(f"one fixed box {run.metrics['box_guess']:.0%}, accuracy {run.metrics['test_accuracy']:.0%}")
if not leads:
    print("planned, and not run yet")

# %% [markdown]
# A box counts as found where it overlaps the true one by half or more. The threshold of the maps is chosen on validation
# images, the fixed box on training images. The networks are weak: after eight epochs they are right for a fifth of these
# images. One seed each, so nothing is said about the order of the methods.
#
# ## 10 · What the authors report, and what ran here
#
# Top-1 accuracy in percent, one number a cell and without a spread, from the
# [benchmark pages](https://github.com/Westlake-AI/openmixup/tree/main/docs/en/mixup_benchmarks) of the authors'
# framework: the median of the last epochs, for Transformers the mean of the best of three runs.
# Networks: ResNet-18 and ResNet-50 (R18, R50), ResNeXt-50 (RX50), Wide ResNet (WRN).
#
# | CIFAR and Tiny-ImageNet | vanilla | mixup | CutMix | PuzzleMix | AutoMix |
# |---|---|---|---|---|---|
# | CIFAR-10, R18, 800 epochs | 95.50 | 96.62 | 96.68 | 97.10 | 97.34 |
# | CIFAR-100, R18, 200 | 76.42 | 78.52 | 79.45 | 79.96 | 80.12 |
# | CIFAR-100, R18, 800 | 78.04 | 79.12 | 78.17 | 81.13 | 82.04 |
# | CIFAR-100, WRN-28-8, 400 | 81.63 | 82.82 | 84.45 | 85.02 | 85.18 |
# | Tiny-ImageNet, R18 | 61.68 | 63.86 | 65.53 | 65.81 | 67.33 |
#
# | ImageNet and Transformers | vanilla | mixup | CutMix | PuzzleMix | AutoMix |
# |---|---|---|---|---|---|
# | ImageNet, R18, 100 epochs | 70.04 | 69.98 | 68.95 | 70.12 | 70.50 |
# | ImageNet, R50, 100 | 76.83 | 77.12 | 77.17 | 77.54 | 77.91 |
# | ImageNet, R50, 300 | 77.35 | 78.44 | 78.69 | 78.86 | 79.25 |
# | ImageNet, DeiT-S | 75.66 | 77.72 | 80.13 | 80.45 | 80.78 |
# | ImageNet, Swin-T | 80.21 | 81.01 | 81.33 | 81.47 | 81.80 |
#
# | fine-grained and scenes | vanilla | mixup | CutMix | PuzzleMix | AutoMix |
# |---|---|---|---|---|---|
# | CUB-200, R18, 200 epochs, pretrained | 77.68 | 78.39 | 78.40 | 78.63 | 79.87 |
# | Aircraft, R18, 200, pretrained | 80.23 | 79.52 | 78.84 | 80.76 | 81.37 |
# | iNaturalist 2017, R50, 100 | 60.23 | 61.22 | 62.34 | 62.66 | 63.08 |
# | iNaturalist 2018, R50, 100 | 62.53 | 62.69 | 63.91 | 64.36 | 64.73 |
# | Places205, R50, 100 | 63.10 | 63.01 | 63.75 | 63.91 | 64.06 |
#
# | subject | what ran here |
# |---|---|
# | CIFAR and Tiny-ImageNet | a small network on 5,000 images of CIFAR-10, three seeds: section 7; no run at a setting of these tables |
# | fine-grained and scenes | nothing |
# | ImageNet | nothing; no run at a setting of these tables |
# | Transformers | a small one on 2,000 images of Fashion-MNIST, three seeds: section 7 |
# | weakly supervised localisation | class activation maps on 56 × 56 canvases, one seed: section 9. The source's figure could not be read |
# | detection | nothing. The source's figure could not be read |
#
# In these columns AutoMix is best in all fifteen rows, by .15 to 1.52 over the next of them. Other methods of the pages,
# which are not in these columns, are ahead in the rows of section 2.

# %%
rows = [
    (95.50, 96.62, 96.68, 97.10, 97.34), (76.42, 78.52, 79.45, 79.96, 80.12), (78.04, 79.12, 78.17, 81.13, 82.04),
    (81.63, 82.82, 84.45, 85.02, 85.18), (61.68, 63.86, 65.53, 65.81, 67.33), (70.04, 69.98, 68.95, 70.12, 70.50),
    (76.83, 77.12, 77.17, 77.54, 77.91), (77.35, 78.44, 78.69, 78.86, 79.25), (75.66, 77.72, 80.13, 80.45, 80.78),
    (80.21, 81.01, 81.33, 81.47, 81.80), (77.68, 78.39, 78.40, 78.63, 79.87), (80.23, 79.52, 78.84, 80.76, 81.37),
    (60.23, 61.22, 62.34, 62.66, 63.08), (62.53, 62.69, 63.91, 64.36, 64.73), (63.10, 63.01, 63.75, 63.91, 64.06),
]  # fmt: skip
leads = sorted(round(row[-1] - max(row[:-1]), 2) for row in rows)
print(f"AutoMix over the next of these columns: {leads[0]:.2f} to {leads[-1]:.2f}")
assert (len(leads), leads[0], leads[-1]) == (15, 0.15, 1.52)

# %% [markdown]
# ## 11 · Leaderboard
#
# The records in the form that all notebooks share. Seconds were measured on shared cores and are a rough guide.

# %% tags=["nbval-ignore-output"]
lesson.ranked("3_automix")

# %% [markdown]
# ## 12 · Exercises
#
# **1. ResizeMix, clipped.** Its box has the side τ, uniform from 0.1 to 0.8 of the image's. Give the expected ratio in
# its label.
#
# <details><summary>Solution</summary>
#
# By L(5) it is $1 - \mathrm E(\tau - \tau^2/4)^2$, and $\mathrm E \tau^k = (0.8^{k+1} - 0.1^{k+1}) / (0.7 (k + 1))$.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
power = {k: (0.8 ** (k + 1) - 0.1 ** (k + 1)) / (0.7 * (k + 1)) for k in (2, 3, 4)}
by_hand = 1 - power[2] + power[3] / 2 - power[4] / 16
tau = 0.1 + 0.7 * torch.rand(200_000, generator=seeded(50), dtype=f64)
cy, cx = torch.randint(4096, (2, 200_000), generator=seeded(51))
top, bottom, left_, right = mixing.cut_box(1 - tau**2, cy, cx, 4096, 4096)
kept = 1 - ((bottom - top) * (right - left_)).double() / 4096**2
print(f"expected ratio {by_hand:.4f}, drawn {kept.mean():.4f}")
assert abs(kept.mean() - by_hand) < 4 * kept.std() / 200_000**0.5 + 2 / 4096

# %% [markdown]
# **2. A mask that may do as it likes.** Take the network of section 8 and a pair at λ = 0.3. Minimise the loss over the
# mask, pixel by pixel, from a flat mask of 0.9. How low does the loss get, and what does the mask loss change?
#
# <details><summary>Solution</summary>
#
# The loss falls far: this is an attack that *helps*. Without the mask loss the mean of the mask stays high, since few
# pixels decide. With it the mean comes down towards the margin. Without it the *size* of a mask means nothing.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution", "nbval-ignore-output"]
places = [int((images.test.target == c).nonzero()[0]) for c in (9 % C, 0)]
two, label = images.test.floats(places), 0.3 * torch.eye(C)[[9 % C]] + 0.7 * torch.eye(C)[[0]]
ends = {}
for strength in (0.0, 1.0):
    logit = torch.full((1, 1, *images.image_shape[1:]), math.log(9.0), requires_grad=True)
    search, losses = torch.optim.Adam([logit], lr=0.1), []
    for _ in range(100):
        mask = logit.sigmoid()
        losses.append(F.cross_entropy(reader(mask * two[:1] + (1 - mask) * two[1:]), label))
        search.zero_grad()
        (losses[-1] + strength * automix.mask_loss(mask, 0.3)).backward()
        search.step()
    ends[strength] = mask.mean().item()
    print(f"mask loss × {strength:g}: {losses[0]:.2f} to {losses[-1]:.2f} nats, mean mask {ends[strength]:.2f}")
    assert losses[-1] < losses[0]
assert ends[1.0] < ends[0.0]
