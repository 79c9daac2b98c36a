"""Completion of ``study ...`` in a shell: verbs by click, overrides of ``study train`` by Hydra.

Shells call ``study`` with ``_STUDY_COMPLETE`` in the environment (click's protocol).
"""

import re

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
)

from study.cli.group import cli


@add_completion_class
class BashWithoutSpace(BashComplete):
    """Bash's completion, without a space after ``adapter.`` and ``adapter.rank=``."""

    source_template = BashComplete.source_template.replace(
        "    return 0\n",
        "    [[ ${COMPREPLY[0]} == *[.=/] ]] && compopt -o nospace\n    return 0\n",
    )


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the code that completes words in a shell.

    \b
    eval "$(study completion bash)"     in ~/.bashrc
    eval "$(study completion zsh)"      in ~/.zshrc
    """
    code = get_completion_class(shell)
    assert code is not None
    click.echo(code(cli, {}, "study", "_STUDY_COMPLETE").source())


def complete_overrides(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The completions of the last word of ``study train ...``.

    Bash takes ``=`` for a word of its own, which click drops at the end of a line.
    """
    from study.config.hints import complete

    before = list(context.params["arguments"])
    if not incomplete and before and not re.search("=|^[-~]", "".join(before[-2:])):
        before.append("=")
    is_split = before[-1:] == ["="]
    *overrides, word = re.sub(" = ?", "=", " ".join([*before, incomplete])).split(" ")
    found = complete([text for text in overrides if "=" in text], word)
    return [CompletionItem(text.partition("=")[2] if is_split else text) for text in found]
