"""Sphinx configuration; run by ``nox -s docs``."""

import lazyfx_core

project = "lazyfx"
copyright = "2026, the lazyfx developers"
release = version = lazyfx_core.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["_build", "demo", "benchmarks/*"]
html_theme = "furo"
html_title = f"lazyfx {version}"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}
# The packages' errors share names on purpose (see lazyfx_core.errors); references to them by bare
# name are ambiguous to Sphinx and clear to readers of one package's page.
suppress_warnings = ["ref.python"]
