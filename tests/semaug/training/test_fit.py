"""The loop: records, checkpoints, runs together, bad input said at once. See test_contract for every objective."""

import hashlib
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch.nn import functional as F

import throwaway
from semaug import load
from semaug.training import checkpoint, loop as training, objective, record as rec

RECIPE = throwaway.RECIPE


def equal_states(one, two):
    assert one.keys() == two.keys()
    return all(torch.equal(one[key], two[key]) for key in one)


# --- records ----------------------------------------------------------------------------------------------------------


def test_the_last_epoch_is_reported_and_the_loss_falls():
    objective_ = throwaway.build("Teacher")
    recipe = replace(RECIPE, epochs=8, augment="none")  # a flip would turn one class into another
    record = training.fit(objective_, throwaway.data(), recipe, progress=False)
    assert record.curves["train_loss"][-1] < record.curves["train_loss"][0]
    assert record.metrics["test_accuracy"] == record.curves["test_accuracy"][-1] > 0.5
    assert len(record.curves["test_accuracy"]) == len(record.curves["lr"]) == 8


def test_the_record_says_what_ran(tmp_path):
    objective_ = throwaway.build("Teacher")
    record = training.fit(objective_, throwaway.data(), RECIPE, seed=3, progress=False)
    assert record.config["objective"] == "Teacher"
    assert record.config["settings"] == {"block_lr": 0.01}
    assert record.config["data"] == {"name": "quadrants", "digest": throwaway.data().digest}
    assert record.config["recipe"]["lr"] == RECIPE.lr
    assert record.seed == 3
    assert record.seconds > 0
    assert record.peak_memory > 2**20
    assert "through" in record.curves
    assert rec.Record.read(record.save(tmp_path)) == record


def test_the_record_says_each_class_and_what_the_objective_adds(tmp_path):
    class Adds(objective.CrossEntropy):
        def metrics(self, data):
            assert not self.training
            return {"images": float(len(data.test))}

    def brightest(images):  # the right quadrant, but class 0 is called 1
        quadrant = images.unfold(2, 6, 6).unfold(3, 6, 6).sum((1, 4, 5)).flatten(1).argmax(1)
        return F.one_hot(quadrant.clamp_min(1), 4).float()

    objective_ = Adds(throwaway.build("CrossEntropy").network)
    objective_.predict = brightest
    data = throwaway.data()
    data = replace(data, train=data.train.take([*range(16), 0, 4, 2]))
    record = training.fit(objective_, data, RECIPE, progress=False)
    assert record.train_counts == [6, 4, 5, 4]
    assert record.class_accuracy == [0.0, 1.0, 1.0, 1.0]
    assert record.metrics["test_accuracy"] == 0.75
    assert record.metrics["images"] == 32.0
    assert rec.Record.read(record.save(tmp_path)) == record


def test_a_metric_that_fit_records_itself_is_refused():
    objective_ = throwaway.build("CrossEntropy")
    objective_.metrics = lambda data: {"test_accuracy": 1.0}
    with pytest.raises(ValueError, match=r"CrossEntropy.metrics: got 'test_accuracy'; takes other names"):
        training.fit(objective_, throwaway.data(), replace(RECIPE, epochs=1), progress=False)


@pytest.mark.parametrize(
    "error", [np.linalg.LinAlgError("SVD did not converge"), KeyError("x"), MemoryError(), Warning()]
)
def test_a_metric_that_fails_leaves_the_record(tmp_path, caplog, error):
    def fails(data):
        raise error

    whole = training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, progress=False)
    objective_ = throwaway.build("CrossEntropy")
    objective_.metrics = fails
    record = training.fit(objective_, throwaway.data(), RECIPE, progress=False)
    assert (record.metrics, record.curves, record.hash) == (whole.metrics, whole.curves, whole.hash)
    assert record.environment["failed"] == f"metrics: {type(error).__name__}: {error}"
    assert record.environment["failed"] in caplog.text
    assert rec.Record.read(record.save(tmp_path)) == record


@pytest.mark.parametrize("value", [torch.tensor(2.0), np.float32(2), np.int64(2), True])
def test_metrics_become_plain_numbers(tmp_path, value):
    objective_ = throwaway.build("CrossEntropy")
    objective_.metrics = lambda data: {"mine": value}
    record = training.fit(objective_, throwaway.data(), replace(RECIPE, epochs=1), progress=False)
    assert rec.Record.read(record.save(tmp_path)).metrics["mine"] == float(value)


def test_another_seed_gives_other_bits():
    states = []
    for seed in (1, 2):
        objective_ = throwaway.build("Noise")
        training.fit(objective_, throwaway.data(), RECIPE, seed=seed, progress=False)
        states.append(objective_.state_dict())
    assert not equal_states(*states)


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, progress=False)
    assert torch.equal(before, torch.get_rng_state())


# --- resume ---------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stop_after(objective_, steps):
    """Raise in the middle of a later epoch, as a crash would."""
    original, count = objective_.after_step, [0]

    def after_step(step):
        original(step)
        count[0] += 1
        if count[0] == steps:
            raise Stopped

    objective_.after_step = after_step
    return objective_


def test_a_finished_run_is_not_trained_again_and_reports_the_same(tmp_path):
    path = tmp_path / "run.pt"
    whole = training.fit(throwaway.build("Teacher"), throwaway.data(), RECIPE, resume=path, progress=False)
    written = path.stat().st_mtime_ns
    again = training.fit(throwaway.build("Teacher"), throwaway.data(), RECIPE, resume=path, progress=False)
    assert (again.metrics, again.curves, again.seconds) == (whole.metrics, whole.curves, whole.seconds)
    assert path.stat().st_mtime_ns == written


def test_dropout_resumes_bitwise_from_the_global_generator(tmp_path):
    def build():
        objective_ = throwaway.build("CrossEntropy")
        objective_.network.pool = torch.nn.Sequential(objective_.network.pool, torch.nn.Dropout(0.5))
        return objective_

    unbroken, resumed = build(), build()
    training.fit(unbroken, throwaway.data(), RECIPE, progress=False)
    with pytest.raises(Stopped):
        training.fit(stop_after(build(), 6), throwaway.data(), RECIPE, resume=tmp_path / "run.pt", progress=False)
    training.fit(resumed, throwaway.data(), RECIPE, resume=tmp_path / "run.pt", progress=False)
    assert equal_states(unbroken.state_dict(), resumed.state_dict())


def test_killed_process_resumes(tmp_path):
    """SIGKILL at whatever moment it comes; the checkpoint on the disk is whole and the rest of the run the same."""
    script = f"""
import sys; sys.path.insert(0, {str(Path(throwaway.__file__).parent)!r})
import torch; torch.set_num_threads(1)
import throwaway; from semaug.training import loop as training; from dataclasses import replace
recipe = replace(throwaway.RECIPE, epochs=60)
training.fit(throwaway.build("ISDA"), throwaway.data(), recipe, resume={str(tmp_path / "run.pt")!r})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(Path(objective.__file__).parents[2])}
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was to be killed in the middle, not to end"
    content = training.Checkpoint.read(tmp_path / "run.pt")
    assert 1 <= content["epochs_done"] < 60
    unbroken, resumed = throwaway.build("ISDA"), throwaway.build("ISDA")
    recipe = replace(RECIPE, epochs=60)
    whole = training.fit(unbroken, throwaway.data(), recipe, progress=False)
    record = training.fit(resumed, throwaway.data(), recipe, resume=tmp_path / "run.pt", progress=False)
    assert equal_states(unbroken.state_dict(), resumed.state_dict())
    assert record.curves == whole.curves


def test_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, resume=path, progress=False)
    kept = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"resume: .* its config.recipe.lr is 0.05, this run's is 0.01. Name another file"
    ):
        training.fit(
            throwaway.build("CrossEntropy"), throwaway.data(), replace(RECIPE, lr=0.01), resume=path, progress=False
        )
    with pytest.raises(ValueError, match=r"resume: .* its seed is 0, this run's is 1"):
        training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, seed=1, resume=path, progress=False)
    assert path.read_bytes() == kept


def test_checkpoint_of_other_images_of_the_same_name_is_refused(tmp_path):
    path, data = tmp_path / "run.pt", throwaway.data()
    training.fit(throwaway.build("CrossEntropy"), data, RECIPE, resume=path, progress=False)
    relabelled = replace(data.train, target=data.train.target.roll(1))
    test = data.test.take(slice(1, None))
    for other in (replace(data, train=relabelled), replace(data, test=test)):
        with pytest.raises(
            ValueError,
            match=rf"is of another run: its config.data.digest is {data.digest}, this run's is {other.digest}",
        ):
            training.fit(throwaway.build("CrossEntropy"), other, RECIPE, resume=path, progress=False)


def rewrite(path, content):
    """A checkpoint of other content, whole."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(checkpoint.MAGIC + hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())


def test_one_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "run.pt"
    training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, resume=path, progress=False)
    whole = path.read_bytes()
    for place in torch.randint(len(whole), (20,)).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="is no whole checkpoint"):
            training.Checkpoint.read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"resume: .*run.pt cannot be read \(a pipe\); takes the name of a file"):
        training.Checkpoint.read(tmp_path / "run.pt")


class Foreign:
    """Of no class that a checkpoint may hold."""


@pytest.mark.parametrize("content", [b"", b"no archive", Foreign()])
def test_a_whole_file_that_torch_does_not_load_is_of_another_version(tmp_path, content):
    path = tmp_path / "run.pt"
    if isinstance(content, bytes):
        path.write_bytes(checkpoint.MAGIC + hashlib.sha256(content).digest() + content)
    else:
        rewrite(path, {"objective": content})
    with pytest.raises(ValueError, match=r"resume: .*run.pt is of another version \(.*\); takes a new name"):
        training.Checkpoint.read(path)


@pytest.mark.parametrize("what", ["folder", "torch.save", "text", "empty"])
def test_a_file_that_is_not_ours_is_refused_and_stays(tmp_path, what):
    path = tmp_path / "run.pt"
    content = {"torch.save": io.BytesIO(), "text": b'{"a": 1}', "empty": b""}.get(what)
    if what == "folder":
        path.mkdir()
    elif what == "torch.save":
        torch.save({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    before = path.read_bytes() if what != "folder" else b""
    with pytest.raises(ValueError, match=r"run.pt (is not one of ours|cannot be read .*); takes") as refused:
        training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, resume=path, progress=False)
    assert "delete" not in str(refused.value)
    assert path.is_dir() if what == "folder" else path.read_bytes() == before


def test_checkpoint_of_another_network_is_refused_before_anything_changes(tmp_path):
    path = tmp_path / "run.pt"
    training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, resume=path, progress=False)
    other = throwaway.build("CrossEntropy")
    other.network.extra = torch.nn.Linear(2, 2).requires_grad_(False)  # same name, another network
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"is of another run: its objective.network.extra.weight is None, this run's is"
    ):
        training.fit(other, throwaway.data(), RECIPE, resume=path, progress=False)
    assert equal_states(before, other.state_dict())


def without(*path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def changed(path, value):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


ODD = {
    "a key of none": (without("optimizer"), r"is of another version \(KeyError.*optimizer.*; takes a new name"),
    "another kind": (changed(("curves",), None), "is of another version"),
    "a generator by another name": (
        without("generators", "objective"),
        r"is of another run: its generators is .*order",
    ),
    "too many epochs": (changed(("epochs_done",), 99), "its epochs_done is 99, of 2 epochs"),
    "epochs below 0": (changed(("epochs_done",), -1), "its epochs_done is -1"),
    "no buffer of the optimiser": (without("optimizer", "param_groups"), "is of another version"),
    "fewer groups": (changed(("optimizer", "param_groups"), []), "is of another version"),
    "one generator less": (changed(("global",), []), "is of another version"),
    "a generator's state": (changed(("generators", "objective"), torch.zeros(3).byte()), "is of another version"),
    "a weight less": (without("objective", "network.head.bias"), "its objective.network.head.bias is None"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_checkpoint_of_another_version_changes_nothing(tmp_path, name):
    path, (change, message) = tmp_path / "run.pt", ODD[name]
    training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, resume=path, progress=False)
    content = training.Checkpoint.read(path)
    change(content)
    rewrite(path, content)
    one = throwaway.build("CrossEntropy")
    before = {key: value.clone() for key, value in one.state_dict().items()}
    with pytest.raises(ValueError, match=rf"resume: .*run.pt .*{message}"):
        training.fit(one, throwaway.data(), RECIPE, resume=path, progress=False)
    assert equal_states(before, one.state_dict())


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:40], lambda b: b + b"\n"])
def test_damaged_checkpoint_is_named(tmp_path, damage):
    path = tmp_path / "run.pt"
    training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, resume=path, progress=False)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"run.pt is no whole checkpoint \(its checksum differs\); delete it to start"):
        training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, resume=path, progress=False)


def test_what_a_checkpoint_would_refuse_is_not_written(tmp_path):
    class Odd(objective.CrossEntropy):
        def get_extra_state(self):
            return Path("here")

        def set_extra_state(self, state):
            pass

    path, odd = tmp_path / "run.pt", Odd(throwaway.build("CrossEntropy").network)
    with pytest.raises(ValueError, match="Odd: got a state that is no tensors and plain values"):
        training.fit(odd, throwaway.data(), RECIPE, resume=path, progress=False)
    assert not path.exists()


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_are_written_and_read_again(tmp_path):
    class Rated(objective.CrossEntropy):
        def __init__(self, network, rate):
            super().__init__(network, rate=rate, steps=np.int64(3))
            self.rate = rate

        def parameter_groups(self, recipe):
            return [{"params": self.network.parameters(), "lr": self.rate}]

    numbers = {"lr": np.float64(0.1), "epochs": np.int64(2), "batch_size": np.int64(16), "momentum": np.float32(0.5)}
    recipe, path = training.Recipe(**numbers), tmp_path / "run.pt"
    records = []
    for _ in range(2):
        rated = Rated(throwaway.build("CrossEntropy").network, np.float64(0.05))
        records.append(training.fit(rated, throwaway.data(), recipe, seed=np.int64(3), resume=path, progress=False))
    assert records[0].config["settings"] == {"rate": 0.05, "steps": 3}
    assert [type(value) for value in records[0].config["settings"].values()] == [float, int]
    assert records[0].curves == records[1].curves
    assert rec.Record.read(records[0].save(tmp_path)) == records[0]


def test_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "run.pt", [], os.fsync

    def full_at_the_second(handle):
        synced.append(handle)
        if len(synced) == 2:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(OSError, match="No space left"):
        training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, resume=path, progress=False)
    assert training.Checkpoint.read(path)["epochs_done"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"], "no part of a file is left"


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")

    def read_only(**_):
        raise OSError(30, "Read-only file system")

    def trained(*_):
        raise AssertionError("it should not have come to that")

    monkeypatch.setattr(training._Loop, "epoch", trained)
    one = throwaway.build("CrossEntropy")
    with pytest.raises(OSError, match="file"):
        training.fit(one, throwaway.data(), RECIPE, resume=tmp_path / "file" / "run.pt", progress=False)
    monkeypatch.setattr(checkpoint.tempfile, "TemporaryFile", read_only)
    with pytest.raises(OSError, match="Read-only file system"):
        training.fit(one, throwaway.data(), RECIPE, resume=tmp_path / "run.pt", progress=False)


def test_a_run_that_changed_its_machine_says_so_and_removes_what_a_kill_left(tmp_path):
    path = tmp_path / "run.pt"
    training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, resume=path, progress=False)
    content = training.Checkpoint.read(path)
    assert "resumed_from" not in content["environment"]
    content["environment"] = {"device": "another"}
    rewrite(path, content)
    (tmp_path / ".run.pt.abc.part").write_bytes(b"half")
    record = training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, resume=path, progress=False)
    assert record.environment["resumed_from"] == {"device": "another"}
    assert record.environment["device"] != "another"
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


# --- what a captured step would leave out -----------------------------------------------------------------------------


def test_a_step_with_hooks_or_methods_of_an_instance_is_not_captured():
    one, recipe = throwaway.build("ISDA"), replace(RECIPE, optimizer="sgd")
    assert training.capturable(one, recipe)
    hook = one.network.head.register_forward_hook(lambda *_: None)
    assert not training.capturable(one, recipe)
    hook.remove()
    assert training.capturable(one, recipe)
    assert not training.capturable(one, replace(recipe, optimizer="adam"))
    one.after_step = lambda step: None
    assert not training.capturable(one, recipe)


# --- objectives and data that do not fit together -------------------------------------------------------------------


def test_batch_larger_than_the_set():
    with pytest.raises(ValueError, match=r"Recipe.batch_size: got 128; takes at most the 64 training images"):
        training.fit(throwaway.build("CrossEntropy"), throwaway.data(), replace(RECIPE, batch_size=128), progress=False)


def test_missing_second_stream():
    data = replace(throwaway.data(), meta=None)
    with pytest.raises(ValueError, match=r"data.meta: got none; takes a second stream for Reweighter"):
        training.fit(throwaway.build("Reweighter"), data, RECIPE, progress=False)


def test_wrong_number_of_classes():
    data = replace(throwaway.data(), classes=tuple("abcde"), meta=None)
    with pytest.raises(
        ValueError, match=r"CrossEntropy.predict: got logits of 4 classes; takes 5 for data 'quadrants'"
    ):
        training.fit(throwaway.build("CrossEntropy"), data, RECIPE, progress=False)


def test_parameter_in_no_group():
    objective_ = throwaway.build("Teacher")
    objective_.parameter_groups = lambda recipe: [{"params": list(objective_.network.parameters())}]
    with pytest.raises(ValueError, match=r"Teacher.parameter_groups: got none for block.weight, block.bias; takes all"):
        training.fit(objective_, throwaway.data(), RECIPE, progress=False)


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    class Explodes(objective.CrossEntropy):
        def forward(self, images, target, step):
            loss, terms = super().forward(images, target, step)
            return (loss * math.nan if step.progress > 0.6 else loss), terms

    path = tmp_path / "run.pt"
    exploding = Explodes(throwaway.build("CrossEntropy").network)
    with pytest.raises(FloatingPointError, match=r"the loss became nan in epoch 3 .* a lower Recipe.lr"):
        training.fit(exploding, throwaway.data(), replace(RECIPE, epochs=4), resume=path, progress=False)
    content = training.Checkpoint.read(path)
    assert content["epochs_done"] == 2
    assert all(torch.isfinite(value).all() for value in content["objective"].values())


@pytest.mark.parametrize("what", ["loss", "gradient", "weight"])
@pytest.mark.parametrize("at", range(9))
def test_a_nan_at_any_step_leaves_the_last_good_checkpoint(what, at, tmp_path):
    """Three epochs of three steps. A gradient or a weight that becomes NaN in the last step shows in no loss."""

    class Breaks(objective.CrossEntropy):
        taken = 0

        def now(self):
            return self.taken == at

        def forward(self, images, target, step):
            loss, terms = super().forward(images, target, step)
            if self.now() and what == "gradient":
                zero = 0 * next(self.parameters()).sum()
                loss = loss + zero.sqrt()  # 0, whose slope is infinite, times 0
            return (loss * math.nan if self.now() and what == "loss" else loss), terms

        def after_step(self, step):
            if self.now() and what == "weight":
                next(self.parameters()).fill_(math.inf)
            self.taken += 1

    data = throwaway.data()
    recipe = replace(RECIPE, epochs=3, batch_size=len(data.train) // 3, evaluate_every=0)
    path = tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match=f"became .* in epoch {at // 3 + 1} .*a lower Recipe.lr"):
        training.fit(Breaks(throwaway.build("CrossEntropy").network), data, recipe, resume=path, progress=False)
    assert path.exists() == (at >= 3)
    if at >= 3:
        content = training.Checkpoint.read(path)
        assert content["epochs_done"] == at // 3
        assert all(torch.isfinite(value).all() for value in content["objective"].values())


def test_weights_that_overflow_are_a_floating_point_error():
    recipe = replace(RECIPE, epochs=1, batch_size=64, lr=1e30, optimizer="sgd", evaluate_every=0)
    with pytest.raises(FloatingPointError, match=r"became (NaN or infinite|nan) in epoch 1|predict: got logits"):
        training.fit(throwaway.build("CrossEntropy"), throwaway.data(), recipe, progress=False)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda loss: (loss.expand(3), {}), r"Odd.forward: got a loss of \(3,\); takes \(loss, terms\)"),
        (lambda loss: (loss, {"lr": loss.detach()}), "got a term named 'lr'; takes other names"),
        (lambda loss: (loss, {"size": 0.5}), "got 0.5 for the term 'size'; takes a detached 0-d tensor"),
        (lambda loss: (loss, {"size": loss}), "for the term 'size'; takes a detached 0-d tensor"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_forward_returns_is_checked_at_the_first_step(result, message):
    class Odd(objective.CrossEntropy):
        def forward(self, images, target, step):
            return result(super().forward(images, target, step)[0])

    with pytest.raises(ValueError, match=message):
        training.fit(Odd(throwaway.build("CrossEntropy").network), throwaway.data(), RECIPE, progress=False)


def test_what_cannot_be_recorded_is_said_before_training():
    odd = throwaway.build("CrossEntropy")
    odd.settings["strength"] = math.inf
    with pytest.raises(TypeError, match=r"settings\[.strength.\]: got inf; takes a finite number"):
        training.fit(odd, throwaway.data(), RECIPE, progress=False)


@pytest.mark.usefixtures("unchecked")
def test_seed_is_a_whole_number():
    with pytest.raises(TypeError, match=r"seed: got 1.5; takes a whole number"):
        training.fit(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, seed=1.5, progress=False)


def test_processes_that_see_different_checkpoints_stop(monkeypatch):
    loop = training._Loop(throwaway.build("CrossEntropy"), throwaway.data(), RECIPE, 0, torch.device("cpu"))
    assert loop.agreed(3) == 3

    def others_have(epochs):
        def gather(into, mine):
            for one, value in zip(into, (int(mine), epochs), strict=True):
                one.fill_(value)

        return gather

    loop.world = 2
    monkeypatch.setattr(training.dist, "all_gather", others_have(3))
    assert loop.agreed(3) == 3
    monkeypatch.setattr(training.dist, "all_gather", others_have(0))
    with pytest.raises(ValueError, match=r"resume: got \[0, 3\] epochs behind; takes one file that all processes see"):
        loop.agreed(3)


def test_device_of_one_of_several_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert training.resolve_device() == torch.device("cuda:1")
    monkeypatch.delenv("LOCAL_RANK")
    assert training.resolve_device() == torch.device("cuda")


def test_device():
    assert training.resolve_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert training.resolve_device("auto").type == "cpu"
        with pytest.raises(ValueError, match=r"device: got 'cuda', but this torch sees no CUDA device"):
            training.resolve_device("cuda")


def test_bfloat16_trains():
    record = training.fit(
        throwaway.build("ISDA"), throwaway.data(), replace(RECIPE, precision="bfloat16"), progress=False
    )
    assert math.isfinite(record.curves["train_loss"][-1])
    assert json.loads(json.dumps(record.config)) == record.config


def test_soft_targets_take_the_same_loss():
    objective_ = throwaway.build("CrossEntropy").eval()
    images, target = throwaway.data().train.floats(slice(0, 8)), throwaway.data().train.target[:8]
    step = objective.Step(torch.tensor(0.5), 0.1, torch.Generator())
    hard, _ = objective_(images, target, step)
    soft, _ = objective_(images, F.one_hot(target, 4).float(), step)
    assert hard.item() == pytest.approx(soft.item(), rel=1e-6)


def test_runs_together_are_those_alone(tmp_path, monkeypatch):
    of = load("fashion-mini", train_size=300, test_size=100)
    recipe = training.Recipe(epochs=2, batch_size=50, lr=0.05, augment="crop+flip")
    names, seeds = ("CrossEntropy", "ISDA", "ISDA"), (0, 0, 1)

    def made():
        return [throwaway.build(name, dataset=of, seed=seed) for name, seed in zip(names, seeds, strict=True)]

    alone = [training.fit(one, of, recipe, seed=seed, progress=False) for one, seed in zip(made(), seeds, strict=True)]
    files = [tmp_path / f"{number}.pt" for number in range(3)]
    before = torch.get_rng_state()
    together = training.fit_together(made(), of, recipe, seeds, resume=files, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(alone, together, strict=True):
        assert (one.config, one.seed, one.metrics, one.curves) == (
            other.config,
            other.seed,
            other.metrics,
            other.curves,
        )
        assert other.environment["together"] == 3
        assert all(each.seconds > 0 for each in (one, other))
    assert [training.Checkpoint.read(file)["epochs_done"] for file in files] == [2, 2, 2]
    monkeypatch.setattr(time, "process_time", itertools.count().__next__)  # asked as an epoch begins and as it ends
    shares = [one.seconds for one in training.fit_together(made(), of, recipe, seeds, progress=False)]
    assert shares == pytest.approx([8 / 3] * 3), "3 + 5 ticks for two epochs, the others' questions between its own"
    again = training.fit_together(made(), of, recipe, seeds, resume=files, progress=False)
    assert [one.metrics for one in again] == [one.metrics for one in together], "nothing was left to do"


def test_what_cannot_run_together(tmp_path):
    of = load("fashion-mini", train_size=300, test_size=100)
    one = throwaway.build("CrossEntropy", dataset=of, seed=0)
    with pytest.raises(ValueError, match=r"objectives, seeds, resume: got \[1, 2, 1\] of them"):
        training.fit_together([one], of, training.Recipe(epochs=1), [0, 1])
    for count in (0, 11):
        with pytest.raises(ValueError, match=rf"got \[{count}, {count}, {count}\] of them; .* 1 to 10"):
            training.fit_together([one] * count, of, training.Recipe(epochs=1), range(count))
    with pytest.raises(ValueError, match="got two that share parameters"):
        training.fit_together([one, objective.CrossEntropy(one.network)], of, training.Recipe(epochs=1), [0, 1])
    other = throwaway.build("CrossEntropy", dataset=of, seed=1)
    files = [tmp_path / "state.pt", tmp_path / "new" / ".." / "state.pt"]
    with pytest.raises(ValueError, match=r"resume: got .*state.pt, .*state.pt; takes a file for each"):
        training.fit_together([one, other], of, training.Recipe(epochs=1), [0, 1], files)
    other.network.pool = torch.nn.Sequential(other.network.pool, torch.nn.Dropout(0.1))
    with pytest.raises(ValueError, match="got one with dropout"):
        training.fit_together([one, other], of, training.Recipe(epochs=1), [0, 1])
    there = throwaway.build("CrossEntropy", dataset=of, seed=0).to("meta")
    with pytest.raises(ValueError, match="objectives: got them on cpu, meta; takes one device"):
        training.fit_together([one, there], of, training.Recipe(epochs=1), [0, 1])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="fit_together: got a data-parallel process; takes one run at a time"):
            training.fit_together([one], of, training.Recipe(epochs=1), [0])
    finally:
        dist.destroy_process_group()


def test_terms_that_come_and_go_are_refused():
    class Fickle(objective.CrossEntropy):
        seen = 0

        def forward(self, images, target, step):
            self.seen += 1
            loss, _ = super().forward(images, target, step)
            return loss, {"early" if self.seen < 3 else "late": loss.detach()}

    fickle = Fickle(throwaway.network("CrossEntropy"))
    with pytest.raises(ValueError, match=r"terms: got \['late'\], at the step before \['early'\]; takes the same"):
        training.fit(fickle, throwaway.data(), RECIPE, progress=False)


def test_one_that_fails_ends_all_and_leaves_their_states(tmp_path):
    class Failing(objective.CrossEntropy):
        def forward(self, images, target, step):
            loss, terms = super().forward(images, target, step)
            return loss * (float("nan") if float(step.progress) > 0.5 else 1.0), terms

    of = load("fashion-mini", train_size=300, test_size=100)
    one, other = (throwaway.build("CrossEntropy", dataset=of, seed=seed) for seed in (0, 1))
    files = [tmp_path / name for name in ("one.pt", "other.pt")]
    with pytest.raises(FloatingPointError, match="in epoch 2"):
        training.fit_together(
            [one, Failing(other.network)], of, training.Recipe(epochs=2, batch_size=50, lr=0.05), [0, 1], files, False
        )
    assert [training.Checkpoint.read(file)["epochs_done"] for file in files] == [2, 1]
