"""Arguments: declared in `fields`, read by `parse`, checked in `checks`. Nothing here imports torch."""

from stylegen.config.checks import check_arguments, resolve_arguments
from stylegen.config.commands import (
    ExportArguments,
    GenerateArguments,
    PlanArguments,
    ReportArguments,
    SourceArguments,
    StyleArguments,
    TokenizerCommandArguments,
)
from stylegen.config.errors import RankError, RunError, UsageError, first_line, leave, run_command
from stylegen.config.fields import END_OF_TEXT, REQUEUE, SHAKESPEARE, STOP_FILE, TrainArguments
from stylegen.config.launcher import trial_of_sweep
from stylegen.config.parse import dump_arguments, parse_arguments, read_preset
from stylegen.config.privacy import stay_local

__all__ = [
    "END_OF_TEXT",
    "REQUEUE",
    "SHAKESPEARE",
    "STOP_FILE",
    "ExportArguments",
    "GenerateArguments",
    "PlanArguments",
    "RankError",
    "ReportArguments",
    "RunError",
    "SourceArguments",
    "StyleArguments",
    "TokenizerCommandArguments",
    "TrainArguments",
    "UsageError",
    "check_arguments",
    "dump_arguments",
    "first_line",
    "leave",
    "parse_arguments",
    "read_preset",
    "resolve_arguments",
    "run_command",
    "stay_local",
    "trial_of_sweep",
]
