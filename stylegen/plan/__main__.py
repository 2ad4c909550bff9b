"""`python -m stylegen.plan PRESET.yaml --gpus 16 --gpu h100`: what the run would take there, without running it."""

import sys
from collections.abc import Sequence

from stylegen.config import (
    PlanArguments,
    UsageError,
    check_arguments,
    parse_arguments,
    resolve_arguments,
    run_command,
    stay_local,
)
from stylegen.metrics import GPUS, Gpu, product_precision
from stylegen.plan.estimate import Cluster

USAGE = """python -m stylegen.plan [PRESET.yaml] [--gpus N] [--gpu NAME] [--flag value ...]

Work out what run_clm.py with the same arguments would take on GPUs that need not be here: memory, tokens/s,
communication, and which configuration of configs/accelerate/ suits. Nothing is trained, no weights are loaded."""
TYPES = {"bf16": "bfloat16", "fp16": "float16"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 2 a usage error)."""
    return run_command(_plan, argv)


def _plan(argv: list[str]) -> None:
    arguments = parse_arguments(PlanArguments, argv, positional="preset", usage=USAGE)
    check_arguments(arguments)
    gpu = _gpu(arguments)
    precision, peak = _precision_and_peak(arguments, gpu)
    stay_local(arguments)
    resolved = resolve_arguments(arguments, arguments.gpus)
    assert isinstance(resolved, PlanArguments)
    from stylegen.plan.page import write_page
    from stylegen.plan.shape import shape_of, vocabulary

    num_words, is_bound = vocabulary(resolved)
    compute_type = TYPES.get(precision, "float32")
    model = shape_of(resolved, num_words, compute_type)
    cluster = Cluster(gpu, arguments.gpus, arguments.gpus_per_node, arguments.network_gbit / 8 * 1e9)
    print("\n".join(write_page(resolved, model, cluster, peak, precision, is_bound)))


def _gpu(arguments: PlanArguments) -> Gpu:
    if arguments.gpu.lower() not in GPUS:
        raise UsageError(f"gpu {arguments.gpu} is not known; give one of {', '.join(sorted(GPUS))}")
    if arguments.gpus > arguments.gpus_per_node and arguments.gpus % arguments.gpus_per_node:
        raise UsageError(
            f"gpus is {arguments.gpus}, which are no full nodes of gpus_per_node {arguments.gpus_per_node}; give a "
            f"multiple of it"
        )
    return GPUS[arguments.gpu.lower()]


def _precision_and_peak(arguments: PlanArguments, gpu: Gpu) -> tuple[str, float]:
    """(how the run multiplies there: "bf16", "fp16", "tf32" or "fp32"; FLOPs a second of the GPU in that)."""
    asked = arguments.mixed_precision
    if asked == "auto":
        asked = "bf16" if gpu.bf16 else "no"
    precision = product_precision(asked, arguments.dtype, arguments.tf32 and gpu.tf32 is not None)
    peak = gpu.peak(precision)
    if peak is None:
        raise UsageError(
            f"gpu {arguments.gpu} does not multiply {precision}; give --mixed_precision fp16, or no"
        )
    return precision, peak


if __name__ == "__main__":
    sys.exit(main())
