"""Completion of ``study ...`` in a shell: verbs by click, overrides of ``study train`` by Hydra.

Shells call ``study`` with ``_STUDY_COMPLETE`` in the environment (click's protocol).
"""

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ZshComplete,
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


@add_completion_class
class ZshWithoutSpace(ZshComplete):
    """The same for Zsh."""

    source_template = ZshComplete.source_template.replace(
        "        compadd -U -V unsorted -a completions\n",
        "        local -a ending\n"
        "        [[ $completions[1] == *[.=/] ]] && ending=(-S '')\n"
        '        compadd -U "${ending[@]}" -V unsorted -a completions\n',
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
    """The completions of the last word of ``study train ...``."""
    from study.config.completion import complete

    words, is_split = _words([*context.params["arguments"], incomplete])
    overrides = [word for word in words[:-1] if "=" in word]
    found = complete(overrides, words[-1])
    return [CompletionItem(text.partition("=")[2] if is_split else text) for text in found]


def _words(parts: list[str]) -> tuple[list[str], bool]:
    """The words of a command line, and whether the shell has split the last one at ``=``.

    Bash takes ``=`` for a word of its own. Click drops it at the end of a line.
    """
    *before, last = parts
    if not last and before and "=" not in before[-1] and not before[-1].startswith(("-", "~")):
        before.append("=")
    words: list[str] = []
    for place, part in enumerate([*before, last]):
        follows = place > 0 and before[place - 1] == "="
        if words and (part == "=" or follows):
            words[-1] += part
        else:
            words.append(part)
    return words, bool(before) and before[-1] == "="
