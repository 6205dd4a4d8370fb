"""The group of commands, and what becomes of errors: one line, and an exit status."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from ._output import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

DIFFERENT = 1
USAGE = 2
UNREADABLE = 3
FAILED = 4
INTERRUPTED = 130

_COMMANDS = {
    "completion": "_completion:completion",
    "diff": "_diff:diff",
    "html": "_html:html",
    "inputs": "_inputs:inputs",
    "ls": "_show:ls",
    "minify": "_minify:minify",
    "replay": "_replay:replay",
    "show": "_show:show",
}
_HELP = {
    "completion": "Print a script that completes commands in a shell.",
    "diff": "Compare two dumps, or two graphs of dumps.",
    "html": "Write graphs as one page that opens from disk.",
    "inputs": "Show a graph's inputs, or write them to a file.",
    "ls": "List the graphs of all dumps in a folder.",
    "minify": "Find the smallest part of a graph that a compiler gets wrong.",
    "replay": "Run dumped graphs again and compare with what was recorded.",
    "show": "Show one dumped graph.",
}


class Failure(click.ClickException):
    """Something went wrong that is not an error of this program; one line says what."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]  # click's own errors do the same

    def show(self, file: Any = None) -> None:
        """Say it on standard error."""
        sys.stderr.write(f"lazyfx: {' '.join(plain(self.message).split())}\n")


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        import importlib

        module, _, name = _COMMANDS.get(cmd_name, "").partition(":")
        if not module:
            return None
        command: click.Command = getattr(importlib.import_module(f".{module}", __package__), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_HELP.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            _stop_writing()
            return 0
        except Exception as error:
            if ctx.params.get("traceback"):
                raise
            raise _as_failure(error) from None


def _as_failure(error: Exception) -> Failure:
    known = sys.modules.get("lazyfx_compilers.errors")
    if known is not None and isinstance(error, known.DumpFormatError):
        return Failure(str(error), UNREADABLE)
    if known is not None and isinstance(
        error, (known.UnknownOptionError, known.NotCompilableError, known.ReproError)
    ):
        return Failure(str(error), USAGE)
    if known is not None and isinstance(error, known.CompilerError):
        return Failure(str(error), FAILED)
    if isinstance(error, OSError):
        return Failure(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "), FAILED)
    first = str(error).strip().split("\n")[0]
    return Failure(f"{type(error).__name__}: {first} (lazyfx --traceback ... shows where)", FAILED)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 all is well, 1 a difference, mismatch or fault was found, 2 wrong "
    "usage, 3 a dump cannot be read or must not be trusted, 4 something else failed, 130 "
    "interrupted. Nothing that a dump holds is executed, except that replay, minify and "
    "html --times run its graphs, whose operators are torch's or in --allow.",
)
@click.version_option(package_name="lazyfx-tools", prog_name="lazyfx")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
def cli(traceback: bool) -> None:
    """Graphs that graph_dumper_aot has written: list, show, run, compare, make smaller.

    PATH is the folder of a dump (or one with dumps in it), PATH/ID one of its graphs; the start of
    an id will do if it is the only one.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        status = cli.main(
            args=None if arguments is None else list(arguments),
            prog_name="lazyfx",
            standalone_mode=False,
        )
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("lazyfx: interrupted\n")
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        _stop_writing()
        return 0
    return status if isinstance(status, int) else 0


def _stop_writing() -> None:
    """What reads our output has seen enough; the interpreter must not fail to flush the rest."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
