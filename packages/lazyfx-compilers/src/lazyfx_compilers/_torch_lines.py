"""The seam that notes the user's line on the nodes of a trace.

=====================================================  =====================================
private name                                           used for
=====================================================  =====================================
``torch.fx.traceback.set_stack_trace``                 what the next nodes are said to come from
=====================================================  =====================================

AOTAutograd takes over the line of what it traces if that is a graph of Dynamo's, which has one on
each node. Without Dynamo there is none, so it is noted here, at each call of a function of torch.
"""

from __future__ import annotations

import importlib
import linecache
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from ._torch_aot import attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class UserLines(TorchFunctionMode):
    """While this mode is on, traced nodes carry the innermost line that is not torch's or ours."""

    def __init__(self) -> None:
        super().__init__()
        self._note = attribute("torch.fx.traceback", "set_stack_trace")
        packages = (torch, importlib.import_module("lazyfx_core"), sys.modules[__package__])
        self._others = tuple(f"{Path(str(one.__file__)).parent}/" for one in packages)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Note the line and call the function."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(self._others):
            frame = frame.f_back
        file, line = frame.f_code.co_filename, frame.f_lineno
        code = linecache.getline(file, line).strip()
        where = f'  File "{file}", line {line}, in {frame.f_code.co_name}\n'
        self._note([where + (f"    {code}\n" if code else "")])
        return function(*args, **(kwargs or {}))
