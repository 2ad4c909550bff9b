"""What stands around and between the texts of a file, and the spaces that a tokenizer left in them.

Texts come in pieces of any size and are never held whole: what is decided about a character depends on a bounded
number of characters around it, so how a text was cut into pieces changes nothing.
"""

import re
from collections.abc import Callable, Iterable, Iterator

HEAD = 1 << 20  # a header begins within so many characters of the start
CHUNK = 1 << 16  # smaller pieces are joined first: each step costs the held-back characters again
REACH = 4096  # no marker is longer, with the blank lines after it
BEFORE = 512  # the blank lines before a footer are looked for in so many characters

# Both spellings are in the patterns, and no third one is: a piece that holds none of the words needs no search.
_WORDS = ("Gutenberg", "GUTENBERG", "SMALL PRINT")
# Each repetition is bounded, so that a marker is at most REACH long.
_BLANK_LINES = r"(?:[ \t]{0,20}\n){0,100}"
_PROJECT = r"(?:(?i:the|this)\s{1,9})?(?i:project)\s{1,9}(?:Gutenberg|GUTENBERG)"
# A title runs over as many lines as it likes, but not over a blank one, up to the asterisks.
_TITLE = r"(?:[^\n]|\n(?![ \t]{0,20}\n)){0,800}?\*{2}"
_START = re.compile(
    rf"""^[ ]{{0,20}}(?:
        \*{{2,5}}[ ]?(?i:start\s{{1,9}}of)\s{{1,9}}{_PROJECT}(?:{_TITLE})?
        | \*(?i:end)\ ?\*?\ ?(?i:the)\ SMALL\ PRINT
    )[^\n]{{0,400}}(?:\n{_BLANK_LINES}|\Z)""",
    re.MULTILINE | re.VERBOSE,
)
# Old footers have no asterisks. So that no sentence is taken for one, they begin a paragraph and go on with a title.
_OLD_WORK = (
    r"(?:(?i:the|this)\ )?(?i:project)\ (?:Gutenberg|GUTENBERG)"
    r"(?:['’][sS]\b|\ (?i:e-?(?:book|text))\b)(?!\ (?!of\b|e-?(?:[Bb]ook|[Tt]ext)\b)[a-z])"
)
_END = re.compile(
    rf"""^[ ]{{0,20}}(?:
        \*{{2,5}}[ ]?(?i:end\s{{1,9}}of)\s{{1,9}}{_PROJECT}
        | [ \t]{{0,20}}\n[ ]{{0,20}}E(?i:nd\ of)\ {_OLD_WORK}
    )""",
    re.MULTILINE | re.VERBOSE,
)


def cut_boilerplate(pieces: Iterable[str], report: Callable[[int], None]) -> Iterator[str]:
    """`pieces` without the headers and footers of Project Gutenberg, of each book where several were joined.

    A header ends with its line `*** START OF ...` (or `*END*THE SMALL PRINT!...`) and a footer begins with
    `*** END OF ...` (or `End of Project Gutenberg's ...`); blank lines next to a cut go too. A first header is only
    looked for among the first `HEAD` characters: before they are read, nothing is given. `report` is called at the end
    with the number of characters dropped, if there were any.
    """
    books = _Books()
    for chunk in _joined(pieces, first=HEAD + REACH, size=CHUNK):
        yield from filter(None, books.kept(chunk))
    yield from filter(None, books.kept("", last=True))
    if books.dropped:
        report(books.dropped)


def _joined(pieces: Iterable[str], first: int, size: int) -> Iterator[str]:
    """The text in pieces of at least `size` characters, the first one of at least `first`, but for the last."""
    waiting: list[str] = []
    length, enough = 0, first
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length >= enough:
            yield "".join(waiting)
            waiting, length, enough = [], 0, size
    if waiting:
        yield "".join(waiting)


class _Books:
    """Where in a file of books we are: in a book, or between two."""

    def __init__(self) -> None:
        self.dropped = 0
        self._tail = ""  # read and not yet given away
        self._next = 0  # where in it the search goes on
        self._inside: bool | None = None  # unknown before the first chunk, which holds any header

    def kept(self, chunk: str, last: bool = False) -> Iterator[str]:
        """What is certain to be kept of the text held back and `chunk`."""
        text = self._tail + chunk
        # A marker that begins later may not be whole yet, nor the blank lines after it.
        end = len(text) if last else max(len(text) - REACH, 0)
        if self._inside is None:
            self._inside = not _has_header(text)
        begin = 0
        worth_it = _has_words(text)
        while worth_it and (match := _find(_END if self._inside else _START, text, self._next, end)):
            if self._inside:
                kept = _without_blank_end(text[begin : match.start()])
                self.dropped += match.start() - begin - len(kept)
                yield kept
                begin = self._next = match.start()
            else:
                self.dropped += match.end() - begin
                begin = self._next = match.end()
            self._inside = not self._inside
        certain = end if last else max(begin, end - BEFORE)
        if self._inside:
            yield text[begin:certain]
        else:
            self.dropped += certain - begin
        self._tail, self._next = text[certain:], max(self._next, end) - certain


def _has_header(text: str) -> bool:
    """Whether the text begins with a header rather than with a book."""
    if not _has_words(text):
        return False
    start = _find(_START, text, 0, HEAD)
    return start is not None and _find(_END, text, 0, start.start()) is None


def _has_words(text: str) -> bool:
    return any(word in text for word in _WORDS)


def _find(pattern: re.Pattern[str], text: str, begin: int, end: int) -> re.Match[str] | None:
    """The first match that begins in text[begin:end]; it sees what stands around."""
    match = pattern.search(text, begin)
    return match if match and match.start() < end else None


def _without_blank_end(text: str) -> str:
    edge = text[-BEFORE:]
    words = edge.rstrip(" \t\n")
    rest = edge[len(words) :]
    return text[: len(text) - len(rest)] + rest[: rest.find("\n") + 1]


def split_at(pieces: Iterable[str], separator: str) -> Iterator[tuple[str, bool]]:
    """(piece, whether a document ends with it): documents are what lies between occurrences of `separator`.

    As with `str.split`, a text with n separators has n + 1 documents. ("", True) is given for an empty document
    and never as the end of another: as much as a separator is held back, so that each last piece has some text.
    """
    tail = ""
    hold = len(separator)
    for piece in pieces:
        *documents, rest = (tail + piece).split(separator)
        for document in documents:
            yield document, True
        certain = max(len(rest) - hold, 0)
        if certain:
            yield rest[:certain], False
        tail = rest[certain:]
    yield tail, True


_NEWLINES_AND_QUOTES = (
    (re.compile(r" ?<newline> ?"), "\n"),
    (re.compile(r"(?<!\S)`` +(?=\S)"), '"'),  # ``code`` in a manual has no space inside
    (re.compile(r"(?<=\S) +''(?!\S)"), '"'),
)
_SPACES = (
    # do n't, it 's; but the 's' key
    (re.compile(r"(?<=\w) (?=(?i:n['’]t|['’](?:s|re|ve|m|ll|d))\b(?!['’]))"), ""),
    # not before .NET, .5 or :)
    (re.compile(r"""(?<=\S) (?=[,.!?;:]+(?:[\s"'’”]|\Z))"""), ""),
    # not in :( or in an empty [ ]
    (re.compile(r"""(?<![^\s"'“‘(\[])([(\[]) +(?=[^\s)\]])"""), r"\1"),
    (re.compile(r"(?<=[^\s(\[]) +(?=[)\]])"), ""),
)
_PARAGRAPH_BREAK = re.compile(r"(\n[ \t]*\n)")
_SPACED_QUOTE = re.compile(r'(?<!\S)"(?!\S)')


def detokenize(text: str) -> str:
    """`text` as it was written, before a tokenizer put spaces around its punctuation.

    >>> print(detokenize("`` Do n't , '' she said . <newline> <newline> It 's ( almost ) too late ..."))
    "Don't," she said.
    <BLANKLINE>
    It's (almost) too late...

    A clean text comes back as it is, unless its author sets spaces before punctuation, as French typography does.
    """
    for pattern, replacement in _NEWLINES_AND_QUOTES:
        text = pattern.sub(replacement, text)
    if '"' in text:
        text = "".join(_with_attached_quotes(paragraph) for paragraph in _PARAGRAPH_BREAK.split(text))
    for pattern, replacement in _SPACES:
        text = pattern.sub(replacement, text)
    return text


def _with_attached_quotes(paragraph: str) -> str:
    """Straight quotes with a space on either side open and close by turns, unless one of them lacks its partner."""
    spaced = len(_SPACED_QUOTE.findall(paragraph))
    if not spaced or spaced % 2 or paragraph.count('"') % 2:
        return paragraph
    parts = f"\n{paragraph}\n".split('"')
    for number in range(1, len(parts), 2):  # what stands between an opening quote and its closing one
        before, inside, after = parts[number - 1 : number + 2]
        if not inside.strip():
            continue
        if before[-1:].isspace():
            inside = inside.lstrip(" ")
        if after[:1].isspace():
            inside = inside.rstrip(" ")
        parts[number] = inside
    return '"'.join(parts)[1:-1]
