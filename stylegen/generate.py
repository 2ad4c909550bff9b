"""The writing command: a checkpoint and prompts in, texts out on the terminal or in a file."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from stylegen.config import (
    GenerateArguments,
    UsageError,
    check_arguments,
    parse_arguments,
    run_command,
    stay_local,
)

SEPARATOR = "===="
USAGE = """generate.py CHECKPOINT [--flag value ...]

Write with a trained model. CHECKPOINT is a run directory (its best model), a checkpoint in it, a folder that
Transformers can load, or a hub id. Prints prompt and continuation; several texts are separated by ===="""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 2 a usage error)."""
    return run_command(_generate, argv)


def _generate(argv: list[str]) -> int:
    arguments = parse_arguments(GenerateArguments, argv, positional="checkpoint", usage=USAGE)
    check_arguments(arguments)
    stay_local(arguments)
    prompts = _read_prompts(arguments)
    texts = _write(arguments, prompts)
    if arguments.output:
        _write_file(Path(arguments.output), texts, arguments)
    elif arguments.stream:
        for _ in texts:  # shown while they are written
            pass
    else:
        for number, (prompt, continuation) in enumerate(texts):
            if number:
                print(SEPARATOR)
            print(prompt + continuation, flush=True)
    return 0


def _read_prompts(arguments: GenerateArguments) -> list[str]:
    if not arguments.prompt_file:
        return arguments.prompt or [""]
    from stylegen.corpus import read_text

    path = Path(arguments.prompt_file)
    if not path.is_file():
        raise UsageError(f"prompt_file {path} does not exist; give a UTF-8 file with one prompt a line")
    prompts = [line for line in read_text(path).split("\n") if line.strip()]
    if not prompts:
        raise UsageError(f"prompt_file {path} has no prompt in it; write one a line")
    return prompts


def _write(arguments: GenerateArguments, prompts: list[str]) -> Iterator[tuple[str, str]]:
    """The texts, one after the other; everything heavy is imported here."""
    from stylegen.export import load_for_writing
    from stylegen.runtime import apply_speed_settings, pick_device, start_logging
    from stylegen.sampling import SamplingSettings, warn_of_long_prompts, write_texts

    start_logging(is_main=True)
    apply_speed_settings()
    model, tokenizer = load_for_writing(arguments.checkpoint, arguments.dtype, pick_device(arguments.device))
    warn_of_long_prompts(model, tokenizer, prompts)
    settings = SamplingSettings(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, top_k=arguments.top_k,
        top_p=arguments.top_p, min_p=arguments.min_p, repetition_penalty=arguments.repetition_penalty,
        num_beams=arguments.num_beams, seed=arguments.seed,
    )  # fmt: skip
    if not arguments.stream or arguments.output:
        yield from write_texts(
            model, tokenizer, prompts, settings,
            num_return_sequences=arguments.num_return_sequences, batch_size=arguments.batch_size,
        )  # fmt: skip
        return
    number = 0
    for prompt in prompts:
        for _ in range(arguments.num_return_sequences):
            sys.stdout.write(("" if number == 0 else f"{SEPARATOR}\n") + prompt)
            texts = write_texts(model, tokenizer, [prompt], settings, first_number=number, on_text=_show)
            yield from texts
            sys.stdout.write("\n")
            number += 1


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _write_file(path: Path, texts: Iterator[tuple[str, str]], arguments: GenerateArguments) -> None:
    """One text after the other, as soon as it is there: .txt as on the terminal, .jsonl one object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for number, (prompt, continuation) in enumerate(texts):
            if path.suffix == ".jsonl":
                row = {
                    "prompt": prompt, "text": continuation, "number": number, "seed": arguments.seed,
                    "temperature": arguments.temperature, "checkpoint": arguments.checkpoint,
                }  # fmt: skip
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                file.write((f"{SEPARATOR}\n" if number else "") + prompt + continuation + "\n")
            file.flush()


if __name__ == "__main__":
    sys.exit(main())
