"""The training command: arguments are parsed and checked here, before anything heavy is imported."""

from collections.abc import Sequence

from stylegen.config import TrainArguments, check_arguments, parse_arguments, run_command, stay_local
from stylegen.stop import StopRequest

USAGE = """run_clm.py [PRESET.yaml] [--flag value ...]

Train a language model from scratch, or fine-tune one, on your text. A preset is a YAML file of the same names;
the command line goes before it. The same command again goes on where it stopped."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done or stopped as asked, 1 failed, 2 a usage error)."""
    return run_command(_train, argv)


def _train(argv: list[str]) -> int:
    arguments = parse_arguments(TrainArguments, argv, positional="preset", usage=USAGE)
    check_arguments(arguments)
    stay_local(arguments)
    stop = StopRequest(arguments.output_path, arguments.max_train_hours)
    try:
        from stylegen.corpus import find_sources
        from stylegen.train.directory import check_directory

        sources = find_sources(arguments)
        check_directory(arguments)
        from stylegen.train.run import train

        return train(arguments, *sources, stop)
    finally:
        stop.restore()
