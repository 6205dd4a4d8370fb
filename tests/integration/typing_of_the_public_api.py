"""Only type-checked, never run: what a user's type checker sees."""

from typing import assert_type

from torch import fx
from torch.fx.graph import PythonCode

from lazyfx_core import LazyGraphModule, get_graph_module_cls, make_graph_module


class Mine(LazyGraphModule):
    """A user's subclass keeps its type through the alternative constructors."""


def core(gm: fx.GraphModule, graph: fx.Graph) -> None:
    assert_type(LazyGraphModule.from_graphmodule(gm), LazyGraphModule)
    assert_type(Mine.from_graphmodule(gm), Mine)
    assert_type(make_graph_module({}, graph), fx.GraphModule)
    assert_type(get_graph_module_cls(), type[fx.GraphModule])
    lazy = LazyGraphModule({}, graph)
    assert_type(lazy.needs_recompile, bool)
    assert_type(lazy.recompile(), PythonCode)
    assert_type(lazy.code, str)
