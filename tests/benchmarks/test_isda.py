"""ISDA's cost: process CPU time on one thread, the two sides in turn in one run, and the peak of temporary memory.

A step is the update of the moments, the loss and its gradients with respect to features, weight and bias. Ratios are
of medians; their spread is that of the rounds. The floor is what arithmetic and memory alone would take at the rates
of this machine, measured in the same run: the products D Sigma (2 U C A^2 operations for the U classes of the batch) or
their counterparts in the other forms, the products of the plain linear layer, and one read and one write of every
covariance that changes. Peak memory counts tensors on top of the state and the inputs, not MKL's own buffers.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.textbook import Textbook
from semaug import networks
from semaug.core.moments import ClassMoments
from semaug.methods.isda import ISDA, isda_loss
from semaug.training.objective import CrossEntropy, Step


def clock(function, repeat=1):
    """Seconds of one call, by process CPU time."""
    start = time.process_time()
    for _ in range(repeat):
        function()
    return (time.process_time() - start) / repeat


def peak_memory(function):
    """Bytes of tensors that live at once while the function runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def interleaved(benchmark, ours, theirs, rounds, repeat):
    """Seconds of both, a round of one after a round of the other.

    Each turn starts with a call that is not timed: the other side has just emptied the caches and trimmed the heap,
    and the page faults of getting it back were more than half of the time of the small cases.
    """
    others = []

    def turn():
        theirs()
        others.append(clock(theirs, repeat))
        ours()

    turn()
    benchmark.pedantic(lambda: [ours() for _ in range(repeat)], setup=turn, rounds=rounds)
    return [seconds / repeat for seconds in benchmark.stats.stats.data], others[-rounds:]


def spread(values):
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.3g} [{low:.3g}, {high:.3g}]"


def case(n, classes, width):
    """Inputs with gradients; a fresh batch at every call would only add noise, so one is used throughout."""
    torch.manual_seed(0)
    features = torch.randn(n, width, requires_grad=True)
    weight = (torch.randn(classes, width) / width**0.5).requires_grad_()
    bias = torch.zeros(classes, requires_grad=True)
    return features, torch.randint(0, classes, (n,)), weight, bias


def package_step(moments, features, target, weight, bias):
    def step():
        features.grad = weight.grad = bias.grad = None
        moments.update(features.detach(), target)
        isda_loss(features, target, weight, bias, moments.covariance, 0.5).backward()

    return step


def textbook_step(textbook, features, target, weight, bias):
    def step():
        features.grad = weight.grad = bias.grad = None
        textbook.update(features.detach(), target)
        textbook.loss(features, target, weight, bias, 0.5).backward()

    return step


def product_rate(n, k, m):
    """Operations a second of one product (n, k) by (k, m), the best of some rounds."""
    left, right = torch.randn(n, k), torch.randn(k, m)
    repeat = max(1, int(2e8 / (2 * n * k * m)))
    return 2 * n * k * m / min(clock(lambda: left @ right, repeat) for _ in range(9))


def copy_rate():
    """Bytes a second that a copy reads and writes."""
    source = torch.zeros(2**24)
    target = torch.ones_like(source)
    return 2 * source.nbytes / min(clock(lambda: target.copy_(source)) for _ in range(9))


def floor(form, n, present, classes, width, rank=0):
    """Seconds that the products and the memory of a step take at least."""
    linear = 3 * 2 * n * classes * width / product_rate(n, width, classes)  # logits and the two gradients
    if form == "full":
        products = 2 * present * classes * width**2 / product_rate(classes, width, width)
        return linear + products + 2 * 4 * present * width**2 / copy_rate()
    diagonal = 2 * 2 * n * classes * width / product_rate(n, width, classes)  # variances by squared weights, and back
    factor = 2 * 2 * present * classes * width * rank / product_rate(classes, width, max(1, present * rank))
    return linear + diagonal + factor + 2 * 4 * present * width * (rank + 1) / copy_rate()


@pytest.mark.benchmark(group="isda: step", timer=time.process_time)
@pytest.mark.parametrize(
    ("n", "classes", "width", "form", "rounds", "repeat"),
    [
        (128, 10, 64, "full", 60, 10),
        (128, 100, 64, "full", 40, 3),
        (128, 100, 640, "full", 9, 1),
        (128, 10, 64, "diagonal", 60, 10),
        (128, 100, 640, "diagonal", 40, 2),
    ],
)
def test_step_against_the_textbook(benchmark, n, classes, width, form, rounds, repeat):
    arguments = case(n, classes, width)
    ours = package_step(ClassMoments(classes, width, form), *arguments)
    theirs = textbook_step(Textbook(classes, width, form == "full"), *arguments)
    mine, others = interleaved(benchmark, ours, theirs, rounds, repeat)
    least = floor(form, n, len(arguments[1].unique()), classes, width)
    benchmark.extra_info.update(
        {
            "N, C, A": f"{n}, {classes}, {width}",
            "form": form,
            "textbook ms": spread([1e3 * seconds for seconds in others]),
            "package ms": spread([1e3 * seconds for seconds in mine]),
            "ratio": spread([b / a for a, b in zip(mine, others, strict=True)]),
            "floor ms": f"{1e3 * least:.3g}",
            "over floor": f"{statistics.median(mine) / least:.2f}",
            "peak MB": f"{peak_memory(theirs) / 1e6:.3g} -> {peak_memory(ours) / 1e6:.3g}",
        }
    )


@pytest.mark.benchmark(group="isda: 1000 classes, 2048 features", timer=time.process_time)
@pytest.mark.parametrize(("form", "rank"), [("diagonal", None), ("factored", 32), ("factored", 64)])
def test_step_of_imagenet_size(benchmark, form, rank):
    n, classes, width = 256, 1000, 2048
    arguments = case(n, classes, width)
    features, target, weight, bias = arguments
    moments = ClassMoments(classes, width, form, rank=rank)
    ours = package_step(moments, *arguments)

    def plain():
        features.grad = weight.grad = bias.grad = None
        F.cross_entropy(F.linear(features, weight, bias), target).backward()

    mine, others = interleaved(benchmark, ours, plain, 7, 1)
    update = statistics.median(clock(lambda: moments.update(features.detach(), target)) for _ in range(5))
    least = floor(form, n, len(target.unique()), classes, width, rank or 0)
    benchmark.extra_info.update(
        {
            "N, C, A": f"{n}, {classes}, {width}",
            "form, rank": f"{form}, {rank}",
            "cross-entropy ms": spread([1e3 * seconds for seconds in others]),
            "step ms": spread([1e3 * seconds for seconds in mine]),
            "update ms": f"{1e3 * update:.3g}",
            "floor of the step ms": f"{1e3 * least:.3g}",
            "state MB": f"{sum(buffer.nbytes for buffer in moments.buffers()) / 1e6:.3g}",
            "peak MB on top": f"{peak_memory(ours) / 1e6:.3g}",
        }
    )


@pytest.mark.benchmark(group="isda: ResNet-32", timer=time.process_time)
@pytest.mark.parametrize("classes", [10, 100])
def test_share_of_a_resnet_step(benchmark, classes):
    """ISDA's own time over that of the whole training step, 128 images of 32 x 32, forward, backward and SGD."""
    torch.manual_seed(0)
    images, target = torch.rand(128, 3, 32, 32), torch.randint(0, classes, (128,))
    step = Step(torch.tensor(0.5), 0.1, torch.Generator())

    def training(objective):
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.01, momentum=0.9)

        def once():
            optimizer.zero_grad()
            objective(images, target, step)[0].backward()
            optimizer.step()

        return once

    isda = ISDA(networks.resnet(classes, 32))
    plain = CrossEntropy(networks.resnet(classes, 32))
    mine, others = interleaved(benchmark, training(isda), training(plain), 7, 1)
    features, _, weight, bias = case(128, classes, 64)
    loss = package_step(ClassMoments(classes, 64), features, target, weight, bias)

    def cross_entropy():
        features.grad = weight.grad = bias.grad = None
        F.cross_entropy(F.linear(features, weight, bias), target).backward()

    own = statistics.median(clock(loss, 10) - clock(cross_entropy, 10) for _ in range(15))
    benchmark.extra_info.update(
        {
            "ResNet-32, classes": classes,
            "cross-entropy step ms": spread([1e3 * seconds for seconds in others]),
            "ISDA step ms": spread([1e3 * seconds for seconds in mine]),
            "ISDA's own ms": f"{1e3 * own:.3g}",
            "share of the step": f"{100 * own / statistics.median(others):.2f} %",
        }
    )
