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
# Shengyu Zhao, Zhijian Liu, Ji Lin, Jun-Yan Zhu, Song Han, *Differentiable Augmentation for Data-Efficient GAN
# Training*, NeurIPS 2020 ([arXiv:2006.10738](https://arxiv.org/abs/2006.10738),
# [code](https://github.com/mit-han-lab/data-efficient-gans)).
#
# Show a critic the same hundred photographs ten thousand times, and it knows them by heart. From then on it does not
# ask whether an image *looks real* but whether it *is one of the hundred*, and a forger who listens to it learns
# nothing about faces or shoes. This happens to the discriminator of a GAN (generative adversarial network) when images are
# few. DiffAugment shows the critic nothing but randomly cropped, darkened and blotted images, real and forged ones
# alike, and lets the forger's gradient pass through the crop, the darkening and the blot.
#
# That is all. It takes thirty lines, nothing in it is learned, and it has nothing to do with classification.
#
# ## What the source says, and what is so
#
# The notebooks of this series follow five Chinese reading notes. This one follows the least reliable of them: the
# names, the workflow and the purpose of the method are wrong, and it ends before the code it promises. So
# it opens with three tables, claim by claim. The last column names the place of this notebook where a number decides, or, where only
# the literature can, the work. References are below the tables.
#
# **Names and promises.**
#
# | 原文 · the source | so? | what is so | decided by |
# |---|---|---|---|
# | DeepMind团队发布了...Differentiable Augmentation（DANN） · *DeepMind released "Differentiable Augmentation (DANN)" in 2019* | no | DANN is *Domain-Adversarial* Neural Networks, a method of domain adaptation by a reversed gradient. No DeepMind method of that name was found | [1]; step 5 |
# | DiffAugment...由Google团队2020年提出 · *proposed by a Google team in 2020* | no | MIT, Tsinghua, Adobe, CMU | [2] |
# | 不同iable augmentation | – | *differentiable*, half translated | |
# | 白盒增广，黑盒增广 · *white-box and black-box augmentation* | – | in none of these papers; what is usual is to ask whether an augmentation looks at the model | [2, 3, 7] |
# | 其性能优于传统的数据增强方法 · *performs better than traditional augmentation* (said twice) | – | of what, on what? As augmentation of a classifier the paper does not test it | section 8 |
# | 端到端...多元...可视化...采样 · *four advantages: trains G and D end to end, many policies, previews, resampling of G and D* | no | the first holds of every GAN, the others are not in the paper | [2] |
# | 本文将基于PyTorch框架...搭建数据增强模型 · *this text builds a model in PyTorch* | no | it has no code; this notebook has | sections 4, 7 |
#
# **How it works, and what for.**
#
# | 原文 · the source | so? | what is so | decided by |
# |---|---|---|---|
# | 自监督数据增强算法 · *a self-supervised augmentation algorithm* | no | no pretext task, no label made from the image; nothing of $T$ is learned | step 2: it has no parameter |
# | 基于梯度的方法不需要对原始样本进行修改 · *gradient methods do not modify the samples* | no | $T$ modifies every one; that it is differentiable only lets the gradient through | step 2 |
# | 使用一个固定的数据增广策略来生成一组“干净”图像 · *a fixed policy makes a set of "clean" images* | no | the policy is fixed, its draws are random, anew for every image at every step; nothing is "clean" | step 2 |
# | 使得生成器输出的图像尽可能接近上述"干净"图像 · *G is trained to come near these images* | no | that is augmenting the reals alone: G then learns to draw augmented images | step 1, exactly; section 8 |
# | 生成新的图像...施加可微的、目标导向的调整策略 · *new images are then adjusted, differentiably and towards a goal* | no | there is no second stage and no goal: $T$ stands in front of D while both are trained | step 1, section 4 |
# | 如裁剪、旋转、缩放、光照变化等 · *such as cropping, rotation, scaling, lighting* | partly | colour, translation, cutout; rotation and scaling belong to ADA | section 4; [3] |
# | 从而增强模型的泛化能力，缓解模型欠拟合、过拟合现象 · *it augments each image, so that the model generalises* | partly | it keeps the discriminator from learning its images by heart; there is no classifier in it | section 6, 8 |
# | 过少的训练数据会导致欠拟合...过多...过拟合 · *too few data underfit, too many overfit* | no | few data *over*fit; more do no harm | sections 6 (few), 8 (many): of a discriminator, and in the end of its generator |
# | 在最终测试阶段，输入真实样本及生成样本一起进行评估 · *the final test mixes real and generated samples* | no | classifiers are tested on real images; GANs by a distance between the two, FID | section 8 |
#
# **Others, named on the way.**
#
# | 原文 · the source | so? | what is so | decided by |
# |---|---|---|---|
# | Manifold mixup: 沿着空间中某一连通区域混合 · *mixes along a connected region* | no | a line between two hidden states, at a random layer, labels with it | [4]; notebook 3 |
# | Cutout...从而导致过拟合或欠拟合 · *leads to over- or underfitting* | no | a regulariser: error 4.72 → 3.99 on CIFAR-10 (ResNet-18 with crop and flip) | [5] |
# | MixStyle: 调整多个style block · *adjusts style blocks* | no | mixes the mean and deviation of each channel between two images, for other domains | step 6; section 8 |
# | Dreamerv2: 将噪声序列嵌入到原图上 · *embeds noise sequences in images* | no | an agent of reinforcement learning with a learned model of its world | [6] |
# | 都是通过调整样本特征 · *all of them adjust features* | no | Cutout sets a square of pixels to one level | step 4 |
# | ResNet-50...加入了dropout、batch normalization等 · *ResNet-50 has dropout and BN in its last layers as "white-box augmentation"* | no | no dropout; BN after every convolution, which is no augmentation | step 6, counted |
#
# **What the paper claims.** With few images the FID of a GAN falls by much: BigGAN on CIFAR-10, 39.78 → 22.40 with 10% of the
# images, 21.58 → 14.04 with 20%, 9.59 → 8.70 with all; StyleGAN2, 36.02 → 14.50 with 10%, and on faces (FFHQ) 62.16 → 25.66 with a
# thousand images and 26.60 → 10.45 with five thousand; with all 70,000 it gets *worse*, 3.81 → 4.24 (the authors' README).
# And $T$ has to stand in front of D for real and generated images and where G learns; the other places are its controls, which
# section 8 repeats.
#
# What is worth keeping of the source is its four-step pipeline (提取特征 ... generator network ... 反向传播 ... 评估): extract features, let
# a network change them differentiably, feed the result to the classifier, train everything by back-propagation. No
# paper that the source names does this. Section 7 builds it from one that does, and section 8 measures it.
#
# [1] Ganin et al., JMLR 2016, [arXiv:1505.07818](https://arxiv.org/abs/1505.07818). [2] Zhao et al., above. [3] Karras et
# al., NeurIPS 2020, [arXiv:2006.06676](https://arxiv.org/abs/2006.06676). [4] Verma et al., ICML 2019,
# [arXiv:1806.05236](https://arxiv.org/abs/1806.05236). [5] DeVries, Taylor, 2017,
# [arXiv:1708.04552](https://arxiv.org/abs/1708.04552). [6] Hafner et al., ICLR 2021,
# [arXiv:2010.02193](https://arxiv.org/abs/2010.02193). [7] Suzuki, CVPR 2022,
# [arXiv:2202.12513](https://arxiv.org/abs/2202.12513).

# %% [markdown]
# ## Before you start
#
# You should know what a GAN is: a generator G turns noise into images, a discriminator D tells them from real ones,
# and each learns from the other. The other notebooks are not needed; section 7 compares with the first one.
#
# You will come away with three tools: an exact way to ask what a game has its minimum at, when data are transformed; a test
# for any "differentiable" operation; and a habit of asking of a generator what its *discriminator* has learned by heart.
#
# The notebook runs in about a minute and a half on a laptop's processor. All settings stand in the next cell.

# %% tags=["parameters"]
profile = "quick"  # what section 6 trains: "quick" (live, here), "cpu" or "paper" (hours; see section 8)
dataset = "fashion-mini"  # the 10,000 images of Fashion-MNIST inside the package; or cifar10, mnist, shapes, ...
train_size = 100  # training images of the live GANs
epochs = 120  # of the live GANs: 360 steps of 32 images
seeds = 1  # live pairs of GANs
first_seed = 0  # of them
strength = 1.0  # of the operations that are drawn in section 5; 1: as released
scale = 0.1  # of the reversed gradient in section 7
device = "auto"  # "cpu", "cuda", or whichever there is

# %% [markdown]
# The tools. Methods are imported and not defined a second time; but for the thirty lines of section 4, which exist to be
# read.

# %%
import copy
import functools
import inspect
import itertools
import math

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import nn
from torch.nn import functional as F

from companion import lesson, plots, runs, stats
from companion.lesson import seeded
from companion.records import committed
from companion.studies import NothingToDraw, diffaugment as gan_study
from semaug import data, networks
from semaug.core import moments, pixels
from semaug.measures import gans as gan_measures
from semaug.measures.gans import nearest
from semaug.methods import diffaugment, gan, learned, mixing
from semaug.training import loop as training
from semaug.training.objective import Step
from semaug.training.recipe import Recipe

SEEDS = range(first_seed, first_seed + seeds)  # of the live runs

# %% [markdown]
# Two small helpers are the same in all notebooks (module `companion.lesson`): `show` keeps a picture and shows it, `seeded` makes a
# generator of random draws.

# %%
show = functools.partial(lesson.show, "4_diffaugment")
figure = functools.partial(lesson.figure, "4_diffaugment")  # drawn from the committed records

# %% [markdown]
# ## 1 · Where it acts
#
# At place 1, the pixels, as a part of a game with a generator, 5. The same places as AutoMix in notebook 3; but there the
# generator serves a classifier, and here there is none.

# %%
show(plots.where_it_acts("pixels", "generator"), "where")

# %% [markdown]
# The images: so few to train the GAN on, and others, which D never sees, to ask it about.

# %%
few = data.load(dataset, validation=0.1, train_size=train_size)
channels, side, _ = few.image_shape
print(f"{len(few.train)} images to train on, {len(few.validation)} held out, {len(few.test)} to test")
print(f"{channels} channel(s), {side} x {side} pixels")
known = {image.numpy().tobytes() for image in few.train.images}
assert not known & {image.numpy().tobytes() for part in (few.validation, few.test) for image in part.images}

# %% [markdown]
# ## 2 · Notation
#
# Numbers in brackets are this notebook's; the package's modules `diffaugment`, `gan` and `learned` number their own.
#
# | symbol | in code | meaning | 中文 |
# |---|---|---|---|
# | $x$ | `images`, `real` | real image, in [-1, 1] before D, in [0, 1] elsewhere | 真实图像 |
# | $z$ | `codes` | noise that G starts from, standard normal; in section 7 features | 噪声；特征 |
# | $G$, $D$ | `Generator`, `Discriminator` | generator, discriminator; $D(x)$ is a logit | 生成器，判别器 |
# | $T$ | `DiffAugment` | random transformation, drawn for each image | 数据增强变换 |
# | $p$, $q$ | | distribution of real, of generated images | 真实/生成分布 |
# | $Tp$ | | distribution of $T(x)$, $x \sim p$ | 增强后的分布 |
# | $b$, $s$, $c$ | `brightness`, `saturation`, `contrast` | of the colour change | 亮度，饱和度，对比度 |
# | $d_y$, $d_x$ | `dy`, `dx` | shift in pixels | 平移 |
# | $m$, $M$ | | mean of a pixel over channels; of the image | 均值 |
# | $R_\alpha$ | `reverse_gradient` | identity forward, $-\alpha$ times the gradient backward | 梯度反转 |
# | FID, KID | `fid`, `kid` | distances between real and generated images, by features | |

# %% [markdown]
# ## 3 · Six steps
#
# ### Step 1 · Where $T$ has to stand
#
# For a fixed generator the best discriminator of the classical GAN is $D^* = \log (p / q)$, and what is left for the
# generator to minimise is, but for constants, the Jensen–Shannon divergence (Goodfellow et al., 2014)
#
# $$\mathrm{JS}(p, q) = \tfrac12 \mathrm{KL}\bigl(p \,\|\, \tfrac{p + q}2\bigr) + \tfrac12 \mathrm{KL}\bigl(q \,\|\, \tfrac{p + q}2\bigr), \tag{1}$$
#
# which is 0 where $q = p$ and nowhere else. Now put $T$ in front of D. A random transformation acts on *distributions*
# linearly: in a world of $n$ images it is a matrix, $Tp$ the product with a vector. On the reals alone, and on both sides:
#
# $$\min_q \mathrm{JS}(Tp, q): \quad q = Tp, \qquad\qquad \min_q \mathrm{JS}(Tp, Tq): \quad Tq = Tp. \tag{2}$$
#
# Of the places that $T$ can have, four will be compared:
#
# %%
show(gan_study.places(), "places")

# %% [markdown]
# A column a name; from above, what D sees of real and of generated images when it learns, and what it is asked about when G learns, with
# the way of G's gradient in red: through $T$ in the last column alone.
#
# In (2), *reals only* is the source's workflow (生成器输出的图像尽可能接近上述"干净"图像): it *is* minimised by augmented
# images. DiffAugment has $q = p$ among its minima, and no other if $T$ is invertible *as a matrix*, though every
# single draw may destroy information (AmbientGAN, Bora, Price and Dimakis, ICLR 2018; of augmentations, ADA [3]). (1) belongs to
# the logarithmic loss. What is trained below has the hinge loss, where the best $D$ is the sign of $p - q$ and what is left is,
# instead of (1), the total variation; it too is 0 for equal distributions alone, so (2) stands. A toy: twelve places on a circle, $T$ a random step
# of up to two places. We minimise (1) over all $q$, from a random start.

# %%
n = 12
p = torch.softmax(3 * torch.cos(2 * math.pi * torch.arange(n, dtype=torch.float64) / n * 2), 0)


def circulant(steps):
    """The matrix of a random step: {step: probability}."""
    return sum(weight * torch.eye(n, dtype=torch.float64).roll(step, 0) for step, weight in steps.items())


def js(p, q):
    """(1) in nats."""
    middle = ((p + q) / 2).log()
    return 0.5 * (torch.xlogy(p, p) - p * middle).sum() + 0.5 * (torch.xlogy(q, q) - q * middle).sum()


def minimiser(loss, seed=0):
    """The distribution q that minimises loss(q), found by L-BFGS over its logits."""
    logits = torch.randn(n, generator=seeded(seed), dtype=torch.float64).requires_grad_()
    search = torch.optim.LBFGS(
        [logits], max_iter=1000, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        search.zero_grad()
        value = loss(logits.softmax(0))
        value.backward()
        return value

    search.step(closure)
    return logits.detach().softmax(0)


# %% [markdown]
# Two answers are expected: augmented data with $T$ on the reals, the data with $T$ on both sides. And what if $T$ is *not*
# invertible? Take a step to any place with equal probability, which erases the image.

# %%
T_ring, erasing = circulant({0: 0.4, 1: 0.2, -1: 0.2, 2: 0.1, -2: 0.1}), circulant(dict.fromkeys(range(n), 1 / n))
on_reals, on_both = (
    minimiser(lambda q, A=A: js(T_ring @ p, A @ q)) for A in (torch.eye(n, dtype=torch.float64), T_ring)
)
erased = [minimiser(lambda q: js(erasing @ p, erasing @ q), seed) for seed in (0, 1)]
far = {
    "T on reals: from Tp": (on_reals - T_ring @ p).abs().sum() / 2,
    "T on reals: from p": (on_reals - p).abs().sum() / 2,
    "T on both: from p": (on_both - p).abs().sum() / 2,
    "T erases: two minima from each other": (erased[0] - erased[1]).abs().sum() / 2,
}
for name, value in far.items():
    print(f"{name:37s} {value:.3f}")
assert far["T on reals: from Tp"] < 1e-4 < 0.2 < far["T on reals: from p"]
assert far["T on both: from p"] < 1e-3 < 0.2 < far["T erases: two minima from each other"]
assert torch.linalg.eigvalsh(T_ring).min() > 0.05, (
    "invertible: a step forward is as likely as one back, so it is symmetric"
)

# %% [markdown]
# And the hinge loss: at every place of the circle D is free in [-1, 1], and pays $p\,(1 - D) + q\,(1 + D)$. The least of it, by trying
# two hundred levels, against $2 - 2\,\mathrm{TV}(p, q)$:

# %%
q_any = on_reals
levels = torch.linspace(-1, 1, 201, dtype=torch.float64)
hinge = (p[:, None] * (1 - levels) + q_any[:, None] * (1 + levels)).amin(1).sum()
print(f"hinge loss of the best D {hinge:.4f}, 2 - 2 TV(p, q) {2 - (p - q_any).abs().sum():.4f}")
assert torch.isclose(hinge, 2 - (p - q_any).abs().sum())


# %% [markdown]
# (Total variation: the largest difference in the probability of anything.) In the picture look for two peaks: the data have
# two sharp ones, augmented data two blurred ones.


# %%
@plots.styled
def figure_minimisers():
    figure = plots.Picture(figsize=(7.5, 2.4))
    panels = figure.subplots(1, 3, sharey=True)
    shown = {"T on reals only": (T_ring, on_reals), "T on both": (T_ring, on_both), "T erases": (erasing, erased[0])}
    for axes, (title, (A, values)) in zip(panels, shown.items(), strict=True):
        axes.bar(range(n), p, color=plots.GREY, alpha=0.35, label="data p")
        axes.step(range(n), A @ p, where="mid", color=plots.YELLOW, label="Tp")
        axes.plot(range(n), values, "o", color=plots.BLUE, label="minimiser q")
        axes.set(title=title, xlabel="place on the circle")
    panels[0].set_ylabel("probability")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


show(figure_minimisers(), "minimisers")

# %% [markdown]
# In the third panel the loss is 0 for every $q$, and the "minimiser" is the random start. So the place of $T$ decides; but is the $T$ that is released invertible? Its cutout is applied to *every* image and always
# hides something. The smallest world in which that matters: images of two by two pixels, each -1 or 1. Let $p$ be the eight with an
# even number of 1s, $q$ the eight with an odd number, and $T$ hide one pixel. Whoever sees three pixels of four knows nothing of
# the parity:

# %%
worlds = torch.cartesian_prod(*[torch.tensor([-1, 1])] * 4)
parity = worlds.prod(1)


def after_hiding(images):
    """Distribution of what is seen of equally likely images, one of the pixels, any, being set to 0."""
    seen = {}
    for image, pixel in itertools.product(images, range(4)):
        key = tuple(torch.where(torch.arange(4) == pixel, 0, image).tolist())
        seen[key] = seen.get(key, 0) + 1 / (4 * len(images))
    return seen


def apart(one, other):
    """Total variation of two of these."""
    return sum(abs(one.get(key, 0) - other.get(key, 0)) for key in one | other) / 2


even, odd = (after_hiding(worlds[parity == sign]) for sign in (1, -1))
hidden = [torch.where(torch.arange(4) == pixel, 0, image) for image in worlds[parity == 1] for pixel in range(4)]
twice = after_hiding(torch.stack(hidden))
print(f"no image in common, total variation 1; after one hidden pixel {apart(even, odd):.0f}")
print(f"and of images that come with a hidden pixel of their own from those of p: {apart(even, twice):.2f}")
assert apart(even, odd) == 0
assert apart(even, twice) == 0.75

# %% [markdown]
# So with $T$ as released, (2) *can* have other minima than $q = p$, depending on $p$, and ADA's way out, to let some images pass
# untouched, is not DiffAugment's. What this does not explain is a window that G draws itself, the last line: such an image is seen with two
# windows, which $Tp$ never shows. Cutout's windows do show in samples of the authors' own checkpoint at 10% of CIFAR-10 (issue 84
# of their repository); that game was not at its minimum. Section 8 counts them in ours.
#
# One case is missing: *D only*. There D is trained on $Tp$ and $Tq$ and then asked about $q$, images of which it has seen none. No
# loss is being minimised. $q = p$ is a point of rest, but does it attract? On the circle, G follows the slope of its loss
# $-\sum q\,D$ with $D = \log (Tp / Tq)$ the best at each moment; for the $T$ from above, and for one whose matrix has negative eigenvalues:

# %%
steps_of = {"as above": T_ring, "0.2, 0.4, 0.4": circulant({0: 0.2, 1: 0.4, -1: 0.4})}
for title, A in steps_of.items():
    free = torch.randn(n, generator=seeded(0), dtype=torch.float64).requires_grad_()
    search = torch.optim.Adam([free], 0.01)
    for _ in range(3000):
        q_now = free.softmax(0)
        critic = ((A @ p) / (A @ q_now)).log().detach()
        (slope,) = torch.autograd.grad(-(q_now * critic).sum(), free)
        free.grad = slope
        search.step()
    ends_at = (free.detach().softmax(0) - p).abs().sum() / 2
    least = torch.linalg.eigvalsh(A).min()
    print(f"steps {title:14s} smallest eigenvalue {least:+.2f}: ends at a distance of {ends_at:.3f} from p")
    assert (ends_at < 0.01) == (least > 0)

# %% [markdown]
# It depends on $T$: with the sign of an eigenvalue the pull becomes a push. So *D only* may work or run away, and what it does with images has to
# be seen (section 8).
#
# ### Step 2 · Gradients through $T$
#
# Where G learns, its gradient is
#
# $$\nabla_\theta D(T(G_\theta(z))) = J_G^\top\, J_T^\top\, \nabla D, \tag{3}$$
#
# so $T$ needs a right *transpose*. Every $T$ here is affine in $x$ for given draws, $T(x) = Ax + a$. Then central
# differences have no error but rounding, and the test is sharp: for random $u$, $v$ is
# $\langle u, A v\rangle = \langle A^\top u, v\rangle$, the left by differences, the right by autograd?

# %%
x = 2 * few.train.floats(slice(0, 16)).double() - 1
x = x.expand(-1, 3, -1, -1).contiguous() if channels == 1 else x
u, v = (torch.randn(x.shape, generator=seeded(k), dtype=torch.float64) for k in (1, 2))
changed = {}
for name in (
    *diffaugment.OPERATIONS,
    ",".join(diffaugment.OPERATIONS),
):  # the last: translation and cutout in one gather
    T = diffaugment.DiffAugment(name)
    draws = T.draw(x, seeded(3))
    by_difference = (u * (T.apply_draws(x + v, draws) - T.apply_draws(x - v, draws)) / 2).sum()
    at = x.clone().requires_grad_()
    (transposed,) = torch.autograd.grad((u * T.apply_draws(at, draws)).sum(), at)
    changed[name] = float((T.apply_draws(x, draws) - x).abs().mean())
    print(
        f"{name:24s} differences {by_difference:9.3f}, autograd {(transposed * v).sum():9.3f}, changes a pixel by {changed[name]:.2f}"
    )
    assert torch.isclose(by_difference, (transposed * v).sum(), rtol=1e-10)
    assert not list(T.parameters()), "nothing of it is learned"
assert min(changed.values()) > 0.01
first, second = (T(x, seeded(k)) for k in (3, 4))
assert not torch.equal(first, second), "drawn anew every time"

# %% [markdown]
# The source's *不需要对原始样本进行修改* (no modification of the samples): pixels change by the last column, on a
# scale from -1 to 1.
#
# ### Step 3 · Three passes of colour are one
#
# As released: brightness $x + b$; saturation $s\,(x - m) + m$ around the pixel's mean over channels; contrast
# $c\,(x - M) + M$ around the image's mean. Each is affine, so is their composition. Brightness moves both means by $b$,
# saturation neither ($m$ is its fixed point, and $M$ is the mean of $m$). Insert and collect:
#
# $$y = c\,s\,x + c\,(1 - s)\,m + (1 - c)\,M + b. \tag{4}$$
#
# The $b$ comes out of the contrast whole: $c\,(x + b - M - b) + M + b$. And the matrix of (4) is symmetric, being made of the
# identity and of averages. So its transpose, which (3) wants, is the same formula without $b$.


# %%
def three_passes(x, b, s, c):
    """Brightness, saturation, contrast, one after the other."""
    b, s, c = (draw[:, None, None, None] for draw in (b, s, c))
    x = x + b
    m = x.mean(1, keepdim=True)
    x = s * (x - m) + m
    M = x.mean((1, 2, 3), keepdim=True)
    return c * (x - M) + M


b, s, c = (
    low + (high - low) * torch.rand(16, generator=seeded(5), dtype=torch.float64)
    for low, high in [(-0.5, 0.5), (0, 2), (0.5, 1.5)]
)
at = x.clone().requires_grad_()
one = diffaugment.color(at, b, s, c)
(gradient,) = torch.autograd.grad((u * one).sum(), at)
print(f"one pass - three: {(one - three_passes(x, b, s, c)).abs().max():.0e}")
print(f"gradient - (4) of the gradient, without b: {(gradient - three_passes(u, 0 * b, s, c)).abs().max():.0e}")
assert (one - three_passes(x, b, s, c)).abs().max() < 1e-12
assert (gradient - three_passes(u, 0 * b, s, c)).abs().max() < 1e-12
assert torch.allclose(gradient.sum((1, 2, 3)), u.sum((1, 2, 3)))

# %% [markdown]
# Two consequences. All rows sum to 1: the sum of the gradient over an image is preserved, so no draw silences a gradient altogether,
# unless it sums to zero (at $s = 0$ what is colour alone is lost).
# And on grey images saturation does nothing, $x = m$. `make bench` has what one pass is worth, forward and backward, with
# translation and cutout in one gather: measured on one core, 2.8 times as fast as the textbook form at 64 x 3 x 32 x 32
# (quartiles 2.7 and 3.1) and 5.4 times at 128 pixels (4.9 and 6.3), in 2.1 MB instead of 3.6 and 34 instead of 55.
#
# ### Step 4 · How much does cutout cut out?
#
# A window of half the sides, whose middle may be anywhere, hangs over an edge in three of four cases. Of a side of $H$ pixels and
# a window of $w$, both even, the middle has $H + 1$ places. Rows covered, summed over them: from every place $w$, less
# what hangs over at either end, $1 + 2 + \dots + w/2$ each. With both axes independent,
#
# $$\mathbb E\,[\text{share}] = \left(\frac{w\,(H + 1) - \tfrac w2 \bigl(\tfrac w2 + 1\bigr)}{H\,(H + 1)}\right)^2 \tag{5}$$
#
# (twice the sum, $2 \cdot \frac12 \cdot \frac w2 (\frac w2 + 1)$).

# %%
H, w = 28, 14
expected = ((w * (H + 1) - w / 2 * (w / 2 + 1)) / (H * (H + 1))) ** 2
T = diffaugment.DiffAugment("cutout")
cut = T(torch.ones(20_000, 1, H, H), seeded(0)) == 0
share = cut.float().mean((1, 2, 3))
error = 3 * float(share.std()) / len(share) ** 0.5
print(f"share cut out, by (5) {expected:.4f}, simulated {share.mean():.4f} ± {error:.4f}; at most {share.max():.2f}")
assert abs(float(share.mean()) - expected) < error
grey = pixels.cutout(torch.ones(1, 1, 4, 4), torch.tensor([2]), torch.tensor([2]), 2)
assert grey.unique().tolist() == [0, 1], "pixels, not features, and to one level"

# %% [markdown]
# A fifth on average, a quarter at most. The window is set to 0, the *middle* of $[-1, 1]$: it is grey. That will
# matter: real images of clothing have a black ground and hardly a large flat grey window, so grey windows in *samples* can be
# counted.
#
# ### Step 5 · A reversed gradient is a min-max (what DANN really is)
#
# Let $R_\alpha(x) = x$ with the derivative $-\alpha I$, a lie that autograd believes. Put it between two players who
# share one loss $L(a, R_\alpha(b))$ and descend *together*:
#
# $$a \leftarrow a - \eta\, \partial_a L, \qquad b \leftarrow b + \eta\, \alpha\, \partial_b L, \tag{6}$$
#
# which is descent for $a$ and ascent for $b$: $\min_a \max_b$ in one backward pass. In DANN $L$ is the loss of a classifier
# that tells two *domains* apart by features; the features ascend it until it cannot. We check (6) on
# $L = ab - \frac12 b^2 + \frac12 a^2$, whose saddle is at 0, and against steps by hand.

# %%
a, b_ = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.0, -2.0))
by_hand, path = [1.0, -2.0], []
for _ in range(100):
    there = learned.reverse_gradient(b_, 1.0)
    slopes = torch.autograd.grad(a * there - there**2 / 2 + a**2 / 2, (a, b_))
    with torch.no_grad():
        for player, slope in zip((a, b_), slopes, strict=True):
            player -= 0.1 * slope
    by_hand = [by_hand[0] - 0.1 * (by_hand[1] + by_hand[0]), by_hand[1] + 0.1 * (by_hand[0] - by_hand[1])]
    path.append((a - by_hand[0]).abs().item() + (b_ - by_hand[1]).abs().item())
print(f"from (1, -2) to ({abs(a.item()):.3f}, {abs(b_.item()):.3f}); by autograd and by hand apart by {max(path):.0e}")
assert max(path) < 1e-12
assert abs(a.item()) + abs(b_.item()) < 1e-3

# %% [markdown]
# ### Step 6 · Three smaller claims, counted
#
# *ResNet-50 has dropout and BatchNorm in its last layers as augmentation*: we count them. *MixStyle adjusts style blocks*: it
# gives one image's channels the mean and deviation mixed from two, which is checked by measuring them.

# %%
from torchvision.models import resnet50

with torch.device("meta"):
    parts = list(resnet50().modules())
kinds = {
    kind.__name__: sum(isinstance(part, kind) for part in parts) for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Dropout)
}
print("ResNet-50:", kinds)
assert kinds == {"Conv2d": 53, "BatchNorm2d": 53, "Dropout": 0}

maps = torch.randn(4, 6, 8, 8, generator=seeded(7), dtype=torch.float64) * 3 + 1
lam, partner = torch.tensor([0.3, 0.9, 0.5, 0.0], dtype=torch.float64), torch.tensor([1, 0, 3, 2])
styled = mixing.mixstyle(maps, lam, partner)
means = lam[:, None] * maps.mean((2, 3)) + (1 - lam[:, None]) * maps[partner].mean((2, 3))
deviations = (maps.var((2, 3)) + 1e-6).sqrt()  # with MixStyle's ε
mixed_deviations = lam[:, None] * deviations + (1 - lam[:, None]) * deviations[partner]
off = [(styled.mean((2, 3)) - means).abs().max(), (styled.std((2, 3)) - mixed_deviations).abs().max()]
print(f"of the channels after MixStyle - the mixed ones: means {off[0]:.0e}, deviations {off[1]:.0e} (there is an ε)")
assert off[0] < 1e-10 < off[1] < 1e-6

# %% [markdown]
# ## 4 · The method in about thirty lines
#
# $T$ pass by pass, as one would write it from the paper, and one step of both players by the hinge losses
#
# $$L_D = \mathbb E \max(0, 1 - D(T(x))) + \mathbb E \max(0, 1 + D(T(G(z)))), \qquad L_G = -\mathbb E\, D(T(G(z))). \tag{7}$$
#
# The only line that differs from a plain GAN is the one that calls $T$, three times.


# %%
def plain_T(x, draws):
    """DiffAugment's transformation, image by image."""
    height, width = x.shape[2:]
    x = three_passes(x, draws.brightness, draws.saturation, draws.contrast)
    seen = []
    for image, dy, dx, cy, cx in zip(x, draws.dy, draws.dx, draws.cy, draws.cx, strict=True):
        padded = F.pad(image, (width, width, height, height))
        moved = padded[:, height + dy : 2 * height + dy, width + dx : 2 * width + dx]
        keep = torch.ones(height, width)
        top, left = cy - height // 4, cx - width // 4
        keep[max(top, 0) : max(top + height // 2, 0), max(left, 0) : max(left + width // 2, 0)] = 0
        seen.append(moved * keep)
    return torch.stack(seen)


def plain_step(G, D, optimizers, real, T, latent, draws):
    """One step of the discriminator and one of the generator by (7), T in front of D everywhere."""

    def sees(images):
        return D(plain_T(images, T.draw(images, draws)))

    def move(player, loss):
        optimizers[player].zero_grad()
        loss.backward()
        optimizers[player].step()
        return float(loss.detach())

    fake = G(torch.randn(len(real), G.latent, generator=latent)).detach()
    loss_D = move("D", F.relu(1 - sees(real)).mean() + F.relu(1 + sees(fake)).mean())
    return loss_D, move("G", -sees(G(torch.randn(len(real), G.latent, generator=latent))).mean())


# %% [markdown]
# Against the package, which draws in the same order: three steps of both, with the same noise. D's parameters are held
# still in the package's generator step; here the optimiser of G does not know them.


# %%
def players(where, seed, **settings):
    """Both players at their start."""
    torch.manual_seed(seed)
    made = gan.Generator(side, channels), gan.Discriminator(side, channels)
    return gan.GAN(*made, where=where, generator_lr=5e-4, **settings)


ours, theirs = players("everywhere", 0), players("everywhere", 0)
G, D = ours.generator.train(), ours.discriminator
sgd = {"G": torch.optim.SGD(G.parameters(), 0.05), "D": torch.optim.SGD(D.parameters(), 0.05)}
both = torch.optim.SGD([*theirs.generator.parameters(), *theirs.discriminator.parameters()], 0.05)
latents, draws_of = [seeded(1), seeded(1)], [seeded(2), seeded(2)]
real = 2 * few.train.floats(slice(0, 16)) - 1
for number in range(3):
    mine = plain_step(G, D, sgd, real, ours.augment, latents[0], draws_of[0])
    package = []
    for step in (
        lambda: theirs.discriminator_step(real, latents[1], draws_of[1]),
        lambda: theirs.generator_step(16, latents[1], draws_of[1]),
    ):
        both.zero_grad()
        loss, _ = step()
        loss.backward()
        both.step()
        package.append(float(loss.detach()))
    print(f"step {number}: by lines {mine[0]:.4f} {mine[1]:+.4f}, by the package {package[0]:.4f} {package[1]:+.4f}")
    assert np.allclose(mine, package, atol=1e-4)

# %% [markdown]
# The package's form of the same: one closed form for the colour, one gather for translation and cutout, whose backward is the
# gather of the way back (autograd's own would scatter: slow, and on a GPU in no fixed order).

# %% tags=["nbval-ignore-output"]
print(inspect.getsource(diffaugment.DiffAugment.apply_draws))
print(inspect.getsource(gan.GAN.generator_step))

# %% [markdown]
# ### R1 goes through $T$ too
#
# StyleGAN2's penalty holds D's slope at real images down, $\frac\gamma2 |\nabla_x D(T(x))|^2$. With DiffAugment $x$ is the
# image *before* $T$. Where cutout has put its grey, D itself sees nothing of $x$: with cutout alone the slope is 0 there, with
# colour only the image's mean, which contrast uses, still listens. Checked by differences in a random direction: first the slope; then
# what training needs, the penalty's own gradient in D's parameters, a second derivative.

# %%
D64, images_r1 = copy.deepcopy(D).double(), real[:4].double()
for name, draws_r1 in (
    ("cutout", diffaugment.DiffAugment("cutout").draw(images_r1, seeded(8))),
    ("color,cutout", diffaugment.DiffAugment("color,cutout").draw(images_r1, seeded(8))),
):
    T = diffaugment.DiffAugment(name)
    at, v = images_r1.clone().requires_grad_(), torch.randn(images_r1.shape, generator=seeded(9), dtype=torch.float64)
    logits = D64(T.apply_draws(at, draws_r1))
    penalty = gan.r1_penalty(logits, at)
    (slope,) = torch.autograd.grad(logits.sum(), at, retain_graph=True)
    with torch.no_grad():
        ahead, behind = (D64(T.apply_draws(images_r1 + step * v, draws_r1)).sum() for step in (1e-5, -1e-5))
    grey = diffaugment.DiffAugment("cutout").apply_draws(torch.ones_like(at), draws_r1._replace(brightness=None)) == 0
    inside, outside = (float(slope[where].abs().max()) for where in (grey, ~grey))
    print(f"{name:12s} slope along v {(slope * v).sum():.5f}, by differences {(ahead - behind) / 2e-5:.5f};", end=" ")
    print(f"largest slope in the window {inside:.0e}, outside {outside:.0e}")
    assert torch.isclose((slope * v).sum(), (ahead - behind) / 2e-5, rtol=1e-4)
    assert torch.isclose(penalty, (slope**2).sum() / 4, rtol=1e-10)
    assert inside < (1e-15 if name == "cutout" else 0.05 * outside)


def penalty_at(shift):
    """R1 with D's first weights moved along w."""
    moved = copy.deepcopy(D64)
    next(moved.parameters()).data += shift * w
    there = images_r1.clone().requires_grad_()
    return moved, gan.r1_penalty(moved(T.apply_draws(there, draws_r1)), there)


first = next(D64.parameters())
w = torch.randn(first.shape, generator=seeded(10), dtype=torch.float64)
moved, penalty = penalty_at(0.0)
(second,) = torch.autograd.grad(penalty, next(moved.parameters()))
by_difference = (penalty_at(1e-7)[1] - penalty_at(-1e-7)[1]) / 2e-7  # so near that no unit passes its kink
print(f"the penalty's gradient along w {(second * w).sum():.6f}, by differences {by_difference:.6f}")
assert torch.isclose((second * w).sum(), by_difference, rtol=1e-4)

# %% [markdown]
# ## 5 · The operations over their ranges
#
# A row an operation, from one end of its range as released to the other, nothing changed in the middle; but for cutout,
# which always cuts: there its window moves from the left edge to the right. Look for what is lost at the ends, and what you
# would still recognise. (Colour images, since saturation does nothing to grey ones.)

# %%
coloured = data.load("shapes", train_size=10, test_size=10).train.floats(slice(0, 8))
one = torch.ones(1)
whole = torch.zeros(1, dtype=torch.int64)


def changed_by(name, image, f):
    """An image (1, 3, H, W) in [-1, 1] under one operation at the fraction f of its range, -1 to 1."""
    height = image.shape[2]
    if name in ("brightness", "saturation", "contrast"):
        values = {"brightness": 0 * one, "saturation": one, "contrast": one}
        values[name] = values[name] + f * {"brightness": 0.5, "saturation": 1.0, "contrast": 0.5}[name]
        return diffaugment.color(image, **values)
    if name == "translation":
        return diffaugment.translation(image, whole, whole + round(f * height / 8))
    return pixels.cutout(image, whole + height // 2, whole + round((0.5 + f / 2) * height), height // 2)


names = ("brightness", "saturation", "contrast", "translation", "cutout")
fractions = (-1.0, -0.5, 0.0, 0.5, 1.0)
rows = [
    torch.cat([changed_by(name, 2 * coloured[k : k + 1] - 1, f) for f in fractions]) for k, name in enumerate(names)
]
sheet = (torch.stack(rows) / 2 + 0.5).clamp(0, 1)
show(plots.sheet(sheet, names, [f"{f:+g}" if f else "0" for f in fractions]), "operations")

# %% [markdown]
# The lowest saturation is grey, the lowest contrast is not flat, a translation loses an eighth of the image at most along each axis. All
# at once, drawn at random, in the next picture: in a live session it has sliders for operation, strength and
# image. The strength multiplies the ranges (1: as released).


# %%
def figure_draws(operation="color,translation,cutout", strength=strength, image=0):
    ranges = {"brightness": 0.5, "saturation": 1.0, "contrast": 0.5, "translation": 0.125, "cutout": 0.5}
    most = {"brightness": 1.0, "saturation": 1.0}  # the others would erase the image
    T = diffaugment.DiffAugment(
        operation, **{name: min(strength * value, most.get(name, 0.95)) for name, value in ranges.items()}
    )
    seen = T(2 * coloured[image].expand(7, -1, -1, -1) - 1, seeded(0)) / 2 + 0.5
    return plots.sheet(torch.cat([coloured[image][None], seen.clamp(0, 1)])[None], (), ["image", *[""] * 7])


# %% tags=["nbval-ignore-output"]
plots.slider(
    figure_draws,
    operation=["color,translation,cutout", *diffaugment.OPERATIONS],
    strength=[0.25, 0.5, 1.0, 1.5],
    image=list(range(8)),
)

# %% [markdown]
# ### What it refuses
#
# Errors name the argument, what it got and what it takes: an empty policy, an unknown one (rotation belongs to ADA), bytes,
# images that were not scaled, and a magnitude that erases the image, which by step 1 leaves nothing to learn from.

# %%
for call in (
    lambda: diffaugment.DiffAugment(""),
    lambda: diffaugment.DiffAugment("color,rotation"),
    lambda: diffaugment.DiffAugment("color")(few.train.images[:2], seeded(0)),
    lambda: diffaugment.DiffAugment("color")(255 * few.train.floats(slice(0, 2)), seeded(0)),
    lambda: diffaugment.DiffAugment("cutout", cutout=1.0),
    lambda: diffaugment.translation(x, torch.full((16,), side), torch.zeros(16, dtype=torch.int64)),
    lambda: gan.Generator(30),
):
    try:
        call()
    except (ValueError, TypeError) as refused:
        print(f"{type(refused).__name__}: {str(refused)[:110]}")
    else:
        raise AssertionError("it should have been refused")

# %% [markdown]
# ## 6 · Train a pair
#
# Two GANs on the same hundred images, alike in everything but $T$: the same weights at the start, order of images and
# noise. Three profiles: **quick** trains this pair, live. **cpu** and **paper** are planned runs (module
# `companion.studies.diffaugment`): $T$ in four places, four numbers of images, portraits of one person, photographs,
# several seeds; a wider pair on CIFAR-10 at 10, 20 and 100%.

# %%
recipe = Recipe(
    epochs=epochs, batch_size=32, optimizer="adam", lr=1e-3, momentum=0.5, schedule="constant", weight_decay=0.0,
    evaluate_every=max(1, epochs // 8),
)  # fmt: skip


def generated(made):
    """D's mean logit of samples, as they are, beside what fit_gan measures itself."""
    with torch.no_grad():
        fake = made.sample(made.codes(200, torch.Generator(where_run).manual_seed(0)))
        return {"logit_fake": float(made.discriminator(2 * fake - 1).mean())}


def run_experiment(profile):
    """Train the live pairs, and what another profile lacks; {(where, seed): (players, record)}."""
    trained = {}
    for seed in SEEDS:
        for where in ("nowhere", "everywhere"):
            made = players(where, seed).to(where_run)
            trained[where, seed] = made, gan.fit_gan(made, few, recipe, seed=seed, progress=False, measure=generated)
    for run in runs.planned(profile, "4_diffaugment") if profile != "quick" else []:
        runs.complete([run], device)
    lesson.keep("4_diffaugment", (record for _, record in trained.values()))
    return trained


where_run = training.resolve_device(device)

# %% [markdown]
# D is asked about two sets of real images: those it was trained on, and held-out ones. What it should say of both is the same.
# *Accepted* is a logit above 0. AUC is the probability that a training image gets a larger logit than a held-out one:
# 0.5 where D cannot tell them apart, 1 where it knows its images by heart.

# %% tags=["nbval-ignore-output"]
trained = run_experiment(profile)
for (where, seed), (_, record) in trained.items():
    m = record.metrics
    print(
        f"T {where:10s} seed {seed}: accepts {m['accepted_train']:.0%} of training and {m['accepted_held_out']:.0%} of held-out images, AUC {m['auc']:.2f}",
        end=" ",
    )
    print(f"({record.seconds:.0f} s, {record.environment['device']})")
plain, augmented = (trained[where, SEEDS[0]][1].metrics for where in ("nowhere", "everywhere"))
if (profile, dataset, train_size, epochs, *SEEDS) == ("quick", "fashion-mini", 100, 120, 0):
    best = [max(trained[where, SEEDS[0]][1].curves["auc"][-3:]) for where in ("nowhere", "everywhere")]
    assert best[0] > best[1], "of the last three looks: one look at one seed goes up and down"


# %% [markdown]
# Without $T$, D has begun to learn its hundred images by heart within some hundred steps. This is the source's claim about few data
# (过少的训练数据会导致欠拟合, *too few data underfit*) the other way round: it is *over*fitting. The shares accepted go up and down with the
# game, as G and D take turns, in both panels, and their gap with them. What grows is the AUC, on the right, which is free of that: with $T$ it
# stays near a half. One pair; section 8 has more.


# %% tags=["nbval-ignore-output"]
@plots.styled
def figure_pair():
    figure = plots.Picture(figsize=(7.5, 2.9))
    panels = figure.subplots(1, 3)
    titles = {"nowhere": "without T", "everywhere": "DiffAugment"}
    kinds = {"accepted_train": "training", "accepted_held_out": "held out"}
    for axes, (where, title) in zip(panels, titles.items(), strict=False):
        curves = trained[where, SEEDS[0]][1].curves
        steps = np.array(curves["epoch"]) * (len(few.train) // 32)
        for name, label in kinds.items():
            style = gan_study.KINDS[label]
            axes.plot(steps, 100 * np.array(curves[name]), marker="o", markersize=3, label=label, **style)
        axes.set(title=title, xlabel="steps", ylim=(-4, 104))
        panels[2].plot(
            steps,
            curves["auc"],
            marker="o",
            markersize=3,
            label=title,
            color=gan_study.COLOURS["DiffAugment" if where == "everywhere" else "no augmentation"],
        )
    panels[0].set_ylabel("accepted (%)")
    panels[2].axhline(0.5, color=plots.GREY, linestyle=":")
    panels[2].set(title="train over held out (AUC)", xlabel="steps", ylim=(0.45, 1))
    panels[0].legend(loc="lower left")
    panels[2].legend(loc="upper left")
    return figure


show(figure_pair(), "live_pair")

# %% [markdown]
# And what did the generators learn from these two critics? Samples of the averaged generators from the same codes, and below
# each its nearest training image. Look for two things: do neighbours in a row look alike (collapse)? Is a sample a copy of
# the image below it?

# %% tags=["nbval-ignore-output"]
lines, titles = [few.train.floats(slice(0, 8))], ["training"]
for where, title in (("nowhere", "without T"), ("everywhere", "DiffAugment")):
    made = trained[where, SEEDS[0]][0].cpu()
    samples = made.sample(made.codes(8, seeded(0)))
    beside = few.train.floats(nearest(samples, few.train.floats()).rows[:, 0])
    lines, titles = [*lines, samples, beside], [*titles, title, "nearest"]
show(plots.sheet(torch.stack(lines).clamp(0, 1), titles, size=0.55), "live_samples")

# %% [markdown]
# After a minute no sample is a good shoe, and by eye the two are hard to tell apart: what differs so early is what D has
# learned, and with it what G can learn from now on. One pair and one seed are a picture, not a measurement. The
# measurements, of four times as many steps, are in section 8.
#
# ## 7 · The source's pipeline, made real
#
# > 1. 使用CNN提取特征 2. 在提取出的特征上施加可微的参数调整策略...这个过程称作generator network 3. 将生成的样本输入CNN模型，通过反向传播更新网络参数 ·
# > *extract features by a CNN; a "generator network" applies differentiable, adaptive changes to them; the result is fed to the
# > CNN, whose parameters are updated by back-propagation*
#
# Adaptive to *what*? If G may help the classifier, the best it can do is make the task easy, and nothing is learned. What
# works is to let it *oppose* the classifier and hold it to what still is the same class. LeMDA (Liu et al., ICLR 2023,
# [arXiv:2212.14453](https://arxiv.org/abs/2212.14453)) does this for features of several modalities; the package has it for features of images,
# with a network of body $f$ and linear head $h$, $\mathrm{CE}$ the cross-entropy of logits, and $z = f(x)$ without its gradient:
#
# $$L = \mathrm{CE}(h(f(x))) + \mathrm{CE}(h(R_\alpha(G(z)))) + w_1\,\mathrm{KL}(p_G \,\|\, p_z)\,[\max p_z > \tfrac12] + w_2\,|G(z) - z|^2 + w_3\,\mathrm{KL}(\mathcal N(\mu, \sigma^2) \,\|\, \mathcal N(0, I)). \tag{8}$$
#
# So the body learns from the first term alone. $p_z$ and $p_G$ are what the head says of $z$ and of $G(z)$, the head being constant in that
# term, which counts where it is sure of $z$ ([·] is 1 or 0); $|\cdot|^2$ is a mean over features; μ and σ are of G's code; the weights are
# .01, .1 and .1, as released. G is a residual variational autoencoder that starts as the identity; $R_\alpha$ is step 5's reversed gradient, and so the one
# honest link to the name DANN. We check on one batch what the reversal does, without the three terms that hold G: descending on $L$, the
# head's loss on $G(z)$ falls with the head's own step and *rises* with the generator's. (G is moved off the identity first, where its
# encoder has no gradient.)

# %%
more = data.load(dataset, validation=0.1, train_size=1000)
torch.manual_seed(0)
form_a = learned.FeatureAugmentation(
    networks.small(more.num_classes, channels), scale=1.0, consistency=0, distance=0, kl=0
)
for parameter in form_a.generator.decoder[2].parameters():
    parameter.data += 0.05 * torch.randn(parameter.shape, generator=seeded(1))
form_a, batch = form_a.double(), (more.train.floats(slice(0, 64)).double(), more.train.target[:64])
at_start = copy.deepcopy(form_a.state_dict())
before = None
for part in (None, form_a.network.head, form_a.generator):
    form_a.load_state_dict(at_start)
    form_a.zero_grad()
    loss, terms = form_a(*batch, Step(torch.tensor(0.5), 0.1, seeded(2)))
    before = terms["augmented_loss"] if before is None else before
    if part is not None:
        loss.backward()
        with torch.no_grad():
            for parameter in part.parameters():
                parameter -= 0.01 * parameter.grad
        after = form_a(*batch, Step(torch.tensor(0.5), 0.1, seeded(2)))[1]["augmented_loss"]
        print(
            f"loss on G(z) after a step of the {'head' if part is form_a.network.head else 'generator':9s} {after - before:+.4f}"
        )
        assert (after < before) == (part is form_a.network.head)

# %% [markdown]
# ### What G generates, beside ISDA's closed form
#
# ISDA (notebook 1) also adds to features: noise from a Gaussian with the covariance $\lambda\Sigma_y$ of the class, infinitely
# many times, in closed form. It is the second term of (8) with G fixed to that Gaussian, averaged over infinitely many draws,
# bounded from above (Jensen), and with gradients into $z$: no gradient decides where it goes. What does a
# learned G do differently? Train one for a few seconds and look at its displacements $\delta = G(z) - z$.

# %% tags=["nbval-ignore-output"]
adam = Recipe(epochs=min(epochs, 6), optimizer="adam", lr=2e-3, weight_decay=0.0)
torch.manual_seed(0)
form_a = learned.FeatureAugmentation(networks.small(more.num_classes, channels), scale=scale).to(where_run)
record = training.fit(form_a, more, adam, seed=0, progress=False)
form_a = form_a.cpu().eval()
with torch.no_grad():
    z = torch.cat([form_a.network.features(part) for part in more.train.floats().split(250)])
    delta = form_a.generator(z, torch.randn(len(z), form_a.generator.latent, generator=seeded(0)))[0] - z
seen = moments.ClassMoments(more.num_classes, z.shape[1])
seen.update(z, more.train.target)
roots = torch.linalg.cholesky(0.5 * seen.covariance + 1e-6 * torch.eye(z.shape[1]))
isda = torch.einsum("nij, nj -> ni", roots[more.train.target], torch.randn(z.shape, generator=seeded(1)))
print(f"epoch by epoch |G(z) - z| / |z|: {', '.join(f'{value:.3f}' for value in record.curves['moved'])}")

# %% [markdown]
# Numbers of each: its size; how much of $\delta$ is one shift that is *common* to all features (ISDA's has none); how much lies
# along the five directions in which the class varies most (what makes ISDA semantic); and what it does to the margin between
# the true class and its nearest rival, in nats.

# %% tags=["nbval-ignore-output"]
head = form_a.network.head
target = more.train.target


def described(delta, z, target):
    """Size, share of the common shift, share along the class's five main directions, change of the margin."""
    common = (delta.mean(0) ** 2).sum() * len(delta) / (delta**2).sum()
    axes = [torch.linalg.eigh(cov.double()).eigenvectors[:, -5:].float() for cov in seen.covariance]
    along = sum(((delta[target == k] @ axes[k]) ** 2).sum() for k in target.unique()) / (delta**2).sum()
    logits = head(z).scatter(1, target[:, None], -math.inf)
    change = ((head.weight[target] - head.weight[logits.argmax(1)]) * delta).sum(1)
    size = ((delta**2).mean() / (z**2).mean()).sqrt()
    return [float(value) for value in (size, common, along, change.mean(), change.std())]


with torch.no_grad():
    rows = {"G of (8)": described(delta, z, target), "ISDA, 0.5 Σ": described(isda, z, target)}
for name, (size, common, along, mean, deviation) in rows.items():
    print(
        f"{name:12s} |δ| / |z| {size:.2f}, common to all {common:.2f}, along five of {z.shape[1]} directions {along:.2f},",
        end=" ",
    )
    print(f"margin {mean:+.2f} (deviation {deviation:.2f}, {deviation / size:.1f} for each unit of size) nats")

# %% [markdown]
# ISDA's noise is what it was made to be: no common shift, most of it along the few directions in which the class varies
# anyway, and margins that spread around no change, by as much as its size (the last number is about the same for both). G's
# displacement is something else. Three quarters of it and more are
# one shift, the *same* for all features whatever their class and code, and the margin is not lowered on average. Our guess why: a linear head that
# sees both $z$ and $z + \delta_0$ can live with a common $\delta_0$, so that this opponent opposes little. How far G goes at other
# scales is in section 8. *Adaptive* (适应性的样本) is a word to be measured. In the picture, features of two classes in the plane of their
# two main directions: dots, with what is added to them as lines.


# %% tags=["nbval-ignore-output"]
@plots.styled
def figure_displacements(pair=(0, 6), count=60):
    figure = plots.Picture(figsize=(7.5, 3.3))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    chosen = torch.cat([(target == k).nonzero()[:count, 0] for k in pair])
    centred = z[chosen] - z[chosen].mean(0)
    axes_of = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    for axes, (title, moved) in zip(panels, {"G of (8)": delta, "ISDA, one draw": isda}.items(), strict=True):
        ends = (centred + moved[chosen]) @ axes_of.T
        for start, end, label in zip(centred @ axes_of.T, ends, target[chosen], strict=True):
            colour = plots.BLUE if int(label) == pair[0] else plots.RED
            axes.plot(*torch.stack([start, end]).T, color=colour, alpha=0.35, linewidth=0.8)
            axes.plot(*start, "o", color=colour, markersize=3)
        axes.set(title=title, xlabel="first direction")
    panels[0].set_ylabel("second direction")
    for k, colour in zip(pair, (plots.BLUE, plots.RED), strict=True):
        panels[0].plot([], [], "o", color=colour, markersize=3, label=more.classes[k] if more.classes else f"class {k}")
    panels[0].legend(loc="best")
    return figure


show(figure_displacements(), "displacements")

# %% [markdown]
# ### The same on pixels: fool the student, not the teacher
#
# The other published form is *TeachAugment* (Suzuki, CVPR 2022, [7]). A network $a_\varphi$ turns noise $\varepsilon$ into an affine map
# and a change of colour of the image, $\tilde x = a_\varphi(x, \varepsilon)$. It is trained to fool the student, the classifier; and a
# teacher, the average of the student over the steps, still has to know the class. With their probabilities $p_y$ and $\bar p_y$ of it,
#
# $$L_\varphi = -\mathbb E \log\bigl(1 - p_y(\tilde x)\bigr) - \mathbb E \log \bar p_y(\tilde x). \tag{9}$$
#
# The student learns $\mathrm{CE}$ of $\tilde x$, through which no gradient passes. Here too there is an opponent, and something that holds it. How far can
# it go? Where teacher and student agree, $p = \bar p$, (9) is $-\log p\,(1 - p)$, least at $p = \frac12$: to the border of the class and
# not beyond. We check that; then whom the gradient of (9) reaches; then let $a_\varphi$ descend for thirty steps against the network
# from above, as student and teacher at once, with the teacher's term and without.

# %%
margins = torch.linspace(-6, 6, 241, dtype=torch.float64)
two_logits = torch.stack([margins, torch.zeros_like(margins)], 1)
of_y = torch.zeros(1, dtype=torch.int64)
agreeing = [learned.nonsaturating(one[None], of_y) + F.cross_entropy(one[None], of_y) for one in two_logits]
best = torch.sigmoid(margins[int(torch.stack(agreeing).argmin())])
print(f"of p = 1 / (1 + exp(-margin)) the least (9) has {best:.2f}")
assert abs(best - 0.5) < 1e-9

images_b, target_b = more.train.floats(slice(0, 64)), more.train.target[:64]
form_b = learned.TeachAugment(copy.deepcopy(form_a.network), more.image_shape).eval()
with torch.no_grad():  # off the identity, where hidden layers have no gradient
    form_b.augmentation.layers[2].weight += 0.05 * torch.randn(
        form_b.augmentation.layers[2].weight.shape, generator=seeded(4)
    )
form_b.against(
    form_b.augmentation(images_b, torch.randn(64, form_b.augmentation.noise, generator=seeded(3))), target_b
).backward()
reached = {
    name: sum(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    for name, part in {
        "student": form_b.network,
        "teacher": form_b.teacher,
        "augmentation": form_b.augmentation,
    }.items()
}
print("tensors of parameters that the gradient of (9) reaches:", reached)
assert reached == {"student": 0, "teacher": 0, "augmentation": len(list(form_b.augmentation.parameters()))}

# %% tags=["nbval-ignore-output"]
shown_b, known_b = [images_b[:8]], {}
for words in ("with the teacher", "without"):
    torch.manual_seed(0)
    form_b = learned.TeachAugment(copy.deepcopy(form_a.network), more.image_shape).eval()
    search, noise = torch.optim.Adam(form_b.augmentation.parameters(), 0.01), seeded(3)
    for number in range(31):
        changed_b = form_b.augmentation(images_b, torch.randn(64, form_b.augmentation.noise, generator=noise))
        logits = form_b.network(changed_b)
        if number in (0, 30):
            known_b[words, number] = float((logits.argmax(1) == target_b).double().mean())
        loss = form_b.against(changed_b, target_b) if words != "without" else learned.nonsaturating(logits, target_b)
        search.zero_grad()
        loss.backward()
        search.step()
    shown_b.append(changed_b.detach()[:8])
    print(f"{words:17s} {known_b[words, 0]:.0%} of 64 known at the start, {known_b[words, 30]:.0%} after 30 steps")
if (dataset, epochs, scale) == ("fashion-mini", 120, 0.1):
    assert known_b["with the teacher", 30] > 0.5 > 0.3 > known_b["without", 30]
show(plots.sheet(torch.stack(shown_b), ["image", "with the teacher", "without"]), "teacher")

# %% [markdown]
# Without the teacher $a_\varphi$ finds what no student survives, and what is no augmentation any more: greys, cuts, half a shoe. With it the
# clothes are tilted and brightened, and known. So in both forms what is worth something is not that the augmentation is *learned* but what
# holds it. The package has TeachAugment from the formulas (`learned.TeachAugment`), without the paper's colour regulariser and with changes
# of colour that are the same for all pixels of a channel, which is less than the paper's network can do; one optimiser trains both players in
# one loop. Section 8 has both forms.
#
# ## 8 · What the records say
#
# Everything below is drawn from records that are committed with this notebook: several seeds, longer runs than the pair
# above. *FID on the features of a classifier trained here*: the usual FID wants an Inception network whose weights are a
# download; ours are features of a small classifier of the same kind of images. It orders runs of one set and can be compared with no
# number of a paper, nor between sets: of the one person's faces there are 262 test images, and FID depends on how many. The interval of a mean is over *seeds*, first weights and orders of the images: all runs of a size learn from one
# and the same hundred (or thousand) images, under one judge, and say nothing of another hundred.
#
#
# Between features $a$ of 800 test images (or as many as there are) and of as many samples, with their means and covariances, and with the kernel
# $k(a, b) = (a^\top b / A + 1)^3$ on their $A$ numbers,
#
# $$\mathrm{FID} = |\mu_r - \mu_g|^2 + \mathrm{tr}\bigl(\Sigma_r + \Sigma_g - 2 (\Sigma_r \Sigma_g)^{1/2}\bigr), \qquad \mathrm{KID} = \mathbb E\,k(r, r') + \mathbb E\,k(g, g') - 2\,\mathbb E\,k(r, g). \tag{10}$$
#
# The first is the squared distance of two Gaussians, and too large of few images, by an amount that depends on how many; the second is
# unbiased. By torchmetrics, on two small sets of numbers, against (10) with SciPy's square root and all pairs:

# %%
one_set = torch.randn(120, 5, generator=seeded(1), dtype=torch.float64)
other_set = 1.3 * torch.randn(120, 5, generator=seeded(2), dtype=torch.float64) + 0.2
by_torchmetrics = gan_measures.distance(one_set, other_set, subsets=1, subset_size=120)
(mean_r, sigma_r), (mean_g, sigma_g) = ((part.mean(0), part.T.cov()) for part in (one_set, other_set))
fid = (
    (mean_r - mean_g).square().sum() + (sigma_r + sigma_g).trace() - 2 * sqrtm((sigma_r @ sigma_g).numpy()).real.trace()
)


def kernel_mean(a, b, same):
    k = (a @ b.T / a.shape[1] + 1) ** 3
    return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1)) if same else k.mean()


kid = (
    kernel_mean(one_set, one_set, True)
    + kernel_mean(other_set, other_set, True)
    - 2 * kernel_mean(one_set, other_set, False)
)
print(f"FID {by_torchmetrics.fid:.4f} and by (10) {fid:.4f}; KID {by_torchmetrics.kid:.4f} and {kid:.4f}")
assert math.isclose(by_torchmetrics.fid, fid, rel_tol=1e-6)
assert math.isclose(by_torchmetrics.kid, kid, rel_tol=1e-6)

# %% [markdown]
# Now the records:

# %% tags=["nbval-ignore-output"]
index = committed("4_diffaugment")
for profile_ in ("cpu", "paper"):
    there = sum(record.profile == profile_ for record in index)
    print(f"profile {profile_}: {there} records of {len(runs.planned(profile_, '4_diffaugment'))} planned runs")

# %% [markdown]
# ### What the number of images changes
#
# > 过少的训练数据会导致欠拟合 · *too few training data underfit*
#
# The same players for the same 1350 steps, on 100, 200, 1000 and all 7200 images, a column each. Look at the blue line (DiffAugment) and
# the black one (no augmentation): do they part, and when? And how far is either from what other real images have, in the caption?

# %% tags=["nbval-ignore-output"]
figure("distances")

# %% [markdown]
# *Reals only* is worst by far, at every size and from the start: three and a half to four times the FID of no $T$. *D only* is worse
# than no $T$ at all with a hundred images (1.27 times) and by less, on the same side in every seed, with more.
# DiffAugment is not significantly different from the plain GAN: at the end a logarithm of base two of −.08 ± .15 (100 images, five seeds), −.05 ± .54 (200),
# −.09 ± .10 (1000) and +.03 ± .11 (all). (The figure has the three seeds that all four places share; there the first of these is
# −.16 ± .12, which one would have called a gain of a tenth. Two more seeds took that back.) So after 1350 steps, a minute of a
# small network, what is seen to depend on the number of images is what D knows of them, in the next figure; whether that
# harms G shows in longer runs, at the end of these. All are far from real.
#
# ### What D has learned by heart
#
# Mean logits of training, held-out and generated images, of 100 and of 1000 training images. Overfitting is the solid green line leaving the
# dashed one. Read from left to right, then from top to bottom.

# %% tags=["nbval-ignore-output"]
figure("discriminator")

# %% [markdown]
# Without $T$, the two green lines part within three hundred steps and stay apart: held-out images end at a logit near 0, *undecided*,
# while training images are accepted. With $T$ in any place, they coincide (on reals only as well, which is not drawn). The middle column is the one
# to think about: with $T$ on D's side only, generated images, as they are, get logits near those of real ones, and larger ones in some seeds. G has found what D, which
# never saw an image without $T$, takes for real, and by FID it is less so. Of a thousand images, each seen forty times, the green
# lines hardly part even without $T$.
#
# ### Memory and leak
#
# Three numbers for each: D's AUC of training over held-out images; how many samples have a window as flat
# and grey as only 1% of real images have, the trace of cutout; and, in the table below, how far the nearest training image of a sample is, over
# how far the nearest of as many test images (the copy ratio: 1 if nothing is remembered, 0 for copies). By step 1 that trace should be there with $T$ on reals only, in as many
# samples as in augmented real images, the dashed line. (Cutout cuts them all, but the measure looks at whole windows of half the sides,
# and by step 4's counting only $(15 / 29)^2 = 27\%$ of them lie inside the image; changes of colour make some more look flat.)

# %% tags=["nbval-ignore-output"]
figure("overfitting")

# %% [markdown]
# The first row is what the number of images changes: without $T$ D's AUC ends at .82, .53 and .53 (.69 of 200 images), and near a half with $T$,
# wherever it stands, since D is what is augmented in all three. So *memory* does not distinguish DiffAugment from the other two. The second row does: with $T$ on the
# reals only, half of the samples (48 to 54%) come to have a flat grey window, of which the others have hardly any, and 1% of real images.
# This is $q = Tp$ of step 1, and can be measured as such: from *augmented* test images the samples of *reals only* have an FID of
# 2.0 to 2.9, by the number of images, and from the images themselves 23 to 27, while those of the other three are
# 12 to 17 away from augmented images (second column of the table below). It comes near *its* aim, as step 1 has it; only that aim is
# not ours. (Near: it draws windows more often than its aim has them, the dashed line.) DiffAugment has none: an image with a
# window would be seen with two. The copy ratio is near 1 everywhere: nothing is copied.
#
# ### Samples
#
# Of seed 0, the same codes for all; below each sample the nearest of *all* its training images.

# %% tags=["nbval-ignore-output"]
figure("samples")

# %% [markdown]
# What the numbers said, by eye: grey plates with *reals only*, whose generator draws cutout, borders of translation and washed-out
# contrast; glaring white with *D only*; broken and grainy clothes without $T$, and with DiffAugment hardly better ones. No sample
# is a copy, of however few images.
#
# One person's faces and a thousand photographs, with the same settings. (LFW, 100 pictures of the person it shows most often, at 32
# pixels: the shape of the paper's 100-shot sets, whose Obama, grumpy cat and panda go from an FID of 80, 49 and 34 to
# 47, 27 and 12 with StyleGAN2 [the authors' README]. Our networks are not StyleGAN2.)

# %% tags=["nbval-ignore-output"]
figure("samples_colour")

# %% [markdown]
# Here $T$ makes mistakes that one can see. *Reals only* draws the grey of cutout itself; *D only* has collapsed, on faces, to a single
# orange texture. Faces have the most contrast without $T$ and are smoother and paler with DiffAugment. Of a thousand photographs
# of ten kinds of things, players of this size learn colours and a horizon. (Seed 0; and *with a flat grey window*, in the table below,
# is no trace of cutout there: photographs have skies, and 27% of the samples of one seed without $T$ are flat and grey somewhere.)
#
# ### At the end, in pairs, and against other cures
#
# Differences from the GAN without $T$ on the same seed; negative is better. FID is compared by its logarithm: −1 is half the distance.
# At a hundred images two other cures stand beside DiffAugment: R1 of weight 1 without $T$, and *adaptive*, ADA's rule [3] for the
# probability $P$ with which $T$ is applied. Of every $n$ images shown it looks whether D accepts too many of its training images,
#
# $$P \leftarrow \mathrm{clip}\Bigl(P + \mathrm{sign}\bigl(\mathbb E\,\mathrm{sign}\,D(T(x)) - 0.6\bigr)\,\frac nS,\ 0,\ 1\Bigr), \tag{11}$$
#
# with $S = 10{,}000$ images for the way from 0 to 1, as the runs are short, and not 500,000 as released.

# %% tags=["nbval-ignore-output"]
figure("ends")
figure("ends_colour")

# %% [markdown]
# Clothing: by FID neither other cure is significantly different from no $T$, and after so few steps nor is DiffAugment; R1 does not keep D from its
# images (AUC .85), and the adaptive $T$, which begins with none, by a quarter of the way at most (−.08 ± .10). Neither was run for longer. Photographs: DiffAugment has the least FID in each of three seeds, .62 times the plain one's on average, which is
# not significant (a logarithm of −.68 ± 1.14). One person's faces, the case it was made for, go the other way: DiffAugment's FID is 1.5 times that of
# no $T$ (a logarithm of +.61 ± .37), although D without $T$ has learned its hundred faces by heart as nowhere else (an AUC of
# .99; it accepts 97% of them and 11% of the same person's others). Does its overfitting do no harm? Or not yet?
#
# All of it as a table:

# %% tags=["nbval-ignore-output"]
lesson.table("4_diffaugment")

# %% [markdown]
# ### Four times as long
#
# 5400 steps on the same hundred images, of clothing and of one person. Does the plain GAN get worse, once its D knows them?

# %% tags=["nbval-ignore-output"]
figure("longer")

# %% [markdown]
# Faces: yes; clothing: it comes to a halt. And here the method does what it is known for. Clothing: the plain GAN levels off at an FID of
# 4.7 ± .4, DiffAugment goes on to 2.5 ± .3 and has not stopped: .53 times as much (a logarithm of −.91 ± .31, five seeds). Faces: the
# plain GAN is at its best, .6 ± .2, after 1200 steps, when D's AUC nears 1, and then gets *worse*, to 3.3 ± 2.2, while DiffAugment comes
# to .55 ± .04 and stays: .17 times as much (a logarithm of −2.5 ± 1.0, three seeds). The paper has the same direction, by .35 to .65
# times with few images, of another FID and other players. So the figures above were taken too early: at 1350 steps D has overfitted
# and G has not suffered yet. On faces DiffAugment starts more slowly, as a harder task would make it, and the plain GAN at its best
# moment, if somebody who looks at test images stopped it there, is not significantly different from it.
#
# $T$ delays what D remembers, and does not prevent it: its AUC goes from .52 to .64 on clothing, from .59 to .69 on faces. What a plain GAN
# comes to is another thing in each seed. In all three of faces its samples draw nearer to training images, to .8 of the distance to
# as many test images; in one they go on to .4, which is copying (and D, asked for the person's other pictures, accepts more of
# them again); in the other two G breaks down first.

# %% tags=["nbval-ignore-output"]
figure("samples_longer")

# %% [markdown]
# The first seed: without $T$ three photographs of the hundred, again and again; with DiffAugment eight faces of their own.
#
# ### A classifier: learned, fixed, none
#
# Two thousand images of clothing, forty epochs, Adam for all. Fixed: the recipe's crop and flip, and DiffAugment's $T$ in
# front of the classifier, which is not what it was made for. ISDA at its usual strength. Learned: (8) at two scales of the reversed
# gradient (all six stand in the next figure), and TeachAugment. The bar is no augmentation, plain cross-entropy in the first row: on clothing that stands in the middle of its image even a crop
# has to be worth its price. Of (8) the fair control is the scale 0, where G learns nothing from the classifier and yet the head sees its
# second term. Adam and its rate of .002 are what G needs to move at all; nobody was tuned beyond that.

# %% tags=["nbval-ignore-output"]
figure("learned")

# %% [markdown]
# Nothing here is worth more than no augmentation. Crop, flip, ISDA and the learned features are not significantly different from it, and the intervals are narrower than
# ± 1 point. $T$ costs a classifier 3.2 ± 1.7 points, with its colours 4.3 ± .6. That it is harder to learn is not why: its training loss
# (.58, .69; none .006) is not far from that of crop and flip (.40 to .43), which cost nothing. What cutout and shifts of this size
# show is unlike what is tested. TeachAugment costs most, 6.0 ± 4.9, and the more the farther it may reach, 13.6 ± 8.1: after
# forty epochs the student is at a loss of 1.0 on its images. Its authors train larger networks ten times as long. The source's *better than traditional augmentation* does not
# show.
#
# The scale is the setting that LeMDA's code has at $10^{-4}$. A test of the package requires that G leaves the identity; at
# which scale does it, and what does the accuracy say? (Whoever picks a scale picks it by validation images, and looks at the test
# images once: the cell below the figure.)

# %% tags=["nbval-ignore-output"]
figure("scale")


def of_scales(index):
    """The scale that validation images choose, and the pairs in which it would have to show."""
    by_arm = index.by_arm(gan_study.CLASSIFIERS)
    names = [arm.name for arm in gan_study.SCALES if arm.name in by_arm]
    if len(names) < 2:
        raise NothingToDraw("FeatureAugmentation at two scales")
    chosen = max(names, key=lambda name: np.mean([run.metrics["validation_accuracy"] for run in by_arm[name]]))
    lines = [f"chosen on validation images: {chosen}"]
    for other in ("cross-entropy", names[0]):
        lines.append(f"{chosen} - {other}: {lesson.effect(stats.gains(by_arm[chosen], by_arm[other]))}")
    return "\n\n".join(lines)


lesson.table("4_diffaugment", of_scales)

# %% [markdown]
# At LeMDA's $10^{-4}$ G moves features by three hundred-thousandths of their length, six times what it does where nothing
# reaches it; at .1 by one hundredth. At 1 and 10 the game swings: features end 2.6 ± 2.2 and 12 ± 8 times their own length away, and the
# head's loss on them at 4.8 ± 7.4 and 12 ± 12. The accuracy notices none of this, at any scale: only the head sees what G makes, and
# the features of real images are learned without it.
#
# ### MixStyle, where it belongs
#
# > 通过随机选择和调整多个style block来增广样本，使得模型能够适应多种风格的图片 ·
# > *adjusts several style blocks, so that the model adapts to pictures of many styles*
#
# The blocks do not exist; the purpose does. MixStyle is for *other domains*: train on some styles, test on others. Our generated shapes in
# hues from red to cyan to train on, and in the other half of the hues to test on. Validation images are of the first half.

# %% tags=["nbval-ignore-output"]
figure("domains")

# %% [markdown]
# MixStyle gains 5.9 ± 3.6 points on hues it has never seen (stage 1; 4.8 ± 4.1 with stage 2), of an accuracy of 18% for ten kinds of shapes. But it gains
# 10.8 ± 4.4 on the hues it was trained on, where it should not be needed: without it the network knows its thousand images by heart (a
# loss of .01). In points that is 4.9 ± 2.9 more; as factors both are the same, 1.3. So it helps, and these runs cannot say
# whether because it adapts to other domains or because any regulariser would, of which there is none to compare with.
#
# ### This notebook's part of the leaderboard
#
# What was run, in the form that all notebooks share: gains over cross-entropy of the same seeds; passes over the network
# and seconds over its own, the latter a rough guide, of runs on shared cores. Of GANs nothing can
# stand there: they are not compared by accuracy.

# %% tags=["nbval-ignore-output"]
lesson.ranked("4_diffaugment")

# %% [markdown]
# ### The claims, with what decides each here

# %% tags=["nbval-ignore-output"]
for claim, decided in (
    (
        "gradient methods do not modify samples",
        f"pixels move by {min(changed.values()):.2f} to {max(changed.values()):.2f} of a range of 2",
    ),
    (
        "G imitates augmented images",
        f"only with T on reals: {far['T on reals: from p']:.2f} from the data, with T on both {far['T on both: from p']:.3f}",
    ),
    (
        "too few images underfit",
        f"{train_size} images: D's AUC {plain['auc']:.2f} without T, {augmented['auc']:.2f} with it",
    ),
    (
        "ResNet-50 has dropout in its last layers",
        f"{kinds['Dropout']} of them; {kinds['BatchNorm2d']} BN for {kinds['Conv2d']} convolutions",
    ),
    ("all of them adjust features", f"cutout sets {expected:.0%} of the pixels to one level"),
):
    print(f"{claim:42s} {decided}")

# %% [markdown]
# **What all this cannot say.** The players are small and are trained for a minute, or for three to six. Adaptive $T$ and R1 were not run for longer. Where more than 5400 steps would lead, and
# what a larger D would remember of more images, is not measured; nor is the paper's FID. All runs of a size learn from one and the same
# images. The planned runs of profile *paper* (players of eight and four times the width, D spectrally normalised, on CIFAR-10 at 10, 20
# and 100%, four steps of D for one of G, 200,000 steps) wait for a GPU; the paper's numbers at these sizes stand at the top.
#
# ## 9 · Exercises
#
# Solutions are folded away, in JupyterLab their code too. It is run with the notebook and asserts what it claims.
#
# **1. A half-turn.** Let $T$ turn an image by 180° with probability $r$. For which $r$ is $T$ invertible as a matrix? What can
# a generator do at the one where it is not? ADA's authors find leaks unlikely while probabilities stay below 0.8: why?
#
# <details><summary>Solution</summary>
#
# On a pair (image, its half-turn) $T = \begin{pmatrix} 1 - r & r \\ r & 1 - r \end{pmatrix}$ with the eigenvalues 1 and
# $1 - 2r$: singular at $r = \frac12$ alone. There $Tq = Tp$ for every $q$ that is right up to the turn, and upright and inverted
# images may be drawn in any proportion. Applying some $T$ with probability $P$ has the eigenvalues $1 - P + P\lambda$, where
# $|\lambda| \le 1$: below $P = \frac12$ none can be 0, above it only those with λ near $-(1 - P) / P$ are in danger. So 0.8 is no theorem
# but an observation of their experiments.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
for r in (0.2, 0.5, 0.8, 1.0):
    T_turn = torch.tensor([[1 - r, r], [r, 1 - r]], dtype=torch.float64)
    smallest = torch.linalg.eigvalsh(T_turn).abs().min()
    print(f"r = {r}: the smallest eigenvalue is {smallest:.1f} in size")
    assert abs(float(smallest) - abs(1 - 2 * r)) < 1e-12

# %% [markdown]
# **2. The other order.** Swap contrast and brightness in step 3. What is (4) then? Is the sum of the gradient over an image
# still preserved?
#
# <details><summary>Solution</summary>
#
# Contrast first leaves $M$ where it is, $c\,(x - M) + M$, and brightness is added to that: the $b$ comes out whole again, so
# (4) does not change. All three commute: brightness shifts both means with the image, the other two fix them. The linear
# part is the same, so the gradient is too.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
at = x.clone().requires_grad_()
wide = [draw[:, None, None, None] for draw in (b, s, c)]
swapped = wide[2] * (at - at.mean((1, 2, 3), keepdim=True)) + at.mean((1, 2, 3), keepdim=True)  # contrast first
swapped = wide[1] * (swapped - swapped.mean(1, keepdim=True)) + swapped.mean(1, keepdim=True)  # then saturation
swapped = swapped + wide[0]  # brightness last
(gradient_swapped,) = torch.autograd.grad((u * swapped).sum(), at)
print(f"the other order differs by {(swapped - three_passes(x, b, s, c)).abs().max():.0e}")
assert torch.allclose(swapped, three_passes(x, b, s, c))
assert torch.allclose(gradient_swapped.sum((1, 2, 3)), u.sum((1, 2, 3)))

# %% [markdown]
# **3. One draw for both.** Suppose real and generated images of a batch shared one draw of $T$, the same shift for all. Does
# (2) still hold? What would D see that it should not?
#
# <details><summary>Solution</summary>
#
# For each draw $t$ the game compares $tp$ with $tq$, and $q = p$ is still a minimum. But *invertible as a matrix* is not what
# decides any more: it is the average over draws of $\mathrm{JS}(tp, tq)$, 0 only if $tq = tp$ for (almost) all $t$, which is stricter. In
# the toy, with a single fixed step, JS does not change at all: a permutation hides nothing. What D sees is *which* draw it
# was, so that it can overfit to each separately: less is hidden from it.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
q_test = torch.rand(n, generator=seeded(9), dtype=torch.float64)
q_test = q_test / q_test.sum()
known = sum(weight * js(p.roll(k), q_test.roll(k)) for k, weight in {0: 0.4, 1: 0.2, -1: 0.2, 2: 0.1, -2: 0.1}.items())
hidden = js(T_ring @ p, T_ring @ q_test)
print(f"JS of p and q {js(p, q_test):.3f}; draws known to D {known:.3f}, hidden from it {hidden:.3f}")
assert abs(float(known - js(p, q_test))) < 1e-12
assert hidden < known

# %% [markdown]
# **4. How fast may ADA be?** In (11) a mean sign of 0.6 is the border: which share of accepted images is that? How many images
# does $P$ need from 0 to 1, at least?
#
# <details><summary>Solution</summary>
#
# A mean sign of 0.6 is 80% accepted, $0.8 - 0.2$. Each step moves by (images shown) / span, so the way from 0 to 1 takes
# *span* images: 500,000 as released, 10,000 in the planned runs, which see 43,000.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
probability, images_shown = 0.0, 0
accepted = torch.cat([torch.ones(9), -torch.ones(1)])  # 90%: above the target
while float(probability) < 1:
    probability = diffaugment.ada_step(probability, accepted, images=128)
    images_shown += 128
print(f"from 0 to 1 in {images_shown} images")
assert 500_000 <= images_shown < 500_000 + 128
assert diffaugment.ada_step(0.5, torch.cat([torch.ones(79), -torch.ones(21)]), 128) < 0.5

# %% [markdown]
# ## 10 · Questions for a reading group
#
# 1. In step 1 D is optimal. With a hundred images D is optimal *for the hundred*: $p$ is a sum of spikes. What does (2) then say
#    about a generator that copies, with and without $T$?
# 2. DiffAugment made the FID on 70,000 faces worse. What does $T$ cost where D does not overfit, and which experiment would
#    tell *harder to discriminate* from *less to learn from*?
# 3. "D only" minimises nothing. What, then, stops it from failing at once?
# 4. Section 7's generator pushes all features of a class alike. What in (8) would have to change for it to use its code, and would
#    that be ISDA again?
# 5. The source's text is fluent, and wrong in most of its claims. Which of them could you have found out without a second
#    source, by running ten lines?
#
# **Where to go on.** Notebook 1 has ISDA, the closed form that section 7 compares with; notebook 2 another generator beside a
# classifier; notebook 3 Cutout, MixStyle and Manifold mixup in a table with error bars.
