"""Writing in turns: a line of the user's, then the model goes on from all that stands there.

Every answer is a row as those of --output, with its own seed, so that the same inputs make the same session, and
`generate.py --prompt ... --seed ...` writes an answer again. Texts are on stdout, hints on stderr.
"""

import contextlib
import io
import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from stylegen.config import first_line
from stylegen.generate.plan import SEPARATOR, Plan, Row
from stylegen.generate.writer import Writer
from stylegen.sampling import warn_of_long_prompts

HELP = """a line          stands under the text so far, and the model goes on from it
an empty line   the model goes on; /more does the same
/again          the last answer anew, with another seed
/undo           take the last turn back
/temperature X  for the answers to come
/save FILE      the session, as text, or with seeds and settings (.jsonl)
/new            begin a new text
/quit           leave; so does Ctrl-D. Ctrl-C stops an answer and keeps what is written"""


def converse(plan: Plan) -> None:
    """Take lines and answer until there are no more."""
    session = Session(plan, Writer(replace(plan, prompts=()), plan.arguments.checkpoints[0]))
    _hint("a line and Enter: the model goes on from it; /help lists what else can be said")
    for line in itertools.takewhile(lambda line: line.strip() != "/quit", _lines()):
        session.take(line)


class Session:
    """The texts of a session: each is a list of answers, whose prompt is all that stands before."""

    def __init__(self, plan: Plan, writer: Writer):
        self.plan, self.writer, self.temperature = plan, writer, plan.arguments.temperatures[0]
        self.seed = plan.arguments.seed  # of the next answer
        self.texts: list[list[Row]] = [[]]
        self.saved: set[Path] = set()
        if plan.arguments.prompt:
            self.take(plan.arguments.prompt[0])

    @property
    def text(self) -> str:
        """The current text."""
        answers = self.texts[-1]
        return answers[-1]["prompt"] + answers[-1]["text"] if answers else ""

    def take(self, line: str) -> None:
        """Do what a line asks for."""
        word, _, rest = line.strip().partition(" ")
        commands = {
            "": self._more, "/more": self._more, "/again": self._again, "/undo": self._undo, "/new": self._begin,
            "/temperature": self._heat, "/save": self._save, "/help": lambda _: _hint(HELP),
        }  # fmt: skip
        if word in commands:
            commands[word](rest.strip())
        elif word.startswith("/"):
            _hint(f"{word} is no command; /help lists them")
        else:
            self._answer(self.text + ("\n" if self.text[-1:] not in ("", "\n") else "") + line)

    def _answer(self, prompt: str) -> None:
        """Let the model go on from `prompt`; what is new in that is shown too. Ctrl-C keeps what there is."""
        row = self.plan.row(prompt, 0, self.temperature, seed=self.seed)
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            print(piece, end="", flush=True)

        if not self.texts[-1]:  # later it is only natural that the beginning is out of sight
            warn_of_long_prompts(self.writer.model, self.writer.tokenizer, [prompt])
        print(prompt[len(self.text) :].removeprefix("\n"), end="")
        try:
            self.writer.fill([row], show)
        except KeyboardInterrupt:
            row["text"] = "".join(pieces)
        print(flush=True)
        self.seed += 1
        self.texts[-1].append(row)

    def _more(self, _: str) -> None:
        self._answer(self.text)

    def _again(self, _: str) -> None:
        if self.texts[-1]:
            self._answer(self.texts[-1].pop()["prompt"])
        else:
            _hint("there is no answer yet")

    def _undo(self, _: str) -> None:
        del self.texts[-1][-1:]
        _hint(f"the text ends with {self.text[-60:]!r}" if self.text else "the text is empty")

    def _begin(self, _: str) -> None:
        self.texts += [[]] if self.texts[-1] else []
        _hint("a new text")

    def _heat(self, value: str) -> None:
        with contextlib.suppress(ValueError):
            if 0 <= float(value) < math.inf:
                self.temperature = float(value)
                return
        _hint(f"/temperature needs a number from 0 up; it is {self.temperature:g}")

    def _save(self, name: str) -> None:
        rows = itertools.chain.from_iterable(self.texts)
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not name.endswith(".jsonl"):
            ends = [answers[-1] for answers in self.texts if answers]
            content = f"{SEPARATOR}\n".join(row["prompt"] + row["text"] + "\n" for row in ends)
        try:
            path = Path(name).expanduser()
            if path.exists() and path not in self.saved:
                _hint(f"{path} exists; /save needs the name of a new file")
                return
            path.write_text(content, encoding="utf-8")
        except (OSError, ValueError, RuntimeError) as error:  # no place, no name, no such home
            _hint(f"{name} cannot be written ({first_line(error)}); choose another place")
            return
        self.saved.add(path)
        _hint(f"saved in {path}")


def _lines() -> Iterator[str]:
    """What is typed, or comes through a pipe. At a terminal Ctrl-C only clears the line."""
    if not isinstance(sys.stdin, io.TextIOWrapper):  # closed
        return
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    at_terminal, asks = sys.stdin.isatty(), sys.stdin.isatty() and sys.stdout.isatty()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing)
    while True:
        try:
            if at_terminal and not asks:
                print("> ", end="", file=sys.stderr, flush=True)
            line = input("> ") if asks else next(sys.stdin)
        except (EOFError, StopIteration):
            return
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            _hint("\n/quit or Ctrl-D leaves")
            continue
        yield line.rstrip("\r\n")


def _hint(text: str) -> None:
    print(text, file=sys.stderr)
