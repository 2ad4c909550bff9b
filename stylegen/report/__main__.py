"""`python -m stylegen.report RUN_DIR [RUN_DIR ...]`: write the pages again and say where they are.

Several runs are also laid over each other on a page of their own.
"""

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from stylegen.config import UsageError, run_command
from stylegen.report import RunRecord, compare_runs, write_report

USAGE = "python -m stylegen.report RUN_DIR [RUN_DIR ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_report, argv)


def _report(argv: list[str]) -> None:
    arguments = _parse(argv)
    run_dirs = arguments.run_dirs
    written, refused = [], []
    for run_dir in run_dirs:  # one that has nothing to report yet takes no page from the others
        try:
            write_report(run_dir)
        except UsageError as error:
            refused.append(str(error))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS):
                raise
            refused.append(f"{run_dir} cannot be written to ({error.strerror}); copy it to where it can")
        else:
            written.append(run_dir)
            print(run_dir / "report.html")
    if len(written) > 1:
        page = compare_runs(written)
        print(page)
        print(page.with_suffix(".png"))
    if refused:
        raise UsageError("; ".join(refused))
    if arguments.wandb:
        from stylegen.report.workspace import publish  # here, for wandb takes long to import

        records = [RunRecord.read(run_dir) for run_dir in run_dirs]
        place = {"entity": arguments.entity, "project": arguments.project}
        print(publish(records, **place, dry_run=arguments.dry_run))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {USAGE}")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m stylegen.report", description=__doc__, allow_abbrev=False)
    parser.add_argument("run_dirs", nargs="*", type=Path, metavar="RUN_DIR", help="what a training has left")
    parser.add_argument("--wandb", action="store_true", help="publish a W&B Report too, or update it")
    parser.add_argument("--entity", help="of the W&B Report (default: WANDB_ENTITY, else your own)")
    parser.add_argument("--project", help="of the W&B Report (default: WANDB_PROJECT, else that of the runs)")
    parser.add_argument(
        "--dry_run",
        "--dry-run",
        type=Path,
        metavar="FILE.json",
        help="write the W&B Report there, send nothing",
    )
    parser.add_argument("--debug", action="store_true", help="show where in the code an error came from")
    arguments, unknown = parser.parse_known_args(argv)
    if not arguments.run_dirs:
        raise UsageError(f"which run? {USAGE}")
    if unknown:
        raise UsageError(f"{unknown[0]} is no flag of this command; {USAGE}")
    for name in ("entity", "project", "dry_run"):
        if getattr(arguments, name) is not None and not arguments.wandb:
            raise UsageError(f"--{name} is about the W&B Report; give --wandb too, or leave it out")
    first: dict[Path, Path] = {}
    for path in arguments.run_dirs:  # one given twice is one run
        first.setdefault(path.resolve(), path)
    arguments.run_dirs = list(first.values())
    return arguments


if __name__ == "__main__":
    sys.exit(main())
