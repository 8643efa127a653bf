"""The ledger: what is there and what is missing, run in its order, alone or together, within the time given."""

import time
from dataclasses import replace

import pytest
import torch
from test_runs import GAN, RUN, elsewhere

from companion import ledger, records
from companion import runs as experiment
from semaug import data
from semaug.training import loop as training
from semaug.training import record as rec

__all__ = ["elsewhere"]  # a fixture


@pytest.fixture(autouse=True)
def three_runs(monkeypatch):
    monkeypatch.setattr(ledger, "runs", lambda: iter([RUN, replace(RUN, seed=2), replace(RUN, profile="paper")]))


def test_what_is_there_and_what_is_missing(capsys):
    RUN.execute("cpu")
    assert ledger.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["there", "missing", "missing:"]


def test_minutes_run_what_is_missing_and_fits(capsys):
    RUN.execute("cpu")
    ledger.main(["--minutes", "0.001", "--device", "cpu"])
    assert not replace(RUN, seed=2).done(), "one second does not fit into 0.06"
    ledger.main(["--minutes", "30", "--device", "cpu"])
    assert replace(RUN, seed=2).done()
    assert len([line for line in capsys.readouterr().out.splitlines() if "seed" in line]) == 1


def test_a_run_that_fails_leaves_the_others(monkeypatch, capsys):
    broken = replace(RUN, of={**RUN.of, "name": "folder"})
    monkeypatch.setattr(ledger, "runs", lambda: iter([broken, RUN]))
    assert ledger.main(["--minutes", "30"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"FAILED  {broken.name}: ")
    assert RUN.done()
    assert not broken.done()


def test_a_run_without_accuracy_is_told_by_its_fid(monkeypatch, capsys):
    record = rec.Record({}, 0, {"fid": 12.3456}, seconds=7.0)
    monkeypatch.setattr(ledger, "runs", lambda: iter([GAN]))
    monkeypatch.setattr(ledger, "complete", lambda some, device, root: [(run, record) for run in some])
    assert ledger.main(["--minutes", "30", "--device", "cpu"]) == 0
    assert f"7 s  12.3456  {GAN.name}" in capsys.readouterr().out


def test_runs_together_are_the_runs_alone(tmp_path, monkeypatch, capsys):
    other = replace(RUN, objective="CrossEntropy", settings={})
    slower = replace(RUN, recipe=replace(RUN.recipe, lr=0.1))
    wanted = [RUN, slower, other, replace(RUN, seed=2), replace(other, seed=2)]
    monkeypatch.setattr(ledger, "runs", lambda: iter(wanted))
    RUN.execute("cpu", folder=tmp_path / "alone")
    (alone,) = records.load(tmp_path / "alone")
    sizes, fit = [], training.fit_together

    def counted(objectives, *rest):
        sizes.append(len(objectives))
        return fit(objectives, *rest)

    monkeypatch.setattr(experiment, "fit_together", counted)
    assert ledger.main(["--minutes", "30", "--device", "cpu", "--together", "3"]) == 0
    assert sizes == [3], "those of one recipe, at most three; the others alone"
    assert all(run.done() for run in wanted)
    assert len([line for line in capsys.readouterr().out.splitlines() if "seed" in line]) == 5
    (same,) = [one for one in records.load(tmp_path / "records", objective="ISDA", seed=1)
               if one.config["recipe"]["lr"] == 0.05]  # fmt: skip
    assert (same.metrics, same.curves) == (alone.metrics, alone.curves)
    assert same.environment["together"] == 3
    for wrong in ("0", "11"):
        with pytest.raises(SystemExit):
            ledger.main(["--together", wrong])
        assert f"--together: got {wrong}, takes a whole number from 1 to 10" in capsys.readouterr().err


def test_one_that_fails_beside_others_leaves_them(monkeypatch, capsys):
    broken = replace(RUN, settings={"strength": -1.0})
    wanted = [RUN, broken, replace(RUN, seed=2)]
    monkeypatch.setattr(ledger, "runs", lambda: iter(wanted))
    assert ledger.main(["--minutes", "30", "--together", "3"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0].isalpha()] == ["alone,", "alone,", "FAILED"]
    assert next(line for line in lines if line.startswith("FAILED")).startswith(f"FAILED  {broken.name}: ValueError")
    assert [run.done() for run in wanted] == [True, False, True]


def test_a_run_goes_on_where_it_was_interrupted(monkeypatch, capsys):
    epoch = training._Loop.epoch

    def slow(self, number):
        if number == 1:
            time.sleep(30)
        return epoch(self, number)

    monkeypatch.setattr(ledger, "runs", lambda: iter([RUN]))
    whole = RUN.execute("cpu", folder=experiment.state_folder() / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(training._Loop, "epoch", slow)
        assert ledger.main(["--minutes", "0.1"]) == 0
    assert "time is up" in capsys.readouterr().out
    assert not RUN.done()
    assert RUN.left() == pytest.approx(RUN.seconds / 2)
    begun = training._Loop.epoch
    numbers = []
    monkeypatch.setattr(training._Loop, "epoch", lambda self, n: (numbers.append(n), begun(self, n))[1])
    record = RUN.complete("cpu")
    assert numbers == [1]
    assert record.metrics == whole.metrics
    assert record.curves == whole.curves
    assert RUN.left() == RUN.seconds
    assert RUN.complete("cpu") is None, "it is done"


def test_what_does_not_fit_and_what_has_no_gpu_is_said(monkeypatch, capsys):
    monkeypatch.setattr(
        ledger, "runs", lambda: iter([replace(RUN, seconds=600.0), replace(RUN, seed=2, seconds=300.0)])
    )
    assert ledger.main(["--minutes", "1"]) == 0
    assert "2 runs are longer than that; the shortest takes about 5 minutes" in capsys.readouterr().out
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            ledger.main(["--minutes", "1", "--profile", "paper"])
        assert "got paper where torch sees no GPU" in capsys.readouterr().err


def test_every_run_can_be_built(monkeypatch):
    monkeypatch.undo()
    shapes = dict.fromkeys(("cifar10", "cifar100", "shapes", "hues", "portraits"), (3, 32, 32))
    shapes |= dict.fromkeys(("embedded", "mnist", "fashion"), (1, 28, 28))
    shapes |= dict.fromkeys(("lfw64", "strangers", "celeba"), (3, 64, 64))
    grey = {name: data.Split(torch.zeros(20, *shape).byte(), torch.arange(20) % 10) for name, shape in shapes.items()}
    seen, keys = set(), set()
    for run in ledger.runs():
        keys.add((run.key, run.seed))
        names = (run.objective, run.network, run.of["name"], *run.settings.items())
        if names not in seen:
            seen.add(names)
            of = data.Data("grey", grey[run.of["name"]], grey[run.of["name"]])
            run.build(of)
            assert not isinstance(run, experiment.GANRun) or run.judged
    assert len(keys) == sum(1 for _ in ledger.runs()), "two runs of the ledger are the same"
    assert {run.profile for run in ledger.runs()} == {"cpu", "paper"}
