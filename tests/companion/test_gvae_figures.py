"""The figures of G-VAE, on records whose measures are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from companion import figures, gvae_figures, records, redraw
from semaug.training.record import Record

USUAL = {"deviation": 0.27, "reconstruction": "l2", "balance": "fixed"}
NOISE = [0.0, 0.02, -0.01]


def record(objective, seed, kept=0.5, name="embedded", profile="cpu", **settings):
    """A run whose strips keep their class in so many cases at 3 sigma, and move by half of that."""
    settings = USUAL | ({"class_weight": 30.0} if objective == "GVAE" else {}) | settings
    metrics = {"test_accuracy": kept + NOISE[seed], "probe_accuracy": kept + NOISE[seed], "judge_accuracy": 0.9}
    metrics |= {"reconstruction_error": 0.02, "posterior_deviation": 0.3}
    for prefix in ("", "tenth_", "each_"):
        metrics |= {f"{prefix}consistency_{i}": 0.8 + (kept - 0.8) * i / 6 + NOISE[seed] for i in range(7)}
        metrics |= {f"{prefix}movement_{i}": kept / 2 * i / 6 for i in range(7)}
    metrics |= {"noise_movement": kept, "noise_consistency": 0.25}
    data, recipe = {"name": name, "train_size": 60}, {"epochs": 4}
    config = {"objective": objective, "network": "n", "data": data, "recipe": recipe, "settings": settings}
    where = {"profile": profile, "environment": {"device": "a CPU"}}
    return Record(config, seed, metrics, {}, [15] * 4, [0.5] * 4, **where)


def arm(method, seed, accuracy, **settings):
    run = record("Augmented", seed, accuracy)
    run.config["settings"] = {"method": method, **settings}
    return run


@pytest.fixture
def found():
    runs = [record("VAE", seed, 0.3) for seed in range(3)]
    runs += [record("ConditionalVAE", seed, 0.4) for seed in range(2)]
    runs += [record("GVAE", seed, 0.5) for seed in range(3)]
    changes = ({"deviation": 0.1}, {"class_weight": 1.0}, {"class_weight": 100.0}, {"reconstruction": "l1"})
    runs += [record("GVAE", seed, 0.6, **change) for change in (*changes, {"balance": "learned"}) for seed in range(2)]
    for name, weight in (("lfw64", 300.0), ("mnist", 30.0), ("cifar10", 100.0), ("shapes", 100.0)):
        runs += [record("VAE", 0, 0.3, name=name), record("GVAE", 0, 0.35, name=name, class_weight=weight)]
    for method, accuracy in (("none", 0.5), ("noise", 0.4), ("gvae", 0.55)):
        runs += [arm(method, seed, accuracy) for seed in range(3)]
    return [*runs, arm("gvae", 0, 0.6, residual=True), record("CrossEntropy", 0)]


@pytest.fixture
def kept(tmp_path, monkeypatch, found):
    """Pictures beside the records of seed 0: grey of the value 10, and 20 at the far end of all coordinates."""
    monkeypatch.setattr(records, "committed", lambda notebook: tmp_path / "records" / notebook)
    for run in found:
        path = run.save(tmp_path / "records" / "2_gvae")
        if run.seed == 0 and run.config["objective"] in gvae_figures.NAMES:
            strips = np.full((4, 5, 1, 8, 8), 10, dtype=np.uint8)
            far = strips.copy()
            far[:, -1] = 20
            arrays = {"images": strips[:, 0], "noise": strips[:, 0], "tenth": strips, "all": far, "directions": far}
            arrays |= {"target": np.arange(4)}
            arrays |= {"plane": np.eye(8, 2), "share": np.array([0.5, 0.25]), "labels": np.arange(8) % 4}
            if run.config["data"]["name"] == "shapes":
                arrays |= {"alignment": np.arange(21).reshape(7, 3) / 42, "deviation": np.array([0.2, 0.9, 0.5])}
            path.with_suffix(".npz").write_bytes(records.pack(arrays))
    return tmp_path


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_a_study_has_the_usual_settings_of_each_set_alone(found):
    blocks = gvae_figures.studies(found)
    assert sorted(blocks) == [f"{name}, 60 images" for name in ("cifar10", "embedded", "lfw64", "mnist", "shapes")]
    study = blocks["embedded, 60 images"]
    assert {name: [run.seed for run in runs] for name, runs in study.items()} == {
        "VAE": [0, 1, 2],
        "conditional VAE": [0, 1],
        "G-VAE": [0, 1, 2],
    }
    assert all(run.config["settings"].get("class_weight", 30.0) == 30.0 for runs in study.values() for run in runs)
    quick, paper = (
        [record("VAE", 0, profile=profile), record("GVAE", 0, profile=profile)] for profile in ("quick", "paper")
    )
    assert gvae_figures.studies([*found, *quick]) == blocks
    assert gvae_figures.studies([*found, paper[0]]) == blocks
    assert len(gvae_figures.studies([*found, *paper])) == len(blocks) + 1


def test_a_sweep_changes_one_thing_and_begins_with_the_usual(found):
    named = gvae_figures.sweeps(found)
    expected = ["s = 0.27, c = 30", "s = 0.1", "c = 1", "c = 100", "learned s, c", "L1"]
    assert list(named) == expected
    assert [len(runs) for runs in named.values()] == [3, 2, 2, 2, 2, 2]
    assert gvae_figures.sweeps(named[expected[0]]) == {}
    paper = [record("GVAE", 0, profile="paper"), record("GVAE", 0, profile="paper", deviation=0.5)]
    assert gvae_figures.sweeps([*found, *paper]) == named, "two experiments are not one sweep"


def test_consistency_is_drawn_over_the_distance(found):
    figure = gvae_figures.consistency(found)
    titles = [axes.get_title("left") for axes in figure.axes]
    axes = figure.axes[titles.index("embedded, 60 images: all")]
    assert [line.get_label() for line in axes.lines[:3]] == ["VAE (n = 3)", "conditional VAE (n = 2)", "G-VAE (n = 3)"]
    np.testing.assert_allclose(axes.lines[2].get_xdata(), [0, 0.5, 1, 1.5, 2, 2.5, 3])
    np.testing.assert_allclose(axes.lines[2].get_ydata()[[0, 6]], 100 * (np.array([0.8, 0.5]) + np.mean(NOISE)))
    np.testing.assert_allclose(axes.lines[3].get_ydata(), [90, 90])
    np.testing.assert_allclose(axes.lines[4].get_ydata(), [25, 25])  # chance, of four classes


def test_movement_stands_beside_consistency(found):
    figure = gvae_figures.movement(found)
    axes = next(axes for axes in figure.axes if axes.get_title("left") == "embedded, 60 images")
    mine = [line for line in axes.lines if line.get_color() == gvae_figures.COLOUR["G-VAE"]]
    assert [line.get_linestyle() for line in mine] == ["-", ":", "None", "None"] * 3
    assert mine[0].get_label() == "G-VAE (n = 3)"
    for noise, (strip, _, one, unit) in zip(NOISE, zip(*[iter(mine)] * 4, strict=True), strict=True):
        np.testing.assert_allclose(strip.get_xdata(), np.arange(7) / 24)
        np.testing.assert_allclose(strip.get_ydata(), 100 * (np.linspace(0.8, 0.5, 7) + noise))
        np.testing.assert_allclose(np.squeeze(one.get_data()), [0.25, 100 * (0.5 + noise)])
        np.testing.assert_allclose(np.squeeze(unit.get_data()), [0.5, 25])


def test_probe_and_augmentation_are_paired_with_their_baselines(found):
    left, right = gvae_figures.probe([run for run in found if run.config["data"]["name"] == "embedded"]).axes
    assert labels(left) == ["VAE (n = 3)", "conditional VAE (n = 2)", "G-VAE (n = 3)"]
    assert [text.get_text().split(" ")[0] for text in right.texts] == ["+10.00", "+20.00"]
    of_method = dict(zip(labels(left), (line.get_color() for line in left.lines[::4]), strict=True))
    assert of_method["G-VAE (n = 3)"] == gvae_figures.COLOUR["G-VAE"]
    left, right = gvae_figures.augmented(found).axes
    assert labels(left) == ["none (n = 3)", "Gaussian noise (n = 3)", "G-VAE (n = 3)", "G-VAE, difference (n = 1)"]
    assert [text.get_text().split(" ")[0] for text in right.texts] == ["\N{MINUS SIGN}10.00", "+5.00", "+10.00"]


def test_the_sweep_shows_each_measure(found):
    axes = gvae_figures.sweep(found).axes
    assert [panel.get_title("left") for panel in axes] == list(gvae_figures.SWEEP.values())
    assert [container[0].get_xdata()[0] for container in axes[0].containers] == pytest.approx(
        [50 + 100 * np.mean(NOISE)] + [61] * 5
    )


def test_strips_are_compared_where_they_moved_equally_far(found):
    study = gvae_figures.studies(found)["embedded, 60 images"]
    assert gvae_figures.reach(study) == pytest.approx(0.9 * 0.15)  # the VAE's move by half of 0.3
    vae, gvae = study["VAE"][0], study["G-VAE"][0]
    # lines in two points: from .8 at no movement to .3 at .15, and to .5 at .25
    assert gvae_figures.kept_at(vae, 0.135) == pytest.approx(0.8 - 0.5 * 0.9)
    assert gvae_figures.kept_at(gvae, 0.135) == pytest.approx(0.8 - 0.3 * 0.135 / 0.25)
    differences = gvae_figures.compared(study, "VAE", "G-VAE")
    assert differences["linear probe (points)"] == pytest.approx([20] * 3)
    assert differences["class kept at 3σ"] == pytest.approx([20] * 3)
    assert differences["movement at 3σ (thousandths)"] == pytest.approx([100] * 3)
    assert differences["class kept at equal movement"] == pytest.approx([100 * (0.45 - 0.3 * 0.54)] * 3)
    assert len(gvae_figures.compared(study, "conditional VAE", "G-VAE")["class kept at μ (points)"]) == 2
    with pytest.raises(ValueError, match=r"movement: got 0\.2; takes 0 to 0\.15"):
        gvae_figures.kept_at(vae, 0.2)


def test_the_table_tells_nothing_kept_of_what_is_not_recognised(found):
    for run in found:
        if run.config["data"]["name"] == "shapes":
            run.metrics["consistency_0"] = 0.4  # of 0.9 of the real images
    first, second = gvae_figures.table(found).split("\n\n")
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in first.splitlines()}
    columns = [head.split(",")[0] for head in rows["G-VAE less VAE"]]
    assert columns == ["cifar10", "embedded", "lfw64", "mnist", "shapes"]
    assert rows["linear probe (points)"] == ["+5.0", "**+20.0 ± 0.0**", "+5.0", "+5.0", "+5.0"]
    assert rows["class kept at μ (points)"][:4] == ["+0.0", "+0.0 ± 0.0", "+0.0", "+0.0"]
    assert all(cells[4:] in ([], [""]) for name, cells in rows.items() if name.startswith("class kept"))
    assert "embedded, 60 images (n = 2)" in second


def test_separations_are_of_the_record_or_of_what_lies_beside_it(found, kept):
    told = gvae_figures.separations(found)
    runs = {run.config["objective"]: run for run in found if run.config["data"]["name"] == "lfw64"}
    assert list(told) == ["gender", "smile", "all four"]
    beside = records.pictures("2_gvae", runs["VAE"])
    points, man = beside["plane"], beside["labels"] >= 2
    right = []  # by hand: nearest mean of the others
    for i in range(len(points)):
        others = np.arange(len(points)) != i
        away = [np.linalg.norm(points[i] - points[others & (man == value)].mean(0)) for value in (False, True)]
        right.append((away[1] < away[0]) == man[i])
    assert told["gender"]["VAE"] == {0: pytest.approx(np.mean([np.mean(np.array(right)[man == v]) for v in (0, 1)]))}
    runs["GVAE"].metrics |= {f"plane_{key}separation": 0.7 for key in ("", "male_", "smiling_")}
    assert gvae_figures.separations(found)["smile"]["G-VAE"] == {0: 0.7}
    paper = [record(kind, 0, name="lfw64", profile="paper") for kind in ("VAE", "GVAE")]
    for run in paper:
        run.metrics["plane_separation"] = 0.9
    assert gvae_figures.separations([*found, *paper]) == {"all four": {"VAE": {0: 0.9}, "G-VAE": {0: 0.9}}}, (
        "one study, the paper's profile before others"
    )


def test_rows_of_directions_apart(found, kept):
    moved, between = gvae_figures.rows_apart(found)["G-VAE"]
    assert moved == pytest.approx(10 / 255 / 2**0.5)  # of two ends one moved by ten levels
    assert between == 0
    path = next(p for p in (kept / "records").rglob("GVAE*.npz") if "lfw64" in p.with_suffix(".json").read_text())
    arrays = records.unpack(path)
    arrays["directions"] = arrays["directions"] + np.array([0, 2, 4, 6], dtype=np.uint8)[:, None, None, None, None]
    path.write_bytes(records.pack(arrays))
    pairs = [(i - j) ** 2 for i in (0, 2, 4, 6) for j in (0, 2, 4, 6) if i != j]
    assert gvae_figures.rows_apart(found)["G-VAE"][1] == pytest.approx(np.sqrt(np.mean(pairs)) / 255)


def mosaic(picture):
    """Values of a sheet's tiles by row and column."""
    image = picture.axes[0].images[0].get_array()[..., 0]
    return np.round(255 * image[::9, ::9]).astype(int)


def test_strips_are_those_beside_the_records(found, kept):
    drawn = gvae_figures.strips(found, ("mnist",))
    expected = [10] * 7 + [20, 10]  # the far end of all coordinates stands before the column of noise
    np.testing.assert_array_equal(mosaic(drawn), [expected] * 4)
    assert labels(drawn.axes[0])[1:3] == ["G-VAE: class 1", "VAE: class 0"]
    assert labels(gvae_figures.strips(found, ("lfw64",)).axes[0])[0] == "G-VAE: woman, not smiling"
    np.testing.assert_array_equal(mosaic(gvae_figures.directions(found)), [[10] * 3 + [20]] * 8)
    rows = gvae_figures.sweep_strips(found)
    assert labels(rows.axes[0]) == list(gvae_figures.sweeps(found))
    np.testing.assert_array_equal(mosaic(rows), [[10] * 5 + [20]] * 6)


def test_the_plane_is_coloured_by_attribute(found, kept):
    axes = gvae_figures.plane(found).axes
    assert [panel.get_title("left") for panel in axes[:3]] == ["G-VAE, gender", "G-VAE, smile", "G-VAE, all four"]
    men = next(line for line in axes[0].lines if line.get_label() == "man")
    np.testing.assert_array_equal(np.transpose(men.get_data()), np.eye(8, 2)[[2, 3, 6, 7]])
    smiling = next(line for line in axes[1].lines if line.get_label() == "smiling")
    np.testing.assert_array_equal(np.transpose(smiling.get_data()), np.eye(8, 2)[1::2])
    assert "50% and 25%" in axes[0].get_xlabel()


def test_factors_stand_in_order_of_the_deviations(found, kept):
    top, bottom, _ = gvae_figures.factors(found).axes
    assert [axes.get_title("left") for axes in (top, bottom)] == ["VAE", "G-VAE"]
    np.testing.assert_allclose(top.images[0].get_array(), np.arange(21).reshape(7, 3)[:, [1, 2, 0]] / 42)
    assert [label.get_text() for label in top.get_xticklabels()] == ["0.90", "0.50", "0.20"]
    assert labels(top)[0] == "hue"


def test_pictures_are_of_the_very_run(found, kept):
    (vae,) = (r for r in found if r.config["objective"] == "VAE" and r.config["data"]["name"] == "mnist")
    assert records.pictures("2_gvae", vae)["images"].shape == (4, 1, 8, 8)
    assert records.pictures("2_gvae", dataclasses.replace(vae, seed=1)) == {}
    assert records.pictures("4_diffaugment", vae) == {}


@pytest.mark.parametrize("name", gvae_figures.FIGURES["2_gvae"])
def test_what_is_missing_is_said(found, name, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "committed", lambda notebook: tmp_path)
    for few in ([], found[:3], found[-1:]):
        with pytest.raises(figures.NothingToDraw):
            gvae_figures.FIGURES["2_gvae"][name](few)


def test_the_command_draws_them_too(found, kept, capsys):
    assert redraw.main(["--folder", str(kept)]) == 0
    names = set(gvae_figures.FIGURES["2_gvae"])
    pixels = {name for name in names if "strips" in name} | {"directions", "factors", "plane"}  # have no SVG
    expected = {f"{name}.png" for name in names} | {f"{name}.svg" for name in names - pixels}
    assert {path.name for path in (kept / "2_gvae").iterdir()} == expected
    assert f"drew     2_gvae/plane from {len(found)} records" in capsys.readouterr().out
