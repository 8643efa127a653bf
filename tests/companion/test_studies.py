"""Studies: arms named once, planned runs without doubles, committed records that agree with them."""

from dataclasses import replace

import pytest
import torch

from companion.records import Index, committed, on_common_seeds
from companion.runs import NETWORKS, PLAYERS, Run, planned
from companion.studies import Arm, NothingToDraw, Study, modules, studies
from semaug import data
from semaug.methods import gan
from semaug.training.recipe import Recipe
from semaug.training.record import Record

STUDY = Study(
    "1_isda", "tiny", "Tiny", {"name": "fashion-mini"}, "small", Recipe(epochs=10, evaluate_every=2),
    (Arm("cross-entropy", "CrossEntropy"), Arm("ISDA", "ISDA"), Arm("longer", "ISDA", recipe={"times": 3}, seeds=1)),
    seeds=2, seconds=10.0,
)  # fmt: skip


def record(arm, seed, accuracy=0.5, study="tiny", **others):
    return Record({"objective": arm}, seed, {"test_accuracy": accuracy}, study=study, arm=arm, profile="cpu", **others)


def test_an_arm_changes_the_recipe_of_its_study():
    plain, _, longer = STUDY.arms
    assert STUDY.recipe_of(plain) == STUDY.recipe
    assert (STUDY.recipe_of(longer).epochs, STUDY.recipe_of(longer).evaluate_every) == (30, 6)
    crop = replace(plain, recipe={"augment": "crop"})
    assert STUDY.recipe_of(crop) == replace(STUDY.recipe, augment="crop")
    assert [*STUDY.seeds_of(plain)], [*STUDY.seeds_of(longer)] == ([0, 1], [0])
    assert Run(STUDY, longer, 0).seconds == 30.0
    assert Run(STUDY, replace(longer, passes=2.0), 0).seconds == 60.0
    assert Run(STUDY, replace(longer, passes=2.0, cost=5.0), 0).seconds == 150.0


def test_bad_arms_are_named():
    with pytest.raises(ValueError, match=r"arm: got 'isda'; takes one of cross-entropy, ISDA, longer"):
        STUDY.arm("isda")
    with pytest.raises(ValueError, match=r"arms of study 'tiny': got a, a; takes each name once"):
        replace(STUDY, arms=(Arm("a", "ISDA"), Arm("a", "CrossEntropy")))


def test_an_index_gives_the_records_of_an_arm_in_order_of_seed():
    index = Index(
        records=[record("ISDA", 2), record("ISDA", 0), record("cross-entropy", 0), record("ISDA", 1, study="x")]
    )
    assert [run.seed for run in index.of(STUDY, "ISDA")] == [0, 2]
    assert index.of(STUDY, "longer") == []
    assert list(index.by_arm(STUDY)) == ["cross-entropy", "ISDA"]
    assert list(index.by_arm(STUDY, ["ISDA"])) == ["ISDA"]
    assert index.blocks([STUDY], "both").keys() == {"Tiny"}
    assert index.of(replace(STUDY, profile="paper"), "ISDA") == [], "another profile is another run"
    with pytest.raises(ValueError, match="arm: got 'isda'"):
        index.of(STUDY, "isda")
    with pytest.raises(ValueError, match=r"two records of study 'tiny', arm 'ISDA', profile cpu, seed 2"):
        index.add(record("ISDA", 2))


def test_what_has_no_baseline_cannot_be_drawn():
    index = Index(records=[record("ISDA", 0)])
    assert index.by_arm(STUDY) == {}
    with pytest.raises(NothingToDraw, match="two arms"):
        index.blocks([STUDY], "two arms")


def test_common_seeds():
    arms = {"a": [record("a", seed) for seed in (0, 1, 2)], "b": [record("b", seed) for seed in (1, 2, 3)]}
    assert {name: [run.seed for run in runs] for name, runs in on_common_seeds(arms).items()} == {
        "a": [1, 2],
        "b": [1, 2],
    }
    apart = {"a": arms["a"][:1], "b": arms["b"]}
    assert on_common_seeds(apart) == apart


def test_an_index_reads_each_file_once(tmp_path):
    record("ISDA", 0).save(tmp_path)
    index = Index(tmp_path)
    record("ISDA", 1).save(tmp_path)
    assert len(index) == 1
    index.refresh()
    index.refresh()
    assert len(index) == 2
    assert len(Index(tmp_path / "nothing")) == 0


# -- the studies there are ---------------------------------------------------------------------------------------------

SHAPES = dict.fromkeys(("cifar10", "cifar100", "shapes", "hues", "portraits"), (3, 32, 32))
SHAPES |= dict.fromkeys(("fashion-mini", "mnist", "fashion"), (1, 28, 28))
SHAPES |= dict.fromkeys(("lfw64", "strangers", "celeba"), (3, 64, 64))


def dataset(study):
    """Black images in the place of a study's."""
    shape = (3, 32, 32) if study.data.get("size") == 32 else SHAPES[study.data["name"]]
    split = data.Split(torch.zeros(20, *shape).byte(), torch.arange(20) % 10)
    return data.Data("black", split, split)


def test_there_are_studies_of_every_notebook_and_no_two_runs_are_the_same():
    assert {"1_isda", "1_metasaug", "2_gvae", "3_automix", "4_diffaugment", "5_sla"} <= modules().keys()
    runs = planned()
    assert len(runs) > 1000
    assert {run.study.profile for run in runs} == {"cpu", "paper"}
    assert len({(run.study.notebook, run.study.name, run.study.profile) for run in runs}) == len([*studies()])
    assert len({run.key for run in runs}) == len(runs)
    contents = [str((run.study.notebook, run.study.profile, run.seed, run.plan)) for run in runs]
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize("notebook", sorted(modules()))
def test_every_arm_can_be_built(notebook):
    seen = set()
    for study in (study for study in studies(notebook) if study.execute is None):
        assert (study.judge is not None) == (study.baseline.objective == "GAN")
        for arm in study.arms:
            key = str((arm.objective, study.network, study.data["name"], sorted(arm.settings.items())))
            if key not in seen:
                seen.add(key)
                Run(study, arm, 0).build(dataset(study))


@pytest.mark.parametrize("notebook", sorted(modules()))
def test_every_committed_record_is_of_a_planned_run_and_agrees_with_it(notebook):
    index = committed(notebook)
    assert not index.problems
    runs = {(run.study.name, run.arm.name, run.study.profile, run.seed): run for run in planned(notebook=notebook)}
    for found in index:
        run = runs[found.study, found.arm, found.profile, found.seed]
        assert run.agrees(found), f"{found.stem} is not of {run.name}"
        assert found.config["data"]["digest"]


@pytest.mark.parametrize("notebook", sorted(modules()))
def test_records_have_the_network_and_the_settings_of_their_arm(notebook):
    """What a plan does not say: the network's description, and every setting at its default."""
    index = committed(notebook)
    for study in studies(notebook):
        names = {found.config["network"] for arm in study.arms for found in index.of(study, arm)}
        if not names or study.execute is not None:  # whose record says all that its plan says, and nothing is built
            continue
        black = dataset(study)
        with torch.device("meta"):
            if study.network in PLAYERS:
                width, against, spectral = PLAYERS[study.network]
                name = f"{gan.Generator(width=width).name} against {gan.Discriminator(32, 1, against, spectral).name}"
            else:
                name = NETWORKS[study.network](black).name
        assert names == {name}, study.name
        for arm in study.arms:
            objectives = {str(found.config["objective"]) for found in index.of(study, arm)}
            assert objectives <= {arm.objective}
