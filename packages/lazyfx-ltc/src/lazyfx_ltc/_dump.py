"""The debug dump: what was captured, through ``logging``, logger ``lazyfx_ltc``, level DEBUG.

``logging.getLogger("lazyfx_ltc").setLevel(logging.DEBUG)`` (and a handler) shows, for every
extraction, the fx code, the lazy IR, the program, and the hash that torch's own extraction would
have looked the graph up by. Nothing is formatted unless the level is enabled.
"""

from __future__ import annotations

import logging

from torch import fx

from ._program import Program
from ._record import Recording

_LOGGER = logging.getLogger("lazyfx_ltc")


def dump(graph: fx.Graph, recording: Recording, program: Program | None) -> None:
    """Log a capture, if somebody listens."""
    if not _LOGGER.isEnabledFor(logging.DEBUG):
        return
    _LOGGER.debug("fx code:\n%s", graph.python_code("self").src)
    _LOGGER.debug("LTC IR:\n%s", recording.ir)
    _LOGGER.debug("backend IR:\n%s", program.text if program is not None else "")
    _LOGGER.debug("graph hash (torch's, not used): %s", recording.hash)
