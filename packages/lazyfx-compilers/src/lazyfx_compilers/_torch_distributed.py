"""The seam to torch.distributed.

========================================================  ==========================================
private name                                              used for
========================================================  ==========================================
``torch.distributed._composable.contract._get_registry``  what ``fully_shard`` and ``replicate``
                                                          leave on a module
========================================================  ==========================================
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from .errors import NotCompilableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx, nn

_CLASSES = (
    ("torch.nn.parallel.distributed", "DistributedDataParallel"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
)


def wrapper(module: nn.Module) -> str | None:
    """The name of what distributes a module over processes, if anything does: DDP, FSDP, ..."""
    for home, name in _CLASSES:
        kind = getattr(sys.modules.get(home), name, None)  # not imported: nothing is one
        if kind is not None and isinstance(module, kind):
            return name
    contract = sys.modules.get("torch.distributed._composable.contract")
    registry = contract._get_registry(module) if contract is not None else None
    return next((name for name in registry or () if name in ("fully_shard", "replicate")), None)


def without_collectives(compiler: Callable[..., Any]) -> Callable[..., Any]:
    """``compiler``, for graphs without collectives that write into their argument.

    AOTAutograd records the operator and loses the wait for it, so that the graph reads what has not
    arrived yet.
    """

    @functools.wraps(compiler)
    def checked(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        for node in gm.graph.nodes:
            for target in (node.target, *node.args[1:2]):  # with_effects(token, operator, ...)
                if getattr(target, "namespace", None) == "c10d":
                    raise NotCompilableError(
                        f"memory_efficient_fusion: node {node.name} calls {target}, a collective "
                        "that writes into its argument while the program goes on; a compiled graph "
                        "would not wait for it. Use torch.distributed._functional_collectives, or "
                        "torch.compile(..., backend='lazyfx_fusion'), which does so itself"
                    )
        return compiler(gm, example_inputs)  # type: ignore[no-any-return]

    return checked
