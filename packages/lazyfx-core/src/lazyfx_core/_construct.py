"""Building a module's state without running three constructors and without looking at each node.

``fx.GraphModule.__init__`` runs ``nn.Module.__init__``, sets nine attributes through
``nn.Module.__setattr__`` and scans every node for attributes to copy. Here the state is copied
from a *template*: the dictionary of an empty ``fx.GraphModule`` that torch itself built, so that
every release brings its own attributes. Attribute nodes come from the graph's index.

The template is used only where it gives what the constructors would give: nobody patched them,
no class in between has a constructor, every value in the dictionary is a plain one, and this
release's constructor is one that was read. Otherwise torch's own constructor runs.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from ._torch_fx import (
    GENERATED_FIELDS,
    blank_state,
    copy_attributes,
    unwrapped_by_dynamo,
)
from ._torch_graph import attribute_nodes, copy_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._graph_module import LazyGraphModule

_CONTAINERS = (dict, OrderedDict, list, set)
# What fx.GraphModule.__init__ refers to in the releases whose source was read (2.6 to 2.15). One
# that refers to something else may do more than the template knows.
_READ_NAMES = """
    super __init__ __class__ __name__ isinstance torch nn Module hasattr training append
    _CodeOnlyModule named_children _copy_attr named_buffers named_parameters nodes op target
    str AssertionError type dict RuntimeError sort _assign_attr graph _tracer_cls meta
    __qualname__ _tracer_extras _replace_hooks _create_node_hooks _erase_node_hooks
    _deepcopy_hooks shape_env
"""


class Template:
    """The dictionary of an empty ``fx.GraphModule``, split into what is shared and what is new."""

    __slots__ = ("constructors", "containers", "tag", "usual", "values")

    def __init__(
        self, values: dict[str, Any], constructors: tuple[object, ...], usual: type | None
    ) -> None:
        self.values = values  # empty: torch's constructor has to run
        self.constructors = constructors  # those the values came from
        self.tag = unwrapped_by_dynamo(nn.Module.__init__)[1]
        self.usual = usual  # the class that is known to be able to use it
        self.containers: list[tuple[str, Callable[[], Any]]] = [
            (name, type(value)) for name, value in values.items() if type(value) in _CONTAINERS
        ]


_template: Template | None = None


def build(
    module: LazyGraphModule, root: nn.Module | Mapping[str, Any], graph: fx.Graph, class_name: str
) -> bool:
    """Fill the dictionary of ``module``, which becomes the owner of ``graph``.

    Returns:
        Whether it was done; if not, ``module`` was not touched and torch's constructor has to run.

    Raises:
        AttributeError, KeyError: ``root`` lacks what a node refers to.
    """
    template = _template
    if template is None or template.constructors != _constructors():
        template = _make_template()
    cls = type(module)
    targets = [str(node.target) for node in attribute_nodes(graph)]
    if not template.values or not template.values.keys().isdisjoint(targets):
        return False  # torch copies such an attribute first and then writes over it
    if not (cls.__base__ is template.usual or _may_use_template(cls, template.values)):
        return False
    if cls.__name__ != class_name:
        cls.__name__ = class_name
    held = module.__dict__
    held.update(template.values)
    for name, new in template.containers:
        held[name] = new()
    if template.tag is not None:
        template.tag(module)
    if isinstance(root, nn.Module):
        held["training"] = getattr(root, "training", held["training"])
    if targets or isinstance(root, nn.Module):
        copy_attributes(module, root, targets)
    held["_graph"] = graph
    graph.owning_module = module
    tracer_cls = graph._tracer_cls
    if tracer_cls is not None and "<locals>" not in tracer_cls.__qualname__:
        held["_tracer_cls"] = tracer_cls
    if graph._tracer_extras:
        held["_tracer_extras"] = graph._tracer_extras
    return True


def prepare_deepcopy(module: LazyGraphModule, memo: dict[int, Any]) -> None:
    """Put into ``memo`` what torch's ``__deepcopy__`` would spend most of its time on.

    The graph, copied node by node; the hook tables of a module without hooks; and, where nothing
    in the module's dictionary can refer back to the module, that dictionary as a whole.
    """
    held = vars(module)
    graph = module._graph  # built now if it was loaded and nobody has looked
    if id(graph) not in memo:
        memo[id(graph)] = copy_graph(graph, memo)
    copied: dict[str, Any] = {}
    for name, value in held.items():
        if name in GENERATED_FIELDS:
            copied[name] = None  # the copy makes its own
            memo[id(value)] = value
        elif type(value) in _CONTAINERS and not value:
            copied[name] = type(value)()
            if type(value) is OrderedDict:
                memo[id(value)] = copied[name]
        elif value is None or value is True or value is False or isinstance(value, type):
            copied[name] = value
    copied["_graph"] = memo[id(graph)]
    if len(copied) == len(held):
        memo[id(held)] = {name: copied[name] for name in held}


def _make_template() -> Template:
    """Read the template off a module that torch builds now; an empty one if it does not fit."""
    global _template
    from ._graph_module import LazyGraphModule

    constructors = _constructors()
    values: dict[str, Any] = {}
    if all(map(_is_torchs_own, constructors)) and set(_READ_NAMES.split()).issuperset(
        fx.GraphModule.__init__.__code__.co_names
    ):
        values = blank_state()
        if not all(map(_can_be_shared_or_made, values.values())):
            values = {}
    usual = LazyGraphModule if _may_use_template(LazyGraphModule, values) else None
    _template = Template(values, constructors, usual)
    return _template


def _can_be_shared_or_made(value: object) -> bool:
    return value is None or value is True or (type(value) in _CONTAINERS and not value)


def _constructors() -> tuple[object, ...]:
    return (nn.Module.__init__, nn.Module.__setattr__, fx.GraphModule.__init__)


def _is_torchs_own(function: Any) -> bool:
    """Whether a constructor is what its module defines, not what somebody put in its place."""
    function = unwrapped_by_dynamo(function)[0]
    where = getattr(function, "__globals__", {}).get("__name__")
    return where in (nn.Module.__module__, fx.GraphModule.__module__)


def _may_use_template(cls: type[fx.GraphModule], values: Mapping[str, Any]) -> bool:
    """Whether nothing between ``cls`` and ``nn.Module`` does more than the constructors known."""
    mro = cls.__mro__
    above = mro.index(fx.GraphModule) + 1
    return (
        mro[above] is nn.Module
        and not cls.call_super_init
        and cls.__setattr__ is nn.Module.__setattr__
        and cls.graph is fx.GraphModule.graph
        and not any(
            hasattr(type(vars(base)[name]), "__set__")
            for base in mro[: above - 1]
            for name in vars(base).keys() & values.keys()
            if name not in GENERATED_FIELDS
        )
    )
