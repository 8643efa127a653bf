"""Runs: built by their names, executed once and never twice, alone or together, picked up where they stopped."""

import json
import os
import signal
import sys
import time
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from companion import records, runs, studies
from companion.__main__ import main as command_line
from companion.records import Index, committed
from companion.runs import Run
from companion.studies import Arm, Study
from semaug import data
from semaug.core.files import write_whole
from semaug.measures import gans, robustness
from semaug.training import loop
from semaug.training.recipe import Recipe
from semaug.training.record import Record

ISDA = Arm("ISDA", "ISDA", {"strength": 0.5, "covariance": "diagonal"}, "#4477AA")
PLAIN = Arm("cross-entropy", "CrossEntropy")
STUDY = Study(
    "1_isda", "tiny", "200 images", {"name": "fashion-mini", "train_size": 200, "test_size": 100, "validation": 0.1},
    "small", Recipe(epochs=2, batch_size=32, lr=0.05), (PLAIN, ISDA), seeds=3, seconds=1.0,
)  # fmt: skip
RUN = Run(STUDY, ISDA, 1)
PLAYERS = Study(
    "4_diffaugment", "tiny", "100 images", {"name": "fashion-mini", "train_size": 100, "test_size": 200}, "dcgan",
    Recipe(epochs=4, batch_size=32, optimizer="adam", lr=1e-3, momentum=0.5, weight_decay=0.0, evaluate_every=2),
    (Arm("none", "GAN", {"where": "nowhere", "generator_lr": 5e-4}),), seeds=1, seconds=1.0,
    judge={"name": "fashion-mini", "train_size": 300},
)  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Records and state below the test's own folder."""
    committed.cache_clear()
    for module in (records, runs):
        monkeypatch.setattr(module, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(runs, "state_folder", lambda: tmp_path / "state")
    yield
    committed.cache_clear()


@pytest.fixture
def plan(monkeypatch):
    """Let some runs be the planned ones."""

    def these(*chosen):
        monkeypatch.setattr(runs, "planned", lambda profile, notebook: list(chosen))
        monkeypatch.setattr(studies, "modules", lambda: {"1_isda": None, "4_diffaugment": None})

    return these


def train(minutes=30.0, together=1):
    return command_line(["run", "--minutes", str(minutes), "--together", str(together), "--device", "cpu"])


def test_a_run_is_done_when_its_record_is_there(tmp_path):
    assert not RUN.done()
    ((run, record),) = runs.complete([RUN], "cpu")
    assert run is RUN
    assert RUN.done()
    assert (record.profile, record.study, record.arm) == ("cpu", "tiny", "ISDA")
    assert record.metrics.keys() == {"train_loss", "test_accuracy", "validation_accuracy"}
    assert Index(tmp_path / "figures" / "records" / "1_isda").of(STUDY, "ISDA") == [record]
    assert list((tmp_path / "state").glob("*.pt")) == [], "its checkpoint is not needed any more"
    assert RUN.agrees(record)
    assert not Run(STUDY, ISDA, 2).done()
    assert not Run(STUDY, PLAIN, 1).done()
    assert not Run(replace(STUDY, profile="paper"), ISDA, 1).done()


@pytest.mark.parametrize(
    "change",
    [
        {"data": {**STUDY.data, "train_size": 100}},
        {"recipe": replace(STUDY.recipe, lr=0.1)},
        {"arms": (PLAIN, replace(ISDA, settings={"strength": 1.0, "covariance": "diagonal"}))},
        {"arms": (PLAIN, replace(ISDA, settings={**ISDA.settings, "decay": 0.9}))},
        {"arms": (PLAIN, replace(ISDA, recipe={"times": 2}))},
    ],
)
def test_whatever_changes_the_result_changes_the_key_and_no_longer_agrees(change):
    record = RUN.execute("cpu")
    study = replace(STUDY, **change)
    other = Run(study, study.arm("ISDA"), 1)
    assert RUN.agrees(record)
    assert not other.agrees(record)
    assert other.key != RUN.key


def test_the_judge_of_two_players_is_in_the_key_and_the_record():
    run = Run(PLAYERS, PLAYERS.baseline, 0)
    other = Run(replace(PLAYERS, judge={"name": "fashion-mini", "train_size": 400}), PLAYERS.baseline, 0)
    record = run.execute("cpu")
    assert record.config["judge"]["train_size"] == 300
    assert record.config["judge"]["digest"] != record.config["data"]["digest"]
    assert run.key != other.key
    assert not other.agrees(record)
    assert record.metrics["fid"] > 0
    assert record.curves["epoch"] == [2, 4]
    arrays = records.pictures("4_diffaugment", record)
    assert arrays["samples"].shape == arrays["nearest"].shape == (8, 1, 28, 28)


def test_frames_of_two_players_lie_beside_the_record_also_of_a_run_that_was_stopped(monkeypatch):
    run = Run(replace(PLAYERS, frames=3), PLAYERS.baseline, 1)
    whole = records.pictures("4_diffaugment", run.execute("cpu"))
    assert whole["frames"].shape == (3, 3, 1, 28, 28), "at the start and at two measurements"
    assert whole["between"].shape == (2, 8, 1, 28, 28)
    np.testing.assert_allclose(whole["frames"][-1] / 255, whole["samples"][:3] / 255, atol=0.08)  # stored with loss
    assert list(runs.state_folder().iterdir()) == []

    def stop(players):
        raise KeyboardInterrupt

    measured = gans.Quality.__call__
    calls = []
    monkeypatch.setattr(
        gans.Quality, "__call__", lambda *a: stop(a) if calls.append(a) or len(calls) == 2 else measured(*a)
    )
    with pytest.raises(KeyboardInterrupt):
        run.execute("cpu")
    monkeypatch.setattr(gans.Quality, "__call__", measured)
    again = records.pictures("4_diffaugment", run.execute("cpu"))
    assert again.keys() == whole.keys()
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


def test_copies_stand_beside_their_originals():
    images = torch.randint(0, 256, (300, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    train, test = (data.Split(part, torch.zeros(150, dtype=torch.int64)) for part in images.split(150))
    quality = gans.Quality(data.Data("noise", train, test), torch.nn.Flatten(), 100)
    order = torch.arange(150).flip(0)
    unasked = dict.fromkeys(("discriminator", "logits"), train.floats)
    copier = types.SimpleNamespace(codes=lambda n, draws: order[:n], sample=train.floats, **unasked)
    pictures = runs._pictures(copier, quality, 5)
    assert np.array_equal(pictures["samples"], train.images[order[:5]].numpy())
    assert np.array_equal(pictures["nearest"], train.images[order[:5]].numpy())


def test_arms_of_players_start_from_the_same_weights():
    dataset = data.load(**PLAYERS.data)
    everywhere = Arm("DiffAugment", "GAN", {"where": "everywhere"})
    first, second = (Run(PLAYERS, arm, 0).build(dataset) for arm in (PLAYERS.baseline, everywhere))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_what_a_study_measures_is_in_its_records():
    def measure(model, dataset, device):
        return robustness.measures(model.predict, dataset.test.to(device))

    record = Run(replace(STUDY, measure=measure), PLAIN, 1).execute("cpu")
    assert record.metrics.keys() >= {"test_accuracy", "ece", "mce", "corruption_accuracy"}
    assert sum(record.curves["reliability_count"]) == 100


@pytest.mark.parametrize("what", ["measure", "pictures"])
def test_what_cannot_be_measured_leaves_the_record(what, tmp_path):
    def fails(*arguments):
        raise np.linalg.LinAlgError("the input matrix contained non-finite values")

    run = Run(replace(STUDY, **{what: fails}), PLAIN, 0)
    record = run.execute("cpu")
    assert record.metrics["test_accuracy"] > 0
    assert record.environment["failed"].startswith(f"{what}: LinAlgError: the input matrix")
    (read,) = Index(tmp_path / "figures" / "records" / "1_isda")
    assert read == record
    assert not run.checkpoint.exists()


def test_players_whose_quality_cannot_be_measured_leave_the_record(monkeypatch):
    def fails(*arguments):
        raise ValueError("covariance: got values that are not finite")

    monkeypatch.setattr(gans.Quality, "augmented", fails)
    run = Run(PLAYERS, PLAYERS.baseline, 0)
    record = run.execute("cpu")
    assert record.metrics["fid"] > 0
    assert record.environment["failed"].startswith("quality: ValueError: covariance")


def test_pictures_are_of_the_first_seed_and_no_record_is_without_them(monkeypatch):
    def full(path, content):
        if path.suffix == ".npz":  # the record itself would find its place
            raise OSError(28, "No space left on device")
        return write_whole(path, content)

    study = replace(STUDY, pictures=lambda model, dataset: {"tiles": np.zeros(1)})
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_whole", full)
        with pytest.raises(OSError, match="No space left"):
            Run(study, ISDA, 0).execute("cpu")
    assert Run(study, ISDA, 0).checkpoint.exists(), "it can go on"
    for seed, there in ((0, True), (1, False)):
        record = Run(study, ISDA, seed).execute("cpu")
        assert bool(records.pictures("1_isda", record)) == there


def test_two_processes_do_not_take_one_run(tmp_path):
    with runs.claimed(RUN) as first, runs.claimed(RUN) as second, runs.claimed(Run(STUDY, ISDA, 9)) as other:
        assert (first, second, other) == (True, False, True)
        assert runs.complete([RUN], "cpu") == [], "another is at it"
    with runs.claimed(RUN) as again:
        assert again
    assert list((tmp_path / "state").glob("*.lock")) == []


def test_a_run_that_another_process_has_finished_is_not_run_again():
    assert not RUN.done()  # the index is read here
    RUN.execute("cpu")
    assert runs.complete([RUN], "cpu") == []


def test_paired_seeds_start_from_the_same_weights():
    dataset = data.load("fashion-mini", train_size=100)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    plain, isda, other = (runs.build(*names, dataset, seed) for *names, seed in
                          [("CrossEntropy", "small", 3), ("ISDA", "small", 3), ("ISDA", "small", 4)])  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), isda.parameters(), strict=True))
    assert not torch.equal(isda.network.head.weight, other.network.head.weight)


def test_an_objective_that_takes_counts_gets_those_of_the_set():
    dataset = data.load("fashion-mini", imbalance=10)
    objective = runs.build("LongTailed", "small", dataset, 0, loss="ldam", max_margin=1.0)
    assert objective.margins.tolist() == pytest.approx([(80 / n) ** 0.25 for n in dataset.counts.tolist()])


@pytest.mark.parametrize(
    ("objective", "network", "message"),
    [
        ("Isda", "small", r"objective: got 'Isda'; takes one of CrossEntropy, .*ISDA"),
        ("ISDA", "vgg", r"network: got 'vgg'; takes one of small"),
    ],
)
def test_unknown_names(objective, network, message):
    with pytest.raises(ValueError, match=message):
        runs.build(objective, network, data.load("fashion-mini", train_size=100), 0)


# -- the commands runs and run -----------------------------------------------------------------------------------------


def test_what_is_saved_and_what_is_missing(plan, capsys):
    plan(RUN, Run(STUDY, ISDA, 2))
    RUN.execute("cpu")
    assert command_line(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["saved", "missing", "missing:"]


def test_a_file_that_is_no_record_is_named_and_skipped(plan, capsys, tmp_path):
    plan(RUN)
    folder = tmp_path / "figures" / "records" / "1_isda"
    RUN.execute("cpu")
    whole = json.loads(next(folder.glob("*.json")).read_text())
    changes = {"newer": {"schema": 9}, "nothing": {"metrics": None}, "unsorted": {"seed": None}, "odd": {"study": 5}}
    for name, change in changes.items():
        (folder / f"{name}.json").write_text(json.dumps(whole | change))
    (folder / "deep.json").write_text("[" * 100_000)
    os.mkfifo(folder / "pipe.json")
    (folder / "half.json").write_text('{"config": {')
    (folder / "._other.json").write_bytes(b"\0\5\x16\7")
    (folder / "folder.json").mkdir()
    (folder / "dangling.json").symlink_to("nowhere")
    assert command_line(["runs"]) == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[0].startswith("saved")
    bad = {"half", "._other", "folder", "dangling", "deep", "pipe", *changes}
    assert {name for name in bad if f"/{name}.json: " in output.err or f"/{name}.json'" in output.err} == bad
    assert output.err.count("\n") == len(bad)


def test_minutes_run_what_is_missing_and_fits(plan, capsys):
    second = Run(STUDY, ISDA, 2)
    plan(RUN, second)
    RUN.execute("cpu")
    train(minutes=0.001)
    assert not second.done(), "one second does not fit into 0.06"
    assert train() == 0
    assert second.done()
    assert len([line for line in capsys.readouterr().out.splitlines() if "seed" in line]) == 1


def test_a_run_that_fails_leaves_the_others(plan, capsys):
    broken = Run(replace(STUDY, data={**STUDY.data, "name": "folder"}), PLAIN, 1)
    plan(broken, RUN)
    assert train() == 1
    assert capsys.readouterr().out.splitlines()[0].startswith(f"FAILED  {broken.name}: ")
    assert RUN.done()


def test_any_exception_leaves_the_others(plan, monkeypatch):
    execute = Run.execute

    def fails(self, *arguments, **options):
        if self.seed == 1:
            raise KeyError("a kind that nobody thought of")
        return execute(self, *arguments, **options)

    monkeypatch.setattr(Run, "execute", fails)
    plan(RUN, Run(STUDY, ISDA, 2))
    assert train() == 1
    assert Run(STUDY, ISDA, 2).done()


def test_runs_together_are_the_runs_alone(tmp_path, plan, monkeypatch, capsys):
    slower = Arm("slower", "ISDA", ISDA.settings, recipe={"lr": 0.1})
    study = replace(STUDY, arms=(PLAIN, ISDA, slower))
    wanted = [Run(study, arm, seed) for seed, arm in ((1, ISDA), (1, slower), (1, PLAIN), (2, ISDA), (2, PLAIN))]
    plan(*wanted)
    wanted[0].execute("cpu", folder=tmp_path / "alone")
    (alone,) = Index(tmp_path / "alone")
    sizes, together = [], loop.fit_together

    def counted(models, *rest):
        sizes.append(len(models))
        return together(models, *rest)

    monkeypatch.setattr(runs, "fit_together", counted)
    assert train(together=3) == 0
    assert sizes == [3], "those of one recipe, at most three; the others alone"
    assert all(run.done() for run in wanted)
    assert len([line for line in capsys.readouterr().out.splitlines() if "seed" in line]) == 5
    same = next(record for record in committed("1_isda").of(study, "ISDA") if record.seed == 1)
    assert (same.metrics, same.curves) == (alone.metrics, alone.curves)
    assert same.environment["together"] == 3
    for wrong in (0, 11):
        assert train(together=wrong) == 2
        assert f"--together: got {wrong}; takes a whole number from 1 to 10" in capsys.readouterr().err


def test_one_that_fails_beside_others_leaves_them(plan, capsys):
    broken = Arm("broken", "ISDA", {"strength": -1.0})
    study = replace(STUDY, arms=(PLAIN, ISDA, broken))
    wanted = [Run(study, ISDA, 1), Run(study, broken, 1), Run(study, ISDA, 2)]
    plan(*wanted)
    assert train(together=3) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0].isalpha()] == ["alone,", "alone,", "FAILED"]
    assert [run.done() for run in wanted] == [True, False, True]


def test_a_run_goes_on_where_it_was_interrupted(plan, tmp_path, monkeypatch, capsys):
    epoch = loop._Loop.epoch

    def slow(self, number):
        if number == 1:
            time.sleep(30)
        return epoch(self, number)

    plan(RUN)
    whole = RUN.execute("cpu", folder=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "epoch", slow)
        assert train(minutes=0.1) == 0
    assert "time is up" in capsys.readouterr().out
    assert not RUN.done()
    assert RUN.left() == pytest.approx(RUN.seconds / 2)
    numbers = []
    monkeypatch.setattr(loop._Loop, "epoch", lambda self, n: (numbers.append(n), epoch(self, n))[1])
    ((_, record),) = runs.complete([RUN], "cpu")
    assert numbers == [1]
    assert record.metrics == whole.metrics
    assert record.curves == whole.curves
    assert RUN.left() == RUN.seconds


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_one_line_and_keeps_the_state(plan, tmp_path, monkeypatch, capsys, number):
    epoch = loop._Loop.epoch

    def told(self, at):
        if at == 1:
            os.kill(os.getpid(), number)
        return epoch(self, at)

    plan(RUN)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "epoch", told)
        assert train() == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; what was done is kept"
    assert signal.getsignal(number) is before
    assert [path.name for path in (tmp_path / "state").iterdir()] == [RUN.checkpoint.name]
    assert RUN.left() == pytest.approx(RUN.seconds / 2)


def test_what_does_not_fit_and_what_has_no_gpu_is_said(plan, capsys, monkeypatch):
    long = replace(STUDY, seconds=300.0)
    plan(Run(replace(STUDY, seconds=600.0), ISDA, 1), Run(long, ISDA, 2))
    assert train(minutes=1) == 0
    assert "2 runs are longer than that; the shortest takes about 5 minutes" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command_line(["run", "--profile", "paper", "--minutes", "1"]) == 2
    assert "got paper; torch sees no GPU" in capsys.readouterr().err
    assert command_line(["runs", "9_none"]) == 2
    assert "notebook: got '9_none'; takes one of 1_isda" in capsys.readouterr().err
    assert train(minutes=float("nan")) == 2


def test_a_run_without_accuracy_is_listed_by_its_fid(plan, monkeypatch, capsys):
    run = Run(PLAYERS, PLAYERS.baseline, 0)
    plan(run)
    record = Record({}, 0, {"fid": 12.3456}, seconds=7.0)
    monkeypatch.setattr(runs, "complete", lambda some, device, root: [(one, record) for one in some])
    assert train() == 0
    assert f"7 s  12.3456  {run.name}" in capsys.readouterr().out


def test_where_the_system_has_no_locks_and_no_alarm_runs_are_executed_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.delattr(runs.signal, "SIGALRM")
    with runs._time_up(1e-3), runs.claimed(RUN) as mine:
        assert mine
