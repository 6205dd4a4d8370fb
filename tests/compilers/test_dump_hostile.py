"""A dump from a stranger: whatever is wrong with it is a named error, and nothing of it runs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from lazyfx_compilers import DumpFormatError, graph_dumper_aot, load_dump

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """The dump of a training step with data, constants, random numbers and dynamic sizes."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.table = nn.Linear(4, 4), nn.Embedding(5, 4)

        def forward(self, x, rows):
            y = self.linear(x) + self.table(rows) + torch.tensor([1.0, 2.0, 3.0, 4.0])
            return nn.functional.dropout(y.tanh(), 0.5) * x.shape[0]

    torch.manual_seed(0)
    torch._dynamo.reset()
    dumper = graph_dumper_aot("net", tmp_path_factory.mktemp("dump"), example_inputs="data")
    compiled = torch.compile(Model(), backend=dumper, dynamic=True)
    compiled(torch.randn(3, 4), torch.tensor([0, 4, 2])).sum().backward()
    torch._dynamo.reset()
    for graph in load_dump(dumper.path).graphs[1:]:
        assert graph.replay().ok
    return dumper.path


def use(path):
    """Read everything there is, as tools do; gives the errors."""
    errors = []
    try:
        graphs = load_dump(path).graphs
    except DumpFormatError as error:
        return [error]
    for graph in graphs:
        for read in READERS:
            try:
                read(graph)
            except DumpFormatError as error:
                errors.append(error)
    return errors


READERS = [
    *(lambda graph: graph.code, lambda graph: graph.specs, lambda graph: graph.module()),
    *(lambda graph: graph.inputs(max_bytes=1 << 20), lambda graph: graph.replay()),
]


@pytest.fixture
def copied(dump, tmp_path):
    import shutil

    return Path(shutil.copytree(dump, tmp_path / "net"))


FILES = [
    *("graph.py", "graph.safetensors", "inputs.json", "inputs.safetensors", "outputs.json"),
    "outputs.safetensors",
]


class Bomb:
    def __reduce__(self):
        return (os._exit, (66,))


@pytest.mark.parametrize("content", ["gone", "empty", "cut", "a pickle", "noise", "a folder"])
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_named(name, content, copied):
    graph = next(g for g in load_dump(copied) if g.phase == "forward")
    file = graph.folder / name
    good = file.read_bytes()
    file.unlink()
    match content:
        case "empty":
            file.write_bytes(b"")
        case "cut":
            file.write_bytes(good[: len(good) // 2])
        case "a pickle":
            file.write_bytes(pickle.dumps(Bomb()))
        case "noise":
            file.write_bytes(bytes(range(256)) * 8)
        case "a folder":
            file.mkdir()
    errors = use(copied)
    if (name, content) in {("graph.py", "empty"), ("graph.py", "cut")}:
        assert errors == []  # any text is code to look at
        return
    if content == "gone" and name in ("inputs.safetensors", "outputs.json"):
        assert errors == []  # then there is nothing to compare with
        assert graph.replay().reference is None
        return
    assert errors
    for error in errors:
        assert name in str(error)
        assert graph.folder.name in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
@pytest.mark.parametrize("content", ["a pipe", "a device"])
@pytest.mark.parametrize("name", [*FILES, "../index.json"])
def test_a_file_that_never_ends_is_refused(name, content, copied):
    graph = next(g for g in load_dump(copied) if g.phase == "forward")
    file = graph.folder / name
    file.unlink()
    if content == "a pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    errors = use(copied)
    assert errors
    assert all("a pipe or a device" in str(error) for error in errors)


def test_a_number_that_json_cannot_say_again_is_refused(copied):
    file = copied / "index.json"
    file.write_text(file.read_text().replace('"torch":', '"x": 1e999, "torch":', 1))
    (error,) = use(copied)
    assert "1e999" in str(error)


def test_an_integer_that_no_float_can_hold_is_refused(copied):
    file = next(g for g in load_dump(copied) if g.phase == "forward").folder / "inputs.json"
    document = json.loads(file.read_text())
    document["inputs"][0] = {"name": "x", "kind": "float", "value": 10**400}
    file.write_text(json.dumps(document))
    errors = use(copied)
    assert errors
    assert all("inputs[0].value" in str(error) for error in errors)


def test_a_graph_from_the_future_says_which_package_to_update(copied):
    from lazyfx_core._container import read_container, write_container

    file = copied / "000_joint"
    file = next(g for g in load_dump(copied)).folder / "graph.safetensors"
    text, tensors = read_container(file)
    document = json.loads(text) | {"schema": 99}
    write_container(file, json.dumps(document).encode(), tensors)
    with pytest.raises(DumpFormatError, match=r"graph\.safetensors.*schema 99.*newer lazyfx-core"):
        load_dump(copied).graphs[0].module()


def test_an_index_from_the_future_and_two_graphs_of_one_id_are_refused(copied):
    file = copied / "index.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"version": 99}))
    with pytest.raises(DumpFormatError, match=r"index\.json: field version is 99"):
        load_dump(copied)
    file.write_text(json.dumps(document | {"graphs": document["graphs"] * 2}))
    with pytest.raises(DumpFormatError, match=r"index\.json: field graphs .*ids of their own"):
        load_dump(copied)


def test_a_huge_input_is_refused_before_memory_is_asked_for(copied):
    graph = next(g for g in load_dump(copied) if g.phase == "forward")
    file = graph.folder / "inputs.json"
    document = json.loads(file.read_text())
    tensor = next(each for each in document["inputs"] if each["kind"] == "tensor")
    tensor["shape"], tensor["stride"] = [1 << 40], [1]
    file.write_text(json.dumps(document))
    with pytest.raises(DumpFormatError, match=r"inputs\.json: field inputs\[\d+\]\.shape"):
        graph.inputs(data=False)


def test_settings_from_a_stranger_are_checked_before_they_are_set(copied):
    threads = torch.get_num_threads()
    graph = next(g for g in load_dump(copied) if g.phase == "forward")
    file = graph.folder / "outputs.json"
    good = json.loads(file.read_text())
    for name, value in (
        *(("threads", 1 << 40), ("threads", 0), ("threads", "4"), ("deterministic", 1)),
        *(("default_dtype", "load"), ("float32_matmul_precision", "low"), ("mkldnn", None)),
    ):
        document = json.loads(json.dumps(good))
        document["settings"][name] = value
        file.write_text(json.dumps(document))
        with pytest.raises(DumpFormatError, match=rf"outputs\.json: field settings\.{name}"):
            graph.replay()
    assert torch.get_num_threads() == threads


FUZZ = textwrap.dedent(
    """
    import collections, json, random, shutil, sys, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    import torch
    torch.set_num_threads(1)
    from lazyfx_compilers import DumpFormatError, load_dump
    from lazyfx_core._container import read_container, write_container

    whole, count, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(11)
    inside = tuple({p for p in sys.path if p.endswith(("site-packages", "src"))})
    inside += (sys.prefix, sys.base_prefix, str(whole))
    events, watching = [], False

    def hook(event, args):
        if not watching:
            return
        if event in ("exec", "compile"):
            name = str(args[1] if event == "compile" else args[0].co_filename)
            if not name.startswith(("<eval_with_key>", "<unknown>", *inside)):
                events.append((event, name))
        elif event == "open":
            file, mode, flags = args
            is_write = (flags or 0) & 3 or "w" in str(mode) or "a" in str(mode)
            if is_write or not str(file).startswith(("<", *inside)):
                events.append((event, str(file), str(mode)))
        elif event.split(".")[0] in ("subprocess", "socket", "shutil", "pty", "pickle"):
            events.append((event, str(args)[:200]))
        elif event in ("os.system", "os.exec", "os.remove", "os.rename", "os.mkdir", "os.fork"):
            events.append((event, str(args)[:200]))

    VALUES = [
        None, True, False, -1, 0, 3, 2 ** 40, 2 ** 70, 1e308, "", "x", [], {}, [[]], "../../x",
        "__import__('os').system('true')", "cuda:7", "float8_e5m2", "\\0", "\\ud800", "nan",
    ]

    def leaves(data, path=()):
        if path:
            yield path
        keys = range(len(data)) if isinstance(data, list) else ()
        for key in data if isinstance(data, dict) else keys:
            yield from leaves(data[key], (*path, key))

    def replaced(data, path, value):
        if not path:
            return value
        new = dict(data) if isinstance(data, dict) else list(data)
        new[path[0]] = replaced(data[path[0]], path[1:], value)
        return new

    def use():
        outcomes = set()
        for graph in load_dump(whole):
            def of(read, only):
                try:
                    read()
                    outcomes.add("read")
                except DumpFormatError as error:
                    outcomes.add("refused")
                    assert str(whole) in str(error) or "random" in str(error), error
                except only:
                    outcomes.add("raised while running")
            of(lambda: (graph.code, graph.specs), ())
            of(lambda: graph.inputs(max_bytes=1 << 20, data=False), ())
            of(graph.module, ())
            # what the graph does when it is run is up to torch's operators, errors included
            of(graph.replay, Exception)
        return outcomes

    files = sorted(p for p in whole.rglob("*") if p.suffix in (".json", ".safetensors"))
    good = {file: file.read_bytes() for file in files}
    documents = {f: json.loads(b) for f, b in good.items() if f.suffix == ".json"}
    places = {f: list(leaves(d)) for f, d in documents.items()}
    archives = {f: read_container(f) for f in files if f.name == "graph.safetensors"}
    structures = {f: json.loads(text) for f, (text, _) in archives.items()}
    places |= {f: list(leaves(d)) for f, d in structures.items()}
    sys.addaudithook(hook)
    use()
    tally = collections.Counter()
    for i in range(count):
        file = chance.choice(files)
        kind = chance.randrange(4)
        content = bytearray(good[file])
        if kind == 0:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del content[chance.randrange(len(content)) :]
        elif file in places:
            data = documents.get(file) or structures[file]
            for _ in range(1 + (kind == 3)):
                path = chance.choice(places[file])
                try:
                    data = replaced(data, path, chance.choice(VALUES))
                except (KeyError, IndexError, TypeError):
                    pass  # the first change took this place away
            text = json.dumps(data).encode()
            if file in archives:
                write_container(file, text, archives[file][1])
                content = None
            else:
                content = text
        else:
            start = chance.randrange(len(content))
            content[start : start + 8] = chance.randbytes(8)
        if content is not None:
            file.write_bytes(content)
        try:
            watching = True
            tally.update(use())
        except DumpFormatError as error:
            tally.update(["refused"])
            assert str(whole) in str(error), error
        except BaseException as error:
            print(f"case {i}: {file.name}, {kind}: {error!r}", file=sys.stderr)
            raise
        finally:
            watching = False
        file.unlink()
        file.write_bytes(good[file])
    print(json.dumps({"events": events[:10], **tally}))
    """
)


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzzed_dumps_are_read_or_refused_and_touch_nothing(count, copied):
    """Under an audit hook, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(copied), str(count)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["events"] == []
    assert result["read"] > count / 4
    assert result["refused"] > count / 4
