"""MetaSAug's cost: process CPU time on one thread, the sides in turn in one run, and the peak of temporary memory.

A step is forward and backward on 100 images and 100 of the meta set, without the optimiser. The other side goes to the
same covariance by the definition: the inner gradient with its graph, the meta loss at the stepped parameters, and the
gradient of that through both; then, on the graph of the first forward pass ("one pass") or, as the released code has
it, on a pass of its own ("two passes"), the loss at the new covariance. Ratios are of medians, their spread that of the
rounds. Peak memory counts tensors on top of parameters, moments and the batches.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.test_isda import clock, interleaved, peak_memory, spread
from semaug import networks
from semaug.methods.isda import isda_logits
from semaug.methods.long_tail import ldam_logits
from semaug.methods.metasaug import MetaSAug
from semaug.training.objective import Batch, CrossEntropy, Step


def case(classes, **choice):
    """An objective in its meta stage, a batch of a long tail, and a step."""
    torch.manual_seed(0)
    counts = torch.tensor([int(500 * 100 ** (-c / (classes - 1))) for c in range(classes)])
    objective = MetaSAug(networks.resnet(classes, 32), counts, stage=0.0, beta=0.9, **choice)
    images, others = torch.rand(2, 100, 3, 32, 32)
    target = counts.double().multinomial(100, replacement=True)
    step = Step(torch.tensor(0.9), 0.1, torch.Generator(), Batch(others, torch.arange(100) % classes))
    return objective, images, target, step


def package_step(objective, images, target, step):
    def run():
        objective.zero_grad()
        objective(images, target, step)[0].backward()

    return run


def double_backward_step(objective, images, target, step, passes):
    """The same step by the definition."""
    network, moments = objective.network, objective.moments
    parameters = dict(network.named_parameters())
    strength = step.progress * objective.strength

    def loss(features, covariance):
        logits = isda_logits(features, target, network.head.weight, network.head.bias, covariance, strength)
        logits = ldam_logits(logits, target, objective.margins)
        return F.cross_entropy(logits, target, objective.class_weight.float())

    def run():
        objective.zero_grad()
        features = network.features(images)
        moments.update(features.detach(), target)
        covariance = moments.covariance.clone().requires_grad_()
        slopes = torch.autograd.grad(loss(features, covariance), list(parameters.values()), create_graph=True)
        stepped = {name: p - step.lr * s for (name, p), s in zip(parameters.items(), slopes, strict=True)}
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        meta = F.cross_entropy(functional_call(network, {**stepped, **buffers}, step.meta.images), step.meta.target)
        (gradient,) = torch.autograd.grad(meta, covariance, retain_graph=passes == 1)
        del slopes, stepped, meta
        learned = covariance.detach() - objective.meta_lr * gradient
        loss(features if passes == 1 else network.features(images), learned).backward()

    return run


@pytest.mark.parametrize("passes", [1, 2])
def test_both_sides_take_the_same_step(passes):
    """What is timed below is the same computation: gradients of all parameters, to float32's rounding."""
    ours, theirs = case(10), case(10)
    package_step(*ours)()
    double_backward_step(*theirs, passes)()
    for mine, other in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.benchmark(group="metasaug: step on ResNet-32", timer=time.process_time)
@pytest.mark.parametrize(("classes", "form"), [(10, "full"), (100, "full"), (100, "diagonal")])
def test_step_against_double_backward(benchmark, classes, form):
    arguments = case(classes, covariance=form)
    ours, twice = package_step(*arguments), [double_backward_step(*arguments, passes) for passes in (1, 2)]
    plain = CrossEntropy(networks.resnet(classes, 32))

    def cross_entropy():
        plain.zero_grad()
        plain(*arguments[1:])[0].backward()

    mine, others = interleaved(benchmark, ours, twice[1], 7, 1)
    rest = [[clock(each) for each in (ours, twice[0], cross_entropy)] for _ in range(8)][1:]
    memory = [peak_memory(each) / 1e6 for each in (cross_entropy, ours, *twice)]
    assert memory[1] < min(memory[2:]), memory  # no timing: the same at every run
    benchmark.extra_info.update(
        {
            "classes, form": f"{classes}, {form}",
            "package ms": spread([1e3 * seconds for seconds in mine]),
            "double backward, two passes, ms": spread([1e3 * seconds for seconds in others]),
            "ratio": spread([b / a for a, b in zip(mine, others, strict=True)]),
            "ratio to one pass": spread([b / a for a, b, _ in rest]),
            "over a cross-entropy step": f"{statistics.median(a / c for a, _, c in rest):.2f}",
            "peak MB, cross-entropy -> package; one pass, two": "{:.0f} -> {:.0f}; {:.0f}, {:.0f}".format(*memory),
        }
    )
