"""Writes ``docs/compatibility.md``: what the tests gave on each release of torch, from real runs.

``python docs/compatibility.py DEVICE RESULTS...`` puts a run into ``docs/test-runs.json`` and
writes the page. RESULTS is what ``pytest --junitxml`` wrote, in one file or in several, each for
other folders; torch and Python are those that run this. A run in which a test failed is refused:
the page says what works, and a failure is to be mended. ``python docs/compatibility.py`` writes the
page alone. ``nox -s matrix`` does all of it.
"""

from __future__ import annotations

import datetime
import json
import platform
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
RUNS = ROOT / "docs" / "test-runs.json"

# What a run notes besides the counts.
COLUMNS = ("torch", "python", "device", "system", "date")
PACKAGES = ("core", "ltc", "compilers", "tools")
ACROSS = "across"  # tests of more than one package: tests/integration, tests/compat, ...

Run = dict[str, Any]
"""What is in COLUMNS; per package: passed, and how many tests a reason skipped."""


class FailedRunError(Exception):
    """A run had failures, which do not belong on the page; says which tests."""


def read(*results: Path, device: str = "cpu") -> dict[str, Run]:
    """Count the tests in JUnit files by package; on a GPU those that put tensors there.

    Raises:
        FailedRunError: A test failed, or could not be run.
    """
    packages = {name: {"passed": 0, "skipped": Counter()} for name in (*PACKAGES, ACROSS)}
    failed = []
    for case in (case for path in results for case in ElementTree.parse(path).iter("testcase")):
        where = case.get("classname", "").split(".")
        folder = where[1] if where[0] == "tests" and len(where) > 1 else ACROSS
        package = packages[folder if folder in PACKAGES else ACROSS]
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{'.'.join(where)}::{case.get('name')}")
        elif device != "cpu" and case.find(f".//property[@value='{device}']") is None:
            continue
        elif skipped is not None:
            package["skipped"][_reason(skipped)] += 1
        else:
            package["passed"] += 1
    if failed:
        raise FailedRunError(f"{len(failed)} failed: {', '.join(failed[:5])}")
    return {
        name: {"passed": one["passed"], "skipped": dict(sorted(one["skipped"].items()))}
        for name, one in packages.items()
    }


def _reason(skipped: ElementTree.Element) -> str:
    text = " ".join((skipped.get("message") or "no reason given").split())
    if skipped.get("type") == "pytest.xfail":
        text = f"fails, as expected: {text}"
    return re.sub(r"could not import '(\S+)': .*", r"\1 is not installed", text)


def record() -> list[Run]:
    """All runs, one for each release, Python and device; the oldest release first."""
    return json.loads(RUNS.read_text()) if RUNS.exists() else []


def add(run: Run) -> None:
    """Put a run in the place of an older one of the same release, Python and device."""
    runs = {_key(one): one for one in [*record(), run]}
    ordered = [runs[key] for key in sorted(runs)]
    RUNS.write_text(json.dumps(ordered, indent=1) + "\n")


def _key(run: Run) -> tuple[Any, ...]:
    return (run["device"], _numbers(_release(run)), _numbers(run["python"])[:2], run["system"])


def _release(run: Run) -> str:
    """The release of torch without the build: 2.15.0 of 2.15.0+cpu."""
    return run["torch"].partition("+")[0]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


# --- the page ----------------------------------------------------------------------------------


def page() -> str:
    """The text of ``docs/compatibility.md``."""
    runs = record()
    lines = [
        "# Compatibility",
        "",
        "<!-- Written by docs/compatibility.py; do not edit. -->",
        "",
        "Every row is a run of all tests in which none failed, as by `nox -s matrix`. What is not",
        "here was not run; tests that are younger than a row are not in it. On a GPU, tests that",
        "put no tensors there do not count. Which private names of torch all this rests on, and",
        "where each exists, is on [another page](seams.md); what does not work on an old release",
        "is among the [limits](limits.md).",
        "",
        *([] if runs else ["No run has been recorded yet.", ""]),
        f"| torch | Python | device | system | run on | {' | '.join(PACKAGES)} | across packages |",
        f"|{'---|' * (len(COLUMNS) + len(PACKAGES) + 1)}",
    ]
    for run in runs:
        cells = [run[name] for name in COLUMNS]
        cells += [_cell(run["packages"][name]) for name in (*PACKAGES, ACROSS)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "A cell says how many tests passed, and how many were left out after the `+`."]
    reasons = _reasons(runs)
    everywhere = {key for key, count in reasons.items() if all(count.values())}
    lines += [
        *("", "## Left out on some releases", ""),
        *_table(runs, {key: reasons[key] for key in reasons if key not in everywhere}),
        *("", "## Left out in every run", ""),
        "The long forms are run by hand (`nox -s tests -- --slow`) before a release.",
        "",
        *_table(runs, {key: reasons[key] for key in reasons if key in everywhere}),
    ]
    return "\n".join(lines) + "\n"


def _cell(package: Run) -> str:
    return f"{package['passed']:,} + {sum(package['skipped'].values()):,}"


def _reasons(runs: list[Run]) -> dict[tuple[str, str], dict[str, int]]:
    """How many tests of a package a reason skips on each release and device: the most of its runs.

    What several packages skip for one reason is one row, with their names.
    """
    columns = list(dict.fromkeys(map(_column, runs)))
    counted: dict[str, dict[str, int]] = {}
    packages: dict[str, dict[str, None]] = {}
    for run in runs:
        here: Counter[str] = Counter()
        for name in (*PACKAGES, ACROSS):
            for reason, count in run["packages"][name]["skipped"].items():
                here[reason] += count
                packages.setdefault(reason, {})[name] = None
        for reason, count in here.items():
            row = counted.setdefault(reason, dict.fromkeys(columns, 0))
            row[_column(run)] = max(row[_column(run)], count)
    rows = {
        (", ".join(sorted(packages[reason], key=(*PACKAGES, ACROSS).index)), reason): row
        for reason, row in counted.items()
    }
    return dict(sorted(rows.items(), key=lambda item: (item[0][0], -sum(item[1].values()))))


def _column(run: Run) -> str:
    return _release(run) if run["device"] == "cpu" else f"{_release(run)} {run['device']}"


def _table(runs: list[Run], rows: dict[tuple[str, str], dict[str, int]]) -> list[str]:
    if not rows:
        return ["None."]
    columns = list(dict.fromkeys(map(_column, runs)))
    lines = [f"| package | why | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for (package, reason), counts in rows.items():
        text = reason.replace("|", "\\|").replace("<", "\\<")
        numbers = " | ".join(str(counts[column] or "") for column in columns)
        lines.append(f"| {package} | {text} | {numbers} |")
    return lines


def main(arguments: list[str]) -> None:
    """Add the run that is named, if one is; write the page."""
    if arguments:
        import torch

        device, *results = arguments
        add(
            {
                "torch": str(torch.__version__),
                "python": platform.python_version(),
                "device": device,
                "system": platform.system(),
                "date": datetime.date.today().isoformat(),
                "packages": read(*map(Path, results), device=device),
            }
        )
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}: {len(record())} runs\n")


if __name__ == "__main__":
    main(sys.argv[1:])
