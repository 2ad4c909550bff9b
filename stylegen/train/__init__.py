"""The training command: arguments are parsed and checked here, before anything heavy is imported."""

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stylegen.config import (
    TrainArguments,
    check_arguments,
    parse_arguments,
    run_command,
    stay_local,
    trial_of_sweep,
)
from stylegen.stop import StopRequest

if TYPE_CHECKING:
    from stylegen.corpus import Source

USAGE = """run_clm.py [PRESET.yaml] [--flag value ...]

Train a language model from scratch, or fine-tune one, on your text. A preset is a YAML file of the same names;
the command line goes before it. The same command again goes on where it stopped."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done or stopped as asked, 1 failed, 2 a usage error)."""
    return run_command(_train, argv)


def _train(argv: list[str]) -> int:
    arguments = trial_of_sweep(parse_arguments(TrainArguments, argv, positional="preset", usage=USAGE))
    check_arguments(arguments)
    stay_local(arguments)
    stop = StopRequest(arguments.output_path, arguments.max_train_hours)
    try:
        from stylegen.corpus import find_sources
        from stylegen.train.directory import check_directory
        from stylegen.train.publish import check_login

        check_login(arguments)
        sources = find_sources(arguments)
        check_directory(arguments)
        return _import_and_train(arguments, *sources, stop)
    finally:
        stop.restore()


def _import_and_train(
    arguments: TrainArguments, train_source: "Source", validation_source: "Source | None", stop: StopRequest
) -> int:
    """Train; the text is prepared while the libraries are imported."""
    gc.disable()  # nothing of what is imported is garbage, and to look through it took a sixth of the time
    from stylegen.blocks.ahead import begin_text

    ahead = begin_text(arguments, train_source, validation_source)
    try:
        from stylegen.train.run import train

        return train(arguments, train_source, validation_source, stop, ahead)
    finally:
        if ahead:
            ahead.leave()
        gc.enable()
