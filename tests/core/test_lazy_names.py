"""Public names that are imported when they are first asked for."""

import importlib
import sys

import pytest


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules, of which one needs what is gone."""
    folder = tmp_path / "lazy_package_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from lazyfx_core._lazy_names import lazy_names\n"
        "__all__ = ['fine', 'gone', 'misnamed']\n"
        "__getattr__, __dir__ = lazy_names(\n"
        "    globals(), {'_one': ('fine', 'misnamed'), '_two': ('gone',), 'public': ()}\n"
        ")\n"
    )
    (folder / "_one.py").write_text("def fine(): return 3\n")
    (folder / "_two.py").write_text("import math\nmath.no_such_name\n")
    (folder / "public.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield importlib.import_module(folder.name)
    for name in set(sys.modules) - before:
        if name.startswith(folder.name):
            del sys.modules[name]


def test_a_name_is_imported_once_and_kept(package):
    assert "fine" not in vars(package)
    assert package.fine() == 3
    assert vars(package)["fine"] is package.fine
    assert package.public is sys.modules["lazy_package_of_a_test.public"]


def test_dir_lists_names_and_modules_that_nobody_has_asked_for(package):
    assert {"fine", "gone", "misnamed", "public"} <= set(dir(package))
    assert not {"_one", "_two"} & set(dir(package))


def test_a_name_that_is_none_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="'lazy_package_of_a_test' has no attribute 'nothing'"):
        package.nothing


@pytest.mark.parametrize("name", ["gone", "misnamed"])
def test_what_a_module_lacks_is_told_and_not_taken_for_a_missing_name(package, name):
    with pytest.raises(ImportError, match=f"'{name}' cannot be imported.*has no attribute") as told:
        hasattr(package, name)
    assert isinstance(told.value.__cause__, AttributeError)
    with pytest.raises(ImportError, match="has no attribute"):
        exec(f"from lazy_package_of_a_test import {name}")


def test_a_module_that_somebody_took_out_of_the_package_comes_back(package):
    found = package.public
    del package.public  # as mock.patch does
    assert package.public is found
