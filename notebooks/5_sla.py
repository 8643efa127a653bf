# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 · SLA: the turn of an image as a part of its label
#
# Hankook Lee, Sung Ju Hwang, Jinwoo Shin, *Self-supervised Label Augmentation via Input Transformations*, ICML 2020
# ([PMLR 119](https://proceedings.mlr.press/v119/lee20c.html), open access;
# [arXiv:1910.05872](https://arxiv.org/abs/1910.05872)). [Their code](https://github.com/hankook/SLA).

# %% tags=["nbval-ignore-output"]
from companion import lesson

lesson.figure("5_sla", "digits")

# %% [markdown]
# **Left: a six and a nine of MNIST in four views, and what two small networks say that each view shows. Right: the
# accuracy on all sixes and nines, by four ways of training.** All but cross-entropy were trained on the views. The
# aggregate SLA+AG answers from four views, the others from one.
#
# Data augmentation (DA) asks a network to give all views of an image the same class. For a six turned by 180° this is
# a wrong thing to ask. SLA, *self-supervised label augmentation*, does not ask it. *Six, turned by 180°* becomes a
# label of its own, one of $C \cdot M$ labels for $C$ classes and $M$ transformations. At test time the turn is known,
# and the answers of all $M$ views are put together.
#
# **In one sentence:** joint labels soften a wrong invariance; whether they also beat plain training depends on the
# data and on the length of training.
#
# The paper reports these test accuracies, in percent. We could not open its tables where this was written: the
# numbers are **from memory and not verified**, so look them up before you cite them.

# %% jupyter={"source_hidden": true} tags=["nbval-ignore-output"]
import re

from companion.studies import sla as study


def reported(index):
    """What the paper reports, as far as we remember."""
    lines = [[s.split(",")[0], *re.findall(r"\d\d\.\d\d", numbers)] for s, numbers, _ in study.PAPER]
    head = ["ResNet-32, 80,000 steps", "cross-entropy", "DA", "MT", "SLA, one view", "SLA+SD", "SLA+AG"]
    assert all(len(line) == len(head) for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


lesson.table("5_sla", reported)

# %% [markdown]
# MT is multi-task training: a second head names the turn. SD is self-distillation, which needs one view at test time.
# AG is the aggregate of all four. So DA and MT lose to cross-entropy, and SLA wins. All but cross-entropy take four
# passes through the network for each image in training; the table gives cross-entropy one. We shall give it four.
#
# At the end of this lesson you can
#
# - decide whether turned classes can still be separated by lines, and draw the borders;
# - write the three losses, and name the constraint that turns SLA into multi-task training;
# - say what an average of logits is an average *of*, and how one head learns it;
# - write the method in thirty lines, and name the baseline that it has to beat.
#
# | minutes | section | | minutes | section |
# |---|---|---|---|---|
# | 0–4 | this page | | 27–31 | 5 · self-distillation |
# | 4–7 | 1 · where it acts | | 31–34 | 6 · the method in thirty lines |
# | 7–14 | 2 · can turned classes be separated? | | 34–41 | 7 · training, and what came out |
# | 14–21 | 3 · three losses, one constraint | | 41–45 | 8 · future work and questions |
# | 21–27 | 4 · the aggregate | | | |
#
# **You need** softmax, cross-entropy, the Kullback–Leibler divergence (KL) and a training step in PyTorch. The other
# lessons are not needed. Notation, errata and further experiments are in the [appendix](appendix/5_sla_more.ipynb).
# Quotes in blocks are from *the source*, a Chinese reading note on the paper, with our English.
#
# <details><summary>For the lecturer</summary>
#
# Clear all outputs before the class, so that predictions are predictions. The live training of section 7 takes about
# 20 seconds on two cores: start it, then ask. If time is short, leave out the pixels of section 2 and the second
# derivation of section 5. Expected answers: neither world can be separated by class after turning. The aggregate
# follows the one dissenting view. The title of the live figure says what is best. Discuss question 1 in class.
#
# </details>
#
# The next two cells hold the settings and the imports. The code of pictures is folded; click on the bar to open it.

# %% tags=["parameters"]
profile = "quick"  # "quick" trains the live runs of section 7; "cpu" and "paper" also add missing records (hours)
dataset = "fashion-mini"  # the 10,000 images of Fashion-MNIST inside the package; or cifar10, mnist, ...
train_size = 500  # training images of the live runs
transforms = "rotation"  # a set of semaug.methods.sla.TRANSFORMS; those of colours need colour images
epochs = 5  # of the live runs
seeds = 3  # paired runs of each method
first_seed = 0  # of them
temperature = 1.0  # T of self-distillation
device = "auto"  # "cpu", "cuda", or whichever there is

# %%
lesson.parameters("5_sla")

import copy
import functools
import math
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linprog
from torch.nn import functional as F

from companion import plots, runs, stats
from companion.lesson import least, rounded, seeded
from companion.records import committed, pictures
from semaug import Recipe, Step, fit, load, resolve_device
from semaug.measures.few_shot import linear_classifier
from semaug.measures.separability import separability
from semaug.methods import sla

show = functools.partial(lesson.show, "5_sla")  # keeps a picture and shows it
SEEDS = range(first_seed, first_seed + seeds)
f64 = torch.float64

# %% [markdown]
# ## 1 · Where it acts (4–7 min)
#
# At two of the five places: images are turned, and the turn enters the label. Augmentation as usual acts on pixels
# alone.

# %%
show(plots.where_it_acts("pixels", "labels"), "where")

# %% [markdown]
# A network $f$ sees image $x$ of class $y$ through $M$ transformations $t_j$, of which $t_0$ is the identity. Its
# features are $z_j = f(t_j(x))$. Three heads can be put on them.

# %% jupyter={"source_hidden": true}
KINDS = {
    "data augmentation (DA)": [("$u$", "class $y$", "C rows", plots.BLUE)],
    "multi-task (MT)": [("$u$", "class $y$", "C rows", plots.GREEN), ("$v$", "turn $j$", "M rows", plots.GREEN)],
    "joint labels (SLA)": [("$w$", "pair $(y, j)$", "C·M rows", plots.RED)],
}


@plots.styled
def figure_kinds():
    figure = plots.Picture(figsize=(7.5, 3.0))
    for axes, (name, heads) in zip(figure.subplots(1, 3), KINDS.items(), strict=True):
        axes.set(xlim=(0, 12), ylim=(0, 12), title=name)
        axes.axis("off")
        plots.draw_box(axes, (6, 1.2), (7, 1.9), "view $t_j(x)$", "#555555", "white")
        plots.draw_arrow(axes, (6, 2.2), (6, 3.9), "#555555")
        plots.draw_box(axes, (6, 4.9), (7, 1.9), "features $z_j$", "#555555", "white")
        for at, (head, label, size, colour) in zip((6,) if len(heads) == 1 else (3, 9), heads, strict=True):
            plots.draw_arrow(axes, (6, 5.9), (at, 8.4), colour)
            axes.text(at + (0.5 if at >= 6 else -0.4), 7.4, head, ha="left" if at >= 6 else "right", color=colour)
            plots.draw_box(axes, (at, 9.7), (5.6, 2.6), f"{label}\n{size}", colour, "white")
    plots.headline(figure, "Ignore the turn, name it beside the class, or name both in one label")
    return figure


show(figure_kinds(), "kinds")

# %% [markdown]
# The views of this lesson are quarter turns, as in the paper's main experiments. Pixels move and none is computed, so
# turning by $t_j$ and then by $t_k$ is exactly a turn by $t_{j+k}$, counted modulo 4.

# %%
images = load(dataset, validation=0.1, train_size=train_size)
C, M = images.num_classes, len(sla.TRANSFORMS[transforms])
x, y = images.train.floats(slice(0, 60)).double(), images.train.target[:60]
turn = sla.TRANSFORMS["rotation"]
agree = [torch.equal(turn[j](turn[k](x)), turn[(j + k) % 4](x)) for j in range(4) for k in range(4)]
print(f"C = {C}, M = {M}, joint labels {C * M}; turns compose as predicted in {sum(agree)} of {len(agree)} pairs")
assert all(agree)

# %% jupyter={"source_hidden": true}
first = [int((images.test.target == c).nonzero()[0]) for c in range(min(C, 9)) if c not in (2, 3, 4)]
tiles = sla.views(images.test.floats(first), transforms).transpose(0, 1)
degrees = ["0°", "90°", "180°", "270°"] if transforms == "rotation" else [f"view {j}" for j in range(M)]
show(
    plots.sheet(tiles, degrees, [images.classes[c].split("/")[0] for c in images.test.target[first].tolist()]), "views"
)

# %% [markdown]
# Every garment hangs upright in the data, so a turned one is not a garment as it comes. A bag or a shirt on its side
# can be taken for something else.
#
# ## 2 · Can turned classes be separated? (7–14 min)
#
# > 线性可分的数据经过某些数据增强手段之后可能不再线性可分 ·
# > *Linearly separable data may no longer be linearly separable after some data augmentations.*
#
# (The source prints 不在 for 不再.) This can be *decided*. Classes are linearly separable if weights $W$, $b$ exist
# with $(w_{y_n} - w_k)^\top x_n + b_{y_n} - b_k \ge 1$ for every sample $n$ and every other class $k$. That is a linear
# program, and it has a solution or it has none.


# %%
def separable(x, y):
    """Whether some linear classifier is right on all points x (N, A)."""
    classes, rows = int(y.max()) + 1, []
    for point, label in zip(x, y.tolist(), strict=True):
        for rival in set(range(classes)) - {label}:
            row = torch.zeros(classes, x.shape[1] + 1, dtype=f64)
            row[rival], row[label] = F.pad(point, (0, 1), value=1.0), -F.pad(point, (0, 1), value=1.0)
            rows.append(row.flatten())
    constraints = torch.stack(rows).numpy()
    solved = linprog(np.zeros(constraints.shape[1]), constraints, -np.ones(len(constraints)), bounds=(None, None))
    assert solved.status in (0, 2)  # solved, or shown to have no solution
    return solved.status == 0


# %% [markdown]
# Take two worlds in the plane. Class 0 is a small cloud in the east. In the first world class 1 lies north-east, in
# the second one west. The transformations are the quarter turns of the plane.
#
# **Predict, then run.** A line separates the two clouds in both worlds. After turning, can lines separate the views by
# class? And by joint label, eight of them? Write down four answers.


# %%
def clouds(*angles, n=12):
    """A cloud on the unit circle for each class, and all its quarter turns: points (N, 4, 2), classes (N,)."""
    generator = seeded(0)
    angle = torch.tensor(angles, dtype=f64).deg2rad().repeat_interleave(n)
    points = torch.stack([angle.cos(), angle.sin()], 1) + 0.08 * torch.randn(n * len(angles), 2, generator=generator)
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=f64)
    turned = [points @ torch.matrix_power(quarter, j).T for j in range(4)]
    return torch.stack(turned, 1), torch.arange(len(angles)).repeat_interleave(n)


# %%
worlds, answers, borders = {"first world": clouds(0, 45), "second world": clouds(0, 180)}, {}, {}
for name, (turned, label) in worlds.items():
    forms = {
        "as they are": (turned[:, 0], label),
        "turned, by class": (turned.flatten(0, 1), label.repeat_interleave(4)),
        "turned, joint labels": (turned.flatten(0, 1), sla.joint_labels(label, 4).flatten()),
    }
    for form, (points, labels) in forms.items():
        answers[name, form] = separable(points, labels)
        loss = lambda w, b, x=points, y=labels: F.cross_entropy(x @ w.T + b, y) + 1e-4 * w.square().sum()  # noqa: E731
        borders[name, form] = least(loss, (int(labels.max()) + 1, 2), (int(labels.max()) + 1,))

# %% [markdown]
# The next cell draws the worlds with the regions of a fitted linear classifier: blue for class 0, red for class 1. It
# is hidden until you run it.


# %% jupyter={"source_hidden": true}
@plots.styled
def figure_worlds():
    figure = plots.Picture(figsize=(7.5, 5.4))
    grid = torch.cartesian_prod(*[torch.linspace(-1.8, 1.8, 241, dtype=f64)] * 2)
    side = torch.linspace(-1.8, 1.8, 241)
    for axes, ((name, form), (w, b)) in zip(figure.subplots(2, 3).flat, borders.items(), strict=True):
        (turned, label), many = worlds[name], len(w) == 8
        region = (grid @ w.T + b).argmax(1).view(241, 241).T
        axes.contourf(side, side, region // 4 if many else region, (-0.5, 0.5, 1.5), colors=("#B9D2EC", "#F8C9D0"))
        for border in range(len(w)):
            axes.contour(side, side, region == border, (0.5,), colors="black", linewidths=0.7)
        for c, colour in enumerate((plots.BLUE, plots.RED)):
            for j in range(1 if form == "as they are" else 4):
                points = turned[label == c, j]
                axes.plot(*points.T, "o" if c == 0 else "x", color=colour, markersize=3)
                if many:
                    place = (1.5 if c == 0 or name == "first world" else 0.58) * points.mean(0)
                    axes.text(*place, f"{c}, {90 * j}°", ha="center", va="center", fontsize=7.5, color=colour)
        axes.set(aspect="equal", xticks=[], yticks=[], title=f"{form}: {'yes' if answers[name, form] else 'no'}")
        axes.set_ylabel(name if form == "as they are" else "")
    plots.headline(figure, "After turning, lines separate joint labels in the first world, and classes in neither")
    return figure


# %% jupyter={"outputs_hidden": true, "source_hidden": true}
for (name, form), answer in answers.items():
    print(f"{name:12s} {form:20s} separable by lines: {answer}")
assert list(answers.values()) == [True, False, True, True, False, False]
show(figure_worlds(), "worlds")

# %% [markdown]
# In the first world the eight clouds alternate around the circle. No line splits them by class, though a curve would:
# the fitted classifier gives up and calls every place class 0.
# The joint labels get a sector each. In the second world class 0 turned by 180° *is* class 1, like the six and the
# nine: no classifier of any kind can separate the views, by class or by joint label.
#
# SLA does not have to. At test time the turn is known, and we read only the joint logits of that turn. We predict an
# accuracy of 1 for the upright points by joint labels, and about one half by class.

# %%
for name, (turned, label) in worlds.items():
    (u, b), (w, c) = borders[name, "turned, by class"], borders[name, "turned, joint labels"]
    by_class = ((turned[:, 0] @ u.T + b).argmax(1) == label).double().mean()
    by_joint = ((turned[:, 0] @ w.T + c)[:, ::4].argmax(1) == label).double().mean()
    print(f"{name}: accuracy on upright points, by class {by_class:.2f}, by joint labels given the turn {by_joint:.2f}")
    assert by_joint == 1
    assert by_class < 0.8

# %% [markdown]
# **On real images** we train a linear classifier of pixels in closed form (a ridge regression). And we ask before any
# training how different the views are. *Separability* is the accuracy of a linear classifier that names the turn of
# unseen images, within each class. Within each class, because a six and a nine together look alike in all turns.

# %%
V, V_test = (sla.rotations(split.floats(slice(None))).flatten(2).double() for split in (images.train, images.test))
label, label_test = images.train.target, images.test.target
trained_on = {
    "upright images": (V[:, 0], label, 1),
    "views, by class": (V.flatten(0, 1), label.repeat_interleave(4), 1),
    "views, joint labels": (V.flatten(0, 1), sla.joint_labels(label, 4).flatten(), 4),
}
shares = {}
for name, (pixels, labels, stride) in trained_on.items():
    weight, bias = linear_classifier(pixels, labels, stride * C)
    called = (V_test[:, 0] @ weight.T + bias)[:, ::stride].argmax(1)
    shares[name] = 100 * (called == label_test).double().mean().item()
upright = {}
for name, split in {dataset: images.train, "shapes": load("shapes", train_size=400).train}.items():
    tiles = F.avg_pool2d(sla.rotations(split.floats(slice(0, 400))).flatten(0, 1), 2)
    seen = tiles.flatten(1).unflatten(0, (-1, 4))
    upright[name] = separability(seen, seeded(1), target=split.target[:400])
    print(f"turns of {name} are named in {upright[name]:.0%} of cases, by chance in 25%")


# %% jupyter={"source_hidden": true}
@plots.styled
def figure_pixels():
    figure = plots.Picture(figsize=(7.5, 2.7))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for axes, values, colours in (
        (left, shares, ("black", plots.BLUE, plots.RED)),
        (right, {name: 100 * value for name, value in upright.items()}, (plots.GREY, plots.GREY)),
    ):
        axes.barh(range(len(values)), list(values.values()), 0.6, color=colours)
        axes.set_yticks(range(len(values)), list(values))
        axes.set(xlim=(0, 100), ylim=(len(values) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")
    left.set(xlabel="accuracy on upright test images (%)", title="a linear classifier of pixels")
    right.axvline(25, color="black", linestyle="--")
    right.set(xlabel="turn named (%)", title="separability (dashed: chance)")
    names = list(shares)
    lost = [shares[names[0]] - shares[name] for name in names[1:]]
    plots.headline(figure, f"On pixels, views by class cost {lost[0]:.0f} points and joint labels {lost[1]:.0f}")
    return figure


if dataset == "fashion-mini":
    assert shares["views, by class"] < shares["views, joint labels"] < shares["upright images"]
    assert upright["fashion-mini"] > 0.6 > 0.4 > upright["shapes"]
show(figure_pixels(), "pixels")

# %% [markdown]
# The turns of clothing are seen at once, so an invariance forces the classifier to forget something it sees. The
# package's generated *shapes* were drawn at random angles: a turned shape is a shape as it comes. There DA asks for
# something true, and a label of the turn has nothing to learn. That is a prediction; section 7 compares it with
# trained networks.
#
# ## 3 · Three losses, one constraint (14–21 min)
#
# > 学习一个关于**原始标签和自监督标签联合分布**统一的任务，而不是先前工作中的两个独立的任务 ·
# > *Learn one unified task, the joint distribution of original and self-supervised labels, in place of two tasks.*
#
# CE is the cross-entropy of a softmax. The heads are $u$ ($C$ rows), $v$ ($M$ rows) and $w$ ($CM$ rows); biases are
# left out:
#
# $$\mathcal L_{DA} = \frac1M \sum_j \mathrm{CE}(u z_j, y), \tag{1}$$
# $$\mathcal L_{MT} = \frac1M \sum_j \big[\mathrm{CE}(u z_j, y) + \mathrm{CE}(v z_j, j)\big], \tag{2}$$
# $$\mathcal L_{SLA} = \frac1M \sum_j \mathrm{CE}\big(w z_j, (y, j)\big). \tag{3}$$
#
# The source forgets the brackets of (2), and so ends the mean after its first term. The pair $(i, j)$ has the number
# $iM + j$. We compute all three for sixty images, with random features of length 12 and random heads.

# %%
A, generator = 12, seeded(2)
body = torch.randn(A, x[0].numel(), generator=generator, dtype=f64) / 28
z = (sla.rotations(x).flatten(2) @ body.T).tanh()  # (N, M, A)
u, v, w = (torch.randn(rows, A, generator=generator, dtype=f64) for rows in (C, 4, 4 * C))
of_class, of_turn = y[:, None].expand(60, 4), torch.arange(4).expand(60, 4)


def ce(logits, labels):
    """The mean cross-entropy of logits (N, M, labels)."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


L_DA = ce(z @ u.T, of_class)  # (1)
L_MT = ce(z @ u.T, of_class) + ce(z @ v.T, of_turn)  # (2)
L_SLA = ce(z @ w.T, 4 * of_class + of_turn)  # (3)
print(f"DA {L_DA:.4f}, MT {L_MT:.4f}, SLA {L_SLA:.4f}; SLA by the package {sla.sla_loss(z @ w.T, y):.4f}")
assert torch.allclose(L_SLA, sla.sla_loss(z @ w.T, y), rtol=1e-12)

# %% [markdown]
# > $\mathcal{L}_{MT}$ 和 $\mathcal{L}_{SLA}$ 考虑同一组标签，但前者需要考虑额外的约束 ·
# > *MT and SLA consider the same set of labels, but the former has to meet an additional constraint.*
#
# Which one? Put $w_{ij} = u_i + v_j$ into the joint softmax $\rho_{ij}$. The exponential of a sum is a product, and the
# sum over all pairs is a product of two sums:
#
# $$\rho_{ij}(z) = \frac{e^{u_i^\top z + v_j^\top z}}{\sum_{k,l} e^{u_k^\top z + v_l^\top z}}
#   = \frac{e^{u_i^\top z}}{\sum_k e^{u_k^\top z}} \cdot \frac{e^{v_j^\top z}}{\sum_l e^{v_l^\top z}}
#   = P(i \mid z)\, P(j \mid z). \tag{4}$$
#
# So **MT is SLA whose joint weights are sums**, with the same loss for every sample. Given the features, MT treats
# class and turn as independent. We predict a difference of zero. Of $CM$ rows of $w$, the constraint leaves
# $C + M - 1$ free.

# %%
sums = (u[:, None] + v[None]).flatten(0, 1)  # w_ij = u_i + v_j, row i M + j
difference = abs(sla.sla_loss(z @ sums.T, y) - L_MT).item()
to_joint = torch.cat([torch.eye(C).repeat_interleave(4, 0), torch.eye(4).repeat(C, 1)], 1)  # from (u, v) to w
free = int(torch.linalg.matrix_rank(to_joint))
print("SLA under the constraint equals MT to 1e-12:", difference < 1e-12)
print(f"predicted free rows {C + 4 - 1}, found {free} of {4 * C}")
assert difference < 1e-12
assert free == C + 4 - 1

# %% [markdown]
# What can MT not say? Take two images, a perfect six and a perfect nine, and half turns only. The upright six and the
# turned nine are the same view. The truth is: *six and upright, or nine and turned*. That ties class and turn together,
# which a product cannot do. Both of its answers have probability ½, so the best joint loss is $\log 2$. For the
# product it is $2\log 2$: MT knows neither class nor turn. We fit both.

# %%
shape = torch.eye(2, dtype=f64)  # two views that differ: one looks like a six, one like a nine
what, turned = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])  # six, six turned, nine, nine turned
look = shape[[0, 1, 1, 0]]
(joint,) = least(lambda w: F.cross_entropy(look @ w.T, 2 * what + turned), (4, 2))
two = least(lambda u, v: F.cross_entropy(look @ u.T, what) + F.cross_entropy(look @ v.T, turned), (2, 2), (2, 2))
as_sums = (two[0][:, None] + two[1]).flatten(0, 1)
tables = {name: (shape[0] @ rows.T).softmax(0).view(2, 2) for name, rows in (("SLA", joint), ("MT", as_sums))}
losses = {name: F.cross_entropy(look @ rows.T, 2 * what + turned) for name, rows in (("SLA", joint), ("MT", as_sums))}
print(f"predicted {math.log(2):.3f} and {2 * math.log(2):.3f}; fitted SLA {losses['SLA']:.3f}, MT {losses['MT']:.3f}")
assert abs(losses["SLA"] - math.log(2)) < 1e-3
assert abs(losses["MT"] - 2 * math.log(2)) < 1e-3


# %% jupyter={"source_hidden": true}
@plots.styled
def figure_tables():
    figure = plots.Picture(figsize=(7.2, 2.9))
    for axes, (name, table) in zip(figure.subplots(1, 2), tables.items(), strict=True):
        axes.imshow(table, vmin=0, vmax=0.6, cmap="Blues")
        for i, j in np.ndindex(2, 2):
            axes.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", weight="bold")
        axes.set_xticks(range(2), ["upright", "turned"])
        axes.set_yticks(range(2), ["six", "nine"])
        axes.set_title(f"{name}: P(six | upright) = {table[0, 0] / table[:, 0].sum():.2f}")
        axes.grid(visible=False)
    plots.headline(figure, "Only a joint label can say “an upright six or a turned nine”")
    return figure


show(figure_tables(), "tables")

# %% [markdown]
# A deep network may put the tie of class and turn into its features, but here the two views are the same, and no
# feature can help.
#
# > 因此前者要比后者更难优化 · *and so the former is harder to optimise than the latter.*
#
# That does not follow. A constraint raises the minimum that can be reached, or leaves it. It says nothing about the
# speed. To look at training, split the loss by the definition of a conditional probability:
#
# $$-\log \rho_{yj}(z_j) = \underbrace{-\log P(j \mid z_j)}_{\text{which turn}}
#   \;\underbrace{-\log P(y \mid z_j, j)}_{\text{which class, the turn known}}. \tag{5}$$
#
# For MT the last term is $\mathrm{CE}(u z_j, y)$, because of (4). So the *class loss* means the same for DA, MT and
# SLA, and the package logs it for all three. The appendix compares it in the records: MT's losses are not higher as a
# rule.

# %%
log_rho = (z @ w.T).log_softmax(-1).unflatten(-1, (C, 4))
own = log_rho[:, torch.arange(4), :, torch.arange(4)].transpose(0, 1)  # of view j the column j, (N, M, C)
which_turn, which_class = -own.logsumexp(-1), -own.log_softmax(-1)[torch.arange(60), :, y]
print(f"which turn {which_turn.mean():.4f} + which class {which_class.mean():.4f}; predicted sum {L_SLA:.4f}")
assert torch.allclose((which_turn + which_class).mean(), L_SLA, rtol=1e-12)

# %% [markdown]
# ## 4 · The aggregate (21–27 min)
#
# > 因为我们已经知道他被施加了哪种转换，所以我们不必考虑所有的N*M个样本 ·
# > *Since we know which transformation was applied, we need not consider all N\*M samples.*
#
# (Not samples: $N \cdot M$ *labels*, where the source writes $N$ for $C$.) We turned the image ourselves, so $j$ is
# known. The softmax over one column is left:
#
# $$P(i \mid t_j(x), j) = \frac{\rho_{ij}}{\sum_k \rho_{kj}} = \frac{e^{w_{ij}^\top z_j}}{\sum_k e^{w_{kj}^\top z_j}}. \tag{6}$$
#
# > 我们首先对logits进行平均，再计算softmax的概率 · *first we average the logits, then we compute the softmax.*
#
# $$P_{agg}(i \mid x) \propto e^{s_i}, \qquad s_i = \frac1M \sum_j w_{ij}^\top z_j. \tag{7}$$
#
# Nothing is trained for this. The source speaks of training a model to aggregate.
#
# **Fill in (2 min).** Replace `None` by one or two lines that compute $s$ of (7). Of view $j$ you need the logits
# $j, M + j, 2M + j, \dots$


# %%
def your_aggregate(joint_logits, M):
    """s of (7), (N, C), from the joint logits of all views (N, M, C * M)."""
    return None  # your line, such as torch.stack([... for j in range(M)]).mean(0)


s = sla.aggregate(z @ w.T)
yours = your_aggregate(z @ w.T, 4)
print("not yet" if yours is None else "right" if torch.allclose(yours, s) else "another value")

# %% [markdown]
# <details><summary>Solution</summary>
#
# `torch.stack([joint_logits[:, j, j::M] for j in range(M)]).mean(0)`. The slice `j::M` is the column of turn $j$.
#
# </details>
#
# What is an average of logits an average *of*? Each logit is $\log P(i \mid t_j(x), j)$ and a number that does not
# depend on $i$. So
#
# $$P_{agg}(i \mid x) = \frac{\prod_j P(i \mid t_j(x), j)^{1/M}}{\sum_k \prod_j P(k \mid t_j(x), j)^{1/M}}, \tag{8}$$
#
# the *geometric* mean of the four answers, normalised again. We predict equality with (7).

# %%
solution = torch.stack([(z @ w.T)[:, j, j::4] for j in range(4)]).mean(0)
each = own.softmax(-1)  # (6), since own is the logarithm of ρ
geometric = each.log().mean(1).exp()
geometric = geometric / geometric.sum(1, keepdim=True)
print("first image, by (7):", rounded(s.softmax(1)[0, :4], 3), "  by (8):", rounded(geometric[0, :4], 3))
assert torch.allclose(solution, s, rtol=1e-12)
assert torch.allclose(s.softmax(1), geometric, rtol=1e-10)

# %% [markdown]
# **Predict, then run.** Of two classes, three views give class 0 a probability of 0.9. How small must the fourth
# view's be before the aggregate turns to class 1? Below what value does the *arithmetic* mean of the four turn?


# %% jupyter={"source_hidden": true}
@plots.styled
def figure_veto():
    figure = plots.Picture(figsize=(7.2, 3.1))
    axes = figure.add_subplot(
        xscale="log", xlabel="probability of class 0 by the fourth view", ylabel="probability of class 0"
    )
    fourth = torch.logspace(-6, -0.05, 200, dtype=f64)
    votes = torch.stack([torch.full_like(fourth, 0.9)] * 3 + [fourth])
    axes.plot(fourth, votes.logit().mean(0).sigmoid(), color=plots.RED, label="geometric mean, as in SLA")
    axes.plot(fourth, votes.mean(0), color=plots.GREY, linestyle="--", label="arithmetic mean")
    axes.axhline(0.5, color="black", linewidth=0.8)
    axes.plot(turning, 0.5, "o", color=plots.RED)
    axes.set_ylim(0, 1)
    axes.legend(loc="lower right")
    plots.headline(figure, f"Below {turning:.4f} one view overrules three; an arithmetic mean never turns")
    return figure


# %% jupyter={"outputs_hidden": true, "source_hidden": true}
turning = 1 / (1 + 9**3)  # the four logits add up to 0: 3 log 9 and -3 log 9
votes = torch.tensor([0.9, 0.9, 0.9, turning], dtype=f64)
print(f"turning point {turning:.5f}, there the aggregate is {votes.logit().mean().sigmoid():.3f}")
print(f"smallest arithmetic mean {3 * 0.9 / 4:.3f}")
assert abs(votes.logit().mean().sigmoid() - 0.5) < 1e-12
show(figure_veto(), "veto")

# %% [markdown]
# A geometric mean lets one confident view veto the others. Here are four answers of a trained network: the joint head
# of SLA, 300 steps on 2,000 images of clothing, on the first test shirt that it gets wrong upright and right together.
# The views come one after the other. Grey is the answer of the newest view, red the aggregate so far.

# %% jupyter={"source_hidden": true}
shirts = pictures("5_sla", committed("5_sla").of(study.CLOTHING, "SLA")[0])
answer, together = torch.from_numpy(shirts["each"]).double(), torch.from_numpy(shirts["together"]).double()
right = (together.argmax(1) == 6) & (answer[:, 0].argmax(1) != 6)
shirt = int(right.nonzero()[0]) if right.any() else 0
so_far = torch.stack([answer[shirt, : k + 1].log().mean(0).softmax(0) for k in range(4)])
assert torch.allclose(so_far[3], together[shirt], atol=1e-4)  # (8)
garments = [name.split("/")[0] for name in load("fashion-mini", train_size=100).classes]

# %% [markdown]
# The frames show the tiles on the left and the answers on the right.


# %% jupyter={"source_hidden": true}
def frames():
    figure = plots.Picture(figsize=(7.2, 3.6))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    for k in (3, 0, 1, 2, 3, 3):  # the first is for print
        left.clear(), right.clear()
        seen = np.full((2, 2, 30, 30), 255, np.uint8)
        seen.reshape(4, 30, 30)[: k + 1, 1:29, 1:29] = 255 - shirts["views"][shirt, : k + 1, 0]
        left.imshow(seen.transpose(0, 2, 1, 3).reshape(60, 60), cmap="gray", vmin=0, vmax=255)
        left.set_title(f"a shirt, {k + 1} of 4 views")
        left.axis("off")
        rows = np.arange(len(garments))
        right.barh(rows - 0.2, answer[shirt, k], 0.4, color=plots.GREY, label=f"view {90 * k}° alone")
        right.barh(rows + 0.2, so_far[k], 0.4, color=plots.RED, label="aggregate so far")
        right.set_yticks(rows, garments)
        right.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), title=f"so far: {garments[int(so_far[k].argmax())]}")
        right.legend(loc="lower right")
        yield figure


# %% [markdown]
# Watch the bar of *Shirt*.

# %% jupyter={"source_hidden": true} tags=["nbval-ignore-output"]
lesson.animation("5_sla", frames(), "shirt")

# %%
for k in range(4):
    of_view, of_all = (garments[int(one.argmax())] for one in (answer[shirt, k], so_far[k]))
    print(
        f"view {90 * k:3d}°: {of_view:11s} {answer[shirt, k].max():.2f}   aggregate: {of_all:11s} {so_far[k].max():.2f}"
    )
mended, spoiled = int(right.sum()), int(((together.argmax(1) != 6) & (answer[:, 0].argmax(1) == 6)).sum())
print(f"of {len(answer)} shirts the aggregate mends {mended} answers of the upright view and spoils {spoiled}")
rows = study.rows(committed("5_sla"), study.CLOTHING)
gain = stats.summary(stats.gains(rows["SLA+AG"], rows["SLA, single"]))
print(f"all ten classes, five networks: {gain.text('+.1f')} points by the aggregate")
assert abs(mended - spoiled) < 4
assert gain.side > 0

# %% [markdown]
# On shirts, the hardest class, the aggregate spoils about as many answers as it mends. Over all classes it gains two
# points. It costs $M$ passes through the network. It is an ensemble of $M$ classifiers that share their features,
# and it helps as far as their errors differ. For a linear classifier of pixels all four views give one answer, and it
# gains nothing; the appendix derives why.
#
# ## 5 · Self-distillation (27–31 min)
#
# > 我们将聚合的知识蒸馏到一个新的分类器中，我们仅需要一个 $z=f(x)$ 即可维护聚合知识 ·
# > *We distil the aggregate into a new classifier; one $z = f(x)$ is enough to keep the knowledge.*
#
# A head $u$ of the upright image learns the labels, and the aggregate:
#
# $$\mathcal L_{SD} = \mathcal L_{SLA} + \mathrm{CE}(u z_0, y)
#   + T^2\, \mathrm{KL}\big(\mathrm{softmax}(s / T) \,\|\, \mathrm{softmax}(u z_0 / T)\big). \tag{9}$$
#
# The aggregate is a constant here: no gradient reaches $s$. The source does not say so; the released code does it. The
# paper takes $T = 1$. There a KL differs from a cross-entropy by the teacher's entropy, which $u$ cannot change. With
# the student $\sigma = \mathrm{softmax}(u z_0)$ the gradient of both new terms by the logits of $u$ is
#
# $$(\sigma - \mathbf 1_y) + (\sigma - P_{agg}) = 2\Big(\sigma - \tfrac12\big(\mathbf 1_y + P_{agg}\big)\Big). \tag{10}$$
#
# The student learns **soft labels: half the truth, half the aggregate**. It is label smoothing in which the network
# itself says where the smoothed mass goes. We compare (10) with autograd.

# %%
student = (z[:, 0] @ u.T).requires_grad_()
loss = F.cross_entropy(student, y) + sla.distillation_loss(student, s, 1.0)
(slope,) = torch.autograd.grad(60 * loss, student)  # the losses are means over 60 images
by_hand = 2 * (student.softmax(1) - 0.5 * (F.one_hot(y, C) + s.softmax(1)))
print("autograd:", rounded(slope[0, :4], 4), "  by (10):", rounded(by_hand[0, :4], 4))
assert torch.allclose(slope, by_hand, rtol=1e-8, atol=1e-12)


# %% jupyter={"source_hidden": true}
@plots.styled
def figure_soft():
    figure = plots.Picture(figsize=(7.2, 2.9))
    truth = F.one_hot(torch.tensor(6), 10).double()
    parts = {"truth": truth, "aggregate": together[shirt], "what the student learns": 0.5 * (truth + together[shirt])}
    colours = ("black", plots.RED, plots.PURPLE)
    for axes, (name, part), colour in zip(figure.subplots(1, 3, sharey=True), parts.items(), colours, strict=True):
        axes.barh(range(10), part, 0.7, color=colour)
        axes.set(xlim=(0, 1), ylim=(9.5, -0.5), title=name)
        axes.set_yticks(range(10), garments, fontsize=8)
        axes.grid(visible=False, axis="y")
    doubt = 100 * (1 - parts["what the student learns"][6])
    plots.headline(figure, f"The label of this shirt, softened: {doubt:.0f}% go to what it looks like")
    return figure


show(figure_soft(), "soft")

# %% [markdown]
# Training still costs $M$ passes, for DA, MT and SLA alike. Only the answer is cheap now: one pass.
#
# ## 6 · The method in thirty lines (31–34 min)
#
# One step of (9): views, features in one pass of $NM$ images, the joint loss, the aggregate, the student.


# %%
def sla_step(network, joint_head, optimizer, images, target, transforms, T):
    """One step of training with SLA+SD; the loss comes back."""
    M = len(transforms)
    views = torch.stack([transform(images) for transform in transforms], 1)  # (N, M, channels, H, W)
    z = network.features(views.flatten(0, 1)).unflatten(0, (len(images), M))  # (N, M, A)

    joint_logits = joint_head(z)  # (N, M, C M)
    labels = target[:, None] * M + torch.arange(M)
    loss = F.cross_entropy(joint_logits.flatten(0, 1), labels.flatten())  # (3)

    columns = [joint_logits[:, j, j::M] for j in range(M)]  # of view j the logits of column j
    s = torch.stack(columns).mean(0).detach()  # (7), the teacher
    student = network.head(z[:, 0])
    loss = loss + F.cross_entropy(student, target)  # (9)
    soft, hard = (s / T).log_softmax(1), (student / T).log_softmax(1)
    loss = loss + T**2 * F.kl_div(hard, soft, reduction="batchmean", log_target=True)

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# %% [markdown]
# The package calls it `SLA` with a temperature. Both take three steps from the same weights on sixty images, in float64
# and at $T = 2$, so that a lost factor would show. We predict equal losses and weights.

# %%
package = runs.build("SLA", "small", images, 0, transforms=transforms, temperature=2.0).double().train()
network, joint_head = copy.deepcopy(package.network), copy.deepcopy(package.joint_head)
plain = torch.optim.SGD([*network.parameters(), *joint_head.parameters()], lr=0.1)
sgd = torch.optim.SGD(package.parameters(), lr=0.1)
for number in range(3):
    ours = sla_step(network, joint_head, plain, x, y, sla.TRANSFORMS[transforms], 2.0)
    theirs, _ = package(x, y, Step(torch.tensor(0.5), 0.1, torch.Generator()))
    sgd.zero_grad()
    theirs.backward()
    sgd.step()
    print(f"step {number}: loss by lines {ours:.4f}, by the package {theirs:.4f}")
lines = [*network.parameters(), *joint_head.parameters()]
for one, two in zip(lines, [*package.network.parameters(), *package.joint_head.parameters()], strict=True):
    assert torch.allclose(one, two, rtol=0, atol=1e-9)

# %% [markdown]
# ## 7 · Training, and what came out (34–41 min)
#
# We train a small network on 500 images for five epochs: with DA, with SLA, and with cross-entropy for four times the
# epochs, so that all three take as many passes. **Predict:** which is best on test images, and which is worst?

# %% tags=["nbval-ignore-output"]
ARMS = {
    f"cross-entropy, {M}x epochs": ("CrossEntropy", {}),
    "DA": ("DataAugmentation", {"transforms": transforms}),
    "SLA": ("SLA", {"transforms": transforms}),
}
recipe = Recipe(epochs=epochs, batch_size=32, lr=0.05, weight_decay=5e-4)
by_arm = {arm: [] for arm in ARMS}
for arm, seed in lesson.counted([(arm, seed) for arm in ARMS for seed in SEEDS]):
    objective, settings = ARMS[arm]
    length = replace(recipe, epochs=(M if objective == "CrossEntropy" else 1) * epochs)
    model = runs.build(objective, "small", images, seed, **settings).to(resolve_device(device))
    by_arm[arm].append(fit(model, images, length, seed=seed, progress=False))
for run in runs.planned(profile, "5_sla") if profile != "quick" else []:
    runs.complete([run], device)
lesson.keep("5_sla", [record for records in by_arm.values() for record in records])

# %% jupyter={"source_hidden": true} tags=["nbval-ignore-output"]
live = study.by_inference(by_arm)
plain = live[f"cross-entropy, {M}x epochs"]
over = {name: stats.gains(rows, plain) for name, rows in live.items() if rows is not plain}
shown = [record for records in by_arm.values() for record in records]
picture = plots.forest({"": {"": over}}, "points over cross-entropy", shown, "", study.colour, study.many)
level = stats.summary(100 * run.metrics["test_accuracy"] for run in plain)
means = {name: np.mean(values) for name, values in over.items()}
best, worst = max(means, key=means.get), min(means, key=means.get)
leader = best if means[best] > 0 else "cross-entropy"
plots.headline(
    picture, f"Cross-entropy {level.mean:.0f}%; best is {leader}, worst {worst if means[worst] < 0 else 'it'}"
)
show(picture, "live")

# %% [markdown]
# The title has the answer of these runs. So short a training says little about the methods: what has more to learn is
# behind. Compare DA with SLA from one view, and one view with four.
#
# **The records.** Each row is a data set with a small network of 78,000 weights, and beside it the steps of training.
# Zero is cross-entropy with four times the epochs. The paper trains for 80,000 steps.

# %% tags=["nbval-ignore-output"]
lesson.figure("5_sla", "accuracy")

# %% [markdown]
# Is it the method or the number of steps? We took 300 digits, few enough to train to the end, and trained once for 90
# steps and once for six times as many. The horizontal axis counts passes, so cross-entropy takes four epochs where SLA
# takes one. Flat lines at the right say that more steps would change little.

# %% tags=["nbval-ignore-output"]
rows = study.rows(committed("5_sla"), study.MANY_STEPS)
gained = stats.gains(rows["SLA+AG"], rows["cross-entropy, 4x epochs"])
assert len(gained) == 3 and min(gained) > 0  # noqa: PT018
assert stats.summary(gained).text("+.1f") == "+3.4 ± 3.5"
lesson.figure("5_sla", "longer_training")

# %% [markdown]
# In numbers, A − B over paired seeds with 95% intervals; *no KL* is (9) without its last term:


# %% jupyter={"source_hidden": true}
PAIRS = (
    ("SLA+AG", "cross-entropy, 4x epochs"),
    ("SLA, single", "DA"),
    ("SLA+AG", "DA, averaged"),
    ("SLA+SD", "SLA+AG"),
    ("SLA+SD", "SLA+SD, no KL"),
)


def compared(index):
    """The differences that decide, a column a study."""
    found = study.blocks(index, methods=("SLA+AG",))
    names = [f"{title.split(',')[0]}, {study.steps(rows['SLA+AG'][0]):,} steps" for title, rows in found.items()]
    lines, sides = [["A − B (points)", *names], ["---"] * (1 + len(names))], {}
    for one, other in PAIRS:
        both = [one in rows and other in rows for rows in found.values()]
        each = [
            stats.summary(stats.gains(rows[one], rows[other])) if there else None
            for there, rows in zip(both, found.values(), strict=True)
        ]
        sides[one, other] = {name: gain.side for name, gain in zip(names, each, strict=True) if gain}
        lines.append([f"{one} − {other}", *(gain.text("+.1f") if gain else "" for gain in each)])
    check(sides)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# %% [markdown]
# The list below the table is checked against it, by the side of zero on which each interval lies.


# %% jupyter={"source_hidden": true}
def check(sides):
    """What the list below says."""
    short = ("fashion-mini, 300 steps", "MNIST, 140 steps", "shapes, 140 steps", "CIFAR-10, 300 steps")
    few = ("MNIST, 90 steps", "MNIST, 540 steps")
    at_equal, views, means, aggregate, teacher = (sides[pair] for pair in PAIRS)
    assert [at_equal[name] for name in short] == [1, -1, 0, -1]
    assert [views[name] for name in short] == [1, 1, -1, 1]
    assert [means[name] for name in short] == [1, 1, -1, 1]
    assert all(aggregate[name] >= 0 for name in short)
    assert set(teacher.values()) == {0}
    assert [at_equal[name] for name in few] == [-1, 0]


# %%
lesson.table("5_sla", compared)

# %% [markdown]
# - **Joint labels against an invariance.** Where turns are seen (clothing, digits, photographs), SLA beats DA from one
#   view and from four. On shapes, where turns are not seen, it loses. That is the prediction of section 2.
# - **Against cross-entropy of equal passes.** SLA+AG wins on clothing. On 300 digits it is far behind after 90 steps.
#   After 540 it is ahead in each of three seeds, by 3.4 ± 3.5 points: not yet significant, but the sign has turned. On
#   1,000 digits and on CIFAR-10, it loses after 140 and 300 steps. The paper's claim needs long training to show.
# - **Distillation.** The student is never significantly below the aggregate of a network without it. But without the
#   KL it is as good: what helps is a second head for the upright image, and the distillation adds nothing that we see.
# - **The aggregate.** The averages of DA and MT gain about as much from four views as SLA does (appendix).
#
# > **Take away.** Joint labels spare a network a wrong invariance; a right invariance should be kept. Compare SLA with
# > cross-entropy of as many passes, and the aggregate with an average over views.
#
# ## 8 · Future work and questions (41–45 min)
#
# The source names three directions.
#
# | direction | what we can say |
# |---|---|
# | revisit earlier uses of self-supervision | wherever a loss has a second head for the turn, a joint label can replace it. [Hou et al. (2021)](https://proceedings.neurips.cc/paper/2021/file/6cb5da3513bd26085ee3fad631ebb37a-Paper.pdf) do so for the discriminator of a GAN |
# | supervised tasks other than few-shot and imbalanced classification | question 2 |
# | learn to choose helpful tasks | two first answers in the appendix: separability before training, and learned weights of the views |
#
# Few-shot learning was not decided here: no study here has enough runs. Long tails are in the appendix.
#
# **1. One view.** What are (1), (2), (3) and (9) for the set `none`, the identity alone? Predict before you open it.
#
# <details><summary>Solution</summary>
#
# (1) to (3) are plain cross-entropy, since $\mathrm{CE}(v z, 0) = 0$ with one turn. (9) has two heads on one image, one
# distilled into the other. Its loss is at least the sum of both cross-entropies, since a KL is never negative.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
at = Step(torch.tensor(0.5), 0.1, torch.Generator())
plain_loss = runs.build("CrossEntropy", "small", images, 0).double()(x, y, at)[0]
for objective in ("DataAugmentation", "MultiTask", "SLA"):
    alone = runs.build(objective, "small", images, 0, transforms="none").double()(x, y, at)[0]
    print(f"{objective:17s} equals cross-entropy: {torch.allclose(alone, plain_loss)}")
    assert torch.allclose(alone, plain_loss)
distilled = runs.build("SLA", "small", images, 0, transforms="none", temperature=1.0).double()
features = distilled.network.features(x)
heads = sum(F.cross_entropy(head(features), y) for head in (distilled.joint_head, distilled.network.head))
print(f"(9): {distilled(x, y, at)[0]:.3f}, both cross-entropies together {heads:.3f}")
assert distilled(x, y, at)[0] > heads

# %% [markdown]
# **2. Other tasks.** (At home.) How would you use joint labels in semantic segmentation, where every pixel has a class?
#
# <details><summary>Solution</summary>
#
# Turn image and label map together, and give each pixel the label (class, turn). At test time read the column of the
# turn, turn the map of logits back, and average. Ask first whether an invariance would be right: in aerial images it
# is, in street scenes it is not.
#
# </details>
#
# **3. Flip, label or invariance?** (At home.) Flip clothing left and right, or invert its brightness. For which would
# you take a joint label? Predict by separability, then say when not to trust it.
#
# <details><summary>Solution</summary>
#
# Most garments are nearly symmetric: their flip is hardly seen. All shoes point one way in these photographs, so their
# flip is seen. By separability a flipped shoe deserves a label. Yet everybody flips, and is right: one may meet a shoe
# that points the other way. Low separability says that a label has nothing to learn. High separability does not say
# that the invariance hurts.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
some, of = images.train.floats(slice(0, 500)), images.train.target[:500]
shoes = torch.tensor([name in ("Sandal", "Sneaker", "Ankle boot") for name in images.classes])[of]
seen = {}
for name, other in {"flip": some.flip(3), "inverted": 1 - some}.items():
    pair = F.avg_pool2d(torch.stack([some, other], 1).flatten(0, 1), 2).view(len(some), 2, -1)
    for which, rows in (("shoes", shoes), ("others", ~shoes)) if shoes.any() else (("all", ~shoes),):
        seen[name, which] = separability(pair[rows], seeded(5), target=of[rows])
        print(f"{name:9s} {which:7s} seen in {seen[name, which]:.0%} of cases, by chance in 50%")
if dataset == "fashion-mini":
    assert seen["flip", "others"] < 0.8 < 0.95 < seen["flip", "shoes"]

# %% [markdown]
# **4. A fair opponent.** (At home.) What has as many passes as SLA+AG in training *and* at test time, and knows nothing
# of turns?
#
# <details><summary>Solution</summary>
#
# Four networks trained by cross-entropy, averaged: an ensemble with four times the weights. Or one network of four
# times the cost. Neither is among our records.
#
# </details>
#
# **Next.** The [appendix](appendix/5_sla_more.ipynb) has what was left out here. [ISDA](1_isda.ipynb) replaces the
# copies of an image by a bound, in one pass.
