# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · DiffAugment, appendix: the source's claims, what T hides, learned augmentation, records
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/semaug/blob/main/notebooks/appendix/4_diffaugment_more.ipynb) · [Open in Binder](https://mybinder.org/v2/gh/OWNER/semaug/main?urlpath=lab/tree/notebooks/appendix/4_diffaugment_more.ipynb)
#
# This page belongs to the [lesson](../4_diffaugment.ipynb), whose equations it cites as L(1) to L(6). Its sections can
# be read in any order, after the first three cells of code:
#
# 1. The claims of the source, one by one
# 2. DANN, drawn: two domains that align
# 3. What T hides: cutout's share, images it confuses, and *D only* near its point of rest
# 4. The package's form: one formula for colour, R1 through T
# 5. The source's pipeline, made real: learned augmentation
# 6. MixStyle
# 7. FID, and what else the records say
# 8. Exercises
#
# It trains live for half a minute. The longer runs are committed records.

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
train_size = 1000  # training images of section 5
epochs = 6  # of the classifier of section 5
seeds = 1  # of them
first_seed = 0  # of them
scale = 0.1  # of the reversed gradient in section 5
device = "auto"  # "cpu", "cuda", or whichever there is

# %%
import copy
import functools
import itertools
import math

import torch
from scipy.linalg import sqrtm
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet50

from companion import lesson, plots, runs, stats
from companion.lesson import rounded, seeded
from companion.records import committed, markdown
from companion.studies import diffaugment as study
from semaug import DiffAugment, Recipe, Step, fit, load, networks, resolve_device
from semaug.measures import gans
from semaug.methods import diffaugment, gan, learned, mixing

lesson.parameters("4_diffaugment_more")
show = functools.partial(lesson.show, "4_diffaugment_more")
SEEDS = range(first_seed, first_seed + seeds)
f64 = torch.float64
images = load(dataset, validation=0.1, train_size=train_size)
channels, side, _ = images.image_shape

# %% [markdown]
# ## 1 · The claims of the source, one by one
#
# The source is the least reliable of the five: names, workflow and purpose of the method are wrong, and it ends before
# the code it promises. First the numbers that the table needs: how much $T$ changes a pixel, what share cutout covers,
# and which layers ResNet-50 has.
#
# Cutout's share can be predicted. A window of side $w$ has its middle anywhere in a side of $H$ pixels, at $H + 1$
# places. Over all places it would cover $w (H + 1)$ pixels, if nothing hung over the edge; at either end
# $1 + 2 + \dots + \frac w2$ hang over. Both axes are independent:
#
# $$\mathrm E\,[\text{share}] = \left(\frac{w\,(H + 1) - \tfrac w2 \bigl(\tfrac w2 + 1\bigr)}{H\,(H + 1)}\right)^2. \tag{1}$$

# %%
H, w = 28, 14
expected = ((w * (H + 1) - w / 2 * (w / 2 + 1)) / (H * (H + 1))) ** 2
share = (DiffAugment("cutout")(torch.ones(20_000, 1, H, H), seeded(0)) == 0).float().mean((1, 2, 3))
print(f"share cut out: {expected:.3f} by (1), {share.mean():.3f} of 20,000 draws, at most {share.max():.2f}")
assert abs(float(share.mean()) - expected) < 3 * float(share.std()) / len(share) ** 0.5

x = 2 * images.train.floats(slice(0, 64)) - 1
moved = float((DiffAugment()(x, seeded(1)) - x).abs().mean() / 2)  # in parts of the range [-1, 1]
with torch.device("meta"):
    layers = list(resnet50().modules())
kinds = {
    kind.__name__: sum(isinstance(layer, kind) for layer in layers) for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Dropout)
}
print(f"T moves a pixel by {moved:.0%} of its range; ResNet-50: {kinds}")
assert kinds == {"Conv2d": 53, "BatchNorm2d": 53, "Dropout": 0}

# %% [markdown]
# **All claims, in the order of the source.** *Decides* names a number of this page or of the lesson, or the primary
# source below the table.

# %%
first_part = r"""
| the source says | what is so, and who did it | decides |
|---|---|---|
| 不需要对原始样本进行修改 · gradient methods do not modify the samples | $T$ modifies every image; that it is differentiable lets the gradient through | a pixel moves by {moved:.0%} of its range |
| 2019年，DeepMind…Differentiable Augmentation（DANN） | DANN is *Domain-Adversarial* Neural Networks, by Ajakan et al. 2014 and Ganin et al. 2016: domain adaptation. No DeepMind method of this name was found | [1]; section 2 |
| 自监督 · self-supervised | no task and no label is made from the image | $T$ has {parameters} parameters |
| 性能优于传统的数据增强方法 · better than traditional augmentation (twice) | the paper trains GANs and compares no classifier | $T$ before our classifier: {classifier} points |
| 本文将基于PyTorch框架 · builds a model in PyTorch | no code follows | about forty lines in the lesson |
| 不同iable augmentation | *differentiable*, half translated | |
| Manifold mixup: 沿着…某一连通区域混合 · along a connected region | on the straight line between two hidden states, at a random layer, and the labels alike (Verma et al.) | [2]; lesson 3 |
| Cutout: 导致过拟合或欠拟合 · leads to over- or underfitting | it regularises: error 4.72% → 3.99% on CIFAR-10, ResNet-18 with crop and flip (DeVries, Taylor) | [3] |
| MixStyle: 调整多个style block · adjusts style blocks | mixes mean and deviation of each channel between two images (Zhou et al.) | [4]; section 6 |
| Dreamerv2: 将噪声序列嵌入到原图 · embeds noise in images | an agent of reinforcement learning that learns inside a learned model of its world (Hafner et al.) | [5] |
| 四种方法都需要对样本进行预处理 · all four preprocess or need extra settings | Manifold mixup and MixStyle act inside the network, on a batch in training | [2, 4] |
"""

# %% [markdown]
# The second part begins with the source's section on data augmentation.

# %%
second_part = r"""| 白盒增广, 黑盒增广 · white-box and black-box augmentation | in none of these papers. The words belong to attacks on networks (Papernot et al.). The usual question is whether an augmentation looks at the model: TeachAugment does, a crop does not | [6, 7] |
| ResNet-50…加入了dropout、batch normalization · in its last layers, as white-box augmentation | BatchNorm after every convolution, no dropout; neither is an augmentation | {bn} BatchNorms, {conv} convolutions, {dropout} dropout |
| 过少…欠拟合, 过多…过拟合 · few data underfit, many overfit | few data overfit | lesson, section 5 |
| 增广…也是一种博弈游戏 · augmentation is a game | a crop plays against nobody. It becomes a game where it is *learned against* the model: Adversarial AutoAugment (Zhang et al.), TeachAugment (Suzuki). A GAN is a game too, but $T$ is no player in it | [7, 8]; section 5 |
| 都是通过调整样本特征 · all adjust features | Cutout sets pixels to one level | {cut:.0%} of them |
| DANN利用一个神经网络…逐步优化样本特征; its four steps | no method named by the source does this; LeMDA (Liu et al.) is near | [9]; section 5 |
| 在最终测试阶段，输入真实样本及生成样本 · the test mixes real and generated samples | classifiers are tested on real images; of GANs one measures a distance between both, FID | section 7 |
| DiffAugment…由Google团队2020年提出 · by a Google team, 2020 | 2020, yes: Tsinghua, MIT, Adobe, CMU. Zhao et al. of UC Irvine and Google published *Image Augmentations for GAN Training* in the same month | [10, 11] |
| 使用一个固定的…策略来生成一组“干净”图像 · a fixed policy makes "clean" images | the policy is fixed, its draws are random, anew for every image and step | L(6) |
| 生成器输出的图像尽可能接近上述"干净"图像 · G imitates them | that is *reals only*: G draws augmented images | L(4): {far:.2f} from the data |
| 将生成器输出的图像作为输入，生成新的图像…目标导向的调整 · a second stage adjusts the output towards a goal | there is no second stage and no goal | L(6) |
| 如裁剪、旋转、缩放、光照变化 · crop, rotation, scaling, lighting | colour, translation, cutout; rotation and scaling are in ADA (Karras et al.) | [12] |
| 增强模型的泛化能力，缓解…欠拟合、过拟合 · helps the model to generalise | it delays what D memorises; there is no classifier | lesson, section 6 |
| 端到端, 多元策略, 可视化, 采样 · four advantages: end to end, many policies, previews, resampling of G and D | every GAN is trained end to end; the others are not in the paper | [10] |
"""

# %% [markdown]
# Two numbers come from elsewhere: what $T$ does to a classifier in our records, and how far *reals only* ends from the
# data on the lesson's circle.


# %%
def claims(index):
    """The table with its numbers."""
    by_arm = index.by_arm(study.CLASSIFIERS)
    cost = stats.summary(stats.gains(by_arm["T: translation, cutout"], by_arm["cross-entropy"]))
    assert cost.side < 0
    p = torch.softmax(3 * torch.cos(4 * math.pi * torch.arange(12, dtype=f64) / 12), 0)
    blurred = sum(weight * p.roll(k) for k, weight in {0: 0.4, 1: 0.2, -1: 0.2, 2: 0.1, -2: 0.1}.items())
    parts = {"bn": kinds["BatchNorm2d"], "conv": kinds["Conv2d"], "dropout": kinds["Dropout"], "cut": expected}
    parts |= {"far": float((blurred - p).abs().sum() / 2), "moved": moved, "classifier": cost.text("+.1f")}
    table = first_part.rstrip() + "\n" + second_part
    return table.format(**parts, parameters=len(list(DiffAugment().parameters())))


lesson.table("4_diffaugment", claims)

# %% [markdown]
# [1] Ajakan et al., 2014, [arXiv:1412.4446](https://arxiv.org/abs/1412.4446); Ganin et al., JMLR 17(59), 2016,
# [arXiv:1505.07818](https://arxiv.org/abs/1505.07818). [2] Verma et al., ICML 2019,
# [arXiv:1806.05236](https://arxiv.org/abs/1806.05236). [3] DeVries, Taylor, 2017,
# [arXiv:1708.04552](https://arxiv.org/abs/1708.04552). [4] Zhou, Yang, Qiao, Xiang, ICLR 2021,
# [arXiv:2104.02008](https://arxiv.org/abs/2104.02008). [5] Hafner, Lillicrap, Norouzi, Ba, ICLR 2021,
# [arXiv:2010.02193](https://arxiv.org/abs/2010.02193). [6] Papernot et al., Asia CCS 2017,
# [arXiv:1602.02697](https://arxiv.org/abs/1602.02697). [7] Suzuki, CVPR 2022,
# [arXiv:2202.12513](https://arxiv.org/abs/2202.12513). [8] Zhang, Wang, Zhang, Zhong, ICLR 2020,
# [arXiv:1912.11188](https://arxiv.org/abs/1912.11188). [9] Liu et al., ICLR 2023,
# [arXiv:2212.14453](https://arxiv.org/abs/2212.14453). [10] Zhao, Liu, Lin, Zhu, Han, NeurIPS 2020,
# [arXiv:2006.10738](https://arxiv.org/abs/2006.10738). [11] Zhao, Zhang, Chen, Singh, Zhang, 2020,
# [arXiv:2006.02595](https://arxiv.org/abs/2006.02595). [12] Karras et al., NeurIPS 2020,
# [arXiv:2006.06676](https://arxiv.org/abs/2006.06676).
#
# ## 2 · DANN, drawn: two domains that align
#
# What DANN really is: images come from two *domains*, such as photographs and drawings. Only the first is labelled. A
# network $f$ should classify both. DANN asks for features $f(x)$ from which a second classifier $d$ cannot say the
# domain. With the *reversed gradient* $R_\alpha(a) = a$, whose derivative is defined as $-\alpha I$, one loss does it:
#
# $$L = \mathrm{CE}\bigl(h(f(x)), y\bigr) + \mathrm{CE}\bigl(d(R_\alpha(f(x))), \text{domain}\bigr). \tag{2}$$
#
# $d$ descends on the second term, and $f$ ascends: a min-max in one backward pass. In the plane it can be drawn. The
# second domain is the first one, shifted by $(1.5, 2)$. We let $f$ be a linear map of the plane, $h$ linear, and $d$ a
# small network. **Predict:** what must $f$ do so that $d$ fails and $h$ does not?

# %%
y, domain, shift = torch.arange(400) % 2, torch.arange(400) // 200, torch.tensor([1.5, 2.0])
points = torch.stack([2.0 * y - 1, 0.0 * y], 1) + 0.3 * torch.randn(400, 2, generator=seeded(0))
points = points + domain[:, None] * shift


def align(alpha, steps=600):
    """Train f, h and d by (2), the labels of the first domain alone; features, and accuracies of h by domain and of d."""
    torch.manual_seed(0)
    f, h, d = nn.Linear(2, 2, bias=False), nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    nn.init.eye_(f.weight)
    search = torch.optim.SGD([*f.parameters(), *h.parameters(), *d.parameters()], 0.1)
    for _ in range(steps):
        a = f(points)
        loss = F.cross_entropy(h(a)[domain == 0], y[domain == 0])
        loss = loss + F.cross_entropy(d(learned.reverse_gradient(a, alpha)), domain)
        search.zero_grad()
        loss.backward()
        search.step()
    a = f(points).detach()
    right, known = ((part(a).argmax(1) == wanted).double() for part, wanted in ((h, y), (d, domain)))
    return a, f.weight.detach(), [float(right[domain == k].mean()) for k in (0, 1)], float(known.mean())


# %%
aligned = {alpha: align(alpha) for alpha in (0.0, 1.0)}
for alpha, (a, weight, right, known) in aligned.items():
    print(
        f"α = {alpha:g}: class right, first domain {right[0]:.0%}, second {right[1]:.0%}; domain right {known:.0%};",
        end=" ",
    )
    print(f"length of f(shift) over spread of features {(weight @ shift).norm() / a.std():.2f}")


# %% [markdown]
# The same as a picture: the two domains as they are, and in the features learned without and with reversal.


# %% jupyter={"source_hidden": true}
@plots.styled
def figure_domains():
    figure = plots.Picture(figsize=(7.5, 3.0))
    panels = figure.subplots(1, 3)
    shown = {"images x": points, "f(x), α = 0": aligned[0.0][0], "f(x), α = 1 (DANN)": aligned[1.0][0]}
    for axes, (title, values) in zip(panels, shown.items(), strict=True):
        for k, marker, name in ((0, "o", "labelled"), (1, "x", "not labelled")):
            for c, colour in ((0, plots.BLUE), (1, plots.RED)):
                part = values[(domain == k) & (y == c)][:60]
                axes.plot(*part.T, marker, color=colour, markersize=3.5, alpha=0.7, label=f"class {c}, {name}")
        axes.set(title=title)
        axes.grid(visible=False)
    labels = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    right = [aligned[alpha][2][1] for alpha in (0.0, 1.0)]
    plots.headline(
        figure, f"Right on the unlabelled domain: {right[0]:.0%} without reversal, {right[1]:.0%} with it", labels
    )
    return figure


assert aligned[1.0][2][1] > 0.95 > aligned[0.0][2][1]
show(figure_domains(), "dann")

# %% [markdown]
# $f$ drops the direction in which the domains differ, and keeps one in which the classes differ. Nothing is augmented,
# and no image is generated. Section 5 uses the reversed gradient for an augmentation: the one honest link between the
# source's name and its pipeline.
#
# ## 3 · What T hides
#
# **Images that cutout confuses.** L(4) has $q = p$ as its only minimum if $T$ is invertible as a matrix. Cutout hides a
# part of *every* image. In the smallest world where that matters, images have two by two pixels of value -1 or 1, and
# $T$ hides one. Let $p$ be the images with an even number of ones, $q$ those with an odd number. Three pixels of four
# say nothing about the parity. And what of images that come with a hidden pixel of their own, as a G draws that has
# learned cutout's grey?

# %%
worlds = torch.cartesian_prod(*[torch.tensor([-1, 1])] * 4)


def after_hiding(pictures):
    """Distribution of what is seen of equally likely images when any one pixel is set to 0."""
    seen = {}
    for picture, pixel in itertools.product(pictures, range(4)):
        key = tuple(torch.where(torch.arange(4) == pixel, 0, picture).tolist())
        seen[key] = seen.get(key, 0) + 1 / (4 * len(pictures))
    return seen


def apart(one, other):
    """Total variation."""
    return sum(abs(one.get(key, 0) - other.get(key, 0)) for key in one | other) / 2


even, odd = (worlds[worlds.prod(1) == sign] for sign in (1, -1))
holed = torch.stack([torch.where(torch.arange(4) == pixel, 0, picture) for picture in even for pixel in range(4)])
print(f"even against odd: 1 before T, {apart(after_hiding(even), after_hiding(odd)):.2f} after")
print(f"even against holed images: {apart(after_hiding(even), after_hiding(holed)):.2f} after T")
assert apart(after_hiding(even), after_hiding(odd)) == 0
assert apart(after_hiding(even), after_hiding(holed)) == 0.75

# %% [markdown]
# So the released $T$ can confuse sets of images. But a drawn window is not hidden by it: such images show two windows.
# ADA hides with a probability $P < 1$ only. Then the matrix is triangular in the order of the number of hidden pixels. Its
# diagonal, the eigenvalues, is at least $1 - P$, as in the lesson: the matrix is invertible.

# %%
with_holes = [tuple(state) for state in torch.cartesian_prod(*[torch.tensor([-1, 0, 1])] * 4).tolist()]
hiding = torch.zeros(81, 81, dtype=f64)  # column: an image; row: what is seen of it
for column, state in enumerate(with_holes):
    for pixel in range(4):
        hiding[with_holes.index((*state[:pixel], 0, *state[pixel + 1 :])), column] += 1 / 4
for P in (1.0, 0.9):
    rank = int(torch.linalg.matrix_rank((1 - P) * torch.eye(81, dtype=f64) + P * hiding))
    print(f"one pixel hidden with probability {P}: rank {rank} of 81")
    assert (rank == 81) == (P < 1)

# %% [markdown]
# **D only, near its point of rest.** There D is the best one for $Tp$ and $Tq$, $D = \log (Tp / Tq)$, and G follows
# $\nabla_\theta \sum_x q_\theta(x) D(x)$ with this D held fixed. $q = p$ is a point of rest. Is it stable? Take
# $q = \mathrm{softmax}(\theta)$ and $p$ uniform on $n$ states, and let $q = p + \varepsilon$ with a small $\varepsilon$
# of sum 0. Then $D \approx -n\,T\varepsilon$, and the softmax has the Jacobian
# $\frac1n (I - \frac1n \mathbf 1 \mathbf 1^\top)$ there. It stands twice in the flow, once for G's gradient in $\theta$
# and once from $\theta$ to $q$:
#
# $$\dot\varepsilon = \tfrac1{n^2} D = -\tfrac1n\, T \varepsilon. \tag{3}$$
#
# Along an eigenvector of $T$ with eigenvalue $\lambda$ the distance shrinks at the rate $\lambda / n$ if $\lambda > 0$,
# and *grows* if $\lambda < 0$. We predict the rates for two matrices on the lesson's circle.

# %%
n = 12
for title, weights in (("lesson", {0: 0.4, 1: 0.2, -1: 0.2, 2: 0.1, -2: 0.1}), ("other", {0: 0.2, 1: 0.4, -1: 0.4})):
    T = sum(weight * torch.eye(n, dtype=f64).roll(step, 0) for step, weight in weights.items())
    values, vectors = torch.linalg.eigh(T)
    p, epsilon = torch.full((n,), 1 / n, dtype=f64), 1e-6 * vectors[:, 0]  # of the smallest eigenvalue
    theta = (p + epsilon).log().requires_grad_()
    D = ((T @ p) / (T @ theta.softmax(0))).log().detach()
    (slope,) = torch.autograd.grad((theta.softmax(0) * D).sum(), theta)
    ahead = (theta + 1e-3 * slope).softmax(0) - p
    rate = (ahead - epsilon) @ epsilon / (1e-3 * epsilon @ epsilon)
    print(f"{title}: smallest eigenvalue {values[0]:+.2f}, rate by (3) {-values[0] / n:+.4f}, found {rate:+.4f}")
    assert abs(rate + values[0] / n) < 1e-4

# %% [markdown]
# So *D only* can be drawn to $p$ or be driven away from it; (3) holds near a uniform $p$ only. With images it has to be
# seen, as in the lesson.
#
# **The hinge loss.** At every $x$, D is free in $[-1, 1]$ and pays $p(1 - D) + q(1 + D)$. The least is $2 \min(p, q)$,
# at $D = \pm 1$. In all, D pays $2 - 2\,\mathrm{TV}(p, q)$, with the total variation
# $\mathrm{TV} = \frac12 \sum |p - q|$.

# %%
p, q = (torch.rand(n, generator=seeded(k), dtype=f64) for k in (1, 2))
p, q = p / p.sum(), q / q.sum()
levels = torch.linspace(-1, 1, 201, dtype=f64)
least = (p[:, None] * (1 - levels) + q[:, None] * (1 + levels)).amin(1).sum()
print(f"least hinge loss of D: {least:.4f}, predicted {2 - (p - q).abs().sum():.4f}")
assert torch.isclose(least, 2 - (p - q).abs().sum())

# %% [markdown]
# ## 4 · The package's form
#
# The three passes of colour are affine, so they are one. Brightness moves the pixel's mean $m$ and the image's mean $M$
# by $b$; saturation moves neither. Insert and collect:
#
# $$y = c\,s\,x + c\,(1 - s)\,m + (1 - c)\,M + b. \tag{4}$$
#
# The matrix of (4) consists of the identity and of averages, so it is symmetric. The transpose that L(5) wants is (4)
# itself, without $b$. Its rows sum to 1: the sum of the gradient over an image passes through $T$ unchanged.


# %%
def three_passes(x, b, s, c):
    """Brightness, saturation, contrast, one after the other."""
    b, s, c = (draw[:, None, None, None] for draw in (b, s, c))
    x = x + b
    x = s * (x - x.mean(1, keepdim=True)) + x.mean(1, keepdim=True)
    return c * (x - x.mean((1, 2, 3), keepdim=True)) + x.mean((1, 2, 3), keepdim=True)


x, u = (torch.randn(8, 3, 16, 16, generator=seeded(k), dtype=f64) for k in (3, 4))
b, s, c = DiffAugment("color").draw(x, seeded(5))[:3]
at = x.clone().requires_grad_()
one = diffaugment.color(at, b, s, c)
(gradient,) = torch.autograd.grad((u * one).sum(), at)
print("one pass equals three:", torch.allclose(one, three_passes(x, b, s, c)))
print("gradient equals (4) of the gradient, without b:", torch.allclose(gradient, three_passes(u, 0 * b, s, c)))
assert torch.allclose(one, three_passes(x, b, s, c), atol=1e-12)
assert torch.allclose(gradient, three_passes(u, 0 * b, s, c), atol=1e-12)
assert torch.allclose(gradient.sum((1, 2, 3)), u.sum((1, 2, 3)))

# %% [markdown]
# `make bench` measures what this saves.
#
# **R1**, the penalty $\frac\gamma2 |\nabla_x D(T(x))|^2$ of StyleGAN2, goes through $T$ too: $x$ is the image *before*
# $T$. Where cutout has put its grey, D does not depend on $x$, so the slope there is 0.

# %%
torch.manual_seed(0)
D = gan.Discriminator(side, channels).double()
real = (2 * images.train.floats(slice(0, 4)) - 1).double().requires_grad_()
T = DiffAugment("cutout")
draws = T.draw(real, seeded(8))
logits = D(T.apply_draws(real, draws))
penalty = gan.r1_penalty(logits, real)
(slope,) = torch.autograd.grad(logits.sum(), real)
grey = T.apply_draws(torch.ones_like(real), draws) == 0
inside, outside = (float(slope[where].abs().max()) for where in (grey, ~grey))
print(f"largest slope in the window {inside:.1e}, outside {outside:.1e}; penalty {penalty:.4f}")
assert inside == 0 < outside
assert torch.isclose(penalty, slope.square().sum() / 4)

# %% [markdown]
# ## 5 · The source's pipeline, made real
#
# > 使用CNN提取特征…施加可微的参数调整策略…generator network…将生成的样本输入CNN模型，通过反向传播更新网络参数 · *Extract features by a CNN; a "generator
# > network" changes them differentiably; feed the result to the CNN, which learns by back-propagation.*
#
# LeMDA is near to this. Let $z = f(x)$, without its gradient, be the features of an image. A variational autoencoder
# $G$ changes them. The head $h$ learns from both; the reversed gradient $R_\alpha$ makes $G$ oppose it:
#
# $$L = \mathrm{CE}(h(f(x))) + \mathrm{CE}(h(R_\alpha(G(z)))) + w_1\, \mathrm{KL}(p_G \| p_z) + w_2\, |G(z) - z|^2 +
#   w_3\, \mathrm{KL}(\mathcal N(\mu, \sigma^2) \| \mathcal N(0, I)). \tag{5}$$
#
# $p_z$ and $p_G$ are the head's probabilities of $z$ and of $G(z)$; the $w_1$ term counts where the head is sure of
# $z$. The last three terms hold $G$ to features of the same class; the check sets their weights to 0. Check of the reversal, on the second term alone: a
# step of the head lowers it, and a step of $G$ raises it.

# %%
torch.manual_seed(0)
free = {"scale": 1.0, "consistency": 0, "distance": 0, "kl": 0}
model = learned.FeatureAugmentation(networks.small(images.num_classes, channels), **free)
for parameter in model.generator.decoder[2].parameters():  # off the identity, where its encoder has no gradient
    parameter.data += 0.05 * torch.randn(parameter.shape, generator=seeded(1))
model, batch = model.double(), (images.train.floats(slice(0, 64)).double(), images.train.target[:64])
start, changes = copy.deepcopy(model.state_dict()), {}


def augmented_loss():
    """The loss (5), and its second term."""
    loss, terms = model(*batch, Step(torch.tensor(0.5), 0.1, seeded(2)))
    return loss, terms["augmented_loss"]


# %%
for name, part in (("head", model.network.head), ("G", model.generator)):
    model.load_state_dict(start)
    model.zero_grad()
    loss, before = augmented_loss()
    loss.backward()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter -= 0.01 * parameter.grad
    changes[name] = float(augmented_loss()[1] - before)
print("change of the head's loss on G(z):", {name: f"{value:+.4f}" for name, value in changes.items()})
assert changes["head"] < 0 < changes["G"]

# %% [markdown]
# Then all four steps together, for a few seconds: extract, change, feed, back-propagate. How far does $G$ move
# features?

# %% tags=["nbval-ignore-output"]
adam = Recipe(epochs=epochs, optimizer="adam", lr=2e-3, weight_decay=0.0)
trained = []
for seed in SEEDS:
    torch.manual_seed(seed)
    model = learned.FeatureAugmentation(networks.small(images.num_classes, channels), scale=scale).to(
        resolve_device(device)
    )
    trained.append(fit(model, images, adam, seed=seed, progress=False))
for run in runs.planned(profile, "4_diffaugment") if profile != "quick" else []:
    runs.complete([run], device)
lesson.keep("4_diffaugment_more", trained)
model = model.cpu().eval()
record = trained[-1]
print(f"|G(z) - z| / |z| by epoch: {', '.join(f'{value:.3f}' for value in record.curves['moved'])}")
print(f"test accuracy {record.metrics['test_accuracy']:.0%}")

# %% [markdown]
# **TeachAugment** does the same to pixels. A network $a_\varphi$ turns noise into an affine map and a change of colour.
# It is trained to fool the student, while a teacher, the student's average over the steps, still has to know the class.
# With their probabilities $p_y$ and $\bar p_y$ of it,
#
# $$L_\varphi = -\mathrm E \log\bigl(1 - p_y(\tilde x)\bigr) - \mathrm E \log \bar p_y(\tilde x). \tag{6}$$
#
# Where teacher and student agree, (6) is least at $p = \frac12$: at the border of the class, and not beyond. We let
# $a_\varphi$ descend for thirty steps against the network above, with the teacher's term and without.

# %%
margins = torch.linspace(-6, 6, 241, dtype=f64)
losses = [
    learned.nonsaturating(pair[None], torch.zeros(1, dtype=torch.int64)) + F.cross_entropy(pair, torch.tensor(0))
    for pair in torch.stack([margins, torch.zeros_like(margins)], 1)
]
print(f"(6) is least at p = {torch.sigmoid(margins[int(torch.stack(losses).argmin())]):.2f}")
assert margins[int(torch.stack(losses).argmin())].abs() < 1e-9

# %% jupyter={"source_hidden": true} tags=["nbval-ignore-output"]
pictures, target = images.train.floats(slice(0, 64)), images.train.target[:64]
shown, known = [pictures[:8]], {}
for words in ("with the teacher", "without"):
    torch.manual_seed(0)
    teach = learned.TeachAugment(copy.deepcopy(model.network), images.image_shape).eval()
    search, noise = torch.optim.Adam(teach.augmentation.parameters(), 0.01), seeded(3)
    for _ in range(31):
        changed = teach.augmentation(pictures, torch.randn(64, teach.augmentation.noise, generator=noise))
        logits = teach.network(changed)
        known[words] = float((logits.argmax(1) == target).double().mean())
        loss = teach.against(changed, target) if words != "without" else learned.nonsaturating(logits, target)
        search.zero_grad()
        loss.backward()
        search.step()
    shown.append(changed.detach()[:8])
print("known after thirty steps:", {words: f"{share:.0%}" for words, share in known.items()})
show(plots.sheet(torch.stack(shown), ["image", "with the teacher", "without"]), "teacher")

# %% [markdown]
# Without the teacher, $a_\varphi$ destroys the image. So what matters is what holds the augmentation, more than that it
# is learned. The package has both forms from their formulas; TeachAugment comes without the paper's colour regulariser.
#
# What does it gain? Two thousand images of fashion-mini, forty epochs, five seeds:

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "learned")


# %%
def no_gain(index):
    """One sentence about learned augmentation."""
    by_arm = index.by_arm(study.CLASSIFIERS)
    gain = {name: stats.summary(stats.gains(found, by_arm["cross-entropy"])) for name, found in by_arm.items()}
    names = [name for name in gain if name.startswith(("features", "TeachAugment"))]
    assert all(gain[name].side <= 0 for name in names)
    best = max(names, key=lambda name: gain[name].mean)
    return f"None of {len(names)} forms of learned augmentation gains significantly; the best has {gain[best].text('+.1f')} points."


lesson.table("4_diffaugment", no_gain)

# %% [markdown]
# ## 6 · MixStyle
#
# > 通过随机选择和调整多个style block来增广样本 · *augments by choosing and adjusting style blocks at random*
#
# There are no such blocks. MixStyle takes the feature maps of an image and of a partner. Each channel has a mean and a
# deviation; the image gets, channel by channel, the mixtures of both with the weights $\lambda$ and $1 - \lambda$.

# %%
maps = torch.randn(4, 6, 8, 8, generator=seeded(7), dtype=f64) * 3 + 1
lam, partner = torch.tensor([0.3, 0.9, 0.5, 0.0], dtype=f64), torch.tensor([1, 0, 3, 2])
styled = mixing.mixstyle(maps, lam, partner)
means = lam[:, None] * maps.mean((2, 3)) + (1 - lam[:, None]) * maps[partner].mean((2, 3))
deviations = lam[:, None] * maps.std((2, 3)) + (1 - lam[:, None]) * maps[partner].std((2, 3))
print("means of the first image, predicted:", rounded(means[0]), " found:", rounded(styled.mean((2, 3))[0]))
assert torch.allclose(styled.mean((2, 3)), means)
assert torch.allclose(styled.std((2, 3)), deviations, atol=1e-5)  # MixStyle adds a small ε

# %% [markdown]
# It is made for *other domains*: train on some styles, test on others. Our shapes have hues from red to cyan in
# training, and the other hues in the test.

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "domains")

# %% [markdown]
# MixStyle gains on new hues, and more on those it was trained on. So these runs cannot say whether it adapts to domains
# or only regularises; a second regulariser was not run.
#
# ## 7 · FID, and what else the records say
#
# Between features of real and of generated images, with means $\mu$, covariances $\Sigma$ and a kernel $k$,
#
# $$\mathrm{FID} = |\mu_r - \mu_g|^2 + \mathrm{tr}\bigl(\Sigma_r + \Sigma_g - 2 (\Sigma_r \Sigma_g)^{1/2}\bigr), \quad
#   \mathrm{KID} = \mathrm E\, k(r, r') + \mathrm E\, k(g, g') - 2\, \mathrm E\, k(r, g). \tag{7}$$
#
# FID is too large for few images, by an amount that depends on their number; KID, with
# $k(a, b) = (a^\top b / A + 1)^3$, is unbiased.

# %%
first = torch.randn(120, 5, generator=seeded(1), dtype=f64)
second = 1.3 * torch.randn(120, 5, generator=seeded(2), dtype=f64) + 0.2
package = gans.distance(first, second, subsets=1, subset_size=120)
root = torch.from_numpy(sqrtm((first.T.cov() @ second.T.cov()).numpy()).real)
fid = (first.mean(0) - second.mean(0)).square().sum() + (first.T.cov() + second.T.cov() - 2 * root).trace()
k = {
    pair: (a @ b.T / 5 + 1) ** 3
    for pair, (a, b) in {"rr": (first, first), "gg": (second, second), "rg": (first, second)}.items()
}
kid = sum((k[pair].sum() - k[pair].trace()) / (120 * 119) for pair in ("rr", "gg")) - 2 * k["rg"].mean()
print(f"FID {package.fid:.4f}, by (7) {fid:.4f}; KID {package.kid:.4f}, by (7) {kid:.4f}")
assert math.isclose(package.fid, fid, rel_tol=1e-6)
assert math.isclose(package.kid, kid, rel_tol=1e-6)

# %% [markdown]
# **The number of images.** The same players for 1,350 steps, on 100 to 7,200 images of fashion-mini. With a hundred
# images D memorises without $T$; with a thousand it hardly does. *Reals only* draws flat grey windows, whatever the
# number.
#
# ![FID over the steps by the number of images: T on reals only makes the images worse, whatever their number](../../figures/4_diffaugment/distances.png)

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "overfitting")

# %% [markdown]
# **A class of photographs.** A hundred cars of CIFAR-10, a generator four times as wide as in the small runs, 5,400
# steps: one seed for each place of $T$, three of the plain GAN and of DiffAugment. Below a sample stands the training
# photograph that is nearest in pixels.
#
# ![Samples of GANs of a hundred cars by the place of T: grainy by the plain GAN, rough cars by DiffAugment](../../figures/4_diffaugment/cars.png)
#
# *D only* draws one image for every code. The plain GAN is best early: its mean FID is 2.3 after 1,200 steps. At the end
# seed 0, which is shown, has 3.4, and the two others, 18 and 40, draw noise. DiffAugment ends at 1.1. FIDs of cars and
# of faces cannot be compared: other images, other features.


# %%
def of_cars(index):
    """The mean FID of three seeds, at every measurement: what the text says is asserted."""
    fids = [[run.curves["fid"] for run in index.of(study.CARS, name)] for name in (study.BASELINE, study.DIFFAUGMENT)]
    plain, ours = (torch.tensor(runs_of).mean(0) for runs_of in fids)
    assert len(fids[0]) == len(fids[1]) == 3
    assert int(plain.argmin()) == 1
    assert [round(float(fid), 1) for fid in (plain[1], ours[-1])] == [2.3, 1.1]
    assert [f"{fid[-1]:.2g}" for fid in fids[0]] == ["3.4", "18", "40"]
    steps = [f"{step:,.0f}" for step in study.steps(index.of(study.CARS, study.BASELINE)[0])]
    rows = [("plain GAN", *(f"{fid:.1f}" for fid in plain)), ("DiffAugment", *(f"{fid:.1f}" for fid in ours))]
    return markdown(["mean FID after steps", *steps], rows)


lesson.table("4_diffaugment", of_cars)

# %% [markdown]
# **Other cures, at a hundred images.** R1 with γ = 1 and without $T$, and ADA's adaptive rule. Of every $n$ images
# shown, ADA looks whether D accepts too many of its training images, and moves the probability $P$ of each operation:
#
# $$P \leftarrow \mathrm{clip}\Bigl(P + \mathrm{sign}\bigl(\mathrm E\,\mathrm{sign}\,D(T(x)) - 0.6\bigr)\,\tfrac nS,\ 0,\ 1\Bigr). \tag{8}$$
#
# $S$ is 500,000 images as released, and 10,000 here, as the runs are short. No cure lowers the FID significantly after
# 1,350 steps:


# %%
def cures(index):
    """FID and AUC of GANs of a hundred images: differences from no T, over paired seeds."""
    by_arm = index.by_arm(study.GREYS[0])
    rows, lower = ["| A − plain GAN | n | log₂ of FID | AUC on plain images |", "|---|---|---|---|"], []
    for name, found in list(by_arm.items())[1:]:
        fids = stats.summary(stats.gains(found, by_arm[study.BASELINE], study._log_fid))
        aucs = stats.summary(stats.gains(found, by_arm[study.BASELINE], lambda run: run.metrics["auc"]))
        rows.append(f"| {study.short(name)} | {fids.n} | {fids.text('+.2f')} | {aucs.text('+.2f')} |")
        lower.append(fids.side < 0)
    assert not any(lower)
    return "\n".join(rows)


lesson.table("4_diffaugment", cures)

# %% [markdown]
# **Between two codes.** A common test is to interpolate. Does a generator that copies jump from one photograph to the
# next? Here it does not, although its copy ratio is .71: smooth interpolation is no proof that nothing was memorised.

# %% tags=["nbval-ignore-output"]
filmed = {name: study.kept(committed("4_diffaugment"))[name][0] for name in (study.BASELINE, study.DIFFAUGMENT)}
assert all(study.largest_step(arrays["between"]) < 0.3 for _, arrays in filmed.values())
assert round(filmed[study.BASELINE][0].metrics["copy_ratio"], 2) == 0.71
lesson.figure("4_diffaugment", "between")

# %% [markdown]
# All GANs at their end:

# %% tags=["nbval-ignore-output"]
lesson.table("4_diffaugment")

# %% [markdown]
# And this lesson's part of the leaderboard, of classifiers:

# %% tags=["nbval-ignore-output"]
lesson.ranked("4_diffaugment")

# %% [markdown]
# ## 8 · Exercises
#
# **1. Another order.** Let contrast act before brightness. What becomes of (4)?
#
# <details><summary>Solution</summary>
#
# Nothing: brightness shifts both means with the image, and the other two operations keep them. All three commute.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
x, (b, s, c) = at.detach(), (draw[:, None, None, None] for draw in (b, s, c))
swapped = c * (x - x.mean((1, 2, 3), keepdim=True)) + x.mean((1, 2, 3), keepdim=True)
swapped = s * (swapped - swapped.mean(1, keepdim=True)) + swapped.mean(1, keepdim=True) + b
print("the other order gives the same:", torch.allclose(swapped, one))
assert torch.allclose(swapped, one)

# %% [markdown]
# **2. How fast is ADA?** Which share of accepted images is a mean sign of 0.6? How many images does $P$ need from 0 to
# 1?
#
# <details><summary>Solution</summary>
#
# 80%, as $0.8 - 0.2 = 0.6$. It needs $S$ images, if D accepts more than 80% all the way.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
probability, count = torch.tensor(0.0), 0
while float(probability) < 1:
    probability = diffaugment.ada_step(probability, torch.cat([torch.ones(9), -torch.ones(1)]), images=128)
    count += 128
print(f"from 0 to 1 in {count:,} images")
assert 500_000 <= count < 500_000 + 128
assert diffaugment.ada_step(0.5, torch.cat([torch.ones(79), -torch.ones(21)]), 128) < 0.5

# %% [markdown]
# **3. A half-turn.** Let $T$ turn an image by 180° with probability $r$. For which $r$ is $T$ invertible? What may G
# draw if it is not?
#
# <details><summary>Solution</summary>
#
# On a pair (image, turned image) the eigenvalues are 1 and $1 - 2r$. At $r = \frac12$ the matrix is singular, and G may
# draw upright and turned images in any proportion. At $r = 1$ it is invertible.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
for r in (0.2, 0.5, 1.0):
    turn = torch.tensor([[1 - r, r], [r, 1 - r]], dtype=f64)
    print(f"r = {r}: eigenvalues {rounded(torch.linalg.eigvalsh(turn))}")
    assert abs(torch.linalg.eigvalsh(turn).min() - (1 - 2 * r)) < 1e-12
