"""The page that says what the tests gave on each torch: from runs, and none of them failed."""

import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = spec_from_file_location("compatibility", ROOT / "docs" / "compatibility.py")
compatibility = sys.modules[spec.name] = module_from_spec(spec)
spec.loader.exec_module(compatibility)

CASES = """\
<testsuites><testsuite>
<testcase classname="tests.core.test_flags" name="test_a"/>
<testcase classname="tests.core.serialization.test_meta" name="test_b"/>
<testcase classname="tests.tools.test_cli" name="test_c">
<skipped type="pytest.skip" message="needs a
 browser"/></testcase>
<testcase classname="tests.tools.test_cli" name="test_d">
<skipped type="pytest.xfail" message="torch 9"/></testcase>
<testcase classname="tests.integration.test_documents" name="test_e">
<skipped type="pytest.skip" message="could not import 'torchao': No module named 'torchao'"/>
</testcase>
%s</testsuite></testsuites>
"""


@pytest.fixture
def nothing_recorded(monkeypatch, tmp_path):
    monkeypatch.setattr(compatibility, "RUNS", tmp_path / "runs.json")


def run(results, torch, python="3.11.7", device="cpu"):
    return {
        "torch": torch,
        "python": python,
        "device": device,
        "system": "Linux",
        "date": "2026-01-02",
        "packages": compatibility.read(results),
    }


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.xml"
    path.write_text(CASES % "")
    return path


def test_tests_are_counted_by_package_and_reason(results):
    assert compatibility.read(results) == {
        "core": {"passed": 2, "skipped": {}},
        "ltc": {"passed": 0, "skipped": {}},
        "compilers": {"passed": 0, "skipped": {}},
        "tools": {
            "passed": 0,
            "skipped": {"fails, as expected: torch 9": 1, "needs a browser": 1},
        },
        "across": {"passed": 0, "skipped": {"torchao is not installed": 1}},
    }


@pytest.mark.parametrize("kind", ["failure", "error"])
def test_a_run_with_a_failure_is_refused(results, kind):
    results.write_text(
        CASES % f'<testcase classname="tests.ltc.test_x" name="test_y"><{kind}/></testcase>'
    )
    with pytest.raises(compatibility.FailedRunError, match=r"1 failed: tests.ltc.test_x::test_y"):
        compatibility.read(results)


@pytest.mark.usefixtures("nothing_recorded")
def test_a_run_takes_the_place_of_its_predecessor_and_the_oldest_torch_is_first(results):
    runs = (("2.11.0+cpu", "3.12.1"), ("2.9.1", "3.11.7"), ("2.11.0+cu130", "3.12.4"))
    for torch, python in runs:
        compatibility.add(run(results, torch, python))
    seen = [(one["torch"], one["python"]) for one in compatibility.record()]
    assert seen == [("2.9.1", "3.11.7"), ("2.11.0+cu130", "3.12.4")]


@pytest.mark.usefixtures("nothing_recorded")
def test_a_reason_stands_once_under_the_releases_it_counts_for(results):
    compatibility.add(run(results, "2.6.0"))
    results.write_text(results.read_text().replace("needs a\n browser", "came | later"))
    compatibility.add(run(results, "2.9.1"))
    text = compatibility.page()
    assert (
        "| 2.6.0 | 3.11.7 | cpu | Linux | 2026-01-02 | 2 + 0 | 0 + 0 | 0 + 0 | 0 + 2 | 0 + 1 |"
        in text
    )
    some, everywhere = text.split("## Left out in every run")
    assert "| tools | needs a browser | 1 |  |" in some
    assert "| tools | came \\| later |  | 1 |" in some
    assert "| across | torchao is not installed | 1 | 1 |" in everywhere


def test_on_a_gpu_only_tests_that_put_tensors_there_count(results):
    there = '<properties><property name="device" value="cuda"/></properties>'
    results.write_text(
        CASES % f'<testcase classname="tests.ltc.test_x" name="test_y">{there}</testcase>'
    )
    seen = compatibility.read(results, device="cuda")
    assert {name: one["passed"] for name, one in seen.items()} == {
        **dict.fromkeys(seen, 0),
        "ltc": 1,
    }
    assert not any(one["skipped"] for one in seen.values())
    assert compatibility.read(results)["core"]["passed"] == 2


def test_the_page_is_what_was_recorded():
    assert compatibility.PAGE.read_text() == compatibility.page(), (
        "run python docs/compatibility.py"
    )


def test_what_was_run_is_a_part_of_the_matrix():
    noxfile = (ROOT / "noxfile.py").read_text()
    torches = json.loads(re.search(r"^TORCHES = (\[.*\])$", noxfile, re.MULTILINE)[1])
    pythons = json.loads(re.search(r"^PYTHONS = (\[[^]]*\])", noxfile, re.MULTILINE)[1])
    for run in compatibility.record():
        assert run["torch"].partition("+")[0] in torches
        assert run["python"].rpartition(".")[0] in pythons
