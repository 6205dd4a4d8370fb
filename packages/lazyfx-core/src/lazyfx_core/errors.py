"""What lazyfx raises when a graph, a file or a call is not what it should be.

::

    LazyFxError
    ├── NotAGraphModuleError (TypeError)       an argument is not what the function takes
    ├── InvalidGraphError (ValueError)         the graph cannot be run; names the node
    │   └── MissingTargetError (AttributeError, RuntimeError)  it refers to what is not there
    ├── CodeGenerationError (RuntimeError)     torch could not turn the graph into code
    ├── StaleGraphError (RuntimeError)         a graph was edited and nobody said so
    ├── TooManyRecompilesError (AssertionError)  more code generations than a test allows
    ├── SerializationError (ValueError)        a module cannot be stored or read back
    │   └── GraphFormatError                   a stored graph is damaged, hostile or too new
    │       └── NotInThisTorchError            it needs what another torch has
    ├── SeamError (RuntimeError)               a torch release moved something we rely on
    └── MissingDependencyError (ImportError)   an optional package or program is absent

    DroppedMetadataWarning (UserWarning)       metadata was not stored, or not loaded

The other packages hang their own trees below :class:`LazyFxError`, so one ``except LazyFxError``
catches whatever goes wrong with a graph, a file or a call. Each class also derives from the builtin
a caller would expect, so code that catches ``TypeError`` keeps working. A setting that makes no
sense (a flag that is no bool, ``max_captures=0``) is a mistake in the program, and a plain
``TypeError`` or ``ValueError``.
"""

from __future__ import annotations

__all__ = [
    "CodeGenerationError",
    "DroppedMetadataWarning",
    "GraphFormatError",
    "InvalidGraphError",
    "LazyFxError",
    "MissingDependencyError",
    "MissingTargetError",
    "NotAGraphModuleError",
    "NotInThisTorchError",
    "SeamError",
    "SerializationError",
    "StaleGraphError",
    "TooManyRecompilesError",
]


class LazyFxError(Exception):
    """Base of every error that lazyfx raises on purpose."""


class NotAGraphModuleError(LazyFxError, TypeError):
    """An argument is not a ``torch.fx.GraphModule`` (or ``Graph``) where one is required."""


class InvalidGraphError(LazyFxError, ValueError):
    """The graph cannot be turned into code that means what the graph says.

    The message names the node, what is wrong with it and how to repair it. The module that was
    being observed stays stale: mend the graph and look again.
    """


class MissingTargetError(InvalidGraphError, AttributeError, RuntimeError):
    """A node refers to an attribute or submodule that the root does not have.

    ``fx.GraphModule`` raises ``AttributeError`` or ``RuntimeError`` there; code that expects
    either keeps working.
    """


class CodeGenerationError(LazyFxError, RuntimeError):
    """torch's code generator failed on a graph; the original exception is the ``__cause__``.

    Never an ``AttributeError``: ``nn.Module.__getattr__`` would swallow it and report that the
    module has no ``forward``.
    """


class StaleGraphError(LazyFxError, RuntimeError):
    """A verified module was used after its graph was edited without ``recompile()``.

    The message names the node that differs, the field, and both values.
    """


class TooManyRecompilesError(LazyFxError, AssertionError):
    """Code was generated more often than ``assert_max_recompiles`` allows; holds the report."""


class SerializationError(LazyFxError, ValueError):
    """A graph module holds something that cannot be stored, or a stored one cannot be read."""


class GraphFormatError(SerializationError):
    """Stored data is not what this lazyfx writes: damaged, altered, made by hand, or too new.

    The message names the node and the field. Nothing was loaded.
    """


class NotInThisTorchError(GraphFormatError):
    """A stored graph names what another torch has, or a library that was not imported."""


class SeamError(LazyFxError, RuntimeError):
    """A private name of torch that lazyfx relies on is gone, changed, or patched by others."""


class MissingDependencyError(LazyFxError, ImportError):
    """An optional package or program is needed and absent; the message holds the command.

    Args:
        name: The package or program that is missing, as a person would install it.
        needed_for: What cannot be done without it.
        command: The command that installs it.
    """

    def __init__(self, name: str, *, needed_for: str, command: str) -> None:
        super().__init__(
            f"{needed_for} needs {name!r}, which is not installed here; install it with: {command}"
        )
        self.dependency = name
        self.command = command


class DroppedMetadataWarning(UserWarning):
    """What cannot be stored, or this torch lacks, was left out of metadata; lists the keys."""
