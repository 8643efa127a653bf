"""Throughput of the whole training loop: images a second, beside what the device can do, and methods over each other.

A step is one of ``fit``: rows of the batch, crop and flip, the objective forward and back, the optimiser, captured as a
CUDA graph where it can be. Operations are counted by torch's flop counter over the network's forward and backward
passes (convolutions and products alone, a multiplication and an addition as two); the ceiling is the rate of one large
square product in the same precision, measured in the same run, on the same device and number of threads. On a GPU
batches are the papers' and precision is bfloat16; elsewhere the same code runs on batches small enough for a core, in
float32, and wall time is right only where nothing else runs.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.test_isda import spread
from semaug import networks
from semaug.data.sets import Data
from semaug.data.split import Split
from semaug.methods.automix import AutoMix
from semaug.methods.isda import ISDA
from semaug.methods.sla import SLA
from semaug.training.common import prepared
from semaug.training.loop import _Loop, resolve_device
from semaug.training.objective import CrossEntropy
from semaug.training.recipe import PRECISIONS, Recipe

DEVICE = resolve_device()
GPU = DEVICE.type == "cuda"
PRECISION = "bfloat16" if GPU else "float32"
ROUNDS, STEPS = (15, 20) if GPU else (3, 1)
NETWORKS = {
    "ResNet-32": (partial(networks.resnet, depth=32), 128 if GPU else 16),
    "ResNet-18": (networks.resnet18, 128 if GPU else 4),
    "WRN-28-10": (partial(networks.wide_resnet, depth=28, width=10), 128 if GPU else 1),
}
METHODS = {
    "ISDA, full": partial(ISDA, covariance="full"),
    "ISDA, diagonal": partial(ISDA, covariance="diagonal"),
    "SLA, rotation": partial(SLA, transforms="rotation"),
    "AutoMix": AutoMix,
}


@pytest.fixture(autouse=True)
def as_in_fit():
    """What fit sets on a GPU: the fastest way of each convolution is looked for."""
    with prepared(DEVICE):
        yield


def finished():
    if GPU:
        torch.cuda.synchronize()


def loop_of(objective, n, classes):
    """fit's own loop on images of noise: what they show changes nothing of what they cost."""
    generator = torch.Generator().manual_seed(0)
    count = max(4 * n, classes)
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(count) % classes)
    recipe = Recipe(epochs=1000, batch_size=n, augment="crop+flip", precision=PRECISION)
    loop = _Loop(objective.to(DEVICE), Data("noise", split, split.take(slice(0, 2))), recipe, 0, DEVICE)
    loop.objective.train()
    for stream, rows in zip(loop.streams, loop.rows, strict=True):
        rows.copy_(stream.epoch(loop.steps)[0])
    return loop


def steps(loop, first=0):
    """Some steps of it, and the wait for the device; the first calls warm up and capture."""
    for number in range(first, first + STEPS):
        loop.advance(number)
    finished()


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def operations(network, n):
    """Of one forward and one backward pass, as torch counts them."""
    images = torch.rand(n, 3, 32, 32, device=DEVICE)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return counter.get_total_flops()


def ceiling():
    """Operations a second of a large square product in the loop's precision."""
    side = 8192 if GPU else 1024
    one = torch.randn(side, side, device=DEVICE, dtype=PRECISIONS[PRECISION] or torch.float32)
    times = []
    for _ in range(8):
        finished()
        times.append(seconds(lambda: (one @ one, finished())))
    return 2 * side**3 / statistics.median(times[3:])


@pytest.mark.benchmark(group="throughput: images a second", timer=time.perf_counter)
@pytest.mark.parametrize("name", NETWORKS)
def test_images_a_second(benchmark, name):
    make, n = NETWORKS[name]
    network = make(10)
    loop = loop_of(CrossEntropy(network), n, 10)
    wanted, most = operations(network, n), ceiling()
    for _ in range(2):
        steps(loop)
    benchmark.pedantic(steps, args=(loop,), rounds=ROUNDS)
    each = [taken / STEPS for taken in benchmark.stats.stats.data]
    benchmark.extra_info.update(
        {
            "network": f"{name}, N = {n}, {PRECISION}",
            "images a second": spread([n / one for one in each]),
            "G operations an image": f"{wanted / n / 1e9:.3g}",
            "ceiling, T operations a second": f"{most / 1e12:.3g}",
            "share of it": spread([wanted / one / most for one in each]),
        }
    )


@pytest.mark.benchmark(group="throughput: a step over that of cross-entropy", timer=time.perf_counter)
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("method", METHODS)
def test_methods_over_cross_entropy(benchmark, method, classes):
    make, n = NETWORKS["ResNet-32"]
    theirs = loop_of(CrossEntropy(make(classes)), n, classes)
    ours = loop_of(METHODS[method](make(classes)), n, classes)
    others = []
    for loop in (theirs, ours, theirs, ours):
        steps(loop)

    def turn():
        others.append(seconds(lambda: steps(theirs)))

    benchmark.pedantic(steps, args=(ours,), setup=turn, rounds=ROUNDS)
    mine = benchmark.stats.stats.data
    benchmark.extra_info.update(
        {
            "ResNet-32": f"{method}, C = {classes}, N = {n}, {PRECISION}",
            "cross-entropy ms": spread([1e3 * one / STEPS for one in others[-ROUNDS:]]),
            "step ms": spread([1e3 * one / STEPS for one in mine]),
            "over cross-entropy": spread([a / b for a, b in zip(mine, others[-ROUNDS:], strict=True)]),
        }
    )
