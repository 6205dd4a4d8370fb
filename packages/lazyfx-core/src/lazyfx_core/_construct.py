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

from ._instance_class import user_class
from ._torch_fx import GENERATED_FIELDS, copy_attributes, plain_graph_module
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

    __slots__ = ("constructors", "containers", "usual", "values")

    def __init__(self, values: dict[str, Any], usual: type | None) -> None:
        self.values = values
        self.usual = usual
        self.containers: list[tuple[str, Callable[[], Any]]] = [
            (name, type(value)) for name, value in values.items() if type(value) in _CONTAINERS
        ]
        self.constructors = _constructors()


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
        template = _make_template(user_class(type(module)))
    cls = type(module)
    if not template.values or not (cls.__base__ is template.usual or _may_use_template(cls)):
        return False
    if cls.__name__ != class_name:
        cls.__name__ = class_name
    held = module.__dict__
    held.update(template.values)
    for name, new in template.containers:
        held[name] = new()
    if isinstance(root, nn.Module):
        held["training"] = getattr(root, "training", held["training"])
    targets = [str(node.target) for node in attribute_nodes(graph)]
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
    graph = held["_graph"]
    if id(graph) not in memo:
        memo[id(graph)] = copy_graph(graph, memo)
    copied: dict[str, Any] = {}
    for name, value in held.items():
        if name in GENERATED_FIELDS:
            copied[name] = memo[id(value)] = value  # the copy makes its own
        elif type(value) in _CONTAINERS and not value:
            copied[name] = type(value)()
            if type(value) is OrderedDict:
                memo[id(value)] = copied[name]
        elif value is None or value is True or value is False or isinstance(value, type):
            copied[name] = value
    copied["_graph"] = memo[id(graph)]
    if len(copied) == len(held):
        memo[id(held)] = {name: copied[name] for name in held}


def _make_template(usual: type[fx.GraphModule]) -> Template:
    """Read the template off a module that torch builds now; an empty one if it does not fit.

    Args:
        usual: The class that is being built; asked about once, here, if it may use the template.
    """
    global _template
    graph = fx.Graph()
    graph.output(None)
    held = vars(plain_graph_module({}, graph)).copy()
    for name in GENERATED_FIELDS:
        held.pop(name, None)
    held["_graph"] = None
    fits = all(
        (type(value) in _CONTAINERS and not value) or value is None or value is True
        for value in held.values()
    ) and set(_READ_NAMES.split()).issuperset(fx.GraphModule.__init__.__code__.co_names)
    _template = Template(held if fits else {}, usual if _may_use_template(usual) else None)
    return _template


def _constructors() -> tuple[object, ...]:
    return (nn.Module.__init__, nn.Module.__setattr__, fx.GraphModule.__init__)


def _may_use_template(cls: type[fx.GraphModule]) -> bool:
    """Whether nothing between ``cls`` and ``nn.Module`` does more than the constructors known."""
    mro = cls.__mro__
    above = mro.index(fx.GraphModule) + 1
    return (
        mro[above] is nn.Module
        and not cls.call_super_init
        and cls.__setattr__ is nn.Module.__setattr__
        and cls.graph is fx.GraphModule.graph
    )
