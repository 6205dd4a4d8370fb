"""The command ``lazyfx``: what it prints, where to, and with which exit status."""

import importlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from inspect import signature

import click
import pytest
import torch
from click.testing import CliRunner
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lazyfx_cli
from lazyfx_cli import cli, main
from lazyfx_compilers import graph_dumper_aot

COMMANDS = ("completion", "diff", "html", "inputs", "ls", "minify", "replay", "show")


def wrong(gm, inputs):
    """A compiler whose cosine is a sine."""
    import copy

    gm = copy.deepcopy(gm)
    for node in gm.graph.nodes:
        if node.target is torch.ops.aten.cos.default:
            node.target = torch.ops.aten.sin.default
    gm.recompile()
    return gm.forward


def refusing(gm, inputs):
    raise ValueError("this compiler\ntakes nothing")


class Net(nn.Module):
    def __init__(self, factor=2.0):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.factor = factor

    def forward(self, x):
        return (torch.cos(self.linear(x)) * self.factor).sum()


def make_dump(folder, name, net, data=True):
    torch.compiler.reset()
    dumper = graph_dumper_aot(name, folder, data)
    torch.compile(net, backend=dumper)(torch.arange(8.0).view(2, 4)).backward()
    return dumper.path


@pytest.fixture(scope="module")
def dumps(tmp_path_factory):
    """Two dumps that differ in one constant."""
    folder = tmp_path_factory.mktemp("dumps")
    torch.manual_seed(0)
    net = Net()
    one = make_dump(folder, "one", net)
    net.factor = 3.0
    two = make_dump(folder, "two", net, data=False)
    return folder, one, two


@pytest.fixture
def forward(dumps):
    return next(each for each in dumps[1].iterdir() if "forward" in each.name)


def run(*arguments, status=0):
    """Standard output of a command in this process."""
    # click 8.1 mixes it with standard error unless told not to; later releases know no such option
    apart = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
    words = [str(each) for each in arguments]
    found = CliRunner(**apart).invoke(cli, words, standalone_mode=False)
    seen = found.return_value if found.exception is None else found.exception
    code = getattr(seen, "exit_code", seen) or 0
    assert code == status, (found.output, found.exception)
    return found.stdout


def process(*arguments, **settings):
    """A real process, which is given ``lazyfx`` on its path."""
    code = "import sys; from lazyfx_cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **settings)


# --- the frame ------------------------------------------------------------------------------------


def test_help_and_completion_load_no_torch():
    for arguments in (["--help"], ["completion", "bash"], ["replay", "--help"], ["--version"]):
        code = (
            "import sys; from lazyfx_cli import main; main(sys.argv[1:]); "
            "assert 'torch' not in sys.modules and 'lazyfx_tools' not in sys.modules"
        )
        found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
        assert found.returncode == 0, found.stderr
        assert found.stdout


def test_the_help_lists_every_command_and_every_exit_status():
    text = " ".join(run("--help").split())
    for word in (*COMMANDS, "1 a difference", "2 wrong usage", "3 a dump cannot", "130"):
        assert word in text
    for command in COMMANDS:
        assert "Usage:" in run(command, "--help")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_of_the_shell(shell):
    text = run("completion", shell)
    assert "_LAZYFX_COMPLETE" in text
    program = shutil.which(shell)
    if program:
        checked = subprocess.run([program, "-n"], input=text, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr


def test_the_shell_is_told_the_commands_that_fit():
    settings = {
        **os.environ,
        "_LAZYFX_COMPLETE": "bash_complete",
        "COMP_WORDS": "lazyfx re",
        "COMP_CWORD": "1",
    }
    found = process(env=settings)
    assert found.stdout.split() == ["plain,replay"]


def test_wrong_usage_is_status_2_and_one_message():
    for arguments in (["nothing"], ["show"], ["diff", "a"], ["replay", "x", "--repeat", "-1"]):
        found = process(*arguments)
        assert found.returncode == 2, arguments
        assert found.stderr
        assert not found.stdout
        assert "Traceback" not in found.stderr


def test_what_is_no_dump_is_status_3_and_one_line(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "index.json").write_text('{"format": "lazyfx.index", "version": 1}')
    for path, said in (("broken", "index.json: field"), ("nowhere", "no such folder")):
        found = process("ls", tmp_path / path)
        assert found.returncode == 3
        assert said in found.stderr
        assert len(found.stderr.splitlines()) == 1
        assert not found.stdout
    shown = process("--traceback", "show", tmp_path / "broken")
    assert "Traceback" in shown.stderr


def test_a_reader_that_has_seen_enough_is_no_error(dumps):
    code = "import sys; from lazyfx_cli import main; sys.exit(main())"
    command = f"{sys.executable} -c '{code}' show --code {dumps[1]}/000_forward; echo $? >&2"
    found = subprocess.run(
        ["bash", "-c", f"({command}) | head -1"], capture_output=True, text=True, timeout=300
    )
    assert len(found.stdout.splitlines()) == 1
    assert found.stderr.split() == ["0"]


def test_output_that_nobody_reads_any_more_is_no_error(dumps):
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from lazyfx_cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "ls", str(dumps[0])]
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=300)
    os.close(writer)
    assert (found.returncode, found.stderr) == (0, b"")


def test_an_interrupt_is_status_130():
    program = (
        "import sys, lazyfx_cli._show as s\n"
        "from lazyfx_cli import main\n"
        "def interrupted(*a): raise KeyboardInterrupt\n"
        "s.folders_below = interrupted\n"
        "sys.exit(main(['ls']))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 130
    assert found.stderr.split() == ["lazyfx:", "interrupted"]


# --- ls and show ----------------------------------------------------------------------------------


def test_ls_lists_every_graph_with_a_path_that_other_commands_take(dumps):
    lines = run("ls", dumps[0]).splitlines()
    assert lines[0].split() == ["GRAPH", "PHASE", "NODES", "INPUTS", "DATA", "CALLS"]
    assert len(lines) == 7
    for line in lines[1:]:
        assert run("show", line.split()[0])
    data = json.loads(run("ls", dumps[0], "--json"))
    assert [dump["name"] for dump in data] == ["one", "two"]
    assert [graph["phase"] for graph in data[0]["graphs"]] == ["joint", "forward", "backward"]
    assert data[0]["environment"]["torch"] == torch.__version__


def test_ls_names_a_dump_that_it_cannot_read_and_lists_the_others(dumps, tmp_path):
    shutil.copytree(dumps[1], tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "index.json").write_text('{"format": "lazyfx.index", "version": 99}')
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "index.json").write_text('{"name": "some package"}')
    found = process("ls", tmp_path)
    assert found.returncode == 3
    assert len(found.stdout.splitlines()) == 4
    (line,) = found.stderr.splitlines()
    assert "bad/index.json: field version is 99" in line


def test_show_has_each_part_of_a_graph_as_text_and_json(forward):
    assert "phase: forward" in run("show", forward)
    assert json.loads(run("show", forward, "--json"))["phase"] == "forward"
    assert "aten.cos" in run("show", forward, "--code")
    assert "aten.cos" in json.loads(run("show", forward, "--code", "--json"))
    assert re.search(r"1 +aten\.cos\.default", run("show", forward, "--ops"))
    assert json.loads(run("show", forward, "--ops", "--json"))["aten.cos.default"] == 1
    assert re.search(r"float32 +\[2, 4\]", run("show", forward, "--inputs"))
    kinds = {each["kind"] for each in json.loads(run("show", forward, "--inputs", "--json"))}
    assert kinds == {"tensor"}
    nodes = json.loads(run("show", forward, "--nodes", "--json"))
    cosine = next(each for each in nodes if each["target"] == "aten.cos.default")
    assert cosine["result"] == "float32[2, 4] cpu"
    assert "test_cli.py" in cosine["user_line"]
    assert cosine["text"] in run("show", forward, "--nodes")


def test_the_start_of_an_id_is_enough_if_it_is_the_only_one(dumps):
    assert "phase: joint" in run("show", dumps[1] / "000_joint")
    assert "000_joint" in process("show", dumps[1] / "000").stderr
    run("show", dumps[1] / "000", status=2)
    run("show", dumps[1] / "nothing", status=2)
    run("show", dumps[1], status=2)


def test_inside_the_folder_of_a_graph_the_graph_is_here(forward, monkeypatch):
    monkeypatch.chdir(forward)
    assert "phase: forward" in run("show", ".")
    assert len(json.loads(run("ls", "..", "--json"))[0]["graphs"]) == 3


def test_names_in_a_dump_cannot_talk_to_the_terminal(dumps, tmp_path):
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    folder = shutil.copytree(dumps[1], tmp_path / "evil")
    index = folder / "index.json"
    document = json.loads(index.read_text())
    for entry in document["graphs"]:
        entry["phase"] = evil
        entry["ops"] = {evil: 3}
    document["name"] = evil
    index.write_text(json.dumps(document))
    graph = folder / document["graphs"][0]["id"]
    (graph / "graph.py").write_text(f"# {evil}\n")
    inputs = json.loads((graph / "inputs.json").read_text())
    inputs["inputs"][0]["name"] = evil
    inputs["inputs"][0]["dtype"] = evil
    (folder / document["graphs"][1]["id"] / "inputs.json").write_text(json.dumps(inputs))
    for arguments in (
        ("ls", folder),
        ("ls", folder, "--json"),
        ("show", graph),
        ("show", graph, "--code"),
        ("show", graph, "--ops"),
        ("show", folder / document["graphs"][1]["id"], "--inputs"),
        ("diff", folder, dumps[1]),
    ):
        text = CliRunner().invoke(cli, [str(each) for each in arguments]).output
        assert text
        assert not {"\x1b", "\x07", "\u202e"} & set(text), arguments


# --- replay, diff, inputs, html, minify -----------------------------------------------------------


def test_replay_holds_all_graphs_against_what_was_recorded(dumps):
    text = run("replay", dumps[1])
    assert text.count("bit-equal to what was recorded") == 2
    data = json.loads(run("replay", dumps[1] / "000_forward", "--repeat", 2, "--json"))
    assert data[0]["ok"] is True
    assert len(data[0]["seconds"]) == 2


def test_a_compiler_that_is_wrong_or_raises_is_status_1(dumps, forward, monkeypatch):
    monkeypatch.chdir(os.path.dirname(__file__))
    assert "DIFFERS" in run("replay", forward, "--compiler", "test_cli:wrong", status=1)
    text = run("replay", forward, "--compiler", "test_cli:refusing", status=1)
    assert text.splitlines() == [f"{forward.name}: RAISES ValueError: this compiler takes nothing"]
    (entry,) = json.loads(
        run("replay", forward, "--compiler", "test_cli:refusing", "--json", status=1)
    )
    assert entry["error"].startswith("ValueError")
    run("replay", forward, "--compiler", "eager")
    run("replay", forward, "--device", "nowhere", status=2)
    for unknown in ("test_cli:nothing", "no_module:x", "no_backend"):
        run("replay", forward, "--compiler", unknown, status=2)


def test_a_function_of_the_users_has_to_be_allowed(tmp_path, monkeypatch):
    (tmp_path / "own_functions.py").write_text("def twice(x):\n    return x * 2\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    graph = fx.Graph()
    twice = importlib.import_module("own_functions").twice
    graph.output(graph.call_function(twice, (graph.placeholder("x"),)))
    dumper = graph_dumper_aot("own", tmp_path, True)
    x = torch.ones(3)
    dumper.fw_compiler(fx.GraphModule({}, graph), [x])(x)
    folder = dumper.path / "000_inference"
    run("replay", folder, status=3)
    assert "bit-equal" in run("replay", folder, "--allow", "own_functions:twice")
    for unknown in ("own_functions:thrice", "no_module:x", "twice", "own_functions:number"):
        run("replay", folder, "--allow", unknown, status=2)
    line = ["--allow", "no_module:x", str(folder)]  # a shell that completes it imports nothing
    command = cli.get_command(click.Context(cli), "replay")
    assert command.make_context("replay", line, resilient_parsing=True).params["allow"] == ()
    monkeypatch.delitem(sys.modules, "own_functions")


def test_only_a_function_by_name_is_looked_for_in_the_current_folder(
    forward, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", ".")])
    run("replay", forward, "--compiler", "eager")
    assert str(tmp_path) not in sys.path
    run("replay", forward, "--compiler", "no_module:x", status=2)
    assert sys.path[0] == str(tmp_path)


def test_a_graph_that_cannot_be_read_does_not_stop_the_others(dumps, tmp_path):
    folder = shutil.copytree(dumps[1], tmp_path / "copy")
    next(folder.glob("*joint*/graph.safetensors")).write_bytes(b"no archive")
    found = process("replay", folder)
    assert found.returncode == 3
    assert found.stdout.count("bit-equal") == 2
    assert "graph.safetensors" in found.stderr
    assert process("diff", folder, dumps[1]).returncode == 3


def test_diff_says_what_differs_by_status_text_and_json(dumps):
    _, one, two = dumps
    assert "identical" in run("diff", one, one)
    text = run("diff", one, two, status=1)
    assert re.search(r"args\[1\]: 2\.0 -> 3\.0", text)
    data = json.loads(run("diff", one / "000_forward", two / "000_forward", "--json", status=1))
    assert data["identical"] is False
    (field,) = data["graphs"][0]["diff"]["changed"][0]["fields"]
    assert field == {"field": "args[1]", "old": "2.0", "new": "3.0"}
    run("diff", one, two / "000_forward", status=2)


def test_inputs_are_shown_and_written(dumps, forward, tmp_path):
    from safetensors.torch import load_file

    assert "float32" in run("inputs", forward)
    file = tmp_path / "inputs.safetensors"
    assert run("inputs", forward, "-o", file) == ""
    recorded = load_file(file)
    assert any(torch.equal(each, torch.arange(8.0).view(2, 4)) for each in recorded.values())
    run("inputs", forward, "--random", "--seed", 1, "-o", file)
    random = load_file(file)
    assert random.keys() == recorded.keys()
    assert not any(torch.equal(random[name], recorded[name]) for name in random)
    data = json.loads(run("inputs", forward, "--json"))
    assert {each["name"] for each in data} == set(recorded)


def test_who_may_read_a_file_is_for_the_umask_to_say(forward, tmp_path):
    before = os.umask(0o077)
    try:
        run("inputs", forward, "-o", tmp_path / "inputs.safetensors")
        run("html", forward, "-o", tmp_path / "page.html")
    finally:
        os.umask(before)
    for file in tmp_path.glob("*.*"):
        assert file.stat().st_mode & 0o777 == 0o600, file


def test_html_writes_one_page_of_one_dump_or_of_two(dumps, tmp_path):
    _, one, two = dumps
    file = tmp_path / "page.html"
    assert run("html", one, "-o", file).strip() == str(file)
    assert "000_forward" in file.read_text()
    run("html", one, "-o", tmp_path / "no folder" / "page.html", status=2)
    run("html", one, two, "-o", file)
    text = file.read_text()
    assert "old/000_forward" in text
    assert "new/000_forward" in text


class Calls(TorchDispatchMode):
    """Notes every operator that runs."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("command", "options", "runs"),
    [
        ("ls", (), False),
        ("show", (), False),
        ("show", ("--code",), False),
        ("show", ("--nodes",), False),
        ("inputs", (), False),
        ("diff", (), False),
        ("html", (), False),
        ("html", ("--times",), True),
        ("replay", (), True),
    ],
)
def test_a_command_runs_a_graph_only_where_the_help_says_so(
    dumps, forward, tmp_path, command, options, runs
):
    paths = {"ls": dumps[:1], "diff": dumps[1:]}.get(command, [forward])
    if command == "html":
        options += ("-o", tmp_path / "page.html")
    with Calls() as calls:
        run(command, *paths, *options, status=1 if command == "diff" else 0)
    assert (torch.ops.aten.cos.default in calls.seen) is runs
    named = " ".join([command, *(each for each in options if each == "--times")])
    exceptions = re.search(r"except that (.*) run its graphs", " ".join(run("--help").split()))[1]
    assert (named in re.split(", | and ", exceptions)) is runs


def test_minify_finds_the_call_that_a_compiler_gets_wrong(forward, tmp_path, monkeypatch):
    monkeypatch.chdir(os.path.dirname(__file__))
    data = json.loads(
        run(
            *("minify", forward, "--compiler", "test_cli:wrong", "--fault", "differs"),
            *("-o", tmp_path, "--json"),
            status=1,
        )
    )
    assert data["found"] is True
    assert data["nodes_after"] == 1
    assert os.path.exists(data["script"])


def test_minify_says_so_where_there_is_no_fault(forward):
    text = run("minify", forward, "--compiler", "eager", "--fault", "differs")
    assert "no fault found" in text


# --- terminals ------------------------------------------------------------------------------------


def on_a_terminal(arguments, **environment):
    """What a command writes to a terminal that is its standard output and error."""
    master, slave = pty.openpty()
    code = "import sys; from lazyfx_cli import main; sys.exit(main())"
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", **environment},
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    child.wait(timeout=300)
    os.close(master)
    return seen.decode()


def test_color_and_progress_are_for_terminals_only(dumps):
    _, one, two = dumps
    assert "\x1b[" in on_a_terminal(["diff", one, two])
    plain = on_a_terminal(["diff", one, two], NO_COLOR="1")
    assert "\x1b[" not in plain
    assert "comparing 1/" in plain
    piped = process("diff", one, two)
    assert "\x1b" not in piped.stdout
    assert piped.stderr == ""


def test_the_package_beside_is_the_command():
    assert lazyfx_cli.main is main
