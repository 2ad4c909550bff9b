"""`python -m stylegen.report RUN_DIR [RUN_DIR ...]`: write the pages again and say where they are.

Several runs are also laid over each other on a page of their own.
"""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from stylegen.config import ReportArguments, UsageError, parse_arguments, run_command
from stylegen.report import RunRecord, compare_runs, write_report
from stylegen.report.compare import PAGES

COMMAND = "python -m stylegen.report RUN_DIR [RUN_DIR ...]"
USAGE = f"""{COMMAND} [--flag value ...]

Write report.md, report.html and the model card of runs, and of several a page that lays them over each other."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 2 a usage error)."""
    return run_command(_report, argv)


def _report(argv: list[str]) -> None:
    if not argv or (argv[0].startswith("--") and not {"--help", "--version"} & set(argv)):
        raise UsageError(f"which run? {COMMAND}")
    arguments = parse_arguments(ReportArguments, argv, positional="run_dirs", usage=USAGE)
    for name in ("entity", "project", "dry_run"):
        if getattr(arguments, name) is not None and not arguments.wandb:
            raise UsageError(f"--{name} is about the W&B Report; give --wandb too, or leave it out")
    given = map(
        Path, arguments.run_dirs
    )  # of `out/*` also the pages that stand beside the runs, once there are any
    run_dirs = list({path.resolve(): path for path in given if not _is_page(path)}.values())  # each once
    if not run_dirs:
        raise UsageError(f"which run? {COMMAND}")
    _write_pages(run_dirs)
    if arguments.wandb:
        from stylegen.report.workspace import publish  # here, for wandb takes long to import

        records = [RunRecord.read(run_dir) for run_dir in run_dirs]
        dry_run = Path(arguments.dry_run) if arguments.dry_run else None
        print(publish(records, entity=arguments.entity, project=arguments.project, dry_run=dry_run))


def _is_page(path: Path) -> bool:
    return path.name in PAGES and path.is_file()


def _write_pages(run_dirs: list[Path]) -> None:
    """Raises UsageError for those that have nothing to report yet; the others have their pages then."""
    written, refused = [], []
    for run_dir in run_dirs:
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


if __name__ == "__main__":
    sys.exit(main())
