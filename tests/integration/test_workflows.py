"""What runs in continuous integration: pinned actions, least rights, and nox for everything."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="transformers brings it to the session tests")

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
TEXTS = {path.stem: path.read_text() for path in FILES}
WORKFLOWS = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
JOBS = [
    pytest.param(job, id=f"{name}-{key}")
    for name, workflow in WORKFLOWS.items()
    for key, job in workflow["jobs"].items()
]
STEPS = [
    pytest.param(step, id=f"{name}-{key}-{index}")
    for name, workflow in WORKFLOWS.items()
    for key, job in workflow["jobs"].items()
    for index, step in enumerate(job["steps"])
]
# What a line of a run step may be, besides a call of nox: no tool is among it.
SHELL = re.compile(
    r"exit 1|done|for \w+ in [\w ]+; do|test -f .*|git merge-base --is-ancestor \S+ \S+|"
    r"echo .* >> \"\$GITHUB_OUTPUT\""
)
INSTALL = 'python -m pip install "nox[uv]"'
NOX = re.compile(r"(?:\w+=\$\()?nox (-[st]) (.*?)( -l --json\))?")


def nox_calls(step):
    """The kind and the names of each nox call of a step."""
    for line in step.get("run", "").splitlines():
        match = NOX.fullmatch(line.strip())
        if match is not None:
            yield match[1], match[2].split()


def noxfile_names():
    """The sessions that noxfile.py defines, and those of each tag; it is not imported."""
    sessions, tags = set(), {}
    for function in ast.parse((ROOT / "noxfile.py").read_text()).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        decorators = [ast.unparse(one) for one in function.decorator_list]
        if any(re.match(r"nox\.session\b", one) for one in decorators):
            sessions.add(function.name)
            text = " ".join(decorators)
            for tag, name in re.findall(r"tags=\[f?'([^'{]*)(?:\{(\w+)\})?'\]", text):
                values = re.search(rf"for {name} in (\([^)]*\))", text) if name else None
                for end in ast.literal_eval(values[1]) if values else ("",):
                    tags.setdefault(tag + end, set()).add(function.name)
    return sessions, tags


def test_the_workflows_are_there():
    assert set(WORKFLOWS) == {"ci", "nightly", "release"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_action_is_pinned_by_its_commit_and_says_which_version_that_is(name):
    lines = [line for line in TEXTS[name].splitlines() if re.search(r"\buses:", line)]
    assert lines
    for line in lines:
        assert re.search(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_an_action_has_one_version_everywhere():
    pins = {}
    for text in TEXTS.values():
        for action, pin in re.findall(r"uses: (\S+)@(\S+ # \S+)", text):
            pins.setdefault(action, set()).add(pin)
    assert {action: found for action, found in pins.items() if len(found) > 1} == {}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_runs_a_tool_runs_nox(step):
    for line in map(str.strip, step.get("run", "").splitlines()):
        allowed = (
            line == INSTALL or NOX.fullmatch(line) is not None or SHELL.fullmatch(line) is not None
        )
        assert allowed, line


@pytest.mark.parametrize("step", STEPS)
def test_a_step_names_sessions_and_tags_that_the_noxfile_has(step):
    sessions, tags = noxfile_names()
    for kind, names in nox_calls(step):
        for name in names:
            if kind == "-t":
                assert name in tags, name
            elif name != '"$SESSION"':  # what the job plan was told by nox itself
                assert name in sessions, name


def test_the_tag_ci_is_what_continuous_integration_runs():
    _, tags = noxfile_names()
    steps = [step for job in WORKFLOWS["ci"]["jobs"].values() for step in job["steps"]]
    calls = [names for step in steps for kind, names in nox_calls(step) if kind == "-s"]
    assert {name for names in calls for name in names} - {'"$SESSION"'} == tags["ci"]


@pytest.mark.parametrize("step", STEPS)
def test_what_comes_from_outside_is_no_part_of_a_script(step):
    assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("step", STEPS)
def test_a_checkout_leaves_no_token_behind(step):
    if step.get("uses", "").startswith("actions/checkout@"):
        assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("job", JOBS)
def test_a_job_has_a_timeout(job):
    assert 0 < job["timeout-minutes"] <= 90


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_read_and_only_the_publishing_job_may_ask_for_an_identity(name):
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    assert "group" in workflow["concurrency"]
    more = {
        key: job["permissions"] for key, job in workflow["jobs"].items() if "permissions" in job
    }
    assert more == ({"publish": {"id-token": "write"}} if name == "release" else {})
    assert "secrets." not in TEXTS[name]


def test_every_job_that_a_pull_request_starts_is_in_the_check_that_sums_them_up():
    jobs = WORKFLOWS["ci"]["jobs"]
    assert set(jobs["all"]["needs"]) == {key for key in jobs if key not in ("all", "matrix-cuda")}
    assert jobs["matrix-cuda"]["if"].startswith("github.event_name == 'workflow_dispatch' &&")


def test_a_release_publishes_each_package_and_nothing_else():
    packages = {path.name for path in (ROOT / "packages").iterdir()}
    jobs = WORKFLOWS["release"]["jobs"]
    uploaded = {
        step["with"]["name"]: step["with"]["path"]
        for step in jobs["build"]["steps"]
        if "upload-artifact" in step.get("uses", "")
    }
    assert set(jobs["publish"]["strategy"]["matrix"]["project"]) == packages
    assert uploaded == {name: f"dist/{name.replace('-', '_')}-*" for name in packages}


@pytest.mark.parametrize(("tag", "passes"), [("v1.2.3", True), ("v1.2.4", False), ("v", False)])
def test_a_release_whose_tag_is_not_the_version_stops(tmp_path, tag, passes):
    (check,) = (
        step["run"]
        for step in WORKFLOWS["release"]["jobs"]["build"]["steps"]
        if "tag" in step.get("name", "")
    )
    (tmp_path / "dist").mkdir()
    for package in (ROOT / "packages").iterdir():
        stem = f"{package.name.replace('-', '_')}-1.2.3"
        for end in (".tar.gz", "-py3-none-any.whl"):
            (tmp_path / "dist" / (stem + end)).touch()
    done = subprocess.run(
        ["bash", "-e", "-c", check],
        cwd=tmp_path,
        env={**os.environ, "GITHUB_REF_NAME": tag},
        check=False,
    )
    assert (done.returncode == 0) is passes
