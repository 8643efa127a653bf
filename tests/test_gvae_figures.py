"""The figures of G-VAE, on records whose measures are known."""

from __future__ import annotations

import numpy as np

from semaug import gvae_measures, ledger, records
from semaug.training import Recipe


def test_the_ledger_keeps_pictures_of_the_first_seed_beside_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "state_folder", lambda: tmp_path / "state")
    monkeypatch.setattr("semaug.gvae.measures", lambda *arguments: {"kl": 1.0})  # trains a judge: half a minute
    of = {"name": "embedded", "train_size": 100, "test_size": 50}
    recipe = Recipe(epochs=1, batch_size=50, optimizer="adam", lr=1e-3)
    for objective, network, seed, there in (
        ("VAE", "autoencoder16", 0, True),
        ("VAE", "autoencoder16", 1, False),
        ("Augmented", "small", 0, False),
    ):
        run = ledger.Run("2_gvae", "cpu", objective, network, of, recipe, 1.0, seed=seed)
        run.execute("cpu", folder=tmp_path / objective / str(seed))
        (path,) = (tmp_path / objective / str(seed)).glob("*.json")
        assert path.with_suffix(".npz").exists() == there
        assert records.load(path.parent, seed=seed) != [], "other files do not disturb the records"
    (path,) = (tmp_path / "VAE").rglob("*.npz")
    with np.load(path) as kept:
        assert kept["all"].shape == (6, len(gvae_measures.COLUMNS), 1, 28, 28)
        assert kept["plane"].shape == (50, 2)
