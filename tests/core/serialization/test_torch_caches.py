"""torch's own caches of compiled graphs hit as often with our modules as with plain ones."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

CODE = textwrap.dedent(
    """
    import contextlib, json, pickle, sys, warnings
    warnings.simplefilter("ignore")
    import torch
    from torch import fx, nn
    from lazyfx_core import LazyGraphModule, use_lazy_graph_module

    torch._inductor.config.fx_graph_cache = True
    torch._functorch.config.enable_autograd_cache = True
    kind = sys.argv[1]
    torch.manual_seed(0)
    gm = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    flags = contextlib.nullcontext()
    if kind == "flag":
        flags = use_lazy_graph_module(True)
    elif kind == "everywhere":
        flags = use_lazy_graph_module(True, everywhere=True)
    elif kind != "plain":
        gm = LazyGraphModule.from_graphmodule(gm)
        if kind == "pickled":
            gm = pickle.loads(pickle.dumps(gm))
    with flags:
        torch.compile(gm)(torch.ones(2, 4)).sum().backward()
    found = torch._dynamo.utils.counters
    names = ("fxgraph_cache_hit", "fxgraph_cache_miss", "fxgraph_cache_bypass")
    seen = {n: found["inductor"][n] for n in names}
    names = ("autograd_cache_hit", "autograd_cache_miss", "autograd_cache_bypass")
    seen.update({n: found["aot_autograd"][n] for n in names})
    print(json.dumps(seen))
    """
)


def _count(kind, folder):
    done = subprocess.run(
        [sys.executable, "-c", CODE, kind],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_caches_hit_as_often_as_with_plain_modules(tmp_path):
    """Each kind compiles in one process and finds everything again in a second."""
    seen = {}
    for kind in ("plain", "flag", "everywhere", "lazy", "pickled"):
        folder = tmp_path / kind
        seen[kind] = [_count(kind, folder), _count(kind, folder)]
    assert seen["plain"][0]["autograd_cache_miss"] + seen["plain"][0]["fxgraph_cache_miss"] > 0
    assert seen["plain"][1]["autograd_cache_hit"] + seen["plain"][1]["fxgraph_cache_hit"] > 0
    for kind, counts in seen.items():
        assert counts == seen["plain"], kind
