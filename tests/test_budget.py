"""The size of the house and the direction of its imports. Raising a number is a one-line diff with its reason."""

import ast
import statistics

import pytest
from conftest import ROOT

# Streaming text of every format, Markdown and boilerplate, proofs for tiktoken: 2,500 of them. DDP, FSDP2, ZeRO,
# launcher checks, a watchdog, SLURM jobs: 1,400. Saves beside the training, sick numbers, out of memory, files of
# strangers: 1,700. Ten kinds of checkpoints to write from: 1,000. Writing in turns, to files that go on, side by
# side: 700. Style measures and LoRA: 900. A loss without logits, decoding by its own loop: 1,000. Work beside other
# work at the start, compiling, a profiler, what a run would take on GPUs: 1,100. Curves, tables, samples and marks of a
# report, of one run and of several: 1,000. W&B Reports: 700. wandb and other trackers: 300. Model card, hub: 500.
PACKAGE_LINES = 17300

FILE_LINES = 400
FUNCTION_LINES = 50
MEDIAN_FUNCTION_LINES = 12

# A module imports only modules before it.
ORDER = [
    "config", "stop", "trust", "metrics", "figures", "corpus", "tokenizer", "lora", "model", "loss", "flops",
    "compiled", "optim", "runtime", "sharding", "tracking", "blocks", "sampling", "evaluate", "style", "checkpoint",
    "export", "report", "train", "generate", "plan", "job",
]  # fmt: skip
FILES = sorted((ROOT / "stylegen").rglob("*.py"))


def module_of(path):
    parts = path.relative_to(ROOT / "stylegen").with_suffix("").parts
    return parts[0]


def functions(path):
    """(name, lines of code without the docstring) of each function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
            yield f"{path.name}:{node.name}", node.end_lineno - start + 1


def test_the_package_stays_small():
    assert sum(len(path.read_text().splitlines()) for path in FILES) <= PACKAGE_LINES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_stays_readable(path):
    assert len(path.read_text().splitlines()) <= FILE_LINES
    assert [entry for entry in functions(path) if entry[1] > FUNCTION_LINES] == []


def test_functions_stay_short():
    assert statistics.median(lines for path in FILES for _, lines in functions(path)) <= MEDIAN_FUNCTION_LINES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_is_below_it(path):
    here = module_of(path)
    if here == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.startswith("stylegen.") and (other := name.split(".")[1]) != here:
                assert ORDER.index(other) < ORDER.index(here), f"{path.name} imports {name}"


def test_there_is_no_room_for_leftovers():
    assert not [path for path in FILES if path.stem in ("utils", "common", "helpers", "misc")]


def test_public_functions_say_what_they_do():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"
