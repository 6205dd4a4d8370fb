"""Compilers for finding out what is wrong: one that checks, one that writes a reproduction.

``_checks`` lists what is checked, ``_interpreter`` runs a graph node by node, ``_node_check`` holds
one result against what tracing recorded (``_metadata``, ``_formula``), ``_sharing`` and ``_values``
against what an operator declares and what is in memory.
"""

from ._checks import CHECKS, DEFAULT_CHECKS
from ._compilers import debug_compile, debug_nop
from ._interpreter import DebugInterpreter

__all__ = ["CHECKS", "DEFAULT_CHECKS", "DebugInterpreter", "debug_compile", "debug_nop"]
