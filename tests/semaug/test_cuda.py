"""What only a GPU can show: the same numbers as on the CPU, CUDA graphs, autocast, training and resuming there."""

import pytest
import torch

import throwaway
from semaug import data
from semaug.core.moments import ClassMoments
from semaug.data.split import Split
from semaug.methods import diffaugment
from semaug.methods.isda import isda_logits, isda_loss
from semaug.training import capture, loop as training
from semaug.training.recipe import Recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def case(device, dtype=torch.float64, n=64, classes=7, width=12):
    """One batch with moments of two earlier ones, drawn on the CPU."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, n, width, generator=generator, dtype=dtype)
    target = torch.randint(classes, (3, n), generator=generator)
    weight, bias = torch.randn(classes, width, generator=generator, dtype=dtype), torch.randn(classes, dtype=dtype)
    return [tensor.to(device) for tensor in (features, target, weight, bias)]


def gradients(device, form, function):
    """Loss and its gradients after three updates."""
    features, target, weight, bias = case(device)
    moments = ClassMoments(7, 12, form, rank=4 if form == "factored" else None).double().to(device)
    for x, y in zip(features, target, strict=True):
        moments.update(x, y)
    leaves = [features[0].clone().requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    loss = function(leaves[0], target[0], *leaves[1:], moments.covariance, 0.7)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("form", ["full", "diagonal", "factored"])
@pytest.mark.parametrize("name", ["loss", "logits"])
def test_isda_on_the_gpu_is_isda_on_the_cpu(form, name):
    def by_logits(features, target, *rest):
        return torch.nn.functional.cross_entropy(isda_logits(features, target, *rest), target)

    function = isda_loss if name == "loss" else by_logits
    torch.manual_seed(0)
    there = gradients("cuda", form, function)
    torch.manual_seed(0)
    for mine, theirs in zip(gradients("cpu", form, function), there, strict=True):
        torch.testing.assert_close(theirs.cpu(), mine, rtol=1e-11, atol=1e-12)  # sums in another order


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_a_cuda_graph_replays_update_loss_and_gradients(form):
    torch.manual_seed(0)
    features, target, weight, bias = case("cuda", torch.float32)
    leaves = [features[0].clone().requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    labels, strength = target[0].clone(), torch.tensor(0.7, device="cuda")
    static = ClassMoments(7, 12, form).cuda()

    def step():
        static.update(leaves[0].detach(), labels)
        loss = isda_loss(leaves[0], labels, *leaves[1:], static.covariance, strength)
        return [loss, *torch.autograd.grad(loss, leaves)]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        capture._touch_cublas()  # a captured step goes another way, whose products on the way back are the first
        step()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for buffer in static.buffers():
        buffer.zero_()
    plain = ClassMoments(7, 12, form).cuda()
    # leaves of their own: those of the graph are bound to the stream of its capture, and torch warns
    weight, bias = (leaf.detach().clone().requires_grad_() for leaf in (weight, bias))
    for x, y in zip(features, target, strict=True):
        with torch.no_grad():
            leaves[0].copy_(x)
        labels.copy_(y)
        graph.replay()
        plain.update(x, y)
        again = x.clone().requires_grad_()
        loss = isda_loss(again, y, weight, bias, plain.covariance, strength)
        expected = [loss, *torch.autograd.grad(loss, [again, weight, bias])]
        for mine, theirs in zip(captured, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-5)  # float32, sums in another order


SETTINGS = {
    "CrossEntropy": {},
    "ISDA": {"strength": 0.5, "covariance": "full"},
    "LongTailed": {"loss": "ldam", "defer": 0.5, "beta": 0.9},
    "MetaSAug": {"stage": 0.4},
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("objective", SETTINGS)
def test_training_there_learns_and_resumes(objective, precision, tmp_path, monkeypatch):
    of = data.load("fashion-mini", train_size=2000, test_size=500, meta=10)
    recipe = Recipe(epochs=6, lr=0.05, augment="crop+flip", precision=precision)

    def run(resume):
        trained = throwaway.build(objective, dataset=of, seed=0, **SETTINGS[objective]).cuda()
        return training.fit(trained, of, recipe, resume=resume, progress=False)

    whole = run(None)
    assert whole.metrics["test_accuracy"] > 0.6
    assert whole.peak_memory > 0
    assert "NVIDIA" in whole.environment["device"]
    epoch = training._Loop.epoch

    def interrupted(self, number):
        if number == 3:
            raise KeyboardInterrupt
        return epoch(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(training._Loop, "epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "state.pt")
    before = training.Checkpoint.read(tmp_path / "state.pt")
    resumed = run(tmp_path / "state.pt")
    for name, values in before["curves"].items():
        assert resumed.curves[name][:3] == values, "the first three epochs are those of the run that was interrupted"
    there = whole.curves["train_loss"][3]  # MetaSAug's second stage, which has another loss, began before
    assert resumed.curves["train_loss"][3] == pytest.approx(there, rel=0.1), "it went on and did not start anew"
    # cuDNN and atomic sums are not bitwise reproducible: a run of six epochs ends near the other, not on it
    assert abs(resumed.metrics["test_accuracy"] - whole.metrics["test_accuracy"]) < 0.05
    assert len(resumed.curves["train_loss"]) == 6


@pytest.mark.parametrize("objective", ["ISDA", "CrossEntropy"])
def test_deterministic_algorithms_give_the_same_bits(objective, tmp_path, monkeypatch):
    """Two runs, and one that was interrupted, under torch's flag: no step is captured then."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    of = data.load("fashion-mini", train_size=1000, test_size=200)
    recipe = Recipe(epochs=4, lr=0.05, augment="crop+flip")
    epoch = training._Loop.epoch

    def run(resume=None):
        trained = throwaway.build(objective, dataset=of, seed=0, **SETTINGS[objective]).cuda()
        training.fit(trained, of, recipe, resume=resume, progress=False)
        return trained.state_dict()

    def interrupted(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, number)

    torch.use_deterministic_algorithms(True)
    try:
        first, second = run(), run()
        with monkeypatch.context() as patch:
            patch.setattr(training._Loop, "epoch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "state.pt")
        third = run(tmp_path / "state.pt")
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert torch.equal(value, third[name]), f"{name}, resumed"


def test_a_stream_there_gives_windows_of_its_images():
    from semaug.training.streams import Stream

    images = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(40) % 4)
    recipe = Recipe(augment="crop+flip+cutout4", padding=2)
    stream = Stream(split, "train", 20, recipe, 0, torch.device("cuda"))
    batch = stream.batch(stream.epoch(2)[0], slice(0, 20))
    assert batch.images.is_cuda
    padded = torch.nn.functional.pad(images.float(), (2,) * 4, mode="reflect")
    windows = padded.unfold(2, 12, 1).unfold(3, 12, 1).permute(0, 2, 3, 1, 4, 5)  # (40, 5, 5, 3, 12, 12)
    order = Stream(split, "train", 20, recipe, 0, torch.device("cpu")).epoch(2)[0]  # orders are drawn on the CPU
    for number, image in zip(order.tolist(), (255 * batch.images).round().cpu(), strict=True):
        candidates = torch.cat([windows[number].flatten(0, 1), windows[number].flatten(0, 1).flip(-1)])
        kept = (candidates == image) | (image == 0)
        assert kept.flatten(1).all(1).any(), "some window of its own image, but for the black one"


def test_runs_together_are_those_alone():
    """Each on a stream of its own: nothing of one is read by another, or before it is written."""
    of = data.load("fashion-mini", train_size=1000, test_size=500)
    recipe = Recipe(epochs=4, batch_size=50, lr=0.02, augment="crop+flip", evaluate_every=2)
    names, seeds = ("CrossEntropy", "ISDA", "CrossEntropy", "ISDA"), (0, 0, 1, 1)

    def made():
        return [throwaway.build(name, dataset=of, seed=seed).cuda() for name, seed in zip(names, seeds, strict=True)]

    alone = [training.fit(one, of, recipe, seed, progress=False) for one, seed in zip(made(), seeds, strict=True)]
    together = training.fit_together(made(), of, recipe, seeds, progress=False)
    for one, other in zip(alone, together, strict=True):
        # cuDNN's and atomic sums' rounding grows over 80 steps
        assert other.curves["train_loss"] == pytest.approx(one.curves["train_loss"], rel=0.03)
        assert abs(other.metrics["test_accuracy"] - one.metrics["test_accuracy"]) < 0.05
    losses = [one.curves["train_loss"][0] for one in together]
    assert len(set(losses)) == 4, "four runs, not one four times"


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", "color,translation,cutout"])
def test_diffaugment_gives_the_same_bits_and_those_of_the_cpu(policy):
    """Images and their gradients: it has no sums in an order of chance, so it needs no deterministic algorithm."""
    augment = diffaugment.DiffAugment(policy)
    drawn = torch.Generator().manual_seed(0)
    images, slope = torch.rand(2, 16, 3, 32, 32, generator=drawn).unbind()
    draws = augment.draw(images, drawn)

    def both(device):
        leaf = images.to(device).requires_grad_()
        there = diffaugment.Draws(*(None if draw is None else draw.to(device) for draw in draws))
        made = augment.apply_draws(leaf, there)
        return made.detach(), *torch.autograd.grad(made, leaf, slope.to(device))

    torch.use_deterministic_algorithms(True)
    try:
        first, second = both("cuda"), both("cuda")
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other, cpu in zip(first, second, both("cpu"), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one.cpu(), cpu)
