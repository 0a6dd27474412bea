"""Programs in the documentation run, and pieces of programs use what there is."""

from __future__ import annotations

import ast
import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reading.pages import ROOT, Block, blocks, pages
from tensorbus.aggregator.participant import Participant
from tensorbus.bus.client import Client, Delivery, Message
from tensorbus.bus.testing import running_broker

DEFAULT_URL = "http://127.0.0.1:8080"
PYTHON = [block for page in pages() for block in blocks(page) if block.language == "python"]
WHOLE = [block for block in PYTHON if "asyncio.run(" in block.text]
CLASSES: dict[str, type] = {
    "bus": Client, "participant": Participant, "delivery": Delivery, "message": Message,
}  # fmt: skip
"""What variables of these names are, on every page."""


def _tree(block: Block) -> ast.Module:
    """The piece as Python understands it; it may stand within a coroutine that is not shown."""
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = compile(block.text, str(block), "exec", flags)
    assert isinstance(tree, ast.Module)
    return tree


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_it_uses_what_there_is(block: Block) -> None:
    """It is Python; what it imports of Tensorbus exists; calls have no argument that the function lacks."""
    known = dict[str, Any](CLASSES)
    tree = _tree(block)
    for name, value in _imported(tree):
        known[name] = value
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name):
            called = known.get(call.func.id)
        elif isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            owner = known.get(call.func.value.id)
            if owner is None:
                continue
            called = getattr(owner, call.func.attr, None)
            assert called is not None, f"{block}: {ast.unparse(call.func)}"
        else:
            continue
        if called is not None:
            _takes(called, call, f"{block}: {ast.unparse(call)}")


def _imported(tree: ast.Module) -> Iterator[tuple[str, object]]:
    """What a piece imports of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tensorbus":
            name = node.module or ""
            if name.startswith("tensorbus.integrations."):
                # To import them takes the other framework, and many seconds; their own tests do.
                assert {alias.name for alias in node.names} <= _defined(name), name
                continue
            module = importlib.import_module(name)
            for alias in node.names:
                yield alias.asname or alias.name, getattr(module, alias.name)


def _defined(module: str) -> set[str]:
    """The classes and functions of a module, by its source."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    tree = ast.parse(Path(spec.origin).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def _takes(called: object, call: ast.Call, what: str) -> None:
    assert callable(called), what
    parameters = inspect.signature(called).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    for keyword in call.keywords:
        assert keyword.arg is None or keyword.arg in parameters, f"{what}: no argument {keyword.arg}"


@pytest.mark.parametrize(
    "block", [b for page in pages() for b in blocks(page) if b.language == "json"], ids=str
)
def test_json_is_json(block: Block) -> None:
    """A block of JSON is one value, or members of an object."""
    text = block.text
    json.loads(text if text.lstrip().startswith(("{", "[")) else f"{{{text}}}")


def test_the_whole_programs_are_those_that_are_run_below() -> None:
    """A new program on a page needs a test."""
    places = sorted(str(block).split(":")[0] for block in WHOLE)
    assert places == ["README.md", "docs/quickstart.md", "docs/quickstart.md"]


class Terminal:
    """A reader at a machine of their own: a folder, and a broker under the address of the pages."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder, self._url = folder, url
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = os.environ | {"PATH": path, "TENSORBUS_URL": url}

    async def type(self, script: str) -> str:
        """Run lines in a shell; what they print. An error ends them, and the test."""
        script = script.replace(DEFAULT_URL, self._url)
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", script),
            cwd=self._folder,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            said = (await asyncio.wait_for(shell.communicate(), 180))[0].decode()
        finally:
            if shell.returncode is None:
                shell.kill()
        assert shell.returncode == 0, f"{script}\n{said}"
        return said

    def save(self, name: str, program: str) -> None:
        """Save a program as a file."""
        (self._folder / name).write_text(program.replace(DEFAULT_URL, self._url))


async def test_the_program_of_the_readme(tmp_path: Path) -> None:
    """It publishes a model in nf4, takes it from a subscription, and has the shapes again."""
    [program] = [block for block in WHOLE if block.page.name == "README.md"]
    async with running_broker(tmp_path / "data") as url:
        terminal = Terminal(tmp_path, url)
        terminal.save("program.py", program.text)
        said = await terminal.type("python program.py")
    assert re.search(r"102,402,048 bytes as \d{2},\d{3},\d{3}", said), said
    assert "models.demo {'embed': (50000, 512), 'norm': (512,)}" in said


async def test_the_quick_start(tmp_path: Path) -> None:
    """From the first `curl` to a federation of two sites, whose final model is the line that they learn."""
    page = list(blocks(ROOT / "docs" / "quickstart.md"))
    by_hand = next(block.text for block in page if "curl" in block.text)
    publish, site = (block.text for block in page if block.language == "python")
    told = next(block.text for block in page if "python publish.py" in block.text)
    together = next(block.text for block in page if "python site.py" in block.text)
    async with running_broker(tmp_path / "data") as url:
        terminal = Terminal(tmp_path, url)
        said = await terminal.type(by_hand)
        assert said.count("demo.greetings") >= 2, said

        terminal.save("publish.py", publish)
        found = re.match(
            r"([0-9a-f]{32}) 16,957,480 bytes as ([\d,]+)", await terminal.type("python publish.py")
        )
        assert found is not None and f"bytes as {found[2]}" in told  # the page shows this very size
        rest = [line[2:] for line in told.splitlines() if line.startswith("$ ")][1:]
        shown = re.findall(r"[0-9a-f]{32}", told)[0]
        said = await terminal.type("\n".join(rest).replace(shown, found[1]))
        assert "0.weight" in said and (tmp_path / "model.safetensors").stat().st_size > 16_957_480

        terminal.save("site.py", site)
        *started, seed, published = together.splitlines()
        running = [asyncio.ensure_future(terminal.type(line)) for line in started]
        try:
            await terminal.type(f"{seed}\n{published}")
            first, second, _ = await asyncio.gather(*running)
        finally:
            for one in running:
                one.cancel()
    finals = {
        next(line for line in said.splitlines() if line.startswith("final:")) for said in (first, second)
    }
    [final] = finals
    weight, bias = (float(word) for word in final.split()[1:])
    assert abs(weight - 3) < 0.2 and abs(bias + 1) < 0.2, final


async def test_an_upload_by_hand(tmp_path: Path) -> None:
    """The script of docs/uploads.md publishes a file of frames with nothing but curl."""
    [script] = [block.text for block in blocks(ROOT / "docs" / "uploads.md") if block.language == "sh"]
    async with running_broker(tmp_path / "data") as url:
        terminal = Terminal(tmp_path, url)
        async with Client(url) as bus:
            receipt = await bus.publish("demo.frames", b"some bytes")
            await terminal.type(f"curl -sf -o m.frames {url}/v1/messages/{receipt.id}/frames")
            await terminal.type(script)
            [copy] = [info async for info in bus.messages("demo")]
            assert await (await bus.fetch(copy.id)).load() == b"some bytes"
