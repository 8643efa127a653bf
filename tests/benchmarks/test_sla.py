"""SLA's cost: process CPU time on one thread, the two sides in turn in one run, and the peak of temporary memory.

A step is forward, backward and SGD of ResNet-32 on images of 32 x 32. M views want M passes: what is above M times a
cross-entropy step is the price of the heads, of the views themselves, and of what no longer fits into the cache. Ratios
are of medians; their spread is that of the rounds.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from torch import nn

from benchmarks.test_isda import interleaved, peak_memory, spread
from semaug import networks
from semaug.methods.sla import SLA, DataAugmentation, MultiTask, aggregate, views
from semaug.training.objective import CrossEntropy, Step

STEP = Step(torch.tensor(0.5), 0.1, torch.Generator())
METHODS = {
    "DA": DataAugmentation,
    "MT": MultiTask,
    "SLA": SLA,
    "SLA+SD": lambda network, *rest, **options: SLA(network, *rest, temperature=1.0, **options),
}


def training(objective, n, classes=10):
    torch.manual_seed(0)
    images, target = torch.rand(n, 3, 32, 32), torch.randint(0, classes, (n,))
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.01, momentum=0.9)

    def once():
        optimizer.zero_grad()
        objective(images, target, STEP)[0].backward()
        optimizer.step()

    return once


@pytest.mark.benchmark(group="sla: a step over that of cross-entropy", timer=time.process_time)
@pytest.mark.parametrize(
    ("method", "transforms"),
    [("DA", "rotation"), ("MT", "rotation"), ("SLA", "rotation"), ("SLA+SD", "rotation"), ("SLA+SD", "color_perm")],
)
def test_step_over_cross_entropy(benchmark, method, transforms):
    n = 32
    objective = METHODS[method](networks.resnet(10, 32), transforms)
    ours, theirs = training(objective, n), training(CrossEntropy(networks.resnet(10, 32)), n)
    mine, others = interleaved(benchmark, ours, theirs, 5, 1)
    benchmark.extra_info.update(
        {
            "ResNet-32, N = 32": f"{method}, {transforms}",
            "cross-entropy ms": spread([1e3 * seconds for seconds in others]),
            "step ms": spread([1e3 * seconds for seconds in mine]),
            "over cross-entropy": spread([a / b for a, b in zip(mine, others, strict=True)]),
            "M": objective.M,
        }
    )


@pytest.mark.benchmark(group="sla: one view after the other", timer=time.process_time)
@pytest.mark.parametrize(
    ("method", "transforms", "n"),
    [("MT", "rotation", 32), ("SLA+SD", "rotation", 32), ("SLA+SD", "rotation+color_perm", 16)],
)
def test_accumulated_against_all_at_once(benchmark, method, transforms, n):
    ours, theirs = (
        training(METHODS[method](networks.resnet(10, 32), transforms, accumulate=accumulate), n)
        for accumulate in (True, False)
    )
    mine, others = interleaved(benchmark, ours, theirs, 5, 1)
    benchmark.extra_info.update(
        {
            "ResNet-32": f"{method}, {transforms}, N = {n}",
            "all at once ms": spread([1e3 * seconds for seconds in others]),
            "accumulated ms": spread([1e3 * seconds for seconds in mine]),
            "ratio": spread([a / b for a, b in zip(mine, others, strict=True)]),
            "peak MB": f"{peak_memory(theirs) / 1e6:.3g} -> {peak_memory(ours) / 1e6:.3g}",
        }
    )


@pytest.mark.benchmark(group="sla: aggregation from features", timer=time.process_time)
@pytest.mark.parametrize(("classes", "transforms"), [(10, "rotation"), (100, "rotation"), (100, "rotation+color_perm")])
def test_diagonals_against_all_joint_logits(benchmark, classes, transforms):
    """The heads alone: features are the pixels themselves, 192 of them; 500 images."""

    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = nn.Flatten(), nn.Linear(192, classes)

    objective, images = SLA(Pixels(), transforms), torch.rand(500, 3, 8, 8)
    every = views(images, transforms).flatten(2)

    @torch.no_grad()
    def diagonals():
        return torch.stack([objective.class_logits(every[:, j], j) for j in range(objective.M)]).mean(0)

    @torch.no_grad()
    def joint():
        return aggregate(objective.joint_head(every))

    torch.testing.assert_close(diagonals(), joint(), rtol=1e-4, atol=1e-5)
    mine, others = interleaved(benchmark, diagonals, joint, 30, 5)
    benchmark.extra_info.update(
        {
            "C, A, M": f"{classes}, 192, {objective.M}",
            "all joint logits ms": spread([1e3 * seconds for seconds in others]),
            "diagonals ms": spread([1e3 * seconds for seconds in mine]),
            "all over diagonals": f"{statistics.median(others) / statistics.median(mine):.3g}",
            "peak MB": f"{peak_memory(joint) / 1e6:.3g} -> {peak_memory(diagonals) / 1e6:.3g}",
        }
    )
