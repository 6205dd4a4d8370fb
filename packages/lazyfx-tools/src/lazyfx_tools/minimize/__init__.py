"""The smallest graph that still shows a fault, as a program.

A fault is a predicate: it looks at a graph and inputs and says whether the fault is there.
:func:`raises`, :func:`differs` and :func:`crashes` make those for faults of compilers;
:func:`diagnose` says which of them it is. The search is described in
:mod:`lazyfx_tools.minimize._search`, the program in :mod:`lazyfx_compilers._repro`.
"""

from ._faults import Fault, crashes, diagnose, differs, raises
from ._minify import Minified, minify
from ._search import Progress

__all__ = ["Fault", "Minified", "Progress", "crashes", "diagnose", "differs", "minify", "raises"]
