"""The methods, one paper a module."""

from importlib import import_module
from pkgutil import iter_modules

from semaug.training import objective
from semaug.training.objective import Objective


def objectives() -> dict[str, type[Objective]]:
    """Every objective by the name of its class: of the methods' modules, and those of plain training.

    A class counts that is public, defined in its module, and declares no abstract method.
    """
    names = (module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    modules = [objective, *(import_module(f"{__name__}.{name}") for name in names)]
    members = [value for module in modules for value in vars(module).values() if _concrete(value, module.__name__)]
    return {member.__name__: member for member in members}


def _concrete(value: object, module: str) -> bool:
    if not (isinstance(value, type) and issubclass(value, Objective)) or value.__module__ != module:
        return False
    abstract = any(getattr(member, "__isabstractmethod__", False) for member in vars(value).values())
    return not abstract and not value.__name__.startswith("_")
