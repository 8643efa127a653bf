"""Records: whole or not at all, and never edited by hand."""

import json
import math
import os
import re
import subprocess
from types import SimpleNamespace

import pytest

from semaug.training import record as rec

CONFIG = {"objective": "ISDA", "settings": {"strength": 0.5}, "data": {"name": "fashion-mini"}}


def make(seed=0, accuracy=0.8, **changes):
    return rec.Record(
        {**CONFIG, **changes}, seed, metrics={"test_accuracy": accuracy}, environment=rec.environment("cpu")
    )


def test_round_trip_and_name(tmp_path):
    record = make(seed=4)
    path = record.save(tmp_path / "new" / "folder")
    assert path.name == f"ISDA-{record.hash}-seed4.json"
    assert rec.Record.read(path) == record
    assert record.environment["versions"]["torch"]
    assert record.environment["commit"]


def test_a_record_of_before_the_classes_were_kept(tmp_path):
    path = make().save(tmp_path)
    content = json.loads(path.read_text())
    del content["train_counts"], content["class_accuracy"]
    path.write_text(json.dumps(content))
    assert rec.Record.read(path).class_accuracy == rec.Record.read(path).train_counts == []


def test_a_record_of_before_studies_and_arms(tmp_path):
    path = make().save(tmp_path)
    content = json.loads(path.read_text())
    del content["study"], content["arm"]
    path.write_text(json.dumps(content))
    assert (rec.Record.read(path).study, rec.Record.read(path).arm) == ("", "")


def test_study_and_arm_are_kept_and_decide_nothing(tmp_path):
    record = make()
    record.study, record.arm = "long tail", "ISDA, strength 0.5"
    assert record.hash == make().hash
    assert record.stem == make().stem
    again = rec.Record.read(record.save(tmp_path))
    assert again == record
    assert (again.study, again.arm) == ("long tail", "ISDA, strength 0.5")
    assert again != make()


def test_values_that_are_not_finite_are_null_in_the_file_and_nan_when_read(tmp_path):
    record = make()
    record.metrics = {"test_accuracy": math.nan, "distance": math.inf, "images": 3}
    record.curves = {"train_loss": [1.5, -math.inf, math.nan]}
    path = record.save(tmp_path)
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["metrics"] == {"test_accuracy": None, "distance": None, "images": 3}
    assert content["curves"] == {"train_loss": [1.5, None, None]}
    again = rec.Record.read(path)
    assert again == record == again
    assert math.isnan(again.metrics["distance"])
    assert [math.isnan(value) for value in again.curves["train_loss"]] == [False, True, True]
    again.metrics["distance"] = 1.0
    assert again != record


def test_a_class_without_an_image_is_null_in_the_file(tmp_path):
    record = make()
    record.class_accuracy = [0.5, float("nan"), 1.0]
    path = record.save(tmp_path)
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["class_accuracy"] == [0.5, None, 1.0]
    again = rec.Record.read(path)
    assert again == record
    assert math.isnan(again.class_accuracy[1])
    for changed in ([0.5, 0.0, 1.0], [0.5, math.nan, 0.9], []):
        again.class_accuracy = changed
        assert again != record
    path.write_text(path.read_text().replace("null", "NaN"))  # as records had it
    assert rec.Record.read(path) == record


def test_hash_is_of_the_configuration_alone():
    assert make(seed=0).hash == make(seed=1, accuracy=0.9).hash
    assert make().hash != make(data={"name": "mnist"}).hash
    assert rec.config_hash({"a": 1, "b": 2}) == rec.config_hash({"b": 2, "a": 1})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"seed"', '"sede"'),
        lambda text: re.sub('"metrics": .*', '"metrics": null,', text),
        lambda text: re.sub('"metrics": .*', '"metrics": {"test_accuracy": "0.8"},', text),
        lambda text: re.sub('"metrics": .*', '"metrics": {"test_accuracy": [0.8]},', text),
        lambda text: re.sub('"curves": .*', '"curves": {"lr": 0.1},', text),
        lambda text: re.sub('"class_accuracy": .*', '"class_accuracy": [true],', text),
        lambda text: re.sub('"seed": .*', '"seed": "0",', text),
    ],
)
def test_damaged_record_is_named(tmp_path, damage):
    path = make().save(tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=rf"{path.name}: not a whole record .*; restore it, or run it again"):
        rec.Record.read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_no_record_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(ValueError, match=r"run.json: not a whole record \(.*a pipe.*\); restore it"):
        rec.Record.read(tmp_path / "run.json")


def test_edited_configuration_is_noticed(tmp_path):
    path = make().save(tmp_path)
    content = json.loads(path.read_text())
    content["config"]["settings"]["strength"] = 5.0
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="its configuration hashes to"):
        rec.Record.read(path)


@pytest.fixture
def fresh():
    """As in a process that has not asked for its commit yet; forgets what this test made of it."""
    rec.commit.cache_clear()
    yield rec.commit.cache_clear
    rec.commit.cache_clear()


def test_an_archive_says_its_commit_by_a_variable(monkeypatch, tmp_path, fresh):
    monkeypatch.setenv("SEMAUG_COMMIT", "0123abc")
    assert rec.environment("cpu")["commit"] != "0123abc", "a checkout speaks for itself"
    monkeypatch.setattr(rec, "__file__", str(tmp_path / "semaug" / "training" / "record.py"))
    fresh()
    assert rec.environment("cpu")["commit"] == "0123abc"
    monkeypatch.delenv("SEMAUG_COMMIT")
    fresh()
    assert rec.environment("cpu")["commit"] == "unknown"


@pytest.mark.parametrize("site", ["venv/lib/site-packages", "."])
def test_a_package_installed_in_another_checkout_does_not_say_its_commit(monkeypatch, tmp_path, fresh, site):
    monkeypatch.delenv("SEMAUG_COMMIT", raising=False)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "another"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(rec, "__file__", str(tmp_path / site / "semaug" / "training" / "record.py"))
    fresh()
    assert rec.environment("cpu")["commit"] == "unknown"


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
@pytest.mark.usefixtures("fresh")
def test_a_checkout_without_git_has_an_unknown_commit(monkeypatch, error):
    monkeypatch.setattr(rec.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(error))
    assert rec.environment("cpu")["commit"] == "unknown"


@pytest.mark.usefixtures("fresh")
def test_the_commit_is_asked_for_once(monkeypatch):
    """What is checked out later is not what this process runs."""
    said = iter(["0123abc", "4567def"])
    monkeypatch.setattr(rec.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=next(said)))
    assert [rec.environment("cpu")["commit"] for _ in range(2)] == ["0123abc", "0123abc"]
