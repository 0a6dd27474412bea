"""The commands in a block, each as the words of one program."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from .pages import Block

LANGUAGES = ("", "bash", "sh", "console")
"""Blocks with these marks hold commands, and in `console` also what they say."""
_PROMPT = "$ "


def commands(block: Block) -> Iterator[list[str]]:
    """The commands that a block tells the reader to type.

    Pipes, lists and background jobs are taken apart; assignments before a command, redirections behind it and
    comments are left out. Substitutions, `$(…)`, stay words of the command around them.
    """
    if block.language not in LANGUAGES:
        return
    text = block.text
    if block.language == "console" or text.startswith(_PROMPT):
        lines = text.splitlines()
        text = "\n".join(line.removeprefix(_PROMPT) for line in lines if line.startswith(_PROMPT))
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip():
            yield from _parts(line)


def _parts(line: str) -> Iterator[list[str]]:
    words: list[str] = []
    lexer = shlex.shlex(_quoted_substitutions(line), posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    skip = False
    for word in lexer:
        if skip:
            skip = False
        elif word and set(word) <= set(";&|"):
            if words:
                yield words
            words = []
        elif word and set(word) <= set("<>&"):
            skip = True
        elif words or not re.fullmatch(r"[A-Za-z_]\w*=.*", word):
            words.append(word)
    if words:
        yield words


def _quoted_substitutions(line: str) -> str:
    """``$(a b)`` as one word."""
    return re.sub(r'(?<!")\$\(([^()]*)\)', lambda found: shlex.quote(found[0]), line)
