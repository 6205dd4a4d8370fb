"""The packages agree with each other and with what they declare."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {"core": set(), "ltc": {"core"}, "compilers": {"core"}, "tools": {"core", "compilers"}}
NAMES = list(MAY_IMPORT)


def project(name):
    return tomllib.loads((ROOT / f"packages/lazyfx-{name}/pyproject.toml").read_text())["project"]


def extras(name):
    return project(name).get("optional-dependencies", {})


def optional(name):
    return [requirement for extra in extras(name).values() for requirement in extra]


def required(requirements):
    """Names of distributions, as they are imported here."""
    return {re.match(r"[\w-]+", each)[0].replace("-", "_") for each in requirements}


def sources(name):
    return sorted((ROOT / f"packages/lazyfx-{name}/src").rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(level=0, module=module):
                yield module
            case ast.Call(
                func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]
            ) if not name.startswith("."):
                yield name


def imported(name):
    """Top-level modules that are neither python's nor the package's own."""
    own = {path.name for path in (ROOT / f"packages/lazyfx-{name}/src").iterdir()}
    found = {module.partition(".")[0] for path in sources(name) for module in imports(path)}
    return found - own - sys.stdlib_module_names - {"functorch"}  # functorch is a part of torch


@pytest.mark.parametrize("name", ["ltc", "compilers", "tools"])
def test_type_checkers_and_python_find_names_in_the_same_places(name):
    """What ``__init__.py`` imports when it is asked for stands there twice."""
    package = importlib.import_module(f"lazyfx_{name}")
    body = ast.parse(Path(package.__file__).read_text()).body
    (block,) = (
        one for one in body if isinstance(one, ast.If) and "not" not in ast.unparse(one.test)
    )
    told = {one.module: tuple(alias.name for alias in one.names) for one in block.body}
    assert told == package._MODULES
    assert not hasattr(package, "no_such_name")
    assert set(package.__all__) <= set(dir(package))
    for module, names in told.items():
        assert getattr(package, module) is sys.modules[f"{package.__name__}.{module}"]
        for one in names:
            assert getattr(package, one) is getattr(
                sys.modules[f"{package.__name__}.{module}"], one
            )


def test_one_version_in_lockstep():
    versions = {project(name)["version"] for name in NAMES}
    assert len(versions) == 1
    (version,) = versions
    for name in NAMES:
        init = (ROOT / f"packages/lazyfx-{name}/src/lazyfx_{name}/__init__.py").read_text()
        assert f'__version__ = "{version}"' in init
        for dependency in [*project(name)["dependencies"], *optional(name)]:
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
def test_a_package_declares_what_it_imports_and_imports_what_it_declares(name):
    assert required([*project(name)["dependencies"], *optional(name)]) == imported(name)


@pytest.mark.parametrize("name", NAMES)
def test_importing_a_package_needs_none_of_its_extras(name):
    program = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[2:]))
__import__(sys.argv[1])
"""
    absent = required(optional(name)) - required(project(name)["dependencies"])
    arguments = [sys.executable, "-W", "ignore", "-c", program, f"lazyfx_{name}", *absent]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_error_has_its_place_in_the_tree(name):
    path = ROOT / f"packages/lazyfx-{name}/src/lazyfx_{name}/errors.py"
    module = ast.parse(path.read_text())
    classes = {node.name for node in module.body if isinstance(node, ast.ClassDef)}
    assert classes
    assert classes <= set(re.findall(r"\w+", ast.get_docstring(module)))


@pytest.mark.parametrize("name", NAMES)
def test_a_readme_names_every_extra(name):
    readme = (ROOT / f"packages/lazyfx-{name}/README.md").read_text()
    for extra in extras(name):
        assert f"lazyfx-{name}[{extra}]" in readme


@pytest.mark.parametrize("name", NAMES)
def test_each_package_is_typed_and_licensed(name):
    folder = ROOT / f"packages/lazyfx-{name}"
    assert (folder / f"src/lazyfx_{name}/py.typed").exists()
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert project(name)["requires-python"] == ">=3.11"
    assert "torch>=2.6" in project(name)["dependencies"]


NO_TEST_IMPORTS = sorted([*ROOT.glob("tests/benchmarks/*.py"), *ROOT.glob("docs/demo/*.py")])


@pytest.mark.parametrize("path", NO_TEST_IMPORTS, ids=lambda path: path.stem)
def test_what_a_script_imports_from_the_packages_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lazyfx_"):
            names = [alias.name for alias in node.names]
            found = __import__(node.module, fromlist=names)
            missing = [name for name in names if not hasattr(found, name)]
            assert not missing, f"{node.module} has no {missing}"
