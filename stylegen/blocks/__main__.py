"""`python -m stylegen.blocks PRESET.yaml [--flag value ...]`: show what would be trained on, without training."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from stylegen.config import (
    TrainArguments,
    check_arguments,
    parse_arguments,
    resolve_arguments,
    run_command,
    stay_local,
)

USAGE = """python -m stylegen.blocks [PRESET.yaml] [--flag value ...]

Show what run_clm.py with the same arguments would train on: documents, tokens, blocks, three random blocks with their
borders marked, and a histogram of document lengths. Nothing is trained."""
LEGEND = "\u2016 a document begins   \u27e6...\u27e7 not predicted here: context, prompt or padding"
NUM_SHOWN = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 2 a usage error)."""
    return run_command(_inspect, argv)


def _inspect(argv: list[str]) -> None:
    arguments = parse_arguments(TrainArguments, argv, positional="preset", usage=USAGE)
    check_arguments(arguments)
    stay_local(arguments)
    from stylegen.corpus import find_sources

    sources = find_sources(arguments)
    import numpy as np

    from stylegen.blocks import cut_blocks, describe, describe_text, prepare_text
    from stylegen.figures import draw_lengths
    from stylegen.model import config_for
    from stylegen.runtime import apply_speed_settings, start_logging

    apply_speed_settings()
    start_logging(True)
    arguments = resolve_arguments(arguments, world_size=1)
    _, block_size = config_for(arguments)
    arguments = replace(arguments, block_size=block_size)
    cache = prepare_text(arguments, *sources)
    train, validation = cut_blocks(arguments, cache)
    print("\n".join(describe_text(cache)))
    print(describe("train", cache.train, train))
    print(describe("validation", cache.validation, validation))
    print(f"\n{LEGEND}")
    chosen = np.random.default_rng(arguments.seed).choice(
        len(train), min(NUM_SHOWN, len(train)), replace=False
    )
    for index in sorted(chosen.tolist()):
        labels = train.num_labels(np.array([index]))
        print(f"\n--- train block {index:,} of {len(train):,}: {labels:,} of {block_size:,} labels count\n")
        print(show_block(train, index, cache.tokenizer))
    path = arguments.output_path.with_name(f"{arguments.output_path.name}.lengths.png")
    lengths = np.concatenate([np.diff(side.starts) - 1 for side in (cache.train, cache.validation)])
    print(f"\nlengths     {draw_lengths(lengths, block_size, path)}")


def show_block(blocks, index: int, tokenizer) -> str:
    """One block as text, with the marks of LEGEND."""
    text, filled = "", 0
    for ids, first_label in blocks.segments(index, epoch=0):
        context, rest = tokenizer.decode(ids[: 1 + first_label]), tokenizer.decode(ids[1 + first_label :])
        begins = "\u2016" if ids[0] == tokenizer.eos_token_id else ""
        text += f"{begins}\u27e6{context}\u27e7{rest}"
        filled += len(ids) - 1
    padding = blocks.block_size - filled
    return text + (f"\u27e6padding x {padding:,}\u27e7" if padding else "")


if __name__ == "__main__":
    sys.exit(main())
