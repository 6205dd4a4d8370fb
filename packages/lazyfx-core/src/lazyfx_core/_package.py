"""``torch.package``: a thin user of :mod:`lazyfx_core._serialize`.

The graph is stored as data in the package, like in a pickle; functions it calls are stored by
module and name, so the exporter interns or externs their modules as it was told. lazyfx-core
itself is taken from outside the package: an ``extern`` rule for it is added after the exporter's
own rules, which therefore win.

:func:`restore_packaged_module` is named in every package ever written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._pickle import StoredGraph, module_state, restore_module

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.package import PackageExporter, PackageImporter

    from ._graph_module import LazyGraphModule


class instance_only:
    """A method that the class itself does not have.

    ``PackageExporter`` calls ``obj.__reduce_package__(exporter)`` on everything that has the
    attribute, classes included, and a stored module names its class.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, obj: object | None, owner: type | None = None) -> Any:
        if obj is None:
            raise AttributeError(f"{self._function.__name__} is looked up on instances only")
        return self._function.__get__(obj, owner)


def reduce_module(gm: LazyGraphModule, exporter: PackageExporter) -> tuple[Any, ...]:
    """The reduction of ``gm`` for ``torch.package``. Adds one ``extern`` rule to ``exporter``."""
    exporter.extern("lazyfx_core.**", allow_empty=True)
    return (restore_packaged_module, module_state(gm))


def restore_packaged_module(
    importer: PackageImporter,
    cls: type[LazyGraphModule],
    class_name: str,
    attributes: dict[str, Any],
    graph: StoredGraph,
) -> LazyGraphModule:
    """Build the packaged module. ``importer`` has already resolved every name in the data."""
    return restore_module(cls, class_name, attributes, graph)
