"""The scripts that a dump leaves behind run its graphs again."""

import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_compilers import graph_dumper_aot, load_dump


@pytest.fixture
def dumped(tmp_path):
    """A dump of one graph."""
    x = torch.randn(3)
    dumper = graph_dumper_aot("one", tmp_path / "a", example_inputs="data")
    dumper(make_fx(lambda x: (x.sin(),))(x), [x])([x])
    return load_dump(dumper.path)


def run(script, cwd=None):
    return subprocess.run(
        [sys.executable, str(script)], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_script_in_the_folder_replays_from_anywhere(tmp_path, dumped):
    (graph,) = dumped
    shutil.move(tmp_path / "a", tmp_path / "b")
    folder = tmp_path / "b" / "one"
    (tmp_path / "elsewhere").mkdir()
    for script in (folder / graph.id / "replay.py", folder / "replay.py"):
        done = run(script, cwd=tmp_path / "elsewhere")
        assert done.returncode == 0, done.stderr
        assert "bit-equal" in done.stdout


def test_the_script_in_the_folder_fails_where_the_results_differ(dumped):
    (graph,) = dumped
    file = graph.folder / "outputs.safetensors"
    save_file({name: content ^ 1 for name, content in load_file(file).items()}, file)
    for script in (graph.folder / "replay.py", graph.folder.parent / "replay.py"):
        done = run(script)
        assert "DIFFERS" in done.stdout, done.stderr
        assert done.returncode == 1


def test_without_this_package_the_script_says_what_to_install(tmp_path, dumped, monkeypatch):
    (graph,) = dumped
    (tmp_path / "lazyfx_cli.py").write_text("raise ImportError('absent')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run(graph.folder / "replay.py")
    assert done.returncode == 1
    assert "install the package lazyfx-tools" in done.stderr
