"""Every model of the zoo, trained for a step under torch.compile: dumped, loaded, replayed.

Bit-equal: every output and every changed input of every graph, higher-order operators included.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.torch_version import TorchVersion

from lazyfx_compilers import graph_dumper_aot, load_dump


def _load() -> Any:
    name = "ltc_zoo_models"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "ltc" / "zoo" / "models.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


ZOO: dict[str, Any] = _load().ZOO


@pytest.mark.once
@pytest.mark.parametrize("name", ZOO)
def test_all_graphs_replay_bit_by_bit_from_another_folder(name, tmp_path):
    entry = ZOO[name]
    if (missing := entry.missing()) is not None:
        pytest.skip(missing)
    if "transformers" in entry.needs and TorchVersion(torch.__version__) < (2, 7):
        pytest.skip("Dynamo of torch 2.6 loses a global of transformers 5's wrappers: NameError")
    torch._dynamo.reset()
    dumper = graph_dumper_aot(name, tmp_path / "first", example_inputs="data")
    model = entry.make()
    recurrent = {"allow_rnn": True} if hasattr(torch._dynamo.config, "allow_rnn") else {}
    with torch._dynamo.config.patch(recurrent):
        outputs = torch.compile(model, backend=dumper)(*entry.inputs(0))
        if entry.trains:
            entry.loss(outputs).backward()
    shutil.move(tmp_path / "first", tmp_path / "moved")
    dump = load_dump(tmp_path / "moved" / dumper.path.name)
    phases = [graph.phase for graph in dump]
    assert ("backward" in phases) == entry.trains
    replayed = 0
    for graph in dump:
        assert graph.module().graph.nodes
        if graph.phase == "joint":
            assert graph.run() is not None
            continue
        replay = graph.replay()
        assert replay.reference == "recorded"
        assert replay.exact
        assert replay.ok, str(replay)
        assert replay.bit_equal
        assert not replay.skipped
        replayed += 1
    assert replayed
    torch._dynamo.reset()
