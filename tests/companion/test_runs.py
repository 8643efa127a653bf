"""One run: built by its names, executed once and never twice, picked up where it stopped."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from companion import records
from companion import runs as experiment
from semaug import data
from semaug.measures import codes as gvae_measures
from semaug.training.loop import Recipe
from semaug.training.record import write_whole

RUN = experiment.Run(
    "1_isda", "cpu", "ISDA", "small", {"name": "embedded", "train_size": 200, "test_size": 100, "validation": 0.1},
    Recipe(epochs=2, batch_size=32, lr=0.05), 1.0, {"strength": 0.5, "covariance": "diagonal"}, seed=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Records and state below the test's own folder."""
    monkeypatch.setattr(records, "committed", lambda notebook: tmp_path / "records" / notebook)
    monkeypatch.setattr(experiment, "state_folder", lambda: tmp_path / "state")


def test_a_run_is_done_when_its_record_is_there(tmp_path):
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


def test_runs_of_notebook_3_are_measured_beside_accuracy(tmp_path):
    run = replace(RUN, notebook="3_automix", objective="Mixup", settings={})
    record = run.execute("cpu")
    assert run.done()
    assert record.metrics.keys() >= {"test_accuracy", "ece", "mce", "corruption_accuracy"}
    assert len(record.curves["fgsm_accuracy"]) == len(record.curves["fgsm_epsilon"]) == 5
    assert sum(record.curves["reliability_count"]) == 100
    assert records.load(tmp_path, objective="Mixup") == [record]


GAN = experiment.GANRun(
    "4_diffaugment", "cpu", "GAN", "dcgan", {"name": "embedded", "train_size": 100, "test_size": 200},
    Recipe(epochs=4, batch_size=32, optimizer="adam", lr=1e-3, momentum=0.5, weight_decay=0.0, evaluate_every=2),
    1.0, {"where": "nowhere", "generator_lr": 5e-4}, 0, {"name": "embedded", "train_size": 300},
)  # fmt: skip


def test_two_players_are_a_run(tmp_path):
    assert not GAN.done()
    record = GAN.execute("cpu")
    assert records.load(tmp_path, objective="GAN") == [record]
    assert record.metrics["fid"] > 0
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


def test_no_record_without_its_pictures(tmp_path, monkeypatch):
    def full(path, content):
        if path.suffix == ".npz":  # the record itself would find its place
            raise OSError(28, "No space left on device")
        return write_whole(path, content)

    run = replace(RUN, seed=0)
    monkeypatch.setattr(experiment, "PICTURES", {RUN.notebook: lambda objective, of: {"strip": np.zeros(1)}})
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "write_whole", full)
        with pytest.raises(OSError, match="No space left"):
            run.execute("cpu")
    assert not run.done()
    assert list((tmp_path / "state").glob("*.pt")), "it can go on"
    run.execute("cpu")
    assert records.pictures(RUN.notebook, records.load(tmp_path)[0])["strip"].tolist() == [0]


def test_pictures_of_the_first_seed_are_kept_beside_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "semaug.measures.codes.measures", lambda *arguments: {"kl": 1.0}
    )  # trains a judge: half a minute
    of = {"name": "embedded", "train_size": 100, "test_size": 50}
    recipe = Recipe(epochs=1, batch_size=50, optimizer="adam", lr=1e-3)
    for objective, network, seed, there in (
        ("VAE", "autoencoder16", 0, True),
        ("VAE", "autoencoder16", 1, False),
        ("Augmented", "small", 0, False),
    ):
        run = experiment.Run("2_gvae", "cpu", objective, network, of, recipe, 1.0, seed=seed)
        run.execute("cpu", folder=tmp_path / objective / str(seed))
        (path,) = (tmp_path / objective / str(seed)).glob("*.json")
        assert path.with_suffix(".npz").exists() == there
        assert records.load(path.parent, seed=seed) != [], "other files do not disturb the records"
    (path,) = (tmp_path / "VAE").rglob("*.npz")
    kept = records.unpack(path)
    assert kept["all"].shape == (4, len(gvae_measures.COLUMNS), 1, 28, 28)
    assert kept["plane"].shape == (50, 2)


def test_two_processes_do_not_take_one_run():
    with (
        experiment.claimed(RUN) as first,
        experiment.claimed(RUN) as second,
        experiment.claimed(replace(RUN, seed=9)) as other,
    ):
        assert (first, second, other) == (True, False, True)
        assert RUN.complete("cpu") is None, "another is at it"
    with experiment.claimed(RUN) as again:
        assert again


def test_paired_seeds_start_from_the_same_weights():
    of = data.load("embedded", train_size=100)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    plain, isda, other = (experiment.build(*names, of, seed) for *names, seed in
                          [("CrossEntropy", "small", 3), ("ISDA", "small", 3), ("ISDA", "small", 4)])  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), isda.parameters(), strict=True))
    assert not torch.equal(isda.network.head.weight, other.network.head.weight)


def test_an_objective_that_takes_counts_gets_those_of_the_set():
    of = data.load("embedded", imbalance=10)
    objective = experiment.build("LongTailed", "small", of, 0, loss="ldam", max_margin=1.0)
    assert objective.margins.tolist() == pytest.approx([(80 / n) ** 0.25 for n in of.counts.tolist()])


@pytest.mark.parametrize(
    ("objective", "network", "message"),
    [
        ("Isda", "small", r"objective: got 'Isda'; takes one of CrossEntropy, ISDA, LongTailed"),
        ("ISDA", "vgg", r"network: got 'vgg'; takes one of small"),
    ],
)
def test_unknown_names(objective, network, message):
    with pytest.raises(ValueError, match=message):
        experiment.build(objective, network, data.load("embedded", train_size=100), 0)
