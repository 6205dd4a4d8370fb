"""``lazyfx completion``."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes lazyfx in SHELL.

    For bash put `eval "$(lazyfx completion bash)"` into ~/.bashrc, for zsh the same with zsh into
    ~/.zshrc; for fish write it to ~/.config/fish/completions/lazyfx.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # these three come with click
    root = click.get_current_context().find_root().command
    script = kind(root, {}, "lazyfx", "_LAZYFX_COMPLETE")
    # not .source(), which for bash starts a shell to look at its version
    sys.stdout.write(script.source_template % script.source_vars())
