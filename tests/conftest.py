"""What every test runs under: checked shapes and types, one thread, fixed seeds, no GPU (``make test-gpu``: with it).

``install_import_hook`` wraps each function and dataclass of ``semaug`` so that every call is held to its jaxtyping
shapes and type hints by beartype; at run time, for users, nothing of this exists. It has to stand before the first
import of ``semaug``, which is why it is done here and not in a fixture.
"""

from __future__ import annotations

import os
import random
import sys
import types
from collections.abc import Iterator

if "--benchmark-only" not in sys.argv:  # benchmarks are of the device that is there
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # before torch is imported; a value set outside wins
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start; xdist has a worker a core already
os.environ["MPLBACKEND"] = "Agg"

import jaxtyping
import numpy as np
import pytest
import torch
from beartype import BeartypeConf, beartype
from hypothesis import settings

checker = types.ModuleType("semaug_checker")  # the hook takes the name of something it can import
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as type checkers have it
sys.modules[checker.__name__] = checker
jaxtyping.install_import_hook(["semaug", "companion"], typechecker="semaug_checker.check")

settings.register_profile("semaug", derandomize=True, deadline=None, database=None, print_blob=False)
settings.register_profile("deep", settings.get_profile("semaug"), max_examples=4000)  # make test-deep
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "semaug"))
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same state of the three global generators."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (third parties draw from it)
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the shape and type checks off, so that a test of bad input reaches the package's own error.

    That is what a user meets: ``test_isda_rejects_bad_target(unchecked)`` sees ISDA's ValueError, not beartype's.
    """
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
