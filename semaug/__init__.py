"""semaug: semantic augmentation of training data, derived, tested and measured.

Every method changes one place of supervised training:

    images --[1 pixels]--> stages --[2 features]--> pool, head --[3 labels]--> loss [4 loss]

The package is flat, one room a file. Rooms in import order, a line importing only from the lines above it
(``metasaug`` imports ``isda`` too); ``tests/test_rooms.py`` holds the code to this list:

    gaussian
    moments mixing splits capture
    shapes
    sources
    networks data records recipe
    objective
    imbalance streams
    isda metasaug mixup diffaugment fast
    evaluation
    sla automix puzzlemix adversarial localisation learned
    robustness
    training
    transfer gvae_measures gan_measures
    gvae gan
    augmented
    experiment
    ledger
    plots kernels
    figures rerun
    sweep
    longtail_figures
    gvae_figures
    sla_figures
    mixing_figures
    gan_figures
    leaderboard
    lesson redraw

``import semaug`` loads none of them: each is imported when it is first named, and the first costs torch alone.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
__all__ = [
    "adversarial",
    "augmented",
    "automix",
    "capture",
    "data",
    "diffaugment",
    "evaluation",
    "experiment",
    "fast",
    "figures",
    "gan",
    "gan_figures",
    "gan_measures",
    "gaussian",
    "gvae",
    "gvae_figures",
    "gvae_measures",
    "imbalance",
    "isda",
    "kernels",
    "leaderboard",
    "learned",
    "ledger",
    "lesson",
    "localisation",
    "longtail_figures",
    "metasaug",
    "mixing",
    "mixing_figures",
    "mixup",
    "moments",
    "networks",
    "objective",
    "plots",
    "puzzlemix",
    "recipe",
    "records",
    "redraw",
    "rerun",
    "robustness",
    "shapes",
    "sla",
    "sla_figures",
    "sources",
    "splits",
    "streams",
    "sweep",
    "training",
    "transfer",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"semaug.{name}")
    raise AttributeError(f"module 'semaug' has no attribute {name!r}; its rooms are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
