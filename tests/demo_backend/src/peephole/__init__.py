"""A ``torch.compile`` backend on lazyfx: simplifies graphs of operators, and keeps what it made."""

from ._backend import fuse, peephole
from ._cache import GraphCache
from ._passes import PASSES, optimize

__all__ = ["PASSES", "GraphCache", "fuse", "optimize", "peephole"]
