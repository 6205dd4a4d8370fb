"""Public names of a package that are imported when they are first asked for."""

import importlib
from typing import Any


def lazy_names(package: dict[str, Any], modules: dict[str, tuple[str, ...]]) -> tuple[Any, Any]:
    """``__getattr__`` and ``__dir__`` of the package with these globals.

    No module may be called like a public name: importing it would put it in its place.
    """
    where = {name: module for module, names in modules.items() for name in (module, *names)}

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        module = importlib.import_module(f".{where[name]}", package["__name__"])
        if name not in modules:
            package[name] = getattr(module, name)
        return package[name]

    return get, lambda: sorted({*package, *package["__all__"]})
