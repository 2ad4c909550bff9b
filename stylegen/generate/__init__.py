"""The writing command: checkpoints and prompts in, texts out on the terminal, in a file, in turns or side by side."""

from collections.abc import Sequence

from stylegen.config import GenerateArguments, check_arguments, parse_arguments, run_command, stay_local
from stylegen.generate.plan import Plan, settle_dtype
from stylegen.generate.prompts import read_prompts

USAGE = """generate.py CHECKPOINT [--flag value ...]

Write with a trained model. CHECKPOINT is a run directory (its best model), a checkpoint in it, any other model that
docs/generation.md lists, or a hub id. Prints prompt and continuation; several texts are separated by ===="""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 2 a usage error)."""
    return run_command(_generate, argv)


def _generate(argv: list[str]) -> None:
    arguments = parse_arguments(GenerateArguments, argv, positional="checkpoints", usage=USAGE)
    check_arguments(arguments)
    stay_local(arguments)
    prompts = read_prompts(arguments)
    settle_dtype(arguments)
    plan = Plan(arguments, prompts)
    if arguments.output:
        from stylegen.generate.output import write_output as write  # nothing heavy before it is needed
    elif arguments.interactive:
        from stylegen.generate.interactive import converse as write
    elif arguments.compare:
        from stylegen.generate.compare import compare as write
    else:
        write = _print_texts
    write(plan)


def _print_texts(plan: Plan) -> None:
    from stylegen.generate.writer import Writer

    writer = Writer(plan, plan.arguments.checkpoints[0])
    if plan.arguments.stream:
        for place, row in enumerate(plan.rows()):
            print(plan.heading(row, place), end="")
            writer.fill([row], lambda piece: print(piece, end="", flush=True))
            print(flush=True)
    else:
        for place, row in enumerate(plan.in_order(writer.fill(batch) for batch in plan.batches())):
            print(plan.heading(row, place) + row["text"], flush=True)
