"""`python -m stylegen.style --train TEXT --texts A.jsonl B.jsonl`: a table of style measures, one row a system."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stylegen.config import (
    StyleArguments,
    UsageError,
    check_arguments,
    parse_arguments,
    run_command,
    stay_local,
)
from stylegen.style import StyleReference, Written

USAGE = """python -m stylegen.style --train TEXT --texts A.jsonl B.jsonl [--flag value ...]

How near texts are to an author's style, and how much of them is copied: a row for each file of texts, and one for the
author's unseen pages. docs/style.md says what the columns mean."""
SEPARATOR = "===="  # between the texts of a .txt, as generate.py writes them
AUTHOR = "the author, unseen"
PAGE = 600  # characters: the author's own row is made of pieces as long as samples are
COLUMNS = {  # name -> format, fields
    "texts": ("{:,}", "texts"), "words": ("{:,}", "words"), "distance": ("{:.2f}", "distance"),
    "95 %": ("{:.2f}-{:.2f}", "distance_low", "distance_high"), "chars": ("{:.2f}", "distance_chars"),
    "copied": ("{:.2%}", "copy_rate"), "longest": ("{:,}", "longest_copy"), "distinct-2": ("{:.3f}", "distinct_2"),
    "distinct-3": ("{:.3f}", "distinct_3"), "repeated-4": ("{:.2%}", "repetition_4"), "new": ("{:.2%}", "new_words"),
    "sentence": ("{:.2f}", "sentence_words"), "line": ("{:.2f}", "line_words"), "perplexity": ("{:.2f}", "perplexity"),
}  # fmt: skip
Documents = list[tuple[str, str]]  # where each comes from, its text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 2 a usage error)."""
    return run_command(_compare, argv)


def _compare(argv: list[str]) -> None:
    arguments = parse_arguments(StyleArguments, argv, positional=None, usage=USAGE)
    check_arguments(arguments)
    stay_local(arguments)
    systems = {path: read_written(Path(path)) for path in arguments.texts}
    train, validation = read_documents(arguments.train), read_documents(arguments.validation)
    if not validation:
        train, validation = hold_out(train)
        print("the last tenth of --train is kept apart, as there is no --validation", file=sys.stderr)
    reference = StyleReference.build(train, validation)
    unseen = "\n".join(text for _, text in validation)
    pages = [Written("", unseen[start : start + PAGE]) for start in range(0, len(unseen), PAGE)]
    systems = {AUTHOR: pages, **systems}
    rows = {name: asdict(reference.measure(texts, arguments.seed)) for name, texts in systems.items()}
    # To themselves they are a little nearer than to what they are measured by, the training text.
    rows[AUTHOR] |= {name: rows[AUTHOR][name] and 1.0 for name in ("distance", "distance_chars")}
    rows[AUTHOR] |= {"distance_low": None, "distance_high": None}
    if arguments.start_model:
        from stylegen.model import load_model
        from stylegen.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(arguments.start_model)
        model = load_model(arguments.start_model, dtype="float32").eval()
        systems[AUTHOR] = pages[: max(map(len, list(systems.values())[1:]))]
        for name, texts in systems.items():
            rows[name]["perplexity"] = perplexity_of(texts, model, tokenizer)
    print_table(rows)
    if arguments.output:
        path = Path(arguments.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_documents(patterns: list[str]) -> Documents:
    """The documents of files, folders and globs, each with its file, and its number if the file has several."""
    from stylegen.corpus import Findings, Source, TextOptions, find_files, read_pieces

    documents: Documents = []
    for path in find_files(patterns):
        texts, parts = [], []
        for text, ends, _ in read_pieces(Source(files=(path,)), TextOptions(), Findings()):
            parts.append(text)
            if ends:
                texts.append("".join(parts))
                parts = []
        several = len(texts) > 1
        documents += [
            (f"{path}, document {n}" if several else str(path), text) for n, text in enumerate(texts, 1)
        ]
    if patterns and not any(text.strip() for _, text in documents):
        raise UsageError(f"{', '.join(patterns)} holds no text; give a file with text in it")
    return documents


def hold_out(documents: Documents) -> tuple[Documents, Documents]:
    """All but the last tenth of the characters, and that; the document that the cut falls into is cut at a line end."""
    left = sum(len(text) for _, text in documents) // 10
    for index in range(len(documents) - 1, -1, -1):
        where, text = documents[index]
        if len(text) > left:
            cut = text.rfind("\n", 0, len(text) - left) + 1 or len(text) - left
            return [*documents[:index], (where, text[:cut])], [(where, text[cut:]), *documents[index + 1 :]]
        left -= len(text)
    return documents, []


def read_written(path: Path) -> list[Written]:
    """The texts of one system: .jsonl rows with a text and perhaps a prompt, or a file with ==== between its texts."""
    from stylegen.corpus import read_text

    if not path.is_file():
        raise UsageError(f"texts {path} does not exist, or is a folder; give what generate.py wrote")
    whole = read_text(path)
    if path.suffix == ".jsonl":
        *lines, last = whole.split("\n")
        rows = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if last.strip():  # no line end, so it may be half written
            try:
                rows.append(_row(path, len(lines) + 1, last))
            except UsageError as error:
                print(f"warning: {error}; it is the last line and is left out", file=sys.stderr)
    else:
        rows = [Written("", text) for text in f"\n{whole}\n".split(f"\n{SEPARATOR}\n")]
    if not any(row.text.strip() for row in rows):
        raise UsageError(f"texts {path} holds no text; write some with generate.py --output {path.name}")
    return rows


def _row(path: Path, number: int, line: str) -> Written:
    try:
        row: Any = json.loads(line)
        text = Written(row.get("prompt") or "", row["text"])
        (text.prompt + text.text).encode()  # text, and no half characters
        return text
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f'{path} line {number} is no row such as {{"prompt": "...", "text": "..."}}'
        ) from None


def perplexity_of(texts: list[Written], model, tokenizer) -> float | None:
    """Perplexity of a set of texts, exact over their tokens; prompts are context and do not count.

    Beyond the model's context a window slides by half of it, so that each token sees at least that much.
    """
    import torch

    from stylegen.metrics import perplexity
    from stylegen.model import context_length
    from stylegen.sampling import prompt_ids

    loss, num_tokens = 0.0, 0
    for text in texts:
        before = prompt_ids(tokenizer, text.prompt)
        whole = tokenizer(text.prompt + text.text)["input_ids"] if text.prompt else []
        if whole[: len(before)] != before:  # it has tokens of its own, as it was written
            whole = before + tokenizer(text.text, add_special_tokens=False)["input_ids"]
        done, window = len(before), context_length(model) or len(whole)
        num_tokens += len(whole) - done
        while done < len(whole):
            end = min(max(done + max(window // 2, 1), window), len(whole))
            start = max(end - 1 - window, 0)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([whole[start : end - 1]])).logits[0, done - 1 - start :]
            labels = torch.tensor(whole[done:end])
            loss += torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum").item()
            done = end
    return perplexity(loss / num_tokens) if num_tokens else None


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """One row a system, then what the columns have no room for: where the longest copies stand, and what is missing."""
    table = [["", *COLUMNS]]
    for name, row in rows.items():
        cells = [(form, [row.get(field) for field in names]) for form, *names in COLUMNS.values()]
        table.append([name, *("-" if None in values else form.format(*values) for form, values in cells)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *rest in table:
        print(name.ljust(widths[0]), *map(str.rjust, rest, widths[1:]), sep="  ")
    print()
    for name, row in rows.items():
        if row["longest_copy"]:
            print(f"{name}: longest copy, {row['longest_copy']:,} words, stands in {row['longest_place']}")
        if row["too_little"]:
            print(f"{name}: too little text for a distance, in {row['too_little']}")


if __name__ == "__main__":
    sys.exit(main())
