"""DiffAugment's cost: forward and backward on 64 colour images, against the textbook form with the same draws.

Process CPU time on one thread, the two sides in turn in one run, and the peak of temporary memory. Goals: all three
operations 2 times as fast on images of 32 pixels a side, 3.5 times on 128.
"""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import textbook
from benchmarks.test_isda import interleaved, peak_memory, spread
from semaug.methods.diffaugment import DiffAugment

N = 64


def by_the_book(images, draws, size):
    if draws.brightness is not None:
        images = textbook.color(images, *draws[:3])
    if draws.dy is not None:
        images = textbook.translation(images, *draws[3:5])
    return images if draws.cy is None else textbook.cutout(images, *draws[5:], size)


@pytest.mark.benchmark(group="diffaugment: forward and backward", timer=time.process_time)
@pytest.mark.parametrize(("side", "rounds", "repeat"), [(32, 40, 10), (128, 25, 1)])
@pytest.mark.parametrize("policy", ["color", "translation,cutout", "color,translation,cutout"])
def test_against_the_textbook(benchmark, policy, side, rounds, repeat):
    torch.manual_seed(0)
    images, upstream = torch.rand(N, 3, side, side, requires_grad=True), torch.randn(N, 3, side, side)
    augment = DiffAugment(policy)
    draws = augment.draw(images, torch.Generator().manual_seed(0))

    def step(transform):
        images.grad = None
        transform().backward(upstream)

    def ours():
        step(lambda: augment.apply_draws(images, draws))

    def theirs():
        step(lambda: by_the_book(images, draws, (side // 2, side // 2)))

    with torch.no_grad():
        torch.testing.assert_close(augment.apply_draws(images, draws), by_the_book(images, draws, (side // 2,) * 2))
    mine, others = interleaved(benchmark, ours, theirs, rounds, repeat)
    benchmark.extra_info.update(
        {
            "64 x 3 x": f"{side} x {side}",
            "policy": policy,
            "textbook ms": spread([1e3 * seconds for seconds in others]),
            "package ms": spread([1e3 * seconds for seconds in mine]),
            "ratio": spread([b / a for a, b in zip(mine, others, strict=True)]),
            "peak MB": f"{peak_memory(theirs) / 1e6:.3g} -> {peak_memory(ours) / 1e6:.3g}",
        }
    )
