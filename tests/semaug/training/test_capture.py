"""A captured step: what it reads is set before it, and it does what the step run plainly does."""

from dataclasses import replace

import pytest
import torch

import throwaway
from semaug import data, networks
from semaug.training import capture, loop as training, objective
from semaug.training.recipe import Recipe

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Played:
    """What a capture does, without a GPU: the function runs in the place of the graph, again and again.

    A graph reads where it read when it was captured: what differs between steps must lie in the very same tensors.
    """

    made = 0

    def __init__(self, function, generators):
        type(self).made += 1
        self.function, self.loop = function, function.__self__
        assert generators == [], "the generators of this run are on the CPU"
        self.places = self.read()

    def read(self):
        loop = self.loop
        return [group["lr"] for group in loop.optimizer.param_groups] + [loop.progress, *loop.rows, *loop.rates]

    def __call__(self):
        assert all(now is then for now, then in zip(self.read(), self.places, strict=True))
        return self.function()


@pytest.mark.parametrize("name", ["CrossEntropy", "ISDA", "MetaSAug", "SLA", "CutMix", "AutoMix"])
def test_the_loop_sets_all_that_differs_between_steps(name, monkeypatch):
    """Rates, rows and progress come in tensors: training by them is training by plain values."""
    of = data.load("fashion-mini", train_size=300, test_size=100, meta=10)
    recipe = Recipe(epochs=3, batch_size=50, meta_batch_size=20, lr=0.05, augment="crop+flip")
    seen = []

    def run(watch):
        made = throwaway.build(name, dataset=of, seed=0)
        if watch:
            made.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[2].progress, inputs[2].lr)))
        return training.fit(made, of, recipe, progress=False)

    plain = run(watch=False)
    monkeypatch.setattr(training, "capturable", lambda *_: True)
    monkeypatch.setattr(training, "Captured", Played)
    prepare = training._Loop.__init__

    def captures(self, *arguments):
        prepare(self, *arguments)
        self.captures = True

    monkeypatch.setattr(training._Loop, "__init__", captures)
    Played.made = 0
    captured = run(watch=True)
    assert Played.made == (2 if name == "MetaSAug" else 1), "one graph a phase"
    assert len({tuple(map(id, step)) for step in seen}) == 1, "every step is told by the same tensors"
    # a rate of float32 in place of a Python number: 18 steps amplify the rounding
    assert captured.curves["train_loss"] == pytest.approx(plain.curves["train_loss"], rel=1e-3)
    assert captured.curves["lr"] == plain.curves["lr"]


def test_only_what_says_so_of_itself_is_captured():
    of = data.load("fashion-mini", train_size=200, test_size=100)
    recipe = Recipe()

    def static(made, **changes):
        return training.capturable(made, replace(recipe, **changes))

    for name in ("CrossEntropy", "ISDA", "SLA", "MetaSAug", "LongTailed"):
        assert static(throwaway.build(name, dataset=of, seed=0))
    plain = throwaway.build("CrossEntropy", dataset=of, seed=0)
    assert not static(plain, optimizer="adam")
    assert not static(plain, augment="crop+randaugment")
    assert static(plain, augment="crop+cutout8")

    class Mine(objective.CrossEntropy):
        """A subclass may count its calls."""

    assert not static(Mine(plain.network))
    network = networks.Network(plain.network.stages, 64, 10, "mine")
    assert not static(objective.CrossEntropy(network)), "stages of a user's may look at values"
    assert not static(objective.CrossEntropy(torch.nn.Linear(2, 2)))


def test_phases():
    of = data.load("fashion-mini", train_size=200, test_size=100)
    factored = throwaway.build("ISDA", dataset=of, seed=0, covariance="factored", rank=4)
    assert factored.phase(0.5) is None, "it goes through the classes of the batch"
    meta = throwaway.build("MetaSAug", dataset=of, seed=0, stage=0.5)
    assert (meta.phase(0.4), meta.phase(0.6)) == ("plain", "meta")
    assert throwaway.build("MetaSAug", dataset=of, seed=0, stage=0.5, psd=True).phase(0.6) is None


@needs_cuda
def test_replays_do_the_work_and_draw_on():
    generator, total = torch.Generator("cuda").manual_seed(3), torch.zeros(4, device="cuda")

    def function():
        return total.add_(torch.rand(4, device="cuda", generator=generator))

    captured = capture.Captured(function, [generator])
    results = [captured().clone() for _ in range(10)]
    again, expected = torch.Generator("cuda").manual_seed(3), torch.zeros(4, device="cuda")
    for result in results:
        expected += torch.rand(4, device="cuda", generator=again)
        torch.testing.assert_close(result, expected)
    state = generator.get_state()
    following = torch.rand(4, device="cuda", generator=again)
    generator.set_state(state)
    torch.testing.assert_close(captured() - results[-1], following)


@needs_cuda
@pytest.mark.parametrize("name", ["CrossEntropy", "ISDA"])
def test_captured_training_is_the_plain_one(name, monkeypatch):
    of = data.load("fashion-mini", train_size=600, test_size=300)
    recipe = Recipe(epochs=4, batch_size=50, lr=0.02, augment="crop+flip")

    def run():
        return training.fit(throwaway.build(name, dataset=of, seed=0).cuda(), of, recipe, progress=False)

    captured = run()
    monkeypatch.setattr("semaug.training.loop.Captured", lambda function, generators: function)
    plain = run()
    # the same images in the same order; cuDNN's and atomic sums' rounding grows over 48 steps
    assert captured.curves["train_loss"] == pytest.approx(plain.curves["train_loss"], rel=0.03)
    assert abs(captured.metrics["test_accuracy"] - plain.metrics["test_accuracy"]) < 0.05


@needs_cuda
def test_what_cannot_be_captured_is_said_and_leaves_the_stream():
    total = torch.zeros((), device="cuda")
    captured = capture.Captured(lambda: total.add_(1).item(), [])
    before = torch.cuda.current_stream()
    for _ in range(capture.WARM_UP):
        captured()
    with pytest.raises(RuntimeError, match="looks at a value"):
        captured()
    assert torch.cuda.current_stream() == before
