"""What a user's mistake looks like: one line that names the thing and the remedy, exit code 2, no traceback."""

import os
import sys
from collections.abc import Callable, Sequence


class UsageError(ValueError):
    """Something the user gave cannot work. The message names it and says what to do."""


def first_line(error: BaseException) -> str:
    """The first line of a library's message, for one of ours; with the next where it only announces that."""
    lines = [line.strip() for line in (str(error).strip() or type(error).__name__).splitlines()]
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def run_command(command: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run one of our commands; returns the exit code (0 done, 1 failed while running, 2 a usage error, 130 Ctrl-C).

    `--debug` anywhere in `argv` lets the traceback of a usage error through.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return command(arguments) or 0
    except UsageError as error:
        if "--debug" in arguments:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        if "--debug" in arguments:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the training listens, or a second time because it must end at once
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has left (`generate.py ... | head`). Python would complain once more when
        # it flushes stdout at exit, so give it somewhere to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
