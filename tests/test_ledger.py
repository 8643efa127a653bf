"""The ledger: every run buildable by its names, run once, never twice, and picked up where it stopped."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from semaug import data, ledger, records, training
from semaug.records import write_whole
from semaug.training import Recipe

RUN = ledger.Run(
    "1_isda", "cpu", "ISDA", "small", {"name": "embedded", "train_size": 200, "test_size": 100, "validation": 0.1},
    Recipe(epochs=2, batch_size=32, lr=0.05), 1.0, {"strength": 0.5, "covariance": "diagonal"}, seed=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "records_folder", lambda notebook: tmp_path / "records" / notebook)
    monkeypatch.setattr(ledger, "state_folder", lambda: tmp_path / "state")
    monkeypatch.setattr(ledger, "runs", lambda: iter([RUN, replace(RUN, seed=2), replace(RUN, profile="paper")]))


def test_a_run_is_done_when_its_record_is_there(tmp_path, capsys):
    assert not RUN.done()
    record = RUN.execute("cpu")
    assert RUN.done()
    assert record.profile == "cpu"
    assert record.metrics.keys() == {"train_loss", "test_accuracy", "validation_accuracy"}
    assert records.load(tmp_path, objective="ISDA") == [record]
    assert list((tmp_path / "state").glob("*.pt")) == [], "its checkpoint is not needed any more"
    for other in (replace(RUN, seed=2), replace(RUN, settings={"strength": 1.0, "covariance": "diagonal"})):
        assert not other.done()
    assert not replace(RUN, recipe=replace(RUN.recipe, lr=0.1)).done()
    assert not replace(RUN, of={**RUN.of, "train_size": 300}).done()
    whole_set = {key: value for key, value in RUN.of.items() if key != "train_size"}
    assert not replace(RUN, of=whole_set).done(), "a record of a part is none of the whole"
    assert not replace(RUN, of={**RUN.of, "size": 32}).done(), "its images have a side of 28"
    assert not replace(RUN, settings={**RUN.settings, "decay": 0.9}).done()
    assert replace(RUN, settings={**RUN.settings, "decay": None}).done(), "an option at its default is no other run"

    assert ledger.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["there", "missing", "missing:"]


def test_runs_of_notebook_3_are_measured_beside_accuracy(tmp_path):
    run = replace(RUN, notebook="3_automix", objective="Mixup", settings={})
    record = run.execute("cpu")
    assert run.done()
    assert record.metrics.keys() >= {"test_accuracy", "ece", "mce", "corruption_accuracy"}
    assert len(record.curves["fgsm_accuracy"]) == len(record.curves["fgsm_epsilon"]) == 5
    assert sum(record.curves["reliability_count"]) == 100
    assert records.load(tmp_path, objective="Mixup") == [record]


GAN = ledger.GANRun(
    "4_diffaugment", "cpu", "GAN", "dcgan", {"name": "embedded", "train_size": 100, "test_size": 200},
    Recipe(epochs=4, batch_size=32, optimizer="adam", lr=1e-3, momentum=0.5, weight_decay=0.0, evaluate_every=2),
    1.0, {"where": "nowhere", "generator_lr": 5e-4}, 0, {"name": "embedded", "train_size": 300},
)  # fmt: skip


def test_two_players_are_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ledger, "runs", lambda: iter([GAN]))
    assert not GAN.done()
    assert ledger.main(["--minutes", "30", "--device", "cpu"]) == 0
    (record,) = records.load(tmp_path, objective="GAN")
    assert f"{record.metrics['fid']:.4f}  {GAN.name}" in capsys.readouterr().out
    assert record.curves["epoch"] == [2, 4]
    assert GAN.done()
    assert replace(GAN, settings={**GAN.settings, "policy": "color,translation,cutout"}).done(), "a default"
    for settings in ({"where": "reals"}, {"r1": 1.0}):
        assert not replace(GAN, settings={**GAN.settings, **settings}).done()
    assert not replace(GAN, network="dcgan-wide").done()
    arrays = records.unpack(next((tmp_path / "records").rglob("*.npz")))
    assert arrays["samples"].shape == arrays["nearest"].shape == (8, 1, 28, 28)
    first, second = (GAN.build(data.load(**GAN.of)) for _ in range(2))
    other = replace(GAN, settings={"where": "everywhere"}).build(data.load(**GAN.of))
    for one in (second, other):
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), one.parameters(), strict=True))


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


def test_runs_together_are_the_runs_alone(tmp_path, monkeypatch, capsys):
    other = replace(RUN, objective="CrossEntropy", settings={})
    elsewhere = replace(RUN, recipe=replace(RUN.recipe, lr=0.1))
    wanted = [RUN, elsewhere, other, replace(RUN, seed=2), replace(other, seed=2)]
    monkeypatch.setattr(ledger, "runs", lambda: iter(wanted))
    RUN.execute("cpu", folder=tmp_path / "alone")
    (alone,) = records.load(tmp_path / "alone")
    sizes, fit = [], training.fit_together

    def counted(objectives, *rest):
        sizes.append(len(objectives))
        return fit(objectives, *rest)

    monkeypatch.setattr(ledger, "fit_together", counted)
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
    whole = RUN.execute("cpu", folder=ledger.state_folder() / "whole")
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


def test_no_record_without_its_pictures(tmp_path, monkeypatch):
    def full(path, content):
        if path.suffix == ".npz":  # the record itself would find its place
            raise OSError(28, "No space left on device")
        return write_whole(path, content)

    run = replace(RUN, seed=0)
    monkeypatch.setattr(ledger, "PICTURES", {RUN.notebook: lambda objective, of: {"strip": np.zeros(1)}})
    with monkeypatch.context() as patch:
        patch.setattr(records, "write_whole", full)
        with pytest.raises(OSError, match="No space left"):
            run.execute("cpu")
    assert not run.done()
    assert list((tmp_path / "state").glob("*.pt")), "it can go on"
    run.execute("cpu")
    assert ledger.pictures(RUN.notebook, records.load(tmp_path)[0])["strip"].tolist() == [0]


def test_two_processes_do_not_take_one_run():
    with ledger.claimed(RUN) as first, ledger.claimed(RUN) as second, ledger.claimed(replace(RUN, seed=9)) as other:
        assert (first, second, other) == (True, False, True)
        assert RUN.complete("cpu") is None, "another is at it"
    with ledger.claimed(RUN) as again:
        assert again


def test_paired_seeds_start_from_the_same_weights():
    of = data.load("embedded", train_size=100)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    plain, isda, other = (ledger.build(*names, of, seed) for *names, seed in
                          [("CrossEntropy", "small", 3), ("ISDA", "small", 3), ("ISDA", "small", 4)])  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), isda.parameters(), strict=True))
    assert not torch.equal(isda.network.head.weight, other.network.head.weight)


def test_an_objective_that_takes_counts_gets_those_of_the_set():
    of = data.load("embedded", imbalance=10)
    objective = ledger.build("LongTailed", "small", of, 0, loss="ldam", max_margin=1.0)
    assert objective.margins.tolist() == pytest.approx([(80 / n) ** 0.25 for n in of.counts.tolist()])


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
            assert not isinstance(run, ledger.GANRun) or run.judged
    assert len(keys) == sum(1 for _ in ledger.runs()), "two runs of the ledger are the same"
    assert {run.profile for run in ledger.runs()} == {"cpu", "paper"}


@pytest.mark.parametrize(
    ("objective", "network", "message"),
    [
        ("Isda", "small", r"objective: got 'Isda'; takes one of CrossEntropy, ISDA, LongTailed"),
        ("ISDA", "vgg", r"network: got 'vgg'; takes one of small"),
    ],
)
def test_unknown_names(objective, network, message):
    with pytest.raises(ValueError, match=message):
        ledger.build(objective, network, data.load("embedded", train_size=100), 0)
