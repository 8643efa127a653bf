"""semaug: semantic augmentation of training data, derived, tested and measured.

Every method changes one place of supervised training:

    images --[1 pixels]--> stages --[2 features]--> pool, head --[3 labels]--> loss [4 loss]

The names below are offered here; each is imported when it is first used, and the first costs torch alone:

    from semaug import ISDA, CrossEntropy, Recipe, fit, load

Packages, each importing only from those before it: ``core``, ``data`` and ``networks``, ``training``, ``methods`` (one
paper a module), ``measures``. The names themselves are listed in ``__init__.pyi``, which type checkers read too.
"""

import ast
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from traceback import walk_stack

__version__ = "0.1.0"

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOMES = {a.name: f.module for f in _STUB.body if isinstance(f, ast.ImportFrom) and f.module for a in f.names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
    message = f"semaug has no {name!r}; it offers {', '.join(__all__)}"
    callers = [frame.f_code.co_name for frame, _ in islice(walk_stack(None), 6)]
    if "_handle_fromlist" in callers and find_spec(f"semaug.{name}") is None:  # from semaug import name
        raise ImportError(message, name=__name__, path=__file__)
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
