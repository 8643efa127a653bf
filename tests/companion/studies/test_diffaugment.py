"""The figures of GANs and of learned augmentation, on records whose measures are known."""

import copy

import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch

from companion import records
from companion.records import Index
from companion.studies import NothingToDraw, diffaugment
from companion.studies.diffaugment import BASELINE, CARS, CLASSIFIERS, COLOURED, DOMAINS, FACES, GREYS, LONGER
from semaug.core.files import write_whole
from semaug.training.record import Record

NOISE = [0.0, 0.02, -0.01]
FID = {"no augmentation": 9.0, "reals only": 8.0, "discriminator only": 7.0, "DiffAugment": 5.0}


def gan(arm, seed, study=GREYS[0], fid=None):
    """A run that ends at a known FID, measured three times, every 30 of 90 steps."""
    fid = (FID[arm] if fid is None else fid) + NOISE[seed]
    end = {"fid": fid, "kid": fid / 10, "auc": 0.6, "copy_ratio": 0.7, "leak": 0.1, "logit_train": 1.0}
    end |= {"logit_held_out": 0.5, "logit_fake": -1.0, "accepted_train": 0.9, "accepted_held_out": 0.6}
    curves = {key: [3 * value, 2 * value, value] for key, value in end.items()} | {"epoch": [10.0, 20.0, 30.0]}
    config = {"objective": "GAN", "study": study.name, "arm": arm, "recipe": {"epochs": 30, "batch_size": 32}}
    end |= {"real_fid": 0.2, "real_kid": 0.004, "leak_augmented": 0.35, "fid_augmented": 9 - fid}
    where = {"profile": study.profile, "study": study.name, "arm": arm, "environment": {"device": "a CPU"}}
    return Record(config, seed, end, curves, [10] * 10, **where)


def classifier(arm, seed, accuracy, study=CLASSIFIERS):
    metrics = {"test_accuracy": accuracy + NOISE[seed], "validation_accuracy": accuracy + 0.1 + NOISE[seed]}
    settings = study.arm(arm).settings
    config = {"objective": study.arm(arm).objective, "study": study.name, "arm": arm, "recipe": {"epochs": 4}}
    curves = {"moved": [0.1, settings.get("scale", 0.0) / 10]}
    where = {"profile": study.profile, "study": study.name, "arm": arm, "environment": {"device": "a CPU"}}
    return Record(config, seed, metrics, curves, [200] * 10, **where)


@pytest.fixture
def found():
    runs = [gan(arm, seed, study) for study in GREYS[:2] for arm in FID for seed in range(3)]
    runs += [gan("DiffAugment, adaptive", seed, fid=6.0) for seed in range(2)]
    runs += [gan("no augmentation, R1 penalty", 0, fid=8.5)]
    runs += [gan(arm, 0, COLOURED[1]) for arm in FID] + [gan("DiffAugment", 0, COLOURED[0])]
    for seed in range(3):
        runs += [classifier("cross-entropy", seed, 0.5), classifier("crop", seed, 0.6)]
        runs += [classifier("T: translation, cutout", seed, 0.55), classifier("ISDA, λ₀ = 0.5", seed, 0.5)]
        runs += [classifier(f"features, scale {s:g}", seed, 0.5 - s / 100) for s in (10.0, 0.0, 0.1)]
        runs += [classifier("TeachAugment, reach 0.5", seed, 0.52)]
        runs += [classifier("cross-entropy", seed, 0.3, DOMAINS)]
        runs += [classifier("MixStyle, stages 1 and 2", seed, 0.35, DOMAINS)]
    return runs


def drawn(name, found):
    return diffaugment.FIGURES[name](Index(records=found))


def said(figure):
    return figure.get_suptitle().replace("\n", " ").strip()


def test_the_places_of_t_as_a_picture():
    """T stands before D as often as the place says, and the path of the gradient has as many arrows as the images."""
    for number, (axes, arm) in enumerate(zip(diffaugment.places().axes, diffaugment.PLACES, strict=True), 1):
        words = [text.get_text() for text in axes.texts]
        assert axes.get_title("left") == f"place {number}", "the name would say what it leads to"
        where = arm.settings["where"]
        often = {"nowhere": 0, "reals": 1, "discriminator": 2, "everywhere": 3}[where]
        assert (words.count("$T$"), words.count("$D$"), words.count("$G(z)$")) == (often, 3, 2)
        arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
        back = [arrow for arrow in arrows if arrow.get_linestyle() != "-"]
        assert (len(arrows), len(back)) == (3 + often + len(back), 2 if where == "everywhere" else 1)


def test_gans_are_planned_for_as_many_steps_whatever_the_number_of_images():
    for study in (*GREYS, *COLOURED):
        steps = study.recipe.epochs * (study.data.get("train_size", 7200) // study.recipe.batch_size)
        assert steps == pytest.approx(1350, rel=0.011)


def test_curves_are_over_the_steps(found):
    figure = drawn("distances", found)
    first, second = figure.axes
    (line,) = (line for line in first.lines if line.get_label().startswith("DiffAugment"))
    assert line.get_xdata().tolist() == [30, 60, 90]
    assert line.get_ydata()[-1] == pytest.approx(5 + sum(NOISE) / 3)
    assert len([line for line in first.lines if "(n =" in str(line.get_label())]) == 4, "places of T alone"
    assert [axes.get_title("left").split("\n")[1] for axes in (first, second)] == ["100 images", "200 images"]
    assert any(str(line.get_label()).startswith("plain GAN (n =") for line in first.lines)
    assert "FID of real images from other real images: 0.2." in figure.get_supxlabel().replace("\n", " ")
    some = copy.deepcopy(found)
    del some[0].metrics["real_fid"]
    text = drawn("distances", some).get_supxlabel().replace("\n", " ")
    assert "other real images where there are as many of them as test images: 0.2." in text


def test_a_headline_follows_the_records(found):
    assert said(drawn("distances", found)) == "FID over the steps", "no augmentation is worst here"
    for run in (run for run in found if run.arm == "reals only"):
        run.metrics["fid"] = 20.0 + NOISE[run.seed]
    assert said(drawn("distances", found)) == "T on reals only makes the images worse, whatever their number"
    some = [run for run in found if (run.study, run.arm) != (GREYS[1].name, "reals only")]
    assert said(drawn("distances", some)) == "FID over the steps", "one study has no such run"


def test_memory_and_leak_have_their_bounds_and_aims(found):
    figure = drawn("overfitting", found)
    auc, leak = figure.axes
    assert auc.lines[-1].get_ydata()[0] == 0.5
    assert [line.get_ydata()[0] for line in leak.lines[-2:]] == pytest.approx([0.01, 0.35])
    assert leak.get_ylim() == (-0.05, 1.05), "a share, whose interval may leave what it can be"
    assert said(figure) == "Memory and leak over the steps"
    for run in (run for run in found if run.arm in FID):
        run.metrics["auc"] = (0.9 if run.arm == "no augmentation" else 0.5) + NOISE[run.seed] * (run.arm in FID)
        run.metrics["leak"] = 0.6 if run.arm == "reals only" else 0.01
        run.metrics["auc"] += 0.001 * run.seed * (run.arm == "no augmentation")
    assert said(drawn("overfitting", found)).startswith("With any T, D remembers few images less, asked about plain")


def test_longer_trainings_stand_apart(found):
    long = [
        gan(arm, seed, LONGER[1], fid)
        for arm, fid in (("no augmentation", 4.0), ("DiffAugment", 2.0))
        for seed in (0, 1, 2)
    ]
    figure = drawn("longer", found + long)
    assert [len(axes.lines) for axes in figure.axes] == [8, 9, 9], "three seeds and a mean, twice; a dotted line"
    assert figure.axes[0].lines[3].get_ydata()[-1] == pytest.approx(4 + sum(NOISE) / 3)
    assert said(figure) == "Portraits: four times as many steps", "the plain GAN is best at its end"
    for run in long[:3]:
        run.curves["fid"] = [3.0, 2.5, 4.0]
    words = (
        "Portraits: the plain GAN is best after 60 steps, with a mean FID of 2.50; it ends at 4.00, DiffAugment at 2.00"
    )
    assert said(drawn("longer", found + long)) == words
    long[0].curves["fid"] = [3.0, 2.5, 2.4]
    assert said(drawn("longer", found + long)) == "Portraits: four times as many steps", "one seed gets no worse"
    assert len(drawn("distances", found + long).axes) == 2
    with pytest.raises(NothingToDraw):
        drawn("longer", found)


def test_the_table_has_every_gan(found):
    text = diffaugment.table(Index(records=found))
    first = text.split("\n\n")[1].splitlines()
    assert len(first) == 2 + 6 + 1
    assert first[5].startswith(
        "| DiffAugment | 3 | 5.00 ± 0.04 | 4.00 ± 0.04 | 0.500 ± 0.004 | 90 ± 0 | 60 ± 0 | 0.60 ± 0.00 | 0.70 ± 0.00"
    )
    assert first[8].startswith("| other real images | | 0.20 | | 0.004 |")
    assert {line.count("|") for line in first} == {11}


def with_pictures(run, folder, copies):
    """A run of faces, with the pictures that lie beside it; what copies repeats what it was shown."""
    run.metrics["copy_ratio"] = 0.4 if copies else 0.9
    path = run.save(folder / "records" / "4_diffaugment")
    grey = np.full((8, 3, 32, 32), 100 if copies else 50, np.uint8)
    way = np.where(np.arange(8) > 3, 140, 0) if copies else 20 * np.arange(8)
    arrays = {"samples": grey, "nearest": np.full_like(grey, 100), "frames": np.stack([grey] * 4), "training": grey}
    arrays["between"] = np.broadcast_to(way[:, None, None, None], (2, 8, 3, 32, 32)).astype(np.uint8)
    write_whole(path.with_suffix(".npz"), records.pack(arrays))
    return run


@pytest.fixture
def filmed(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FIGURES", tmp_path)
    return [
        with_pictures(gan(arm, seed, FACES), tmp_path, arm == "no augmentation")
        for arm in ("no augmentation", "DiffAugment")
        for seed in (0, 1)
    ]


def test_faces_of_one_pair(filmed, tmp_path):
    with pytest.raises(NothingToDraw, match="with DiffAugment"):
        drawn("faces", filmed)
    long = [
        with_pictures(gan(arm, seed, LONGER[1]), tmp_path, arm == "no augmentation")
        for arm in ("no augmentation", "DiffAugment")
        for seed in (0, 1)
    ]
    with pytest.raises(NothingToDraw, match="with DiffAugment"):
        drawn("faces", filmed + long[:2])
    for run in long[::2]:
        run.metrics["copy_ratio"] = 0.4 if run.arm == "no augmentation" else 0.95
    figure = drawn("faces", filmed + long)
    tiles = figure.axes[0].images[0].get_array()[16::34, 16::34, 0]  # 32 pixels and two between
    assert tiles.shape == (4, 6), "two runs, each above its nearest images"
    assert (255 * tiles[:, 0]).round().tolist() == pytest.approx([100, 100, 50, 100], abs=2)
    assert said(figure) == "Seed 0 of 2: the plain GAN ends near a few photographs, DiffAugment does not"
    words = figure.get_supxlabel().replace("\n", " ")
    assert "Of 6 nearest photos, 1 and 1 are different." in words, "all are one grey"
    assert "Mean FID of 2 seeds: plain GAN 9.01, DiffAugment 5.01; the plain GAN had 9.01 after 90 steps." in words
    long[0].metrics["copy_ratio"] = 0.6
    assert said(drawn("faces", filmed + long)) == "Samples of GANs trained on a hundred faces"


def test_faces_with_t_in_every_place(filmed, tmp_path):
    with pytest.raises(NothingToDraw, match="every place"):
        drawn("four_places", filmed)
    short = [with_pictures(gan(arm, 0, COLOURED[0]), tmp_path, copies=False) for arm in FID]
    figure = drawn("four_places", filmed + short)
    assert figure.axes[0].images[0].get_array().shape[:2] == (6 * 34 - 2, 8 * 34 - 2), "two with their nearest"
    names = ["1: plain GAN", "nearest photo", "2: reals only", "3: D only", "4: DiffAugment", "nearest photo"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == names
    assert said(figure) == "The same hundred faces, and T in other places"
    next(run for run in short if run.arm == "reals only").metrics["leak"] = 0.7
    words = "Reals only draws grey windows, in 70% of its samples (1 seeds); DiffAugment in 10%"
    assert said(drawn("four_places", filmed + short)) == words
    other = with_pictures(gan("reals only", 1, COLOURED[0]), tmp_path, copies=False)
    other.metrics["leak"] = 0.56
    words = "Reals only draws grey windows, in 56 to 70% of its samples (2 seeds); DiffAugment in 10%"
    assert said(drawn("four_places", [*filmed, *short, other])) == words


def test_faces_of_long_runs_beside_photographs_under_t(filmed, tmp_path):
    with pytest.raises(NothingToDraw, match="every place"):
        drawn("places_long", filmed)
    others = [with_pictures(gan(arm, 0, FACES), tmp_path, copies=False) for arm in ("reals only", "discriminator only")]
    figure = drawn("places_long", filmed + others)
    tiles = (255 * figure.axes[0].images[0].get_array()).round()
    assert tiles.shape[:2] == (5 * 34 - 2, 8 * 34 - 2)
    under = tiles[68:100, :32]
    assert len({tuple(pixel) for pixel in under.reshape(-1, 3).tolist()}) > 1, "a grey image and its window"
    names = ["1: plain GAN", "2: reals only", "photos under T", "3: D only", "4: DiffAugment"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == names
    others[0].metrics["leak"] = 0.6
    assert said(drawn("places_long", filmed + others)) == "The same hundred faces, and T in other places"
    others[1].metrics["logit_fake"] = 3.0
    assert said(drawn("places_long", filmed + others)).startswith("Longer: reals only draws transformed images")


def test_cars_in_every_place(filmed, tmp_path):
    with pytest.raises(NothingToDraw, match="cars"):
        drawn("cars", filmed)
    arms = [BASELINE, "reals only", "discriminator only", "DiffAugment", BASELINE, "DiffAugment"]
    runs = [with_pictures(gan(arm, number // 4, CARS), tmp_path, arm == BASELINE) for number, arm in enumerate(arms)]
    figure = drawn("cars", runs)
    assert figure.axes[0].images[0].get_array().shape[:2] == (6 * 34 - 2, 8 * 34 - 2), "two with their nearest"
    assert said(figure) == "A hundred cars, and T in four places"
    words = "FID of the seeds (features of a classifier trained here): plain GAN 9, 9; DiffAugment 5, 5."
    assert words in figure.get_supxlabel().replace("\n", " ")
    for run in runs[3::2]:
        run.metrics["fid"] = 1.25
    figure = drawn("cars", runs)
    assert said(figure) == "A hundred cars: FID 9 to 9 by the plain GAN, 1.2 to 1.2 by DiffAugment"
    assert "plain GAN 9, 9; DiffAugment 1.2, 1.2." in figure.get_supxlabel().replace("\n", " ")


def test_three_seeds_beside_each_other(filmed, tmp_path):
    with pytest.raises(NothingToDraw, match="3 runs"):
        drawn("seeds", filmed)
    more = [with_pictures(gan(arm, 2, FACES), tmp_path, arm == BASELINE) for arm in (BASELINE, "DiffAugment")]
    figure = drawn("seeds", filmed + more)
    assert [axes.get_title("left") for axes in figure.axes[:2]] == [
        "plain GAN, seed 0: copy ratio 0.40, FID 9.00",
        "DiffAugment, seed 0: copy ratio 0.90, FID 5.00",
    ]
    assert figure.axes[0].images[0].get_array().shape[:2] == (32, 4 * 34 - 2)
    words = "In all three seeds the plain GAN ends nearer to its photographs, and with the higher FID"
    assert said(figure) == words
    more[0].metrics["copy_ratio"] = 1.0
    assert said(drawn("seeds", filmed + more)) == "Samples of three seeds, with the same codes"


def test_the_way_between_codes(filmed):
    figure = drawn("between", filmed)  # a seventh, but for WebP
    assert said(figure) == "From code to code in seven steps"
    assert "the largest of seven steps is 100% and 1" in figure.get_supxlabel()
    assert diffaugment.largest_step(np.zeros((1, 3, 1, 2, 2)) + np.array([0, 1, 4])[:, None, None, None]) == 0.75
    assert diffaugment.training_faces(Index(records=filmed)).shape == (8, 3, 32, 32)


def test_augmentations_are_compared_with_none_and_few_scales_are_shown(found):
    figure = drawn("learned", found)
    names = ["cross-entropy", "crop", "T: translation, cutout", "ISDA, λ₀ = 0.5"]
    names += ["features, scale 0.1", "features, scale 10", "TeachAugment, reach 0.5"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [f"{name} (n = 3)" for name in names]
    assert any("+10.00 ± 0.00" in text.get_text() for axes in figure.axes for text in axes.texts), "crop"
    words = "Significantly better than no augmentation: crop, T: translation, cutout"
    assert said(figure).startswith(words)


def test_styles_across_domains(found):
    figure = drawn("domains", found)
    left, right = figure.axes
    assert [axes.get_title(loc="left").split("\n")[0] for axes in (left, right)] == [
        "hues trained on: 40.3%",
        "other hues: 30.3%",
    ]
    assert right.lines[0].get_xdata().tolist() == pytest.approx([5.0] * 3)
    assert [text.get_text() for text in left.get_yticklabels()] == ["MixStyle, stages 1 and 2"]
    assert left.get_xlim() == right.get_xlim()


@pytest.mark.parametrize("name", list(diffaugment.FIGURES))
def test_what_is_missing_is_said(name):
    with pytest.raises(NothingToDraw):
        drawn(name, [classifier("cross-entropy", 0, 0.5)])
