"""AutoMix's cost: process CPU time on one thread, the two sides in turn in one run, and the peak of temporary memory.

A step is forward, backward, SGD and the average of ResNet-18 on 16 images of 32 x 32; maps of 8 x 8 are the paper's
stage. In passes, a forward one as 1 and one backwards as 2, a vanilla step costs 3; AutoMix's 3 + 3 of the classifier,
2 of the copy (its parameters take no gradient, so 1 + 1), and the copy's stages that give the maps, about 3/4: 2.9
times as much. What is above that is the block, the mixing and the average. Cheaper schedules leave out passes.
"""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.test_isda import interleaved, peak_memory, spread
from semaug import networks
from semaug.methods.automix import AutoMix, stage_maps
from semaug.methods.mixup import CutMix, ManifoldMixup, MixStyle, Mixup, ResizeMix, SaliencyMix
from semaug.methods.puzzlemix import PuzzleMix
from semaug.training.objective import CrossEntropy, Step

N = 16


def training(objective, n=N):
    """One optimiser step with what follows it, as fit has it."""
    torch.manual_seed(0)
    images, target = torch.rand(n, 3, 32, 32), torch.randint(0, 10, (n,))
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    step = Step(torch.tensor(0.5), 0.01, torch.Generator().manual_seed(0))

    def once():
        optimizer.zero_grad()
        objective(images, target, step)[0].backward()
        optimizer.step()
        with torch.no_grad():
            objective.after_step(step)

    return once


SCHEDULES = {
    "exact": {},
    "maps of 16 x 16": {"stage": 2},
    "block at every 4th step": {"every": 4},
    "no one-hot pass": {"one_hot": False},
    "both": {"every": 4, "one_hot": False},
    "MixUp in the block's place": {"policy": "mixup"},
}


@pytest.mark.benchmark(group="automix: a step over that of cross-entropy", timer=time.process_time)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_step_over_cross_entropy(benchmark, schedule):
    objective = AutoMix(networks.resnet18(10), **SCHEDULES[schedule])
    ours, theirs = training(objective), training(CrossEntropy(networks.resnet18(10)))
    repeat = SCHEDULES[schedule].get("every", 1)
    mine, others = interleaved(benchmark, ours, theirs, 5, repeat)
    benchmark.extra_info.update(
        {
            "ResNet-18, N = 16": schedule,
            "cross-entropy ms": spread([1e3 * seconds for seconds in others]),
            "step ms": spread([1e3 * seconds for seconds in mine]),
            "over cross-entropy": spread([a / b for a, b in zip(mine, others, strict=True)]),
            "peak MB": f"{peak_memory(theirs) / 1e6:.0f} -> {peak_memory(ours) / 1e6:.0f}",
        }
    )


@pytest.mark.benchmark(group="automix: the block", timer=time.process_time)
@pytest.mark.parametrize("stage", [3, 2, 1])
def test_block_over_cross_entropy(benchmark, stage):
    """The block's mask forward and back on maps of 8, 16 and 32 pixels a side, beside a vanilla step of the network."""
    objective = AutoMix(networks.resnet18(10), stage=stage)
    with torch.no_grad():
        maps = stage_maps(objective.network, torch.rand(N, 3, 32, 32), stage)
    partners = torch.arange(N).roll(1)

    def block():
        objective.block(maps, torch.tensor(0.3), partners, (32, 32)).sum().backward()

    mine, others = interleaved(benchmark, block, training(CrossEntropy(networks.resnet18(10))), 5, 1)
    benchmark.extra_info.update(
        {
            "maps": f"{maps.shape[1]} x {maps.shape[2]} x {maps.shape[3]}",
            "block ms": spread([1e3 * seconds for seconds in mine]),
            "share of a vanilla step": spread([a / b for a, b in zip(mine, others, strict=True)]),
            "peak MB": f"{peak_memory(block) / 1e6:.0f}",
        }
    )


@pytest.mark.benchmark(group="mixup: a step over that of cross-entropy", timer=time.process_time)
@pytest.mark.parametrize("method", [Mixup, CutMix, ResizeMix, SaliencyMix, ManifoldMixup, MixStyle, PuzzleMix])
def test_mixing_over_cross_entropy(benchmark, method):
    ours, theirs = training(method(networks.resnet18(10))), training(CrossEntropy(networks.resnet18(10)))
    mine, others = interleaved(benchmark, ours, theirs, 5, 1)
    benchmark.extra_info.update(
        {
            "ResNet-18, N = 16": method.__name__,
            "step ms": spread([1e3 * seconds for seconds in mine]),
            "over cross-entropy": spread([a / b for a, b in zip(mine, others, strict=True)]),
        }
    )
