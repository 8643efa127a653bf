"""The figures of GANs and of learned augmentation, on records whose measures are known."""

import copy

import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch

from companion import figures, gan_figures, records
from semaug.training import record as rec
from semaug.training.record import Record

NOISE = [0.0, 0.02, -0.01]
FID = {"nowhere": 9.0, "reals": 8.0, "discriminator": 7.0, "everywhere": 5.0}


def gan(where, seed, size=100, name="embedded", fid=None, profile="cpu", **settings):
    """A run that ends at a known FID, measured three times, every 30 of 90 steps."""
    fid = (FID[where] if fid is None else fid) + NOISE[seed]
    end = {"fid": fid, "kid": fid / 10, "auc": 0.6, "copy_ratio": 0.7, "leak": 0.1, "logit_train": 1.0}
    end |= {"logit_held_out": 0.5, "logit_fake": -1.0, "accepted_train": 0.9, "accepted_held_out": 0.6}
    curves = {key: [3 * value, 2 * value, value] for key, value in end.items()} | {"epoch": [10.0, 20.0, 30.0]}
    config = {"objective": "GAN", "network": "n", "data": {"name": name, "train_size": size}}
    config |= {
        "recipe": {"epochs": 30, "batch_size": 32},
        "settings": {"where": where, "generator_lr": 5e-4, **settings},
    }
    where = {"profile": profile, "environment": {"device": "a CPU"}}
    end |= {"real_fid": 0.2, "real_kid": 0.004, "leak_augmented": 0.35, "fid_augmented": 9 - fid}
    return Record(config, seed, end, curves, [size // 10] * 10, **where)


def classifier(objective, seed, accuracy, name="embedded", augment="none", **settings):
    metrics = {"test_accuracy": accuracy + NOISE[seed], "validation_accuracy": accuracy + 0.1 + NOISE[seed]}
    config = {"objective": objective, "network": "n", "data": {"name": name}, "settings": settings}
    config |= {"recipe": {"epochs": 4, "augment": augment}}
    curves = {"moved": [0.1, settings.get("scale", 0.0) / 10]}
    return Record(config, seed, metrics, curves, [200] * 10, profile="cpu", environment={"device": "a CPU"})


@pytest.fixture
def found():
    runs = [gan(where, seed, size) for size in (200, 100) for where in FID for seed in range(3)]
    runs += [gan("everywhere", seed, ada_span=1e4, fid=6.0) for seed in range(2)] + [gan("nowhere", 0, r1=1.0, fid=8.5)]
    runs += [gan(where, 0, name="cifar10") for where in FID] + [gan("everywhere", 0, name="portraits")]
    for seed in range(3):
        runs += [classifier("CrossEntropy", seed, 0.5), classifier("CrossEntropy", seed, 0.6, augment="crop")]
        runs += [classifier("FixedAugmentation", seed, 0.55, policy="color,cutout")]
        runs += [classifier("FeatureAugmentation", seed, 0.5 - s / 100, scale=s) for s in (10.0, 0.0, 0.1)]
        runs += [classifier("TeachAugment", seed, 0.52, reach=0.5), classifier("ISDA", seed, 0.5, strength=0.5)]
        runs += [classifier("CrossEntropy", seed, 0.3, "hues"), classifier("MixStyle", seed, 0.35, "hues", last=2)]
    return runs


@pytest.fixture
def kept(tmp_path, monkeypatch, found):
    """Pictures beside the records of seed 0: samples of the value 10 times the place of T, nearest images of 200."""
    monkeypatch.setattr(records, "committed", lambda notebook: tmp_path / "records" / notebook)
    for run in found:
        path = run.save(tmp_path / "records" / "4_diffaugment")
        if run.seed == 0 and run.config["objective"] == "GAN":
            grey = 10 * (1 + list(FID).index(run.config["settings"]["where"]))
            channels = 3 if run.config["data"]["name"] == "cifar10" else 1
            arrays = {
                name: np.full((8, channels, 16, 16), value, np.uint8)
                for name, value in (("samples", grey), ("nearest", 200))
            }
            rec.write_whole(path.with_suffix(".npz"), records.pack(arrays))
    return found


def test_the_places_of_t_as_a_picture():
    """T stands before D as often as the place says, and the way of the gradient has as many arrows as the images."""
    for axes, (where, name) in zip(gan_figures.places().axes, gan_figures.PLACES.items(), strict=True):
        words = [text.get_text() for text in axes.texts]
        assert axes.get_title("left") == name
        often = {"nowhere": 0, "reals": 1, "discriminator": 2, "everywhere": 3}[where]
        assert (words.count("$T$"), words.count("$D$"), words.count("$G(z)$")) == (often, 3, 2)
        arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
        back = [arrow for arrow in arrows if arrow.get_linestyle() != "-"]
        assert (len(arrows), len(back)) == (3 + often + len(back), 2 if where == "everywhere" else 1)


def test_a_study_is_of_one_budget(found):
    studies = gan_figures.players(found)
    assert list(studies) == ["clothing, 100 images", "clothing, 200 images", "photographs, 100 images"], (
        "faces have no pair"
    )
    names = ["none", "reals only", "discriminator only", "DiffAugment", "DiffAugment, adaptive", "none, R1 1"]
    assert list(studies["clothing, 100 images"]) == names
    assert [len(runs) for runs in studies["clothing, 100 images"].values()] == [3, 3, 3, 3, 2, 1]
    paper, quick = ([gan(where, 0, profile=profile, name="cifar10") for where in FID] for profile in ("paper", "quick"))
    both = gan_figures.players([*found, *quick, *paper], ("cifar10",))
    used = {title: {run.profile for runs in study.values() for run in runs} for title, study in both.items()}
    assert used == {"photographs, 100 images, cpu": {"cpu"}, "photographs, 100 images, paper": {"paper"}}
    with pytest.raises(ValueError, match=r"'none': got seeds \[0, 0, 1, 2\]; takes each seed once"):
        gan_figures.players([*found, gan("nowhere", 0, fid=1.0)])


def test_curves_are_over_the_steps(found):
    figure = gan_figures.distances(found)
    grid = np.array(figure.axes).reshape(2, 2)
    (line,) = (line for line in grid[0, 0].lines if line.get_label().startswith("DiffAugment"))
    assert line.get_xdata().tolist() == [30, 60, 90]
    assert line.get_ydata()[-1] == pytest.approx(5 + sum(NOISE) / 3)
    assert len([line for line in grid[0, 0].lines if "(n =" in str(line.get_label())]) == 4, "places of T alone"
    assert "Other real images: FID 0.2, KID 0.004." in figure.get_supxlabel().replace("\n", " ")
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["FID", "KID"]
    figure = gan_figures.overfitting(found, sets=("cifar10",))
    assert [axes.lines[-1].get_ydata()[0] for axes in figure.axes] == [0.5, 1, 0.35]
    assert figure.axes[2].lines[-2].get_ydata()[0] == 0.01
    assert figure.axes[2].get_ylim() == (-0.05, 1.05), "a share, whose interval may leave what it can be"
    some = copy.deepcopy(found)
    del some[0].metrics["real_fid"]
    text = gan_figures.distances(some).get_supxlabel().replace("\n", " ")
    assert "Other real images where there are as many of them as test images: FID 0.2," in text


def test_longer_trainings_stand_apart(found):
    long = [gan(where, 0, fid=2.0) for where in ("nowhere", "everywhere")]
    for run in long:
        run.config["recipe"]["epochs"] = 120
    assert list(gan_figures.players(found + long)) == list(gan_figures.players(found))
    assert [len(runs) for runs in gan_figures.players(found + long, longer=True)["clothing, 100 images"].values()] == [
        1,
        1,
    ]
    assert len(gan_figures.longer(found + long).axes) == 3
    with pytest.raises(figures.NothingToDraw):
        gan_figures.longer(found)


def test_logits_of_training_held_out_and_generated_images(found):
    figure = gan_figures.discriminator(found)
    assert len(figure.axes) == 8
    assert figure.axes[3].get_title(loc="left") == "DiffAugment, n = 3"
    assert [line.get_ydata()[-1] for line in figure.axes[0].lines] == [1.0, 0.5, -1.0]


def test_ends_are_paired_with_the_gan_without_transformation(found):
    figure = gan_figures.ends(found)
    panel = figure.axes[0]
    labels = [text.get_text() for text in panel.get_yticklabels()]
    assert labels == ["reals only", "discriminator only", "DiffAugment", "DiffAugment, adaptive", "none, R1 1"]
    dots = [line for line in panel.lines if line.get_linestyle() == "None" and len(line.get_xdata()) == 3]
    assert dots[2].get_xdata().tolist() == pytest.approx([np.log2((5 + e) / (9 + e)) for e in NOISE])


def test_the_table_has_every_gan(found):
    text = gan_figures.table(found, ("embedded",))
    first = text.split("\n\n")[1].splitlines()
    assert len(first) == 2 + 6 + 1
    assert first[5].startswith(
        "| DiffAugment | 3 | 5.00 ± 0.04 | 4.00 ± 0.04 | 0.500 ± 0.004 | 90 ± 0 | 60 ± 0 | 0.60 ± 0.00 | 0.70 ± 0.00"
    )
    assert first[8].startswith("| other real images | | 0.20 | | 0.004 |")
    assert {line.count("|") for line in first} == {11}


def test_samples_stand_above_their_nearest_images(kept):
    mosaic = gan_figures.samples(kept).axes[0].images[0].get_array()
    tiles = mosaic[8::17, 8::17, 0]  # 16 pixels and one between
    assert tiles.shape == (8, 8), "four of each of two sizes"
    assert (255 * tiles[::2, 0]).round().tolist() == pytest.approx([10, 20, 30, 40], abs=2)  # WebP
    assert (255 * tiles[1::2]).round().ravel().tolist() == pytest.approx([200] * 32, abs=2)
    assert gan_figures.samples(kept, ("cifar10",)).axes[0].images


def test_classifiers_are_named_by_what_augments(found):
    study = gan_figures.classifiers(found, ("embedded",))
    scales = [f"features, scale {value}" for value in ("0", "0.1", "10")]
    assert list(study) == ["none", "crop", "T: color, cutout", "ISDA 0.5", *scales, "TeachAugment, reach 0.5"]
    figure = gan_figures.learned(found)
    assert any("+10.00 ± 0.00" in text.get_text() for axes in figure.axes for text in axes.texts), "crop"
    elsewhere = [classifier("CrossEntropy", 0, 0.9), classifier("CrossEntropy", 0, 0.9, augment="crop")]
    for run in elsewhere:
        run.environment = {"device": "a GPU"}
    assert gan_figures.classifiers([*elsewhere, *found], ("embedded",)) == study, "devices are not mixed"


def test_the_scale_of_the_reversed_gradient(found):
    left, right = gan_figures.scale(found).axes
    assert left.lines[0].get_ydata().tolist() == pytest.approx([1e-12, 0.01, 1.0])
    assert right.lines[0].get_ydata()[-1] == pytest.approx(40 + 100 * sum(NOISE) / 3)
    with pytest.raises(figures.NothingToDraw, match="FeatureAugmentation at two scales"):
        gan_figures.scale([run for run in found if run.config["settings"].get("scale", 0) == 0])


def test_styles_across_domains(found):
    left, right = gan_figures.domains(found).axes
    assert [axes.get_title(loc="left").split("\n")[0] for axes in (left, right)] == [
        "hues trained on: 40.3%",
        "other hues: 30.3%",
    ]
    assert right.lines[0].get_xdata().tolist() == pytest.approx([5.0] * 3)
    assert [text.get_text() for text in left.get_yticklabels()] == ["MixStyle, stages 1 to 2"]


@pytest.mark.parametrize("name", list(gan_figures.FIGURES["4_diffaugment"]))
def test_what_is_missing_is_said(name):
    with pytest.raises(figures.NothingToDraw):
        gan_figures.FIGURES["4_diffaugment"][name]([classifier("CrossEntropy", 0, 0.5)])
