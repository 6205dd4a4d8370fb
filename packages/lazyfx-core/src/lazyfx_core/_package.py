"""``torch.package``: a thin user of :mod:`lazyfx_core._serialize`.

The graph is stored as data in the package, like in a pickle; functions it calls are stored by
module and name, so the exporter interns or externs their modules as it was told. lazyfx-core
itself is taken from outside the package: an ``extern`` rule for it is added after the exporter's
own rules, which therefore win. A plain graph module inside is stored the same way, its class by
name: the exporter calls ``__reduce_package__`` on whatever has it, and such a class would answer.

:func:`restore_packaged_module` and :func:`restore_packaged_plain_module` are named in every package
ever written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._pickle import StoredGraph, module_state, restore_module, restore_plain_module

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx
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


def reduce_plain_module(gm: fx.GraphModule, exporter: PackageExporter) -> tuple[Any, ...]:
    """The reduction of a plain module inside of a lazy one. ``exporter`` learns of its class."""
    exporter.extern("lazyfx_core.**", allow_empty=True)
    cls, class_name, attributes, graph = module_state(gm)
    exporter.add_dependency(cls.__module__)
    where = (cls.__module__, cls.__qualname__)
    return (restore_packaged_plain_module, (where, class_name, attributes, graph))


def restore_packaged_plain_module(
    importer: PackageImporter,
    where: tuple[str, str],
    class_name: str,
    attributes: dict[str, Any],
    graph: StoredGraph,
) -> fx.GraphModule:
    """Build the packaged plain module, whose class has the module and qualified name ``where``."""
    module_name, qualified = where
    cls: Any = importer.import_module(module_name)
    for atom in qualified.split("."):
        cls = getattr(cls, atom)
    return restore_plain_module(cls, class_name, attributes, graph)
