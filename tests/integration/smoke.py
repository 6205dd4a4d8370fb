"""Run by ``nox -s build`` on the built wheels, installed without extras."""

from importlib.metadata import entry_points, version

import torch
from torch import fx

import lazyfx_compilers
import lazyfx_core
import lazyfx_ltc
import lazyfx_tools

for package in (lazyfx_core, lazyfx_ltc, lazyfx_compilers, lazyfx_tools):
    name = package.__name__.replace("_", "-")
    assert version(name) == package.__version__, name
    assert "site-packages" in package.__file__, package.__file__

x = torch.randn(4)
with lazyfx_core.use_lazy_graph_module(True):
    gm = fx.symbolic_trace(lambda x: x.relu() + 1)
assert isinstance(gm, lazyfx_core.LazyGraphModule)
replayed = lazyfx_ltc.extract_compiled_graph(gm, (x,))
torch.testing.assert_close(replayed(x), x.relu() + 1)
torch.testing.assert_close(lazyfx_compilers.nop(gm, [x])([x]), x.relu() + 1)
assert lazyfx_tools.diff_graphs(gm, gm).identical
(command,) = entry_points(group="console_scripts", name="lazyfx")
assert command.load()(["--version"]) == 0
points = entry_points(group="torch_dynamo_backends")
backends = {point.name: point.load() for point in points if point.name.startswith("lazyfx_")}
assert backends.keys() == {
    *("lazyfx_nop", "lazyfx_print", "lazyfx_ts", "lazyfx_fusion", "lazyfx_debug", "lazyfx_dump"),
    "lazyfx_ltc",
}, backends
torch.testing.assert_close(torch.compile(gm, backend="lazyfx_nop")(x), x.relu() + 1)
print("the built wheels work together")
