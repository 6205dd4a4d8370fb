"""Every Python block in the README, the packages' READMEs and the docs runs."""

from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(ROOT.glob("packages/*/README.md")),
    *sorted(path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts),
]
SYBIL = Sybil(parsers=[PythonCodeBlockParser()])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_in_a_document_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.compiler.reset()
    document = SYBIL.parse(path)
    for example in document.examples():
        example.evaluate()


def test_the_readme_shows_each_package():
    text = (ROOT / "README.md").read_text()
    for name in ("lazyfx_core", "lazyfx_ltc", "lazyfx_compilers", "lazyfx_tools"):
        assert f"from {name} import" in text
