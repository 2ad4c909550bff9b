"""`python -m stylegen.report RUN_DIR [RUN_DIR ...]`: write the pages again and say where they are.

Several runs are also drawn on top of each other.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from stylegen.config import UsageError, run_command
from stylegen.report import compare_runs, write_report


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""

    def command(arguments: list[str]) -> int:
        if not arguments or arguments[0].startswith("-"):
            raise UsageError("which run? python -m stylegen.report RUN_DIR [RUN_DIR ...]")
        for name in arguments:
            write_report(Path(name))
            print(Path(name) / "report.html")
        if len(arguments) > 1:
            print(compare_runs([Path(name) for name in arguments]))
        return 0

    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
