"""Records: whole or not at all, found again, never edited by hand, and summed up as scipy would."""

import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from scipy.ndimage import gaussian_filter

from companion import records, stats
from semaug.training import record as rec

CONFIG = {"objective": "ISDA", "settings": {"strength": 0.5}, "data": {"name": "embedded"}}


def make(seed=0, accuracy=0.8, **changes):
    return rec.Record(
        {**CONFIG, **changes}, seed, metrics={"test_accuracy": accuracy}, environment=rec.environment("cpu")
    )


def test_round_trip_and_name(tmp_path):
    record = make(seed=4)
    path = record.save(tmp_path / "new" / "folder")
    assert path.name == f"ISDA-{record.hash}-seed4.json"
    assert rec.read(path) == record
    assert record.environment["versions"]["torch"]
    assert record.environment["commit"]


def test_a_record_of_before_the_classes_were_kept(tmp_path):
    path = make().save(tmp_path)
    content = json.loads(path.read_text())
    del content["train_counts"], content["class_accuracy"]
    path.write_text(json.dumps(content))
    assert rec.read(path).class_accuracy == rec.read(path).train_counts == []


def test_a_class_without_an_image_is_null_in_the_file(tmp_path):
    record = make()
    record.class_accuracy = [0.5, float("nan"), 1.0]
    path = record.save(tmp_path)
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["class_accuracy"] == [0.5, None, 1.0]
    again = rec.read(path)
    assert again == record
    assert math.isnan(again.class_accuracy[1])
    for changed in ([0.5, 0.0, 1.0], [0.5, math.nan, 0.9], []):
        again.class_accuracy = changed
        assert again != record
    path.write_text(path.read_text().replace("null", "NaN"))  # as records had it
    assert rec.read(path) == record


def test_hash_is_of_the_configuration_alone():
    assert make(seed=0).hash == make(seed=1, accuracy=0.9).hash
    assert make().hash != make(data={"name": "mnist"}).hash
    assert rec.config_hash({"a": 1, "b": 2}) == rec.config_hash({"b": 2, "a": 1})


def test_load_finds_by_configuration(tmp_path):
    for seed in (2, 0, 1):
        make(seed).save(tmp_path)
    make(0, objective="CrossEntropy").save(tmp_path / "below")
    assert [r.seed for r in records.load(tmp_path, objective="ISDA")] == [0, 1, 2]
    assert len(records.load(tmp_path)) == 4
    assert len(records.load(tmp_path, seed=0)) == 2
    assert records.load(tmp_path, profile="paper") == []
    assert records.load(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "damage", [lambda t: t[: len(t) // 2], lambda t: "", lambda t: "[]", lambda t: t.replace('"seed"', '"sede"')]
)
def test_damaged_record_is_named(tmp_path, damage):
    path = make().save(tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=rf"{path.name}: not a whole record .*delete it and run it again"):
        records.load(tmp_path)


def test_edited_configuration_is_noticed(tmp_path):
    path = make().save(tmp_path)
    content = json.loads(path.read_text())
    content["config"]["settings"]["strength"] = 5.0
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="its configuration hashes to"):
        rec.read(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = rec.write_whole(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(OSError, match="Read-only"):
        rec.write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_written_files_are_as_readable_as_others(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    assert rec.write_whole(tmp_path / "whole", b"").stat().st_mode == plain.stat().st_mode


def test_summary_against_scipy():
    values = np.random.default_rng(0).normal(0.8, 0.01, 7)
    got = stats.summary(values)
    low, high = scipy.stats.t.interval(0.95, 6, loc=values.mean(), scale=scipy.stats.sem(values))
    assert (got.mean - got.half_width, got.mean + got.half_width) == pytest.approx((low, high), rel=1e-12)
    assert got.std == pytest.approx(values.std(ddof=1))
    assert str(stats.summary([0.5, 0.5])) == "0.500 ± 0.000 (n = 2)"
    assert str(stats.summary([0.5])) == "0.500 (n = 1)"
    assert math.isnan(stats.summary([0.5]).half_width)


@pytest.mark.parametrize(
    ("values", "form", "text"),
    [
        ([1.0, 2.0, 3.0], ".1f", "2.0 ± 2.5"),  # 4.303 / sqrt(3), t of two degrees of freedom
        ([1.0, 2.0, 3.0], "+.2f", "+2.00 ± 2.48"),
        ([-1.0, -2.0], "+.1f", "\N{MINUS SIGN}1.5"),
        ([-0.02, -0.02, -0.02], "+.1f", "+0.0 ± 0.0"),
        ([-0.4], ".0f", "0"),
    ],
)
def test_summary_in_a_table(values, form, text):
    assert stats.summary(values).text(form) == text


def test_paired_difference_beats_unpaired_spread():
    noise = [0.0, 0.1, -0.1, 0.05]
    first = [make(seed, 0.8 + noise[seed]) for seed in range(4)]
    second = [make(seed, 0.81 + noise[seed]) for seed in range(4)]
    difference = stats.paired(first, reversed(second), "test_accuracy")
    assert difference.mean == pytest.approx(0.01)
    assert difference.half_width == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [([0, 1], [0, 2]), ([], []), ([0], [0, 1])])
def test_unpaired_seeds_are_refused(first, second):
    with pytest.raises(ValueError, match=r"seeds: first has .*; a paired difference needs the same"):
        stats.paired([make(s) for s in first], [make(s) for s in second], "test_accuracy")


@pytest.mark.parametrize(("effect", "n"), [(2.0, 5), (1.0, 10), (0.5, 34), (0.2, 199)])
def test_pairs_needed_against_tables(effect, n):
    """Cohen's table for one-sample tests, power 0.8 at 5%, as statsmodels solves it: 4.2, 9.9, 33.4, 198.2."""
    assert stats.pairs_needed(effect, 1.0) == n
    assert stats.pairs_needed(-0.3 * effect, 0.3) == n


def test_pairs_needed_by_simulation():
    n, draws = stats.pairs_needed(0.003, 0.004), np.random.default_rng(0).normal(0.003, 0.004, (20_000, 100))
    shares = [(scipy.stats.ttest_1samp(draws[:, :m], 0, axis=1).pvalue < 0.05).mean() for m in (n - 1, n)]
    assert shares[0] < 0.8 + 0.01  # 20,000 simulations: a standard error of 0.003
    assert 0.8 - 0.01 < shares[1] < 0.85


@pytest.mark.parametrize(
    ("argument", "values"),
    [("effect", (0, 1)), ("std", (1, 0)), ("std", (1, math.nan)), ("power", (1, 1, 0.01)), ("level", (1, 1, 0.8, 0))],
)
def test_pairs_needed_refuses(argument, values):
    with pytest.raises(ValueError, match=f"{argument}: got .*; takes"):
        stats.pairs_needed(*values)


def test_a_seed_twice_is_refused():
    with pytest.raises(ValueError, match=r"second: got seeds \[0, 0, 1\]; takes each seed once"):
        stats.paired([make(0), make(1)], [make(0), make(0), make(1)], "test_accuracy")


def test_empty_summary():
    with pytest.raises(ValueError, match="values: got none"):
        stats.summary([])


def test_load_by_a_setting_at_any_depth(tmp_path):
    for seed, strength in enumerate((0.5, 1.0)):
        nested = {"settings": {"strength": strength}, "data": {"name": "mnist", "size": 28}, "recipe": {"size": 3}}
        rec.Record({"objective": "ISDA", **nested}, seed).save(tmp_path)
    rec.Record({"objective": "CrossEntropy", "settings": {}}, 0).save(tmp_path)
    assert [r.seed for r in records.load(tmp_path, strength=1.0)] == [1]
    assert [r.seed for r in records.load(tmp_path, **{"settings.strength": 0.5}, name="mnist")] == [0]
    assert len(records.load(tmp_path, **{"data.size": 28})) == 2
    assert [r.config["objective"] for r in records.load(tmp_path, strength=None)] == ["CrossEntropy"]
    with pytest.raises(ValueError, match=r"size: got a name that data\.size, recipe\.size share"):
        records.load(tmp_path, size=28)


@pytest.fixture
def fresh():
    """As in a process that has not asked for its commit yet; forgets what this test made of it."""
    rec._commit.cache_clear()
    yield rec._commit.cache_clear
    rec._commit.cache_clear()


def test_an_archive_says_its_commit_by_a_variable(monkeypatch, tmp_path, fresh):
    monkeypatch.setenv("SEMAUG_COMMIT", "0123abc")
    assert rec.environment("cpu")["commit"] != "0123abc", "a checkout speaks for itself"
    monkeypatch.setattr(records, "__file__", str(tmp_path / "semaug" / "records.py"))
    fresh()
    assert rec.environment("cpu")["commit"] == "0123abc"
    monkeypatch.delenv("SEMAUG_COMMIT")
    fresh()
    assert rec.environment("cpu")["commit"] == "unknown"


@pytest.mark.usefixtures("fresh")
def test_the_commit_is_asked_for_once(monkeypatch):
    """What is checked out later is not what this process runs."""
    said = iter(["0123abc", "4567def"])
    monkeypatch.setattr(records.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=next(said)))
    assert [rec.environment("cpu")["commit"] for _ in range(2)] == ["0123abc", "0123abc"]


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_beside_a_record_come_back_and_images_look_the_same(tmp_path, channels):
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (2, 3, channels, 4, 6)).astype(np.uint8)
    images = np.stack([np.kron(image, np.ones((8, 4))) for image in coarse.reshape(-1, 4, 6)])
    images = gaussian_filter(images, (0, 3, 3)).astype(np.uint8).reshape(2, 3, channels, 32, 24)
    arrays = {"strips": images, "codes": generator.normal(size=(5, 2)).astype(np.float32), "target": np.arange(5)}
    (tmp_path / "run.npz").write_bytes(records.pack(arrays))
    found = records.unpack(tmp_path / "run.npz")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in ("codes", "target"))
    assert (found["strips"].shape, found["strips"].dtype) == (images.shape, np.uint8)
    off = np.abs(found["strips"].astype(int) - images)
    assert off.mean() < 4, "of 255; the colours at half the resolution"
    assert np.abs(images.astype(int) - np.roll(images, 1, 1)).mean() > 20, "which tells images apart"


def test_an_array_of_bytes_that_is_no_image_comes_back_as_it_is(tmp_path):
    arrays = {
        "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "pairs": np.arange(16, dtype=np.uint8).reshape(2, 2, 2, 2),
    }
    (tmp_path / "run.npz").write_bytes(records.pack(arrays))
    found = records.unpack(tmp_path / "run.npz")
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
