"""The command line, command by command, as Markdown: all of it comes from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from tensorbus.cli.main import cli

_INTRODUCTION = """\
# Every command

Made of the commands' own help when this page was built; [the command line](cli.md) is the guide to them.
Every command takes `--help`.
"""


def page() -> str:
    """The page."""
    return "\n".join(
        [_INTRODUCTION, *(text for path, command in commands() for text in _part(path, command))]
    )


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with what is typed for it, ``tensorbus token create``, a group before its members."""
    yield from _below(cli, click.Context(cli, info_name="tensorbus"))


def _below(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{context.command_path} {name}", command
        if isinstance(command, click.Group):
            yield from _below(command, click.Context(command, context, info_name=name))


def _part(path: str, command: click.Command) -> Iterator[str]:
    """Heading, usage, help and options of one command; members of a group are a level below it."""
    context = click.Context(command, info_name=path)
    yield f"{'#' * path.count(' ')}# {path}\n"
    yield f"```text\n{' '.join([path, *command.collect_usage_pieces(context)])}\n```\n"
    yield from _paragraphs(command.help or "")
    records = [
        record
        for parameter in command.get_params(context)
        if not ("help" in parameter.opts or "--help" in parameter.opts)
        and (record := parameter.get_help_record(context))
    ]
    if records:
        yield "| option | |\n| --- | --- |"
        yield from (f"| `{_cell(names)}` | {_prose(_cell(text))} |" for names, text in records)
        yield ""


def _paragraphs(text: str) -> Iterator[str]:
    """The help text: what stands behind a backspace has its own lines, and is shown as it is."""
    for paragraph in re.split(r"\n\s*\n", _dedented(text)):
        if paragraph.startswith("\b"):
            yield f"```text\n{paragraph[1:].strip(chr(10))}\n```\n"
        else:
            yield f"{_prose(paragraph)}\n"


def _dedented(text: str) -> str:
    """click has taken the indentation away already; what is left are line ends."""
    return text.replace("\r", "").strip("\n")


def _prose(text: str) -> str:
    """Words of a help text in Markdown: patterns, file names and markup are taken literally."""
    return re.sub(r"(?<!`)([<>*_\[\]#])(?!`)", r"\\\1", text) if "`" not in text else text


def _cell(text: str) -> str:
    """Text that may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")
