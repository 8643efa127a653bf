"""The committed figures: from the right records, the same bytes each time, and what is missing is said."""

from __future__ import annotations

import numpy as np
import pytest
from test_plots import found, record

from companion import figures

__all__ = ["found"]  # a fixture


def test_quick_runs_stand_in_for_longer_ones_of_a_set_that_are_enough(found):
    """And the cpu profile's stand beside the paper's, which are of other networks."""
    quick = [record("CrossEntropy", profile="quick"), record("ISDA", 0, 0.5, profile="quick")]
    paper = [record(network="resnet32", profile="paper"), record("ISDA", 0, 0.5, network="resnet32", profile="paper")]
    other = [record(name="cifar10", train_size=1000)]
    everything = [*found, *quick, *paper, *other]
    kept = figures.experiments(everything, lambda group: len(group) > 1)
    small, large = (f"embedded, {network}, 8 epochs" for network in ("small", "resnet32"))
    assert {title: len(group) for title, group in kept.items()} == {small: len(found), large: 2}
    assert {r.profile for r in kept[small]} == {"cpu"}
    kept = figures.experiments(everything, lambda group: group[0].profile == "quick" or len(group) == 1)
    assert {title: group[0].profile for title, group in kept.items()} == {
        "cifar10, train size 1000, small, 8 epochs": "cpu",
        small: "quick",
    }


def test_titles_say_what_tells_apart():
    def titles(*groups):
        made = figures.titled(groups, lambda group: group[0], lambda group: "T")
        assert list(made.values()) == list(groups)
        return list(made)

    one, large, paper = [record()], [record(network="resnet32")], [record(profile="paper")]
    there, later = [record()], [record(subset_seed=1)]
    there[0].environment = {"device": "a GPU"}
    assert titles(one) == ["T"]
    assert titles(one, large) == ["T, small", "T, resnet32"]
    assert titles(one, paper) == ["T, cpu", "T, paper"]
    assert titles(one, there) == ["T, test CPU", "T, a GPU"]
    assert titles(one, later) == [f"T, {group[0].hash}" for group in (one, later)]
    assert titles(one, large, there, later) == [
        f"T, small, test CPU, {one[0].hash}",
        "T, resnet32, test CPU",
        "T, small, a GPU",
        f"T, small, test CPU, {later[0].hash}",
    ]


def test_two_experiments_of_one_title_stay_apart():
    runs = [record(subset_seed=0), record(subset_seed=1)]
    assert sorted(figures.experiments(runs, lambda group: True)) == sorted(
        f"embedded, small, 8 epochs, {run.hash}" for run in runs
    )


def test_strength_is_chosen_on_validation_data(found):
    best, worse = (r for r in found if r.seed == 0 and r.config["objective"] == "ISDA")
    assert [group[0].config["settings"].get("strength") for group in figures.chosen(found).values()] == [None, 0.5]
    for r in found:  # better on the test set, and not chosen for it
        if r.config["settings"] == worse.config["settings"]:
            r.metrics["test_accuracy"] = 0.99
    assert [group[0].config["settings"].get("strength") for group in figures.chosen(found).values()] == [None, 0.5]
    del best.metrics["validation_accuracy"]
    assert len(figures.chosen(found)) == 3


def test_gains_are_paired(found):
    strengths, gains = figures.gains(found)["full"]
    assert strengths == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(gains, [[0, 2, 1], [0, 2.06, 1.12], [0, 2.12, 1.24]], atol=1e-9)
    assert figures.gains([r for r in found if r.config["settings"].get("strength") != 1.0]) == {}


def test_gains_are_of_plain_isda_over_cross_entropy(found):
    """Another objective is no baseline, and ISDA with a further setting is not ISDA at that strength."""
    expected = figures.gains(found)["full"]
    more = []
    for name, value in (("control", "shared"), ("decay", 0.9), ("rank", 4), ("later", True)):
        more += [record("ISDA", seed, 0.5) for seed in range(3)]
        for r in more[-3:]:
            r.config["settings"] = r.config["settings"] | {name: value}
            r.metrics["test_accuracy"] = 0.01
    other = [record("Mixup", seed) for seed in range(3)]
    for r in other:
        r.metrics["test_accuracy"] = 0.01
    gains = figures.gains([*more, *found, *other, *more])  # twice, and out of the question
    assert list(gains) == ["full"]
    assert gains["full"][0] == expected[0]
    np.testing.assert_array_equal(gains["full"][1], expected[1])
    assert figures.gains([r for r in [*found, *other] if r.config["objective"] != "CrossEntropy"]) == {}


def test_devices_are_not_mixed(found):
    there = [record(o, seed, s) for o, s in BOTH for seed in range(3)]
    for r in there:
        r.environment = {"device": "a GPU"}
    groups = figures.experiments([*found, *there], len)
    assert [len(group) for group in groups.values()] == [6, len(found)]
    assert [title.endswith(", test CPU") for title in groups] == [False, True]


def test_accuracy_shows_every_network_of_a_set(found):
    paper = [record(o, seed, s, network="resnet32", profile="paper") for o, s in BOTH for seed in range(2)]
    titles = [axes.get_title("left") for axes in figures.isda_accuracy([*found, *paper]).axes]
    assert [title for title in titles if title] == ["embedded, resnet32, 8 epochs", "embedded, small, 8 epochs"]


def test_a_seed_run_twice_is_refused(found, sized):
    with pytest.raises(ValueError, match="cross-entropy, seed 0, twice"):
        figures.gains([*found, record("CrossEntropy", 0)])
    with pytest.raises(ValueError, match=r"ISDA, full, .* seed 1, twice"):
        figures.gains([*found, record("ISDA", 1, 0.5)])
    with pytest.raises(ValueError, match="cross-entropy, seed 2, twice"):
        figures.isda_size([*sized, record("CrossEntropy", 2, train_size=100)])


def test_older_records_are_of_the_same_experiment_and_method():
    """A field of the recipe that had not come yet has its default; a setting that is None is none."""
    old, new = record("ISDA", 0, 0.5), record("ISDA", 1, 0.5)
    new.config["recipe"] = new.config["recipe"] | {"precision": "float32", "milestones": [0.5, 0.75]}
    new.config["data"] = new.config["data"] | {"later": None}
    new.config["settings"] = new.config["settings"] | {"rank": None, "control": None}
    other = record("ISDA", 2, 0.5)
    other.config["recipe"] = other.config["recipe"] | {"precision": "bfloat16"}
    groups = figures.experiments([old, new, other], lambda group: True)
    assert sorted(sorted(r.seed for r in group) for group in groups.values()) == [[0, 1], [2]]
    assert len(figures.methods([old, new])) == 1
    assert len(figures._over_strength([old, new])) == 1


@pytest.fixture
def sized():
    """Two methods at three sizes of one set, three seeds; the middle size of ISDA lacks one."""
    runs = [record(o, seed, s, train_size=n) for n in (100, 1000, None) for o, s in BOTH for seed in range(3)]
    return [r for r in runs if (r.config["data"]["train_size"], r.seed, r.config["objective"]) != (1000, 2, "ISDA")]


BOTH = [("CrossEntropy", None), ("ISDA", 0.5)]


def test_accuracy_over_the_size_of_the_training_set(sized, found):
    left, right = figures.isda_size([*sized, *[record("ISDA", seed, 1.0) for seed in range(3)]]).axes
    assert [line.get_label() for line in left.lines] == [
        "cross-entropy (n = 3)",
        r"ISDA, full, $\lambda_0$ = 0.5 (n = 2)",
    ]
    np.testing.assert_allclose(left.lines[0].get_xdata(), [100, 1000, 7200])  # 8000 less a tenth for validation
    np.testing.assert_allclose(right.lines[0].get_ydata(), 3 * [2.03])  # of seeds 0 and 1
    with pytest.raises(figures.NothingToDraw, match="two sizes"):
        figures.isda_size(found)
    paper = [record(o, seed, s, train_size=n, profile="paper") for n in (100, None) for o, s in BOTH for seed in (0, 1)]
    left, _ = figures.isda_size([*sized, *paper]).axes
    np.testing.assert_allclose(left.lines[0].get_xdata(), [100, 1000, 7200])  # another profile is another line
    unknown = [record(o, 0, s, name="mine", train_size=n) for n in (100, None) for o, s in BOTH]
    with pytest.raises(figures.NothingToDraw, match="two sizes"):
        figures.isda_size(unknown)  # how many images None stands for, nobody knows


@pytest.fixture
def augmented():
    runs = [record(o, seed, s, name="cifar10") for _ in range(2) for o, s in BOTH for seed in range(2)]
    for r in runs[:4]:
        r.config["recipe"] = {"epochs": 8, "augment": "crop+flip"}
    for r in runs[4:]:
        r.config["recipe"] = {"epochs": 8, "augment": "crop+flip+cutout16"}
        r.metrics["test_accuracy"] += 0.05
    return [*runs[4:], *runs[:4]]


def test_isda_beside_augmentations_of_pixels(augmented, found):
    left, right = figures.isda_augmentation(augmented).axes
    rows = ["no more: cross-entropy", r"no more: ISDA, full, $\lambda_0$ = 0.5"]
    rows += [row.replace("no more", "cutout16") for row in rows]
    assert [label.get_text() for label in left.get_yticklabels()] == [f"{row} (n = 2)" for row in rows]
    gains = [text.get_text().split(" ")[0] for text in right.texts]
    assert gains == ["+2.03", "+5.00", "+7.03"]
    assert left.get_title(loc="left") == "cifar10, 45000 images, small, crop+flip and:"
    with pytest.raises(figures.NothingToDraw, match="two augmentations"):
        figures.isda_augmentation(found)


@pytest.fixture
def controlled():
    """ISDA with a control and with decay, 5 points below the published form."""
    runs = [record("ISDA", seed, 0.5, name="fashion") for seed in (0, 1, 0, 1)]
    for r, option in zip(runs, 2 * [{"control": "random"}] + 2 * [{"decay": 0.99}], strict=True):
        r.config["settings"] |= option
        r.metrics["test_accuracy"] -= 0.05
    plain = [record(o, seed, s, name="fashion") for o, s in [*BOTH, ("ISDA", 1.0)] for seed in range(3)]
    return [*runs, *plain]


def test_controls_stand_beside_the_published_form(controlled, found):
    left, right = figures.isda_controls([*controlled, *found]).axes
    rows = [label.get_text().replace(r"$\lambda_0$ = ", "") for label in left.get_yticklabels()]
    full = "ISDA, full, 0.5"
    names = ["cross-entropy", full, f"{full}, control random", f"{full}, decay 0.99"]
    assert rows == [f"{name} (n = 2)" for name in names], "at their strength alone, on the seeds of all"
    gains = [text.get_text().split(" ")[0] for text in right.texts]
    assert gains == ["+2.03", "\N{MINUS SIGN}2.97", "\N{MINUS SIGN}2.97"]
    with pytest.raises(figures.NothingToDraw, match="control"):
        figures.isda_controls(found)
    titles = [axes.get_title(loc="left") for axes in figures.isda_accuracy([*controlled, *found]).axes]
    shown = [label.get_text() for label in figures.isda_accuracy(controlled).axes[0].get_yticklabels()]
    assert len([title for title in titles if title]) == 2
    assert not any("control" in name or "decay" in name for name in shown)


def test_accuracy_shows_the_most_images_and_the_least_augmentation(sized, augmented):
    panels = figures.isda_accuracy([*sized, *augmented]).axes
    titles = [axes.get_title(loc="left") for axes in panels if axes.get_title(loc="left")]
    assert titles == ["cifar10, small, 8 epochs, crop+flip", "embedded, small, 8 epochs"]


def test_the_caption_of_accuracies_says_how_the_strength_was_found(found):
    def caption():
        return figures.isda_accuracy(found).get_supxlabel()

    assert "Of several strengths, the best on validation data." in caption()
    del found[-1].metrics["validation_accuracy"]  # then both strengths are drawn: nothing was chosen
    assert "strengths" not in caption()
    found = [r for r in found if r.config["settings"].get("strength") != 1.0]
    assert "fixed in advance" in caption()


def test_accuracies_are_of_common_seeds(found):
    def rows(runs):
        left, _ = figures.isda_accuracy(runs).axes
        return [label.get_text().rsplit(" (")[-1] for label in left.get_yticklabels()]

    plain = [r for r in found if r.config["objective"] == "CrossEntropy"]
    other = [r for r in found if r.config["objective"] == "ISDA"]
    assert rows([*plain, *(r for r in other if r.seed)]) == ["n = 2)", "n = 2)"]
    assert rows([*plain[:1], *(r for r in other if r.seed)]) == ["n = 1)", "n = 2)"]  # none in common


def test_training_losses_are_drawn_on_a_log_axis(found):
    left, right = figures.isda_curves(found).axes
    assert (left.get_yscale(), right.get_yscale()) == ("log", "linear")
