"""The packages agree with each other and with what they declare."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {"core": set(), "ltc": {"core"}, "compilers": {"core"}, "tools": {"core", "compilers"}}
NAMES = list(MAY_IMPORT)


def project(name):
    return tomllib.loads((ROOT / f"packages/lazyfx-{name}/pyproject.toml").read_text())["project"]


def sources(name):
    return sorted((ROOT / f"packages/lazyfx-{name}/src").rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_one_version_in_lockstep():
    versions = {project(name)["version"] for name in NAMES}
    assert len(versions) == 1
    (version,) = versions
    for name in NAMES:
        init = (ROOT / f"packages/lazyfx-{name}/src/lazyfx_{name}/__init__.py").read_text()
        assert f'__version__ = "{version}"' in init
        for dependency in project(name)["dependencies"]:
            if dependency.startswith("lazyfx-"):
                assert dependency.endswith(f"=={version}")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_package_imports_only_the_siblings_it_declares(name):
    declared = {
        d.partition("==")[0].removeprefix("lazyfx-")
        for d in project(name)["dependencies"]
        if d.startswith("lazyfx-")
    }
    assert declared == MAY_IMPORT[name]
    for path in sources(name):
        for module in imports(path):
            top = module.partition(".")[0]
            if top.startswith("lazyfx_"):
                assert top.removeprefix("lazyfx_") in {name, *declared}, f"{path.name}: {module}"


@pytest.mark.parametrize("name", NAMES)
def test_each_package_is_typed_and_licensed(name):
    folder = ROOT / f"packages/lazyfx-{name}"
    assert (folder / f"src/lazyfx_{name}/py.typed").exists()
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert project(name)["requires-python"] == ">=3.11"
    assert "torch>=2.6" in project(name)["dependencies"]
