"""The command that draws the committed figures: the same bytes each time, and what is missing is said."""

import pytest
from test_figures import augmented, controlled, sized
from test_plots import found

from companion import figures, redraw

__all__ = ["augmented", "controlled", "found", "sized"]  # fixtures


def test_redraw(found, sized, augmented, controlled, tmp_path, capsys):
    found = [*found, *(r for r in sized if r.config["data"]["train_size"]), *augmented, *controlled]
    for r in found:
        r.save(tmp_path / "records" / "1_isda")
    assert redraw.main(["--folder", str(tmp_path)]) == 0
    expected = {f"{name}.{kind}" for name in figures.FIGURES["1_isda"] for kind in ("png", "svg")}
    files = {path.name: path.read_bytes() for path in (tmp_path / "1_isda").iterdir()}
    assert set(files) == expected
    assert redraw.main(["--folder", str(tmp_path)]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "1_isda").iterdir()} == files
    assert "drew     1_isda/accuracy from 41 records" in capsys.readouterr().out


def test_what_has_no_records_is_skipped_and_said(found, tmp_path, capsys):
    assert redraw.main(["--folder", str(tmp_path)]) == 0
    assert not (tmp_path / "1_isda").exists()
    assert "skipped  1_isda/accuracy: needs two methods under one recipe" in capsys.readouterr().out
    for r in found:
        if r.config["objective"] == "CrossEntropy":
            r.save(tmp_path / "records" / "1_isda")
    redraw.main(["--folder", str(tmp_path)])
    assert {path.stem for path in (tmp_path / "1_isda").iterdir()} == {"curves"}


def test_a_damaged_record_is_named(found, tmp_path):
    path = found[0].save(tmp_path / "records" / "1_isda")
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=path.name):
        redraw.main(["--folder", str(tmp_path)])
