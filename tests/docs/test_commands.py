"""Commands in the documentation are ones that exist: what a reader types is understood."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import click
import pytest

from reading.pages import ROOT, Block, blocks, code_spans, pages
from reading.shell import commands
from tensorbus.bus.server import openapi
from tensorbus.cli.main import cli

RUN_ELSEWHERE = ("http.md", "uploads.md")
"""Pages whose blocks for a shell are scripts, which other tests run against a broker."""
OTHERS = {
    ".",
    "cd",
    "cp",
    "export",
    "git",
    "helm",
    "kubectl",
    "mv",
    "nats",
    "nice",
    "rm",
    "rsync",
    "sed",
    "sh",
    "sqlite3",
}
"""Programs that are not ours, and whose options are theirs."""
THEIR_OPTIONS = {"--epochs"}
"""Options in the text that belong to the reader's own script."""

COMMANDS = [
    (block, words)
    for page in pages()
    if page.name not in RUN_ELSEWHERE
    for block in blocks(page)
    for words in commands(block)
]


def _members(
    command: click.Command, name: str, context: click.Context | None = None
) -> Iterator[click.Command]:
    """A command and all below it."""
    context = click.Context(command, context, info_name=name)
    yield command
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from _members(found, below, context)


ALL_OPTIONS = {
    option
    for command in _members(cli, "tensorbus")
    for parameter in command.params
    for option in (
        *parameter.opts,
        *parameter.secondary_opts,
        *command.get_help_option_names(click.Context(command)),
    )
}


def _tensorbus(words: Sequence[str]) -> None:
    """Parse them as the program does; only files need not be there."""
    command: click.Command = cli
    context = click.Context(cli, info_name="tensorbus")
    rest = list(words)
    while isinstance(command, click.Group):
        found = command.get_command(context, rest[0]) if rest else None
        assert found is not None, f"no such command: {rest[:1]}"
        context = click.Context(found, context, info_name=rest.pop(0))
        command = found
    if "--help" in rest:
        return
    given, left, _ = command.make_parser(context).parse_args(rest)
    assert not left, f"too many arguments: {left}"
    for parameter in command.params:
        value = given.get(parameter.name or "")
        if value is None or value is False or not isinstance(value, str | list | tuple):
            assert not parameter.required, f"{parameter.opts} is missing"
        elif not isinstance(parameter.type, click.Path):
            parameter.process_value(context, value)


def _curl(words: Sequence[str]) -> None:
    """Its address is one of the broker's, by its OpenAPI document."""
    paths = openapi.document()["paths"]
    assert isinstance(paths, dict)
    templates = [re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)) for path in paths]  # pyright: ignore
    [path] = [path for word in words if (path := re.sub(r"^(http://[^/]+|\$U)(?=/)", "", word)) != word]
    assert any(re.fullmatch(template, path.split("?")[0]) for template in templates), path


def _python(words: Sequence[str]) -> None:
    """Scripts and modules exist, and mention each option."""
    if words[0] == "-c":
        compile(words[1], "<documentation>", "exec")
        return
    if words[0] == "-m":
        spec = importlib.util.find_spec(words[1])
        assert spec is not None and spec.origin is not None, words[1]
        script, options = Path(spec.origin), words[2:]
    else:
        script, options = ROOT / words[0], words[1:]
        if not script.is_relative_to(ROOT / "bench"):
            return  # one that the page tells the reader to write; test_programs runs it
    text = "".join(path.read_text() for path in script.parent.glob("*.py"))
    for option in options:
        if option.startswith("--") and option not in THEIR_OPTIONS:
            assert f'"{option}"' in text, f"{script} has no {option}"


def _make(words: Sequence[str]) -> None:
    """The target is in the Makefile, and options in ARGS are the demo's."""
    target, *variables = words
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{re.escape(target)}:", makefile, re.M), target
    for variable in variables:
        name, _, value = variable.partition("=")
        assert re.search(rf"^{name} \?=", makefile, re.M), name
        if target == "demo":
            _tensorbus(["demo", *shlex.split(value)])


def _pytest(words: Sequence[str]) -> None:
    for word in words:
        assert word.startswith("-") or (ROOT / word).exists(), word


def _docker(words: Sequence[str]) -> None:
    """The compose file is there, and has the profile."""
    files = [ROOT / name for option, name in pairwise(words) if option == "-f"]
    assert files
    for file in files:
        for option, name in pairwise(words):
            assert option != "--profile" or re.search(rf"\b{name}\b", file.read_text()), name


def _pip(words: Sequence[str]) -> None:
    """Extras are ones that the package has."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in re.findall(r"\[([^\]]+)\]", " ".join(words)):
        assert extra in extras, extra


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "tensorbus": _tensorbus, "curl": _curl, "python": _python, "make": _make, "pytest": _pytest,
    "docker": _docker, "pip": _pip,
}  # fmt: skip


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=lambda value: str(value)[:60])
def test_the_command_is_understood(block: Block, words: list[str]) -> None:
    """Programs, their commands, options and values exist."""
    program = words[0].removeprefix(".venv/bin/")
    if program in OTHERS:
        return
    assert program in CHECKS, f"{block}: is {program!r} a program? Mark the block `text` if it is no command."
    try:
        CHECKS[program](words[1:])
    except (click.ClickException, AssertionError) as error:
        said = error.format_message() if isinstance(error, click.ClickException) else error
        pytest.fail(f"{block}: {' '.join(words)}: {said}")


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_options_in_the_text_exist(page: Path) -> None:
    """Every ``--option`` between backticks is one of ours, or one that is known to be the reader's."""
    scripts = "".join(path.read_text() for path in (ROOT / "bench").rglob("*.py"))
    scripts += "".join(path.read_text() for path in (ROOT / "integrations").rglob("*.py"))
    for span in code_spans(page):
        if re.match(r"[a-z]", span) and span.split()[0] not in CHECKS:
            continue  # another program's command
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", span):
            known = option in ALL_OPTIONS or option in THEIR_OPTIONS or f'"{option}"' in scripts
            assert known, f"{page.name}: {option}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_commands_in_the_text_exist(page: Path) -> None:
    """Every `` `tensorbus something` `` between backticks is a command."""
    for span in code_spans(page):
        if found := re.match(r"tensorbus ([a-z]+)(?: ([a-z]+)\b(?!=))?", span):
            command = cli.get_command(click.Context(cli), found[1])
            assert command is not None, f"{page.name}: {span}"
            if isinstance(command, click.Group) and found[2]:
                assert command.get_command(click.Context(command), found[2]), f"{page.name}: {span}"


def test_the_page_of_the_command_line_names_every_command() -> None:
    """No command is missing from the guide's table."""
    table = (ROOT / "docs" / "cli.md").read_text()
    for name in cli.list_commands(click.Context(cli)):
        assert re.search(rf"^\| `{name}\b", table, re.M), name


def test_the_page_of_the_broker_names_every_flag() -> None:
    """`tensorbus serve` has no option that docs/operating.md does not tell of."""
    serve = cli.get_command(click.Context(cli), "serve")
    assert serve is not None
    told = (ROOT / "docs" / "operating.md").read_text()
    for parameter in serve.params:
        for option in parameter.opts:
            assert f"`{option}`" in told or f"`{option} " in told, option


def test_the_page_of_federations_names_every_option_of_the_aggregator() -> None:
    """`tensorbus aggregate` has no option of its own that docs/federation.md does not tell of."""
    aggregate, topics = (cli.get_command(click.Context(cli), name) for name in ("aggregate", "topics"))
    assert aggregate is not None and topics is not None
    ours = {parameter.name for parameter in aggregate.params} - {
        parameter.name for parameter in topics.params
    }
    told = (ROOT / "docs" / "federation.md").read_text()
    for parameter in aggregate.params:
        if parameter.name in ours:
            assert any(option in told for option in parameter.opts), parameter.opts


def test_the_makefile_lists_its_targets() -> None:
    """`make help` has a line for each target that the documentation names."""
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for block, words in COMMANDS:
        if words[0] == "make":
            assert f"make {words[1]}\t" in listed, f"{block}: {words}"
