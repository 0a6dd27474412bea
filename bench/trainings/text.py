"""Real text in eight topics that differ as the data of sites do: chat, a language reference, networks, …

It is what every machine has that can run this: the dialogues of ``chatterbot-corpus``, the Python reference
that ``help()`` shows, and the docstrings of the standard library, by subject. Other versions of Python have
other text, so that losses differ in the second digit; compare runs of one machine.
"""

from __future__ import annotations

import ast
import functools
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from tensorbus.demo.corpus import corpus_folder, read_topics

SUBJECTS = {
    "concurrency": "asyncio concurrent multiprocessing queue selectors socketserver subprocess threading",
    "network": "email ftplib http imaplib ipaddress mailbox poplib smtplib socket ssl urllib wsgiref xmlrpc",
    "numbers": "_pydecimal calendar datetime fractions numbers random statistics uuid",
    "testing": "bdb doctest inspect pdb profile pydoc timeit trace traceback unittest warnings",
    "text": "argparse codecs configparser csv difflib encodings html json optparse re string textwrap xml",
    "windows": "tkinter turtle",
}
"""Modules and packages whose docstrings make a topic."""
TOPICS = ("chat", "reference", *SUBJECTS)
BLOCK = 512
"""Bytes. One block in ``HELD_OUT_EVERY`` is never trained on."""
HELD_OUT_EVERY = 6
LONGEST = 120_000
"""Bytes of a topic; more is cut off, so that no topic outweighs another by far."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic's text as ASCII codes, int64: the blocks to train on in one piece, and those held out."""

    name: str
    train: torch.Tensor
    held_out: torch.Tensor


@functools.cache
def topics() -> tuple[Topic, ...]:
    """All topics, in the order of `TOPICS`; read once."""
    return tuple(_split(name, _read(name)) for name in TOPICS)


def shares(sites: int) -> list[tuple[int, ...]]:
    """Which topics each site has: all of them for one site, else different ones."""
    return [tuple(range(site, len(TOPICS), sites)) for site in range(sites)]


def _split(name: str, text: str) -> Topic:
    raw = text.encode("ascii", errors="replace")[:LONGEST]
    codes = torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()
    blocks = codes[: codes.numel() // BLOCK * BLOCK].view(-1, BLOCK)
    place = torch.arange(len(blocks)) % HELD_OUT_EVERY
    return Topic(name, blocks[place > 0].flatten(), blocks[place == 0])


def _read(name: str) -> str:
    if name == "chat":
        lines = (line for found in read_topics(corpus_folder()).values() for line in found)
        return "\n".join(f"- {line.question}\n- {line.answer}" for line in lines)
    if name == "reference":
        from pydoc_data import topics as reference

        return "\n".join(reference.topics[key] for key in sorted(reference.topics))
    texts = (text for module in SUBJECTS[name].split() for text in _docstrings(module))
    found: list[str] = []
    length = 0
    while length < LONGEST and (text := next(texts, None)) is not None:
        found.append(text)
        length += len(text) + 1
    return "\n".join(found)


def _docstrings(module: str) -> Iterable[str]:
    """The docstrings of a module or package of the standard library, which is read and not imported."""
    library = Path(sysconfig.get_path("stdlib"))
    whole = library / module
    for path in sorted(whole.rglob("*.py")) if whole.is_dir() else [whole.with_suffix(".py")]:
        if {"test", "tests"} & set(path.relative_to(library).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""
