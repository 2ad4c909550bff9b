"""`python -m stylegen.tokenizer FILES... [--flag value ...]`: train a tokenizer alone, or measure one."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stylegen.config import (
    TokenizerCommandArguments,
    UsageError,
    check_arguments,
    parse_arguments,
    run_command,
    stay_local,
)

USAGE = """python -m stylegen.tokenizer FILES... [--flag value ...]

Train a tokenizer on text files, folders, globs or tables, and print how many bytes of them a token stands for and what
share of the tokens is unknown. With --tokenizer_name measure that one instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 2 a usage error)."""
    return run_command(_train, argv)


def _train(argv: list[str]) -> None:
    arguments = parse_arguments(TokenizerCommandArguments, argv, positional="files", usage=USAGE)
    check_arguments(arguments)
    stay_local(arguments)
    from stylegen.corpus import Findings, Source, TextOptions, find_files, read_pieces
    from stylegen.corpus.store import TextStore
    from stylegen.tokenizer import load_tokenizer, train_tokenizer

    files = find_files(arguments.files)
    with tempfile.TemporaryDirectory() as folder:
        pieces = read_pieces(
            Source(files=tuple(files)), TextOptions(text_column=arguments.text_column), findings := Findings()
        )
        store = TextStore.write(Path(folder) / "text", pieces, findings)
        characters = int(store.characters.sum())
        if not characters:
            raise UsageError(f"{', '.join(arguments.files)} is empty; give a file with text in it")
        if arguments.tokenizer_name:
            tokenizer = load_tokenizer(arguments.tokenizer_name)
        else:
            tokenizer = train_tokenizer(
                arguments.train_tokenizer or "bpe", store.documents(store.ranges), characters, arguments.vocab_size,
                arguments.normalizer, arguments.min_frequency, arguments.special_tokens,
            )  # fmt: skip
        tokens, unknown = _count(tokenizer, store)
    print(f"documents        {len(store.characters):,}")
    print(f"vocabulary       {len(tokenizer):,}")
    print(f"tokens           {tokens:,}")
    print(f"bytes per token  {int(store.starts[-1]) / tokens:.3f}")
    print(f"unknown tokens   {unknown / tokens:.4%}")
    if arguments.output_dir:
        tokenizer.save_pretrained(arguments.output_dir)
        print(f"tokenizer        {arguments.output_dir}")


def _count(tokenizer, store) -> tuple[int, int]:
    """(tokens of the whole text, those of them that are unknown or single bytes of unknown characters)."""
    import numpy as np

    from stylegen.tokenizer import BYTE_TOKEN, DocumentEncoder, num_ids

    words = tokenizer.get_vocab()
    is_unknown = np.zeros(num_ids(tokenizer), dtype=bool)
    is_unknown[[id_ for word, id_ in words.items() if BYTE_TOKEN.fullmatch(word)]] = True
    if tokenizer.unk_token_id is not None:
        is_unknown[tokenizer.unk_token_id] = True
    tokens = unknown = 0
    for ids, _ in DocumentEncoder(tokenizer.backend_tokenizer)(
        store.documents(store.ranges), os.cpu_count() or 1
    ):
        tokens, unknown = tokens + len(ids), unknown + int(is_unknown[ids].sum())
    return tokens, unknown


if __name__ == "__main__":
    sys.exit(main())
