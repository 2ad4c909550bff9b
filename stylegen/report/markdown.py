"""Text of others in Markdown: what it says is shown, and nothing in it is taken for Markdown or HTML."""

import re


def escaped(text: str) -> str:
    """As it reads, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """As code in a line."""
    line = " ".join(text.split())
    fence = _longer_than_in(line, 0)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def fenced(text: str, language: str = "") -> str:
    """As a block of code."""
    fence = _longer_than_in(text, 2)
    end = "" if text.endswith("\n") else "\n"
    return f"{fence}{language}\n{text}{end}{fence}"


def _longer_than_in(text: str, least: int) -> str:
    """More backticks than stand together anywhere in the text, and more than `least`."""
    return "`" * (1 + max([least, *map(len, re.findall("`+", text))]))
