"""The pages' templates, of the folder stylegen/templates, and what keeps text of others in its place in Markdown."""

import re

import jinja2

from stylegen.report.workspace_words import escaped


def fenced(text: str, language: str = "") -> str:
    """A block of Markdown around text of others: its fence is longer than any in the text."""
    fence = "`" * (1 + max(map(len, re.findall("`+", f"``{text}"))))
    end = "" if text.endswith("\n") else "\n"
    return f"{fence}{language}\n{text}{end}{fence}"


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("stylegen"),
    autoescape=jinja2.select_autoescape(["html.j2"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {"escaped": escaped, "fenced": fenced}
