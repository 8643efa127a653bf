"""A captured step: what it reads is set before it, and it does what the step run plainly does."""

import pytest
import torch

from semaug import capture, data, ledger, training
from semaug.recipe import Recipe

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Played:
    """What a capture does, without a GPU: the function runs in the place of the graph, again and again."""

    made = 0

    def __init__(self, function, generators):
        type(self).made += 1
        self.function = function
        assert generators == [], "the generators of this run are on the CPU"

    def __call__(self):
        return self.function()


@pytest.mark.parametrize("objective", ["CrossEntropy", "ISDA"])
def test_the_loop_sets_all_that_differs_between_steps(objective, monkeypatch):
    """Rates, rows and progress come in tensors: training by them is training by plain values."""
    of = data.load("embedded", train_size=300, test_size=100)
    recipe = Recipe(epochs=3, batch_size=50, lr=0.05, augment="crop+flip")

    def run():
        return training.fit(ledger.build(objective, "small", of, seed=0), of, recipe, progress=False)

    plain = run()
    prepare = training._Loop.__init__

    def captures(self, *arguments):
        prepare(self, *arguments)
        self.captures = True

    monkeypatch.setattr(training._Loop, "__init__", captures)
    monkeypatch.setattr(training, "Captured", Played)
    Played.made = 0
    captured = run()
    assert Played.made == 1, "one phase, one graph"
    # a rate of float32 in place of a Python number: 18 steps amplify the rounding
    assert captured.curves["train_loss"] == pytest.approx(plain.curves["train_loss"], rel=1e-3)
    assert captured.curves["lr"] == plain.curves["lr"]


def test_an_objective_that_does_not_say_so_is_not_captured():
    of = data.load("embedded", train_size=200, test_size=100)
    factored = ledger.build("ISDA", "small", of, 0, covariance="factored", rank=4)
    assert factored.phase(0.5) is None, "it goes through the classes of the batch"
    assert ledger.build("ISDA", "small", of, 0).phase(0.1) == ledger.build("ISDA", "small", of, 0).phase(0.9) == "all"

    class Mine(training.Objective):
        pass

    assert Mine(torch.nn.Linear(2, 2)).phase(0.5) is None


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
@pytest.mark.parametrize("objective", ["CrossEntropy", "ISDA"])
def test_captured_training_is_the_plain_one(objective, monkeypatch):
    of = data.load("embedded", train_size=600, test_size=300)
    recipe = Recipe(epochs=4, batch_size=50, lr=0.02, augment="crop+flip")

    def run():
        return training.fit(ledger.build(objective, "small", of, seed=0).cuda(), of, recipe, progress=False)

    captured = run()
    monkeypatch.setattr("semaug.training.Captured", lambda function, generators: function)
    plain = run()
    # the same images in the same order; cuDNN's and atomic sums' rounding grows over 48 steps
    assert captured.curves["train_loss"] == pytest.approx(plain.curves["train_loss"], rel=0.03)
    assert abs(captured.metrics["test_accuracy"] - plain.metrics["test_accuracy"]) < 0.05
