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
        try:
            found: Any = importlib.import_module(f".{where[name]}", package["__name__"])
            found = found if name in modules else getattr(found, name)
        except AttributeError as error:  # who asked would take the name for missing
            raise ImportError(f"{name!r} cannot be imported here: {error}") from error
        package[name] = found
        return found

    public = {*package["__all__"], *(name for name in modules if name[0] != "_")}
    return get, lambda: sorted({*package, *public})
