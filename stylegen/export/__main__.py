"""`python -m stylegen.export CHECKPOINT OUT`: a plain Transformers folder of whatever a model is in."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stylegen.config import ExportArguments, UsageError, parse_arguments, run_command, stay_local
from stylegen.config.writing import check_writable

USAGE = """python -m stylegen.export CHECKPOINT OUT [--flag value ...]

Write any checkpoint that generate.py takes as a plain Transformers folder: config.json, model.safetensors,
tokenizer.json. OUT must be new or empty. What was written is read back and compared."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 2 a usage error)."""
    return run_command(_export, argv)


def _export(argv: list[str]) -> None:
    arguments = parse_arguments(ExportArguments, argv, positional="paths", usage=USAGE)
    if len(arguments.paths) != 2:
        raise UsageError("give a checkpoint and a folder to write: python -m stylegen.export CHECKPOINT OUT")
    stay_local(arguments)
    out = Path(arguments.paths[1]).expanduser()
    check_writable(out.absolute().parent, "the folder of OUT")
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # DeepSpeed, if it is there, would say on stdout what it found
    from stylegen.export.load import export
    from stylegen.runtime import apply_speed_settings, start_logging

    start_logging(is_main=True)
    apply_speed_settings()
    print("\n".join(export(arguments.paths[0], arguments, out)))


if __name__ == "__main__":
    sys.exit(main())
