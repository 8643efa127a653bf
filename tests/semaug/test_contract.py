"""What every objective promises, held to by each that there is: no list is kept by hand, a new one is found.

``throwaway.build`` makes the objective of a class with a small network, by the settings it needs to be small.
"""

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import throwaway
from semaug.methods import objectives
from semaug.methods.gvae import AutoEncoder
from semaug.training import loop as training
from semaug.training.objective import Batch, Objective, Step

NAMES = sorted(throwaway.classes())
STATIC = [name for name in NAMES if vars(throwaway.classes()[name]).get("static", False)]
RECIPE = replace(throwaway.RECIPE, batch_size=32, evaluate_every=0, augment="flip", lr=1e-4)
"""Two epochs of two steps each, at a rate that suits losses in nats of an image too."""
CONSTANT = re.compile(r".*\.(mean|std|probability)")
"""Buffers that training leaves alone: a network's normalisation, the chance of a transformation."""


def tiny(name, **options):
    try:
        return throwaway.build(name, dataset=throwaway.patterns(), **options)
    except Exception as error:
        pytest.fail(f"{name}: cannot be built small ({error!r}); give it what it needs in throwaway.SMALL")


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_registry_finds_what_is_there(tmp_path):
    found = objectives()
    assert {"CrossEntropy", "Smoothed", "ISDA", "ManifoldMixup", "GVAE", "LongTailedSLA"} <= found.keys()
    assert all(issubclass(kind, Objective) and kind.__name__ == name for name, kind in found.items())
    assert "Mixing" not in found, "it leaves a method abstract"
    assert "Objective" not in found
    modules = {kind.__module__.rsplit(".", 1)[1] for kind in found.values()}
    written = {
        path.stem
        for path in Path(sys.modules["semaug.methods"].__file__).parent.glob("[!_]*.py")
        if re.search(r"^class \w+\((Objective|Mixing)\):", path.read_text(), re.M)
    }
    assert written <= modules


# --- trains, resumes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_an_easy_set_and_all_that_it_owns_takes_part(name):
    objective, data = tiny(name), throwaway.patterns()
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    epochs = 20 if isinstance(objective.network, AutoEncoder) else 8  # classes are learned from codes beside them
    recipe = replace(RECIPE, batch_size=16, epochs=epochs, optimizer="adam", lr=0.02)
    record = training.fit(objective, data, recipe, progress=False)
    assert record.metrics["test_accuracy"] > 0.4, "four classes: chance is .25, with a standard deviation of .08"
    still = [key for key, value in objective.state_dict().items() if torch.equal(value, before[key])]
    assert [key for key in still if not CONSTANT.match(key)] == []
    assert record.config["objective"] == name
    assert not objective.training


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_equals_an_unbroken_one_bitwise(name, tmp_path):
    data, unbroken, broken, resumed = throwaway.patterns(), tiny(name), tiny(name), tiny(name)
    whole = training.fit(unbroken, data, RECIPE, seed=5, progress=False)
    after_step, count = broken.after_step, [0]

    def stop_at_the_third(step):  # of two an epoch: in the second
        after_step(step)
        count[0] += 1
        if count[0] == 3:
            raise Stopped

    broken.after_step = stop_at_the_third
    path = tmp_path / "run.pt"
    with pytest.raises(Stopped):
        training.fit(broken, data, RECIPE, seed=5, resume=path, progress=False)
    torch.manual_seed(99)  # a new process has another global state
    record = training.fit(resumed, data, RECIPE, seed=5, resume=path, progress=False)
    assert equal(unbroken.state_dict(), resumed.state_dict())
    assert (record.curves, record.metrics, record.config) == (whole.curves, whole.metrics, whole.config)


# --- two processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """States after training in two processes, of every objective."""
    folder, root = tmp_path_factory.mktemp("ranks"), Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", throwaway.__file__, str(folder), *NAMES]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(name, ranks):
    """Float64 with GroupNorm: what is left is the order of summation. (BatchNorm differs.)"""
    alone, (first, second) = throwaway.train_exactly(name), (rank[name] for rank in ranks)
    assert equal(first, second), "the two processes differ"
    assert alone.keys() == first.keys()
    if not throwaway.classes()[name].pairs:
        for key, value in alone.items():
            torch.testing.assert_close(first[key].double(), value.double(), rtol=0, atol=1e-12, msg=key)


# --- static -----------------------------------------------------------------------------------------------------------


class Blind(TorchDispatchMode):
    """Refuses what looks at a value or makes a shape of it, as a capture on a GPU would; lists the operations."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2", "unique_dim")

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        )
        if name in self.READS or by_mask:
            raise AssertionError(f"{func} looks at a value")
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def blind(monkeypatch) -> Iterator[Blind]:
    """As while a CUDA graph is captured, on the CPU: checks of values are off, and a look at one is an error."""

    def one_hot(target, num_classes):  # torch's looks at the values where it is on the CPU
        return (target[..., None] == torch.arange(num_classes)).long()

    def looks(*_, **__):
        raise AssertionError("it goes to the CPU to look at a value")

    with monkeypatch.context() as patch:
        for module in [part for name, part in sys.modules.items() if name.startswith("semaug.")]:
            if hasattr(module, "capturing"):
                patch.setattr(module, "capturing", lambda x: True)
        patch.setattr(F, "one_hot", one_hot)
        for name in ("tolist", "numpy", "cpu", "__array__"):
            patch.setattr(torch.Tensor, name, looks)
        with Blind() as mode:
            yield mode


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.usefixtures("unchecked")
def test_a_static_step_looks_at_no_value_and_is_the_same_in_a_phase(name, monkeypatch):
    run_blind(tiny(name), monkeypatch)


def run_blind(objective, monkeypatch):
    """Steps all over training, of each phase that says it is static."""
    data = throwaway.patterns()
    images, target = data.train.floats(slice(0, 64, 4)), data.train.target[::4]
    meta = Batch(data.meta.floats(), data.meta.target)
    objective.train()
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    seen = {}
    for progress in (0.1, 0.2, 0.4, 0.6, 0.8, 0.9):
        phase = objective.phase(progress)
        step = Step(torch.tensor(progress), torch.tensor(0.01), torch.Generator().manual_seed(0), meta, phase=phase)
        if phase is None:
            continue
        if phase not in seen:  # what is made once may look
            objective(images, target, step)[0].backward()
        objective.zero_grad()
        with blind(monkeypatch) as mode:
            objective(images, target, step)[0].backward()
            with torch.no_grad():
                objective.after_step(step)
        assert seen.setdefault(phase, mode.calls) == mode.calls
        for parameter in parameters:
            parameter.data -= 0.01 * parameter.grad
    assert seen, "no phase is static"


LOOKS = {
    "at a value": lambda logits, calls: logits.sum() if logits.mean() > -100 else logits.mean(),
    "by item": lambda logits, calls: logits.sum() * logits.max().item(),
    "by a mask": lambda logits, calls: logits[logits > 0].sum(),
    "for places": lambda logits, calls: logits.flatten()[(logits > 0).flatten().nonzero()[:, 0]].sum(),
    "at a list": lambda logits, calls: logits.sum() * logits.detach().tolist()[0][0],
    "at NumPy": lambda logits, calls: logits.sum() * float(logits.detach().numpy()[0, 0]),
    "at the number of the step": lambda logits, calls: logits.sum() if calls % 2 else logits.mean(),
}


@pytest.mark.parametrize("kind", LOOKS)
@pytest.mark.usefixtures("unchecked")
def test_a_step_that_looks_is_found(kind, monkeypatch):
    class Looks(Objective):
        calls = 0

        def forward(self, images, target, step):
            self.calls += 1
            return LOOKS[kind](self.network(images), self.calls), {}

    looks = Looks(throwaway.network("CrossEntropy"))
    with pytest.raises(AssertionError):
        run_blind(looks, monkeypatch)


# --- precision, frozen parts, bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_under_bfloat16(name):
    recipe = replace(RECIPE, epochs=1, precision="bfloat16")
    objective = tiny(name)
    record = training.fit(objective, throwaway.patterns(), recipe, progress=False)
    assert all(math.isfinite(value) for curve in record.curves.values() for value in curve)
    assert {value.dtype for value in objective.state_dict().values()} <= {torch.float32, torch.int64, torch.float64}


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_stay_frozen(name):
    network = throwaway.network(name)
    still = {
        key: one for key, one in network.named_parameters() if key.startswith(("stages.0.", "head.", "encoder.0."))
    }
    before = {key: one.requires_grad_(False).clone() for key, one in still.items()}
    training.fit(tiny(name, network=network), throwaway.patterns(), replace(RECIPE, epochs=1), progress=False)
    assert before
    assert not any(one.requires_grad for one in still.values())
    assert [key for key, one in still.items() if not torch.equal(one, before[key])] == []


BAD = {
    "a class that is not there": lambda images, target: (images, target.new_full((8,), throwaway.CLASSES)),
    "a class below 0": lambda images, target: (images, target.new_full((8,), -100)),
    "a number of a class that is no whole number": lambda images, target: (images, target.float()),
    "labels of other images": lambda images, target: (images, target[:5]),
    "no image": lambda images, target: (images[:0], target[:0]),
    "images without channels": lambda images, target: (images[:, 0], target),
    "bytes": lambda images, target: ((255 * images).byte(), target),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named(name):
    objective, data = tiny(name).train(), throwaway.patterns()
    meta = Batch(data.meta.floats(), data.meta.target)
    step = Step(torch.tensor(0.5), torch.tensor(0.01), torch.Generator().manual_seed(0), meta)
    said = {}
    for kind, spoil in BAD.items():
        images, target = spoil(data.train.floats(slice(0, 64, 8)), data.train.target[::8])
        try:
            said[kind] = f"a loss of {objective(images, target, step)[0]}"
        except (ValueError, TypeError) as error:
            said[kind] = str(error)
    assert {kind: text for kind, text in said.items() if not re.match(r"(images|target): got .*; takes", text)} == {}
