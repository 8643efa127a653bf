"""The loop, held to loops and tables written out here: what is computed, on which images, from which generator."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import throwaway
from semaug import networks
from semaug.data.sets import Data, Split
from semaug.training import loop as training
from semaug.training.objective import CrossEntropy, Objective
from semaug.training.streams import generator_for

RECIPE = replace(throwaway.RECIPE, augment="none", evaluate_every=0)

# --- the same run as a plain loop ---------------------------------------------------------------------------------

EPOCHS, STEPS, SEED, HEAD_LR = 3, 4, 7, 0.02
WARMED = [1 / 6, 3 / 6, 5 / 6]  # a quarter of 12 steps, each at its middle
SCHEDULES = {
    "constant": ({"schedule": "constant"}, [1.0] * 12),
    "constant, warm-up": ({"schedule": "constant", "warmup": 0.25}, WARMED + [1.0] * 9),
    "cosine": ({"schedule": "cosine"}, [(1 + math.cos(math.pi * k / 24)) / 2 for k in range(1, 24, 2)]),
    "cosine, warm-up": (
        {"schedule": "cosine", "warmup": 0.25},
        WARMED + [(1 + math.cos(math.pi * k / 18)) / 2 for k in range(1, 18, 2)],
    ),
    "linear": ({"schedule": "linear"}, [k / 24 for k in range(23, 0, -2)]),
    "linear, warm-up": ({"schedule": "linear", "warmup": 0.25}, WARMED + [k / 18 for k in range(17, 0, -2)]),
    "step": (
        {"schedule": "step", "milestones": (0.5, 0.75), "factor": 0.3},
        [1.0] * 6 + [0.3] * 3 + [0.09] * 3,
    ),
    "step, warm-up": (  # milestones are fractions of the nine steps that follow the warm-up
        {"schedule": "step", "milestones": (1 / 3, 2 / 3), "factor": 0.3, "warmup": 0.25},
        WARMED + [1.0] * 3 + [0.3] * 3 + [0.09] * 3,
    ),
}
OPTIMIZERS = {
    "Nesterov, decay": (
        {"momentum": 0.8, "weight_decay": 0.02},
        lambda groups: torch.optim.SGD(groups, momentum=0.8, nesterov=True, weight_decay=0.02),
    ),
    "heavy ball": (
        {"momentum": 0.8, "nesterov": False, "weight_decay": 0.0},
        lambda groups: torch.optim.SGD(groups, momentum=0.8),
    ),
    "no momentum": (
        {"momentum": 0.0, "weight_decay": 0.02},
        lambda groups: torch.optim.SGD(groups, weight_decay=0.02),
    ),
    "Adam": (
        {"optimizer": "adam", "lr": 0.003, "momentum": 0.7, "weight_decay": 0.02},
        lambda groups: torch.optim.Adam(groups, betas=(0.7, 0.999), weight_decay=0.02),
    ),
}
CASES = [(schedule, "Nesterov, decay") for schedule in SCHEDULES]
CASES += [("cosine, warm-up", optimizer) for optimizer in OPTIMIZERS if optimizer != "Nesterov, decay"]


class TwoRates(CrossEntropy):
    """Cross-entropy, the head at a learning rate of its own."""

    def parameter_groups(self, recipe):
        head = self.network.head
        return [{"params": self.network.stages.parameters()}, {"params": head.parameters(), "lr": HEAD_LR}]


def plain_loop(network, split, make_optimizer, lr, scales):
    """Curves of the loss and the learning rate; nothing of fit is in it but the generator of the order."""
    groups = [
        {"params": list(network.stages.parameters()), "lr": lr},
        {"params": list(network.head.parameters()), "lr": HEAD_LR},
    ]
    optimizer = make_optimizer(groups)
    order = generator_for(SEED, "order/train")
    losses, rates = [], []
    network.train()
    for epoch in range(EPOCHS):
        permutation = torch.randperm(len(split), generator=order)
        total = 0.0
        for i in range(STEPS):
            rows = permutation[16 * i : 16 * (i + 1)]
            scale = scales[epoch * STEPS + i]
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = lr * scale, HEAD_LR * scale
            loss = F.cross_entropy(network(split.images[rows].float() / 255), split.target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / STEPS)
        rates.append(lr * scale)
    return losses, rates


@pytest.mark.parametrize(("schedule", "optimizer"), CASES)
def test_fit_equals_a_plain_loop(schedule, optimizer):
    data = throwaway.data(70)  # four batches of 16 an epoch, six images are left out
    (schedule_fields, scales), (optimizer_fields, make_optimizer) = SCHEDULES[schedule], OPTIMIZERS[optimizer]
    # evaluated in between, and given in evaluation mode: neither may leave a trace in the running statistics
    recipe = replace(RECIPE, epochs=EPOCHS, evaluate_every=1, **schedule_fields, **optimizer_fields)
    mine, theirs = (TwoRates(networks.small(4, width=4)).double().eval() for _ in range(2))
    theirs.load_state_dict(mine.state_dict())
    record = training.fit(mine, data, recipe, seed=SEED, progress=False)
    losses, rates = plain_loop(theirs.network, data.train, make_optimizer, recipe.lr, scales)
    # float64: what the order of roundings changes is below 1e-12; a step too many or too few is far above
    assert record.curves["train_loss"] == pytest.approx(losses, rel=1e-10)
    assert record.metrics["train_loss"] == pytest.approx(losses[-1], rel=1e-10)
    assert record.curves["lr"] == pytest.approx(rates, rel=1e-12)
    expected = theirs.state_dict()
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-9, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
        )


# --- the right split, at the right time, in the right mode --------------------------------------------------------

RIGHT = {"train": (8, 7, 6, 7), "validation": (2, 6, 8, 4), "test": (1, 5, 7, 3), "meta": (0, 3, 5, 2)}
"""Of the eight images of each split, how many are called right after each of four epochs: no two columns agree."""


def readable(name):
    """Eight images that say themselves what they are: class in the last row, in row t whether t epochs will do."""
    target = torch.arange(8) % 4
    images = torch.zeros(8, 1, 5, 2, dtype=torch.uint8)
    images[:, 0, 4, 0] = target.byte()
    for epoch, right in enumerate(RIGHT[name]):
        images[:right, 0, epoch] = 255
    return Split(images, target)


class Reader(Objective):
    """Calls each image what the table says for the number of steps done; nothing right in training mode."""

    streams = ("train", "meta")

    def __init__(self):
        super().__init__(nn.Sequential(nn.Dropout()))
        self.weight = nn.Parameter(torch.ones(()))
        self.steps = 0

    def forward(self, images, target, step):
        assert all(part.training for part in self.modules()), "every epoch trains in training mode"
        return self.weight**2, {}

    def after_step(self, step):
        self.steps += 1

    def predict(self, images):
        epoch = max(self.steps // 2 - 1, 0)
        target = (images[:, 0, 4, 0] * 255).round().long()
        right = (images[:, 0, epoch, 0] == 1) & (not any(part.training for part in self.modules()))
        return F.one_hot((target + (~right).long()) % 4, 4).float()


@pytest.mark.parametrize("every", [0, 1, 2, 3])
@pytest.mark.parametrize("validated", [True, False])
def test_each_accuracy_is_of_its_split_its_epoch_and_evaluation_mode(validated, every):
    splits = {name: readable(name) for name in RIGHT}
    if not validated:
        del splits["validation"]
    data = Data("readable", **splits, classes=tuple("abcd"))
    objective = Reader()
    record = training.fit(
        objective, data, replace(RECIPE, epochs=4, batch_size=4, evaluate_every=every), progress=False
    )
    watched, other = ("validation", "test") if validated else ("test", "validation")
    curve = [RIGHT[watched][epoch] / 8 for epoch in range(4) if every and (epoch + 1) % every == 0]
    assert record.curves.get(f"{watched}_accuracy", []) == curve
    assert f"{other}_accuracy" not in record.curves
    assert record.metrics["test_accuracy"] == 3 / 8, "the last epoch, not the best"
    assert record.metrics.get("validation_accuracy") == (4 / 8 if validated else None)
    assert not any(part.training for part in objective.modules()), "left in evaluation mode"


# --- what an objective is shown -----------------------------------------------------------------------------------


def numbered(first, count):
    """Images of two pixels: their number, and white; which comes first tells whether they were flipped."""
    images = torch.full((count, 1, 1, 2), 255, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(first, first + count)
    return Split(images, torch.arange(count) % 4)


def numbers(count_meta=20):
    return Data("numbered", numbered(0, 48), numbered(60, 8), meta=numbered(100, count_meta), classes=tuple("abcd"))


class Witness(Objective):
    """Notes what it sees. The gradient of both weights is 1, so that plain SGD moves them by the learning rate."""

    streams = ("train", "meta")

    def __init__(self):
        super().__init__(nn.Identity())
        self.first = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.second = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.seen = {}

    def note(self, **values):
        for name, value in values.items():
            self.seen.setdefault(name, []).append(value)

    def forward(self, images, target, step):
        for name, batch in {"train": (images, target), "meta": step.meta}.items():
            pixels = (batch[0][:, 0, 0] * 255).round().long()
            self.note(**{f"order/{name}": pixels.amin(1), f"augment/{name}": (pixels[:, 0] == 255).long()})
            self.note(**{f"target/{name}": batch[1]})
        self.note(objective=torch.rand(5, generator=step.generator))
        self.note(**{"global": F.dropout(torch.ones(40))})
        self.note(progress=step.progress.clone(), lr=step.lr.item())
        self.note(autocast=torch.is_autocast_enabled("cpu"), product=(torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return self.first + self.second, {}

    def predict(self, images):
        return torch.zeros(len(images), 4)

    def parameter_groups(self, recipe):
        return [{"params": [self.first]}, {"params": [self.second], "lr": 10.0}]

    def after_step(self, step):
        self.note(first=self.first.item(), second=self.second.item())
        self.note(after=(step.progress.clone(), step.lr.item(), torch.is_autocast_enabled("cpu")))


SIGHT = replace(
    RECIPE, epochs=2, meta_batch_size=6, lr=3.0, momentum=0.0, weight_decay=0.0, schedule="linear", augment="flip"
)
PURPOSES = ["order/train", "order/meta", "augment/train", "augment/meta", "objective", "global"]


def seen_by(seed=0, data=None, **changes):
    """What a Witness saw in six steps: two epochs of 48 images, in batches of 16."""
    witness = Witness()
    training.fit(witness, data or numbers(), replace(SIGHT, **changes), seed=seed, progress=False)
    assert len(witness.seen["lr"]) == 6
    return witness.seen


def promised(purpose, seed):
    """What the generator of one purpose gives, drawn here, for six steps."""
    generator = generator_for(seed, purpose)
    if purpose == "order/train":  # every image once an epoch
        return torch.cat([torch.randperm(48, generator=generator) for _ in range(2)])
    if purpose == "order/meta":  # three batches of 6 of one permutation, then of another
        return torch.cat([100 + torch.randperm(20, generator=generator)[:18] for _ in range(2)])
    if purpose.startswith("augment"):
        size = 16 if purpose == "augment/train" else 6
        return torch.cat([torch.randint(2, (size,), generator=generator) for _ in range(6)])
    if purpose == "objective":
        return torch.cat([torch.rand(5, generator=generator) for _ in range(6)])
    with torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())
        return torch.cat([F.dropout(torch.ones(40)) for _ in range(6)])


@pytest.mark.parametrize("purpose", PURPOSES)
def test_each_generator_follows_the_seed(purpose):
    one, other = (torch.cat(seen_by(seed)[purpose]) for seed in (1, 2))
    assert not torch.equal(one, other), "another seed, other draws"
    torch.manual_seed(123)  # what was drawn before the call does not matter
    assert torch.equal(torch.cat(seen_by(1)[purpose]), one)
    assert torch.equal(one, promised(purpose, 1))
    assert torch.equal(other, promised(purpose, 2))


def test_generators_differ_from_each_other():
    states = [generator_for(0, purpose).initial_seed() for purpose in PURPOSES]
    assert len(set(states)) == len(states)


@pytest.mark.parametrize("changes", [{"augment": "none"}, {"meta_batch_size": 9}, {"evaluate_every": 1}])
def test_no_generator_hears_of_another(changes):
    """Other augmentation, another second stream, evaluation in between: the rest is drawn as before."""
    before, after = seen_by(), seen_by(**changes)
    concerned = {"augment": {"augment/train", "augment/meta"}, "meta_batch_size": {"order/meta", "augment/meta"}}
    for purpose in set(PURPOSES) - concerned.get(next(iter(changes)), set()):
        assert torch.equal(torch.cat(before[purpose]), torch.cat(after[purpose])), purpose


@pytest.mark.parametrize(("asked", "held", "given"), [(6, 20, 6), (20, 20, 20), (64, 20, 20), (5, 12, 5)])
def test_the_second_stream_is_of_meta_images_in_its_own_batch_size(asked, held, given):
    seen = seen_by(data=numbers(held), meta_batch_size=asked)
    assert [len(rows) for rows in seen["order/meta"]] == [given] * 6
    assert [len(rows) for rows in seen["order/train"]] == [16] * 6
    for name, first, count in (("train", 0, 48), ("meta", 100, held)):
        rows = torch.cat(seen[f"order/{name}"]) - first
        assert set(rows.tolist()) <= set(range(count))
        assert torch.equal(torch.cat(seen[f"target/{name}"]), rows % 4), "each image keeps its target"
    for epoch in (slice(0, 3), slice(3, 6)):
        counts = torch.bincount(torch.cat(seen["order/meta"][epoch]) - 100, minlength=held)
        assert counts.max() - counts.min() <= 1, "each as often as the others"


def test_step_says_how_far_and_how_fast():
    seen = seen_by()
    scales = [11 / 12, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 1 / 12]  # linear, at the middle of each of six steps
    progress = torch.stack(seen["progress"])
    assert progress.dtype == torch.float32
    torch.testing.assert_close(progress, torch.tensor([1, 3, 5, 7, 9, 11]) / 12)
    assert seen["lr"] == pytest.approx([3 * scale for scale in scales])
    for name, peak in (("first", 3.0), ("second", 10.0)):  # the weights went exactly as far as they were told
        way = [before - after for before, after in zip([0.0, *seen[name][:-1]], seen[name], strict=True)]
        assert way == pytest.approx([peak * scale for scale in scales])
    assert [(float(p), lr) for p, lr, _ in seen["after"]] == list(zip(progress.tolist(), seen["lr"], strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_that_of_the_forward_pass(precision):
    seen = seen_by(precision=precision)
    assert seen["autocast"] == [precision == "bfloat16"] * 6
    assert seen["product"] == [getattr(torch, precision)] * 6
    assert not any(autocast for _, _, autocast in seen["after"])


def test_bfloat16_trains_float32_weights_as_a_plain_autocast_loop_does():
    data = throwaway.data(16)
    mine, theirs = (throwaway.build("CrossEntropy", norm="group") for _ in range(2))
    recipe = replace(RECIPE, epochs=1, precision="bfloat16", schedule="constant", momentum=0.0, weight_decay=0.0)
    record = training.fit(mine, data, recipe, progress=False)
    rows = torch.randperm(16, generator=generator_for(0, "order/train"))
    with torch.autocast("cpu", torch.bfloat16):
        logits = theirs.network(data.train.images[rows].float() / 255)
    loss = F.cross_entropy(logits.float(), data.train.target[rows])
    loss.backward()
    assert record.metrics["train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    for (name, moved), start in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert moved.dtype == torch.float32
        # one step of the same operations: float32 roundings of lr * gradient alone
        torch.testing.assert_close(moved, start - recipe.lr * start.grad, rtol=1e-5, atol=1e-6, msg=name)
