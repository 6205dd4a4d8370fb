"""Importing the package does nothing that anybody could notice."""

import lazyfx_core


def test_importing_loads_no_compile_stack_and_patches_nothing(assert_imports_quietly):
    assert_imports_quietly("lazyfx_core")


def test_every_public_name_is_there_and_sorted():
    def constants_then_classes(name):  # as ruff has it
        return (not name.isupper(), not name[0].isupper(), name)

    names = lazyfx_core.__all__
    assert names == sorted(names, key=constants_then_classes)
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(lazyfx_core, name) is not None
