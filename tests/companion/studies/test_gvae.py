"""The figures of G-VAE, on records whose measures are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from companion import records
from companion.records import Index
from companion.studies import NothingToDraw, gvae
from semaug.data import shapes
from semaug.data.sets import Data
from semaug.data.split import Split
from semaug.measures import codes
from semaug.methods import gvae as gvae_method
from semaug.training.objective import CrossEntropy
from semaug.training.record import Record

NOISE = [0.0, 0.02, -0.01]
SHEETS = {name for name in gvae.FIGURES if "sheet_" in name} | {"ways"}


def record(study, arm, seed, share=0.5):
    """A run whose traversals keep their class in this share at 3 sigma, and move by half of it."""
    metrics = {"test_accuracy": share + NOISE[seed], "probe_accuracy": share + NOISE[seed], "judge_accuracy": 0.9}
    metrics |= {"reconstruction_error": 0.02, "posterior_deviation": 0.3}
    for prefix in ("", "tenth_", "each_"):
        metrics |= {f"{prefix}consistency_{i}": 0.8 + (share - 0.8) * i / 6 + NOISE[seed] for i in range(7)}
        metrics |= {f"{prefix}movement_{i}": share / 2 * i / 6 for i in range(7)}
    metrics |= {"noise_movement": share, "noise_consistency": 0.25}
    config = {"objective": study.arm(arm).objective, "study": study.name, "arm": arm}
    where = {"profile": study.profile, "study": study.name, "arm": arm, "environment": {"device": "a CPU"}}
    return Record(config, seed, metrics, {}, [15] * 4, [0.5] * 4, **where)


@pytest.fixture
def found():
    runs = [record(gvae.FASHION, "VAE", seed, 0.3) for seed in range(3)]
    runs += [record(gvae.FASHION, "conditional VAE", seed, 0.4) for seed in range(2)]
    runs += [record(gvae.FASHION, "G-VAE", seed, 0.5) for seed in range(3)]
    runs += [
        record(gvae.PLANE, name, seed, share) for name, share in (("VAE", 0.3), ("G-VAE", 0.5)) for seed in range(3)
    ]
    runs += [record(gvae.FASHION, f"G-VAE, {what}", seed, 0.6) for what in ("s = 0.1", "c = 1") for seed in range(2)]
    for study in (gvae.DIGITS, gvae.FACES, gvae.SHAPES, gvae.PHOTOS, *gvae.SHEETS):
        runs += [record(study, "VAE", 0, 0.3), record(study, "G-VAE", 0, 0.35)]
    runs.append(record(gvae.SHEETS[0], gvae.WIDE, 0))
    runs[-1].config["settings"] = {"deviation": 0.2}
    study = gvae.CLASSIFIERS[0]
    for arm, accuracy in (("none", 0.5), ("Gaussian noise", 0.4), ("G-VAE", 0.55)):
        runs += [record(study, arm, seed, accuracy) for seed in range(3)]
    return [*runs, record(study, "G-VAE, difference", 0, 0.6)]


@pytest.fixture
def index(found):
    return Index(records=found)


@pytest.fixture
def saved(tmp_path, monkeypatch, found):
    """Pictures beside the records of seed 0: grey of the value 10, and 20 at the far end of all coordinates."""
    monkeypatch.setattr(records, "FIGURES", tmp_path)
    for run in found:
        path = run.save(tmp_path / "records" / "2_gvae")
        if run.seed == 0 and run.config["objective"] != "Augmented":
            near = np.full((4, 5, 1, 8, 8), 10, dtype=np.uint8)
            far = near.copy()
            far[:, -1] = 20
            arrays = {"images": near[:, 0], "all": far}
            arrays |= {"plane": np.eye(8, 2), "share": np.array([0.5, 0.25]), "labels": np.arange(8) % 4}
            if run.study == "shapes":
                arrays |= {"alignment": np.arange(21).reshape(7, 3) / 42, "deviation": np.array([0.2, 0.9, 0.5])}
            if run.study.endswith("-whole"):
                shapes = {"images": (10,), "noise": (10,), "clipped": (10, 13), "all": (10, 13), "ways": (7, 13)}
                shapes |= {"grid": (7, 9)}
                arrays = {name: np.full((*shape, 1, 8, 8), 10, np.uint8) for name, shape in shapes.items()}
                arrays |= {"plane": np.eye(8, 2), "author": np.eye(8, 2), "labels": np.arange(8) % 4}
            path.with_suffix(".npz").write_bytes(records.pack(arrays))
    return tmp_path / "records" / "2_gvae"


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title("left").split("\n")[0] == title)


def marks(axes):
    """By row the mean that is drawn."""
    return dict(zip(labels(axes), (bar[0].get_xdata()[0] for bar in axes.containers), strict=True))


def test_a_comparison_has_the_usual_settings_of_each_set_alone(index):
    blocks = gvae.compared(index)
    assert [title.split(",")[0] for title in blocks] == ["fashion-mini", "MNIST", "LFW faces", "shapes", "CIFAR-10"]
    study = blocks["fashion-mini, 2,000 images"]
    assert {name: [run.seed for run in runs] for name, runs in study.items()} == {
        "VAE": [0, 1, 2],
        "conditional VAE": [0, 1],
        "G-VAE": [0, 1, 2],
    }
    full = [record(gvae.MNIST_FULL, arm, 0) for arm in ("VAE", "G-VAE, s = 0.035, c = 400")]
    assert gvae.compared(Index(records=[*index, *full])) == blocks, "the author's settings are a variant"
    full.append(record(gvae.MNIST_FULL, "G-VAE", 0))
    assert "MNIST, all images" in gvae.compared(Index(records=[*index, *full]))


def test_a_sweep_changes_one_thing_and_begins_with_the_usual(index, found):
    named = gvae.sweeps(index)
    assert {name: len(runs) for name, runs in named.items()} == {"G-VAE": 3, "s = 0.1": 2, "c = 1": 2}
    assert next(iter(named)) == "G-VAE"
    for few in (named["G-VAE"], [run for run in found if run.arm != "G-VAE"]):
        with pytest.raises(NothingToDraw, match="two settings"):
            gvae.sweeps(Index(records=few))


def test_results_are_paired_and_only_of_what_the_judge_recognises(index, found):
    for run in found:
        if run.study not in ("fashion-mini", "mnist"):
            run.metrics["consistency_0"] = 0.4  # real images: 0.9
    probe, consistency = gvae.results_of(index).axes
    assert labels(probe) == ["fashion-mini", "MNIST", "LFW faces", "shapes", "CIFAR-10"]
    assert [bar[0].get_xdata()[0] for bar in probe.containers] == pytest.approx([20, 5, 5, 5, 5])
    assert labels(consistency) == ["fashion-mini\n− VAE", "fashion-mini\n− conditional VAE", "MNIST\n− VAE"]
    assert len(consistency.containers) == 3
    assert gvae.results_of(index).get_suptitle() == "G-VAE beside its rivals", "one seed says nothing of every set"
    apart = gvae.sides(gvae.compared(index)["fashion-mini, 2,000 images"])
    assert (apart["probe"].side, apart["consistency"].side) == (1, 1)
    assert "consistency" not in gvae.sides(gvae.compared(index)["CIFAR-10, 3,000 images"])


def test_settings_are_those_of_the_records(index, found):
    for run in found:
        run.config |= {"network": "autoencoder(latent=64, width=8)"}
        run.config["settings"] = {"deviation": 0.27, "class_weight": 300.0}
    row = next(line for line in gvae.settings_table(index).splitlines() if "LFW" in line)
    assert row == "| LFW faces | 60 | 64 | 0.27 | 300 | 90 | 80 |"


def test_augmentation_is_paired_with_its_baseline(index):
    figure = gvae.augmented(index)
    expected = {"Gaussian noise": -10, "G-VAE": 5}
    assert marks(figure.axes[0]) == pytest.approx(expected)
    assert figure.axes[0].get_title("left").startswith("fashion-mini, 2,000 images: 50.3%")
    assert "significantly" not in figure.get_suptitle()


def test_movement_stands_beside_consistency(index):
    figure = gvae.movement(index)
    axes = panel(figure, "fashion-mini, 2,000 images")
    ours = [line for line in axes.lines if line.get_color() == gvae.COLOUR["G-VAE"]]
    assert [line.get_linestyle() for line in ours] == ["-", ":", "None", "None"] * 3
    assert ours[0].get_label() == "G-VAE"
    for noise, (all_of_them, _, one, unit) in zip(NOISE, zip(*[iter(ours)] * 4, strict=True), strict=True):
        np.testing.assert_allclose(all_of_them.get_xdata(), np.arange(7) / 24)
        np.testing.assert_allclose(all_of_them.get_ydata(), 100 * (np.linspace(0.8, 0.5, 7) + noise))
        np.testing.assert_allclose(np.squeeze(one.get_data()), [0.25, 100 * (0.5 + noise)])
        np.testing.assert_allclose(np.squeeze(unit.get_data()), [0.5, 25])
    title = figure.get_suptitle().replace("\n", " ")
    assert title.endswith("is above the VAE's on fashion-mini"), "elsewhere there is one seed"


def test_traversals_are_compared_where_they_moved_equally_far(index):
    study = gvae.compared(index)["fashion-mini, 2,000 images"]
    assert gvae.reach(study) == pytest.approx(0.9 * 0.15)  # the VAE's move by half of 0.3
    first, second = study["VAE"][0], study["G-VAE"][0]
    # lines in two points: from .8 at no movement to .3 at .15, and to .5 at .25
    assert gvae.consistency_at(first, 0.135) == pytest.approx(0.8 - 0.5 * 0.9)
    assert gvae.consistency_at(second, 0.135) == pytest.approx(0.8 - 0.3 * 0.135 / 0.25)
    differences = gvae.differences(study, "G-VAE", "VAE")
    assert differences["linear probe (points)"] == pytest.approx([20] * 3)
    assert differences["class consistency at 3σ"] == pytest.approx([20] * 3)
    assert differences["movement at 3σ (thousandths)"] == pytest.approx([100] * 3)
    assert differences["class consistency at equal movement"] == pytest.approx([100 * (0.45 - 0.3 * 0.54)] * 3)
    assert len(gvae.differences(study, "G-VAE", "conditional VAE")["class consistency at μ (points)"]) == 2
    with pytest.raises(ValueError, match=r"movement: got 0\.2; takes 0 to 0\.15"):
        gvae.consistency_at(first, 0.2)


def test_the_table_has_no_class_consistency_where_the_judge_recognises_nothing(index, found):
    for run in found:
        if run.study == "cifar10":
            run.metrics["consistency_0"] = 0.4  # real images: 0.9
    first, second = gvae.table(index).split("\n\n")
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in first.splitlines()}
    columns = [head.split(",")[0] for head in rows["G-VAE − VAE"]]
    assert columns == ["fashion-mini", "MNIST", "LFW faces", "shapes", "CIFAR-10"]
    assert rows["linear probe (points)"] == ["**+20.0 ± 0.0**", "+5.0", "+5.0", "+5.0", "+5.0"]
    assert rows["class consistency at μ (points)"][:4] == ["+0.0 ± 0.0", "+0.0", "+0.0", "+0.0"]
    assert all(cells[4:] in ([], [""]) for name, cells in rows.items() if name.startswith("class consistency"))
    assert "fashion-mini, 2,000 images (n = 2)" in second


def test_the_leaderboard_has_the_classifiers(index):
    ((title, (study, by_arm)),) = gvae.results(index).items()
    assert (title, study) == ("fashion-mini, 2,000 images", gvae.CLASSIFIERS[0])
    assert list(by_arm) == ["none", "Gaussian noise", "G-VAE", "G-VAE, difference"]


def test_separations_are_of_the_record_or_of_what_lies_beside_it(index, found, saved):
    apart = gvae.separations(index)
    runs = {run.arm: run for run in found if run.study == "faces"}
    assert list(apart) == ["gender", "smile", "all four"]
    beside = records.pictures("2_gvae", runs["VAE"])
    points, man = beside["plane"], beside["labels"] >= 2
    right = []  # by hand: nearest mean of the others
    for i in range(len(points)):
        others = np.arange(len(points)) != i
        away = [np.linalg.norm(points[i] - points[others & (man == value)].mean(0)) for value in (False, True)]
        right.append((away[1] < away[0]) == man[i])
    assert apart["gender"]["VAE"] == {0: pytest.approx(np.mean([np.mean(np.array(right)[man == v]) for v in (0, 1)]))}
    runs["G-VAE"].metrics |= {f"plane_{key}separation": 0.7 for key in ("", "male_", "smiling_")}
    assert gvae.separations(index)["smile"]["G-VAE"] == {0: 0.7}


def test_the_scale_of_codes_is_that_of_all_coordinates(index, found, saved):
    for run in found:
        beside = saved / f"{run.stem}.npz"
        run.config["network"] = "autoencoder(latent=4, width=8)"
        if beside.exists():  # its name has changed with its settings
            beside.rename(saved / f"{run.stem}.npz")
    spread = 7 / 64 / 0.5 / 4  # the first component has half of the variance
    values = [spread + 0.09] * 2 + [0.3 / spread**0.5] * 2
    assert gvae.scales(index).splitlines()[2] == "| fashion-mini | " + " | ".join(f"{v:.2f}" for v in values) + " |"


def test_titles_of_sheets_are_computed(index, saved):
    def end(key, run):
        path = saved / f"{run.stem}.npz"
        arrays = records.unpack(path)
        arrays[key] = arrays[key].copy()
        arrays[key][..., -1, :, :, :] = 61  # 51 levels, a fifth of the range, at one of two ends
        path.write_bytes(records.pack(arrays))

    (wide,) = index.of(gvae.SHEETS[0], gvae.WIDE)
    end("ways", wide)
    moved = dict.fromkeys(gvae.WAYS, pytest.approx(0.2 / 2**0.5)) | {"unit noise": 0}
    assert gvae.moved_by(index) == moved
    assert gvae.far(np.array([0.0, 0.0, 51.0])[:, None, None, None]) == pytest.approx(0.2 / 2**0.5)
    (run,) = index.of(gvae.SHEETS[1], "VAE")
    end("clipped", run)
    title = gvae.FIGURES["sheet_mnist_vae"](index).get_suptitle().replace("\n", " ")
    assert title == "VAE on MNIST: ±3σ along the largest 10% of σ change a pixel by 0.141, unit noise by 0.000"
    assert gvae.grid_of(index).get_suptitle().startswith("The author's grid along the largest 5% of σ")
    assert gvae.grid_of(index).get_suptitle().replace("\n", " ").endswith("the corners differ by only 0.000")
    drawn = mosaic(gvae.ways(index))
    assert drawn.shape == (7, 5)
    assert set(drawn[:, -1]) == {61}


def test_the_opening_has_codes_by_class_above_moved_images(index, saved):
    figure = gvae.opening(index)
    vae, ours, *_, moved = figure.axes
    assert "a head is right for 50% of the codes, without for 30%" in figure.get_suptitle().replace("\n", " ")
    assert [axes.get_title("left") for axes in (vae, ours)] == ["VAE, seed 0: 30% right", "G-VAE, seed 0: 50% right"]
    assert [line.get_label() for line in ours.lines] == ["T-shirt/top", "Trouser", "Pullover", "Dress"]
    np.testing.assert_array_equal(np.transpose(ours.lines[1].get_data()), np.eye(8, 2)[[1, 5]])
    tiles = moved.images[0].get_array()
    assert tiles.shape == (40, 60)
    assert np.unique(tiles[::10, -10]).tolist() == [20], "+3σ stands on the right"


def test_the_diagram_fits_a_page():
    width, height = gvae.diagram().get_size_inches()
    assert width <= 7.5
    assert height <= 6.6


def test_the_authors_plane_stands_beside_a_true_one(index, saved):
    left, right = gvae.author_plane(index).axes
    assert len(left.lines) == len(right.lines) == 4
    assert "Both planes mix" in left.figure.get_suptitle()


def mosaic(picture):
    """Values of a sheet's tiles by row and column."""
    image = picture.axes[0].images[0].get_array()[..., 0]
    return np.round(255 * image[::9, ::9]).astype(int)


def test_the_plane_is_coloured_by_attribute(index, saved):
    axes = gvae.plane(index).axes
    assert [panel.get_title("left") for panel in axes[:3]] == ["G-VAE, gender", "G-VAE, smile", "G-VAE, all four"]
    men = next(line for line in axes[0].lines if line.get_label() == "man")
    np.testing.assert_array_equal(np.transpose(men.get_data()), np.eye(8, 2)[[2, 3, 6, 7]])
    smiling = next(line for line in axes[1].lines if line.get_label() == "smiling")
    np.testing.assert_array_equal(np.transpose(smiling.get_data()), np.eye(8, 2)[1::2])
    assert "50% and 25%" in axes[0].get_xlabel()


def test_factors_stand_in_order_of_the_deviations(index, saved):
    top, bottom, _ = gvae.factors(index).axes
    assert [axes.get_title("left") for axes in (top, bottom)] == ["VAE", "G-VAE"]
    np.testing.assert_allclose(top.images[0].get_array(), np.arange(21).reshape(7, 3)[:, [1, 2, 0]] / 42)
    assert [label.get_text() for label in top.get_xticklabels()] == ["0.90", "0.50", "0.20"]
    assert labels(top)[0] == "hue"


def test_pictures_are_of_the_very_run(index, saved):
    (run,) = index.of(gvae.DIGITS, "VAE")
    assert records.pictures("2_gvae", run)["images"].shape == (4, 1, 8, 8)
    assert records.pictures("2_gvae", dataclasses.replace(run, seed=1)) == {}
    assert records.pictures("4_diffaugment", run) == {}


@pytest.mark.parametrize("name", gvae.FIGURES)
def test_what_is_missing_is_said(found, name, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FIGURES", tmp_path)
    for few in ([], found[:3], found[-1:]):
        with pytest.raises(NothingToDraw):
            gvae.FIGURES[name](Index(records=few))


@pytest.mark.parametrize("name", gvae.FIGURES)
def test_figures_fit_a_page_and_sheets_have_tiles_to_see(index, saved, name):
    figure = gvae.FIGURES[name](index)
    width, height = figure.get_size_inches()
    assert width <= 7.5
    assert height <= 6.6
    assert sum(bool(axes.lines or axes.images) for axes in figure.axes) <= 6 + (name == "factors")
    if name in SHEETS:
        figure.draw_without_rendering()
        columns = len(figure.axes[0].get_xticks())
        assert figure.axes[0].get_window_extent().width / columns >= 48


@pytest.mark.parametrize(("classes", "rows"), [(10, 10), (4, 10)])
def test_sheets_hold_what_the_sources_figures_show(classes, rows):
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = gvae_method.GVAE(gvae_method.AutoEncoder(classes, 3, (16, 16), 20, 8, (0, 0))).eval()
    splits = [
        Split(torch.randint(0, 256, (n, 3, 16, 16), generator=generator, dtype=torch.uint8), torch.arange(n) % classes)
        for n in (600, 60)
    ]
    found = gvae.sheets(model, Data("noise", *splits), clip=0.1, rows=rows)
    assert found["clipped"].shape == found["all"].shape == (rows, 13, 3, 16, 16)
    same = (found["images"][:, None] == splits[1].images.numpy()).all((2, 3, 4))
    assert (same.sum(1) == 1).all()
    assert np.bincount(same.argmax(1) % classes, minlength=classes).max() <= -(-rows // min(rows, classes))
    assert found["grid"].shape == (7, 9, 3, 16, 16)
    assert found["ways"].shape == (7, 13, 3, 16, 16)
    assert np.array_equal(found["grid"][3, 4], found["ways"][0, 6]), "the image itself is in the middle"
    with torch.no_grad():
        mean, deviation = model.posterior(torch.from_numpy(found["images"][:1]) / 255)
        order = deviation[0].argsort(descending=True)[:2]  # the tenth of 20
        code = mean.clone()
        code[0, order] += 1.5 * deviation[0, order]
        end = (255 * model.decode(code)).round().byte().numpy()
    assert np.abs(found["clipped"][0, 9].astype(int) - end[0]).max() <= 1
    chosen = splits[0].floats(torch.tensor([i for c in range(4) for i in range(600) if i % classes == c]))
    with torch.no_grad():
        z = model.posterior(chosen)[0].double().numpy()
    values = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(np.square(found["plane"]).sum(0), values[:2], rtol=1e-4)
    first = z[found["labels"] == 0]
    matrix = np.linalg.eigh(first.T @ first)[1]
    matrix = matrix * np.sign(matrix[np.abs(matrix).argmax(0), range(20)])
    np.testing.assert_allclose(found["author"][found["labels"] == 0], first @ matrix[:2].T, atol=1e-4)


def test_pictures_are_the_traversals_of_the_first_images_of_each_class():
    torch.manual_seed(0)
    images, target = torch.rand(40, 1, 12, 12), torch.arange(40) % 4
    mine = Data("mine", Split.from_float(images[:20], target[:20]), Split.from_float(images[20:], target[20:]))
    model = gvae_method.GVAE(gvae_method.AutoEncoder(4, 1, (12, 12), 12, 4)).eval()
    kept_of = gvae.keep(model, mine, rows=3, count=15)
    x = mine.test.floats([0, 1, 2])
    np.testing.assert_array_equal(kept_of["images"], (255 * x).round().byte())
    whole = model.traverse(x, 6)
    chosen = torch.stack([whole[:, 6 + i] for i in gvae.TRAVERSED], 1)
    np.testing.assert_array_equal(kept_of["all"], (255 * chosen).round().byte())
    codes_of = model.posterior(mine.test.floats(slice(0, 15)))[0].detach().double().numpy()
    values, vectors = np.linalg.eigh(np.cov(codes_of.T))
    expected = (codes_of - codes_of.mean(0)) @ vectors[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(kept_of["plane"]), np.abs(expected), atol=1e-5)
    np.testing.assert_allclose(kept_of["share"], values[[-1, -2]] / values.sum(), rtol=1e-5)
    assert gvae.keep(CrossEntropy(model.network), mine) == {}
    lacking = Data("lacking", mine.train, mine.test.take(mine.test.target > 0))
    expected = (255 * lacking.test.floats([0, 1, 2])).round().byte()
    assert lacking.test.target[:3].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(gvae.keep(model, lacking, rows=3)["images"], expected)


def test_pictures_of_shapes_say_which_factor_a_direction_moves():
    of = Data("shapes", shapes.draw(40, 0, 16), shapes.draw(30, 1, 16))
    model = gvae_method.GVAE(gvae_method.AutoEncoder(10, 3, (16, 16), latent=3, width=4)).eval()
    found = gvae.keep(model, of)
    expected = codes.alignment(model, of.test)
    assert found["alignment"].shape == (7, 3)
    np.testing.assert_array_equal(found["alignment"][2], expected["angle"].detach())
    np.testing.assert_allclose(found["deviation"], codes.posterior(model, of.test).deviation.mean(0))
