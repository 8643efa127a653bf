"""Several seeds of one small network at a time, over the same steps one seed after the other.

A small network leaves a GPU waiting, so that the seeds of an experiment may share it: *stacked*, as one network under
vmap whose parameters have an axis of seeds (convolutions become grouped ones), as *streams* of one process, a captured
step of each seed beside those of the others, or as *processes*, one a seed, as of the planned runs, which are taken by
any number of processes. A step is forward and back by cross-entropy and an SGD update, on images that are there, on a
GPU captured as a graph. On a CPU one seed after the other has as many threads as there
are seeds, stacked ones too, and a process one.
"""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

from benchmarks.test_isda import spread
from semaug import networks
from semaug.training.capture import Captured
from semaug.training.common import prepared
from semaug.training.loop import resolve_device
from semaug.training.recipe import PRECISIONS

DEVICE = resolve_device()
GPU = DEVICE.type == "cuda"
PRECISION = PRECISIONS["bfloat16" if GPU else "float32"]
SEEDS, ROUNDS, STEPS = (5, 15, 20) if GPU else (2, 5, 2)
NETWORKS = {"small": partial(networks.small, channels=3), "ResNet-32": partial(networks.resnet, depth=32)}
N = 128 if GPU else 32
LAYOUT = torch.channels_last if GPU else torch.preserve_format  # as fit has it


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(N, 3, 32, 32, generator=generator)
    return images.to(DEVICE, memory_format=LAYOUT), torch.randint(10, (N,), generator=generator).to(DEVICE)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=GPU or None)


class Steps:
    """Steps of training, captured on a GPU; ``loss`` is what they go down."""

    def __init__(self, parameters):
        self.optimizer = sgd(parameters)
        self.call = Captured(self.once, []) if GPU else self.once

    def once(self):
        with torch.autocast(DEVICE.type, PRECISION, enabled=PRECISION is not None):
            loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def __call__(self, steps=STEPS):
        for _ in range(steps):
            self.call()


class Alone(Steps):
    """One seed."""

    def __init__(self, name, seed):
        torch.manual_seed(seed)
        self.network = NETWORKS[name](10).to(DEVICE, memory_format=LAYOUT).train()
        self.images, self.target = batch(seed)
        super().__init__(self.network.parameters())

    def loss(self):
        return F.cross_entropy(self.network(self.images).float(), self.target)


class Stacked(Steps):
    """All seeds as one network: every one has its own batch, and the gradient of the sum is that of each."""

    def __init__(self, name):
        made = [Alone(name, seed) for seed in range(SEEDS)]
        self.network = made[0].network
        self.parameters, self.buffers = stack_module_state([one.network for one in made])
        self.images, self.target = (torch.stack(parts) for parts in zip(*map(batch, range(SEEDS)), strict=True))
        super().__init__(self.parameters.values())

    def loss(self):
        def of_one(parameters, buffers, images, target):
            logits = functional_call(self.network, (parameters, buffers), (images,))
            return F.cross_entropy(logits.float(), target)

        return torch.vmap(of_one)(self.parameters, self.buffers, self.images, self.target).sum()


def finished():
    if GPU:
        torch.cuda.synchronize()


def seconds(function):
    finished()
    start = time.perf_counter()
    function()
    finished()
    return time.perf_counter() - start


def one_after_the_other(name):
    made = [Alone(name, seed) for seed in range(SEEDS)]
    return lambda: [steps() for steps in made]


class Streams:
    """All seeds in turn from one process, each on a stream of its own: a GPU does several graphs at a time."""

    def __init__(self, name):
        self.made = [(Alone(name, seed), torch.cuda.Stream()) for seed in range(SEEDS)]
        finished()  # the lanes do not wait for the stream that these were made on

    def __call__(self):
        for _ in range(STEPS):
            for steps, stream in self.made:
                with torch.cuda.stream(stream):
                    steps(1)


def work(connection, name, seed, threads):
    """A process: steps of one seed whenever it is asked."""
    torch.set_num_threads(threads)
    steps = Alone(name, seed)
    steps(5)
    finished()
    connection.send("ready")
    while True:
        connection.recv()
        steps()
        finished()
        connection.send("done")


@pytest.fixture(autouse=True)
def as_in_fit():
    """As in fit; and all cores for one seed after the other too, whatever ``make bench`` has set."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if GPU else SEEDS)
    with prepared(DEVICE):
        yield
    torch.set_num_threads(before)


@pytest.fixture
def processes():
    """Makes a function that lets one process a seed do its steps, all at once, and waits for them."""
    context = torch.multiprocessing.get_context("spawn")
    started = []

    def make(name):
        threads = max(1, torch.get_num_threads() // SEEDS)
        for seed in range(SEEDS):
            here, there = context.Pipe()
            process = context.Process(target=work, args=(there, name, seed, threads), daemon=True)
            process.start()
            started.append((process, here))
        assert [here.recv() for _, here in started] == ["ready"] * SEEDS

        def turn():
            for _, here in started:
                here.send(True)
            for _, here in started:
                here.recv()

        return turn

    yield make
    for process, _ in started:
        process.terminate()
        process.join()


@pytest.mark.benchmark(group="throughput: several seeds at a time", timer=time.perf_counter)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", ["stacked", "streams", "processes"])
def test_seeds_at_a_time(benchmark, processes, way, name):
    if way == "streams" and not GPU:
        pytest.skip("a CPU has no streams")
    if way == "stacked":
        ours = Stacked(name)
        theirs, losses = [Alone(name, seed) for seed in range(SEEDS)], []
        for _ in range(2):  # the same training
            losses.append((float(ours.once()), sum(float(one.once()) for one in theirs)))
        assert losses[1][0] == pytest.approx(losses[1][1], rel=0.02 if GPU else 1e-4)
        assert losses[1][0] < losses[0][0]
    else:
        ours = (Streams if way == "streams" else processes)(name)
    reference, others = one_after_the_other(name), []
    for _ in range(3):
        ours()
        reference()

    def turn():
        others.append(seconds(reference))

    benchmark.pedantic(lambda: seconds(ours), setup=turn, rounds=ROUNDS)
    mine = benchmark.stats.stats.data
    per_step = 1e3 / STEPS
    benchmark.extra_info.update(
        {
            "network": f"{name}, {SEEDS} seeds, N = {N}, {way}",
            "one after the other ms": spread([per_step * one for one in others[-ROUNDS:]]),
            "at a time ms": spread([per_step * one for one in mine]),
            "times as fast": spread([a / b for a, b in zip(others[-ROUNDS:], mine, strict=True)]),
        }
    )
