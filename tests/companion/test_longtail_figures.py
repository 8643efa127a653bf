"""The figures of the long tail, on records whose class accuracies are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from companion import figures, longtail_figures, redraw
from semaug.training.record import Record

COUNTS = [400, 200, 50, 25, 10, 5]
BASE = np.array([0.9, 0.8, 0.6, 0.5, 0.3, 0.1])
META = dict(longtail_figures.RELEASED)
LONG = {"loss": "ce", "beta": 0.0, "defer": 0.0, "normalised": False}
COSINES = {"loss": "ldam", "beta": 0.9999, "defer": 0.8, "scale": 30.0, "normalised": True}
NOISE = [0.0, 0.02, -0.01]


def record(objective, seed, by_class, order=slice(None), name="embedded", imbalance=80, **settings):
    """A run whose classes are right as often as said, plus what the seed adds to all of them."""
    accuracy = (np.broadcast_to(by_class, 6) + NOISE[seed])[order]
    data = {"name": name, "imbalance": imbalance, "validation": 0.1, "meta": 10}
    config = {"objective": objective, "network": "small", "data": data, "recipe": {"epochs": 4}, "settings": settings}
    metrics, counts = {"test_accuracy": float(accuracy.mean())}, np.array(COUNTS)[order].tolist()
    where = {"profile": "cpu", "environment": {"device": "a CPU"}}
    return Record(config, seed, metrics, {}, counts, accuracy.tolist(), seconds=1.0, **where)


def gain_of(seed, *groups):
    """Gains of the groups of two classes, a little more with every seed."""
    return BASE + np.repeat(np.array(groups) + 0.001 * seed, 2)


@pytest.fixture
def found():
    runs = [record("CrossEntropy", seed, BASE) for seed in range(3)]
    runs += [record("ISDA", seed, gain_of(seed, 0.02, 0, -0.04), strength=0.5, covariance="full") for seed in (2, 0, 1)]
    runs += [record("LongTailed", s, gain_of(s, 0, 0, 0.06), **LONG | {"beta": 0.9999, "defer": 0.8}) for s in (0, 1)]
    runs += [record("MetaSAug", s, gain_of(s, 0.01, 0.01, 0.02), **META) for s in range(3)]
    runs += [record("MetaSAug", s, gain_of(s, 0.01, 0.01, 0.02), **META | {"meta_steps": 0}) for s in range(3)]
    runs += [record("CrossEntropy", 0, BASE, imbalance=None)]  # of no long tail
    return runs


@pytest.mark.parametrize(
    ("objective", "settings", "name"),
    [
        ("CrossEntropy", {}, "cross-entropy"),
        ("LongTailed", LONG | {"beta": 0.9999}, "CE, class weights"),
        ("LongTailed", LONG | {"beta": 0.9999, "defer": 0.8}, "CE-DRW"),
        ("LongTailed", LONG | {"loss": "focal", "gamma": 2.0}, "focal loss"),
        ("LongTailed", LONG | {"loss": "ldam", "scale": 1.0}, "LDAM"),
        ("LongTailed", COSINES, "LDAM-DRW, s = 30"),
        ("ISDA", {"strength": 0.5, "covariance": "full"}, "ISDA"),
        ("MetaSAug", META, "MetaSAug"),
        ("MetaSAug", META | {"loss": "ce", "covariance": "diagonal"}, "MetaSAug, CE, diagonal"),
        ("MetaSAug", META | {"meta_steps": 0}, "MetaSAug, no meta step"),
        ("MetaSAug", META | {"meta_steps": 3}, "MetaSAug, 3 meta steps"),
        ("MetaSAug", META | {"strength": 1.0}, r"MetaSAug, $\lambda_0$ = 1"),
        ("MetaSAug", META | {"meta_lr": 100.0, "psd": True}, r"MetaSAug, $\alpha$ = 100, projected"),
        ("MetaSAug", META | {"keep": True}, "MetaSAug, kept"),
        ("MetaSAug", META | {"stage": 0.4, "meta_steps": 0}, "MetaSAug, no meta step, from 40%"),
        ("LongTailed", LONG | {"loss": "ldam", "beta": 0.9999, "defer": 0.4}, "LDAM-DRW, from 40%"),
        ("LongTailed", LONG | {"beta": 0.9, "defer": 0.8}, r"CE-DRW, $\beta$ = 0.9"),
        ("LongTailed", LONG | {"loss": "focal", "gamma": 0.5}, r"focal loss, $\gamma$ = 0.5"),
        ("LongTailed", LONG | {"loss": "ldam", "scale": 30.0}, "LDAM, s = 30, no cosines"),
        ("LongTailed", LONG | {"loss": "ldam", "scale": 1.0, "normalised": True}, "LDAM, s = 1, cosines"),
        ("LongTailed", LONG | {"normalised": True}, "CE, cosines"),
        ("LongTailed", LONG | {"loss": "ldam", "scale": 1.0, "max_margin": 2.0}, r"LDAM, $\Delta_{\max}$ = 2"),
        ("ISDA", {"strength": 5.0, "covariance": "diagonal"}, r"ISDA, $\lambda_0$ = 5, diagonal"),
        ("ISDA", {"strength": 0.5, "covariance": "full", "control": "random"}, "ISDA, random"),
        ("ISDA", {"strength": 0.5, "covariance": "full", "decay": 0.9}, "ISDA, decay 0.9"),
        ("MetaSAug", META | {"beta": 0.0}, "MetaSAug, no class weights"),
        ("MetaSAug", META | {"beta": 0.9, "max_margin": 2.0}, r"MetaSAug, $\beta$ = 0.9, $\Delta_{\max}$ = 2"),
    ],
)  # fmt: skip
def test_names(objective, settings, name):
    config = {"objective": objective, "settings": settings}
    assert longtail_figures.method(config) == name
    ablations = ("meta step", "lambda", "alpha", "kept", "beta", "max", "no class")
    of_metasaug = objective == "MetaSAug" and any(word in name for word in ablations)
    assert longtail_figures.is_ablation(config) == (of_metasaug or "from" in name)


def test_a_setting_changed_is_another_name():
    """Whatever it is, for each method of the ledger's defaults; MetaSAug on cross-entropy has no margin."""
    defaults = {
        "LongTailed": LONG | {"loss": "ldam", "beta": 0.9999, "scale": 1.0, "max_margin": 0.5},
        "MetaSAug": META,
    }
    defaults["ISDA"] = {"strength": 0.5, "covariance": "full"}
    other = {"loss": "ce", "covariance": "diagonal", "psd": True, "keep": True, "normalised": True}
    for objective, settings in defaults.items():
        names = {longtail_figures.method({"objective": objective, "settings": settings})}
        for setting, value in settings.items():
            changed = settings | {setting: other.get(setting, 0.3 if isinstance(value, float) else 7)}
            names.add(longtail_figures.method({"objective": objective, "settings": changed}))
        assert len(names) == len(settings) + 1, names


def test_methods_stand_in_the_order_of_the_text(found):
    names = list(longtail_figures.methods(r for r in found if r.config["data"]["imbalance"]))
    assert names == ["cross-entropy", "CE-DRW", "ISDA", "MetaSAug", "MetaSAug, no meta step"]


def test_gains_are_paired_and_by_group(found):
    named = longtail_figures.methods(r for r in found if r.config["data"]["imbalance"])
    gains = longtail_figures.gains(named["ISDA"], named["cross-entropy"])
    assert {name: gain.n for name, gain in gains.items()} == {"all": 3, "many": 3, "medium": 3, "few": 3}
    expected = {"all": -2 / 3, "many": 2.0, "medium": 0.0, "few": -4.0}
    for name, gain in gains.items():
        assert gain.mean == pytest.approx(expected[name] + 0.1, abs=1e-9)  # the seeds add 0, 0.1 and 0.2
        assert gain.half_width == pytest.approx(t.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    frequent = [record("CrossEntropy", 0, BASE) for _ in range(2)]
    for run in frequent:
        run.train_counts = [200] * 6
    assert list(longtail_figures.gains(*([run] for run in frequent))) == ["all", "many"]
    with pytest.raises(ValueError, match=r"got seeds \[2\]; takes some of the baseline's, \[0, 1\]"):
        longtail_figures.gains(named["ISDA"][2:], named["cross-entropy"][:2])


def test_accuracy_leaves_out_ablations_and_what_shares_no_seed(found):
    lonely = record("LongTailed", 0, BASE, **LONG)
    lonely.seed = 7
    left, right = longtail_figures.accuracy([*found, lonely]).axes
    rows = ["cross-entropy (n = 3)", "CE-DRW (n = 2)", "ISDA (n = 3)", "MetaSAug (n = 3)"]
    assert [label.get_text() for label in left.get_yticklabels()] == rows
    assert [text.get_text().split(" ")[0] for text in right.texts] == ["+2.05", "\N{MINUS SIGN}0.57", "+1.43"]


def test_groups_show_the_gain_of_each(found):
    axes = longtail_figures.groups(found).axes
    assert [panel.get_title("left") for panel in axes] == ["many (2 classes)", "medium (2 classes)", "few (2 classes)"]
    for panel, expected in zip(axes, ([0.05, 2.1, 1.1], [0.05, 0.1, 1.1], [6.05, -3.9, 2.1]), strict=True):
        points = [container[0].get_xdata()[0] for container in panel.containers]
        np.testing.assert_allclose(points, expected, atol=1e-9)


def test_classes_stand_by_their_number_of_images(found):
    """Wherever they stand in the data set; on the seeds that all methods have."""
    left, right = longtail_figures.classes(found, shown=("ISDA", "CE-DRW")).axes
    assert left.get_ylabel() == "cross-entropy (n = 2): accuracy (%)"
    assert [text.get_text() for text in right.get_legend().texts] == ["ISDA (n = 2)", "CE-DRW (n = 2)"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), 100 * (BASE + 0.01))
    np.testing.assert_allclose(right.lines[0].get_ydata(), np.array([2, 2, 0, 0, -4, -4]) + 0.05, atol=1e-9)
    seeds = right.lines[1].get_ydata().reshape(2, 6)  # two seeds, the second 0.1 points better than the first
    np.testing.assert_allclose(seeds, np.array([2, 2, 0, 0, -4, -4]) + np.array([[0.0], [0.1]]), atol=1e-9)
    assert [label.get_text() for label in right.get_xticklabels()] == [str(count) for count in COUNTS]
    turned = [record("CrossEntropy", s, BASE, order=slice(None, None, -1)) for s in range(2)]
    turned += [record("ISDA", s, gain_of(s, 1, 0, 0) - 1, slice(None, None, -1), strength=0.5) for s in range(2)]
    left, _ = longtail_figures.classes(turned).axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), 100 * (BASE + 0.01))


def test_ablation_is_against_metasaug_of_the_same_loss_and_stage(found):
    changes = ({"loss": "ce"}, {"loss": "ce", "keep": True}, {"stage": 0.4}, {"stage": 0.4, "meta_steps": 0})
    runs = [record("MetaSAug", s, BASE, **META | change) for s in (0, 1) for change in changes]
    runs += [record("LongTailed", s, BASE, **LONG | {"loss": "ldam", "beta": 0.9999, "defer": 0.4}) for s in (0, 1)]
    axes = longtail_figures.ablation([*found, *runs]).axes[::2]
    rows = [[label.get_text().rsplit(" (", 1)[0] for label in panel.get_yticklabels()] for panel in axes]
    assert rows == [
        ["MetaSAug", "no meta step"],
        ["MetaSAug, from 40%", "no meta step, from 40%", "LDAM-DRW, from 40%"],
        ["MetaSAug, CE", "CE, kept", "CE-DRW"],
    ]
    titles = [panel.get_title("left").replace("\n", " ").replace("\xa0", " ").split(": ") for panel in axes]
    ends = "LDAM, n = 3", "LDAM, from 40%, n = 2", "CE, n = 2"
    assert titles == [["embedded, imbalance 80, small, 4 epochs", end] for end in ends]


def test_a_block_of_the_ablation_has_one_set_of_seeds(found):
    """The means in a block are of the same seeds: a variant run on fewer has a block of its own."""
    runs = [record("MetaSAug", s, BASE, **META | {"keep": True}) for s in (0, 1)]
    axes = longtail_figures.ablation([*found, *runs]).axes[::2]
    rows = [[label.get_text() for label in panel.get_yticklabels()] for panel in axes]
    names = "MetaSAug", "kept", "no meta step"
    assert rows == [[f"{name} (n = 2)" for name in names], [f"{name} (n = 3)" for name in names[::2]]]


def test_the_groups_of_a_data_set_share_their_scale(found):
    other = [record("CrossEntropy", s, BASE, name="mnist") for s in range(3)]
    other += [record("ISDA", s, gain_of(s, 0.3, 0, -0.1), name="mnist", strength=0.5) for s in range(3)]
    limits = [axes.get_xlim() for axes in longtail_figures.groups([*found, *other]).axes]
    assert len(set(limits[:3])) == len(set(limits[3:])) == 1
    assert limits[0] != limits[3]


@pytest.mark.parametrize("name", longtail_figures.FIGURES["1_metasaug"])
def test_what_is_missing_is_said(found, name):
    draw = longtail_figures.FIGURES["1_metasaug"][name]
    for few in ([], found[:3], found[-1:]):
        with pytest.raises(figures.NothingToDraw):
            draw(few)


def test_the_command_draws_them_too(found, tmp_path, capsys):
    for run in found:
        run.save(tmp_path / "records" / "1_metasaug")
    assert redraw.main(["--folder", str(tmp_path)]) == 0
    expected = {f"{name}.{kind}" for name in longtail_figures.FIGURES["1_metasaug"] for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "1_metasaug").iterdir()} == expected
    assert f"drew     1_metasaug/groups from {len(found)} records" in capsys.readouterr().out
