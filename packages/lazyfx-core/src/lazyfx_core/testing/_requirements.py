"""The check that hypothesis is installed, imported before anything that needs it.

hypothesis is an optional dependency: nobody who only runs lazy modules needs it. Without this
module the first thing a user sees would be a bare ``ModuleNotFoundError`` from the middle of the
package.
"""

from __future__ import annotations

from lazyfx_core.errors import MissingDependencyError

try:
    import hypothesis
except ImportError as error:
    raise MissingDependencyError(
        "hypothesis",
        needed_for="lazyfx_core.testing",
        command="python -m pip install 'lazyfx-core[testing]'",
    ) from error

HYPOTHESIS_VERSION: str = hypothesis.__version__
"""The release of hypothesis that was found."""
