"""Markdown -> the plain text that a reader of the page sees.

markdown-it-py reads the marks; here its tokens become lines. What the author broke into lines stays so, because
verse is made of them: a soft break is a line break too.
"""

import re
from collections.abc import Iterable
from functools import cache
from html.parser import HTMLParser

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.front_matter import front_matter_plugin

SCENE_BREAK = "* * *"
# markdown-it drops what is nested deeper, and each level takes three calls of Python's thousand.
MAX_NESTING = 100

_TOML_FRONT_MATTER = re.compile(r"\+{3}[ \t]*\r?\n(?:.*\n)*?\+{3}[ \t]*(?:\r?\n|\Z)")
_YAML_KEY = re.compile(r"""^["']?[\w-]+["']?[ \t]*:(?:\s|\Z)""", re.MULTILINE)
_TAG_NAME = re.compile(r"<(/?)([a-z][a-z0-9-]*)", re.IGNORECASE)
# html.parser ends a processing instruction at the first >, and versions of Python differ on an unclosed comment.
_UNSEEN_HTML = re.compile(r"<!--.*?(?:-->|\Z)|<!\[CDATA\[.*?(?:\]\]>|\Z)|<\?.*?(?:\?>|\Z)", re.DOTALL)
# On tags that never end html.parser takes quadratic time; to a reader of the page they are text anyway.
_UNCLOSED_TAG = re.compile(r"<(?![^<>]*>)")
_INDENTED_BREAK = re.compile(r"(?<![ \t])[ \t]*\n[ \t\n]*")
_HIDDEN_ELEMENTS = frozenset({"script", "style"})
_LINE_ELEMENTS = frozenset({"li", "tr", "dt", "dd", "summary", "option", "figcaption", "caption"})
_PARAGRAPH_ELEMENTS = frozenset(
    "p div h1 h2 h3 h4 h5 h6 ul ol dl table blockquote pre section article header footer hr details figure".split()
)


def markdown_text(source: str) -> str:
    """The plain text of one Markdown file, as a reader sees it; ends with one line break, unless it is empty.

    Blocks are separated by a blank line, the items of a tight list by a line break, the cells of a table by tabs.
    Front matter, comments, scripts, URLs of links, bullets and marks of emphasis go. Code, the numbers of list items
    and scene breaks (as `* * *`) stay. The alternative text of an image stays where it stands among words; a
    paragraph of nothing but images, such as figures and badges, goes, since nobody sees its words.
    """
    source = source.removeprefix("\ufeff")
    if toml := _TOML_FRONT_MATTER.match(source):
        source = source[toml.end() :]
    tokens = _reader(front_matter=True).parse(source)
    if tokens and tokens[0].type == "front_matter" and not _is_yaml(tokens[0].content):
        # A text that begins with a rule and has another one.
        tokens = _reader(front_matter=False).parse(source)
    page = _Page()
    for token in tokens:
        page.add(token)
    return page.text()


@cache
def _reader(front_matter: bool) -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"maxNesting": MAX_NESTING}).enable(["table", "strikethrough"])
    return reader.use(front_matter_plugin) if front_matter else reader


def _is_yaml(content: str) -> bool:
    """Whether what stands between two lines of --- can be front matter: empty, or keys right below the first."""
    return not content.strip() or (content[0] != "\n" and _YAML_KEY.search(content) is not None)


class _Page:
    """The blocks of a page so far, and where in lists and tables the next one stands."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._numbers = ""  # of the list items that have begun and still wait for their first words
        self._depth = 0  # of lists
        self._row: list[str] | None = None  # the cells, while in a row of a table
        self._hidden = False  # whether markdown-it would leave out the <p>: that is how it marks a tight list
        self._first = True  # of its outermost list or its table
        self._last_hidden = False

    def text(self) -> str:
        text = "".join(self._parts).strip("\n")
        return text + "\n" if text else ""

    def add(self, token: Token) -> None:
        match token.type:
            case "paragraph_open" | "heading_open":
                self._hidden = token.hidden
            case "inline" if self._row is not None:
                self._row.append(_inline_text(token.children or ()).replace("\n", " "))
            case "inline":
                self._add_block(_inline_text(token.children or ()), self._hidden)
            case "fence" | "code_block":
                self._add_block(token.content.removesuffix("\n"))
            case "html_block":
                self._add_block(_html_text(token.content))
            case "hr":
                self._add_block(SCENE_BREAK)
            case "table_open":
                self._first = True
            case "tr_open":
                self._row = []
            case "tr_close":
                self._add_row()
            case _:
                self._enter_or_leave_list(token)

    def _enter_or_leave_list(self, token: Token) -> None:
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                self._first = self._first or self._depth == 0
                self._depth += 1
            case "bullet_list_close" | "ordered_list_close":
                self._depth -= 1
            case "list_item_open" if token.info:
                # A bullet is a mark, a number is text: "1984. A cold day in April." is an item to Markdown.
                self._numbers += f"{token.info}{token.markup} "
            case "list_item_close" if self._numbers:
                self._put(self._numbers.rstrip(), close=not self._first)
                self._numbers = ""

    def _add_block(self, text: str, hidden: bool = False) -> None:
        if not text.strip():
            return
        close = self._depth > 0 and not self._first and (hidden or self._last_hidden)
        self._put(self._numbers + text, close)
        self._numbers = ""
        self._last_hidden = hidden

    def _add_row(self) -> None:
        row, self._row = "\t".join(self._row or ()), None
        if row.strip():
            self._put(self._numbers + row, close=not self._first)
            self._numbers = ""

    def _put(self, text: str, close: bool) -> None:
        if self._parts:
            self._parts.append("\n" if close else "\n\n")
        self._parts.append(text)
        self._first = False


def _inline_text(tokens: Iterable[Token]) -> str:
    """The words of a paragraph, or "" if it holds nothing but images."""
    tokens = list(tokens)
    if not any(
        token.type != "html_inline" and token.type != "image" and token.content.strip() for token in tokens
    ):
        return ""
    parts: list[str] = []
    hidden = ""  # the script or style that is open; it ends with the paragraph at the latest
    for token in tokens:
        if token.type == "html_inline" and (tag := _TAG_NAME.match(token.content)):
            closing, name = tag[1], tag[2].lower()
            if name == "br" and not hidden:
                parts.append("\n")
            elif name in _HIDDEN_ELEMENTS:
                hidden = "" if closing else hidden or name
        elif not hidden:
            parts.append(_seen(token, parts))
    return "\n".join(line.strip(" \t") for line in "".join(parts).strip(" \t\n").split("\n"))


def _seen(token: Token, before: list[str]) -> str:
    match token.type:
        case "text" | "text_special" | "code_inline":
            return token.content
        case "image":
            return _inline_text(token.children or ())
        case "hardbreak":
            return "\n"
        case "softbreak":
            # The line may hold nothing but an anchor, or have ended with <br> already.
            return "" if not before or before[-1].endswith("\n") else "\n"
    return ""


def _html_text(block: str) -> str:
    """The words of a block of HTML, a line for each of its lines, items and rows."""
    reader = _HtmlText()
    reader.feed(_UNCLOSED_TAG.sub("&lt;", _UNSEEN_HTML.sub("", block)))
    reader.close()
    return "".join(reader.parts).strip("\n")


class _HtmlText(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._breaks = 0  # line breaks due before the next words
        self._hidden = False
        self._verbatim = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = self._hidden or tag in _HIDDEN_ELEMENTS
        self._verbatim = self._verbatim or tag == "pre"
        if tag in ("td", "th") and self.parts and not self._breaks:
            self.parts[-1] = self.parts[-1].rstrip(" \n")
            self.parts.append("\t")
        if tag == "br":
            self._breaks += 1
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        self._hidden = self._hidden and tag not in _HIDDEN_ELEMENTS
        self._verbatim = self._verbatim and tag != "pre"
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if not self._verbatim:
            data = _INDENTED_BREAK.sub("\n", data)
        if self._breaks or not self.parts:
            data = data.lstrip("\n" if self._verbatim else " \t\n")
        if data and self._breaks and self.parts:
            self.parts[-1] = self.parts[-1].rstrip()
            self.parts.append("\n" * self._breaks)
        if data:
            self.parts.append(data)
            self._breaks = 0

    def _break(self, tag: str) -> None:
        if tag in _PARAGRAPH_ELEMENTS:
            self._breaks = max(self._breaks, 2)
        elif tag in _LINE_ELEMENTS:
            self._breaks = max(self._breaks, 1)
