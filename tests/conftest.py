"""Shared parts of the tests: a made text, a tiny training, the real commands in real processes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Nothing in the tests may reach for the hub, and a run must not depend on what the machine has cached.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}
# The models are too small for two threads, and threads of several test processes would wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

WORDS = (
    "the king queen night crown sword day light heart love good sweet noble lord lady speak hear come go "
    "stand know think fear hope death life world time hand eye blood tongue word name honour grace peace war"
).split()
# Two layers, 32 wide: the smallest model that has every part. Dropout stays on, as GPT-2 has it.
TINY = (
    "--config_overrides",
    "n_layer=2,n_head=2,n_embd=32",
    "--block_size",
    "32",
    "--train_tokenizer",
    "char",
    "--style_steps",
    "never",
)
ACCELERATE = str(Path(sys.executable).parent / "accelerate")
EXACT = ("--mixed_precision", "no", "--logging_steps", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A row of the table of faults stands in test_faults.py and in the file of its subject: it is run once."""
    seen: set[tuple] = set()
    for item in list(items):
        key = (getattr(item, "function", item), item.name)
        if key in seen:
            items.remove(item)
        seen.add(key)


def make_text(num_lines: int, seed: int = 0) -> str:
    """Lines of made verse with speakers, the same for a seed."""
    draw = random.Random(seed)
    lines = []
    for number in range(num_lines):
        if number % 5 == 0:
            lines.append(f"\n{draw.choice(('ROMEO', 'JULIET', 'NURSE'))}:")
        lines.append(" ".join(draw.choices(WORDS, k=draw.randint(4, 9))).capitalize() + draw.choice(".,;!?"))
    return "\n".join(lines).strip() + "\n"


@pytest.fixture
def observed(request):
    """`observed("...")` tells a figure of a row of faults, for docs/reliability.md; all are printed at the end."""
    name, bracket, case = request.node.name.partition("[")
    return lambda figure: FIGURES.append(f"row {name.split('_')[2]} {bracket}{case} {figure}")


FIGURES: list[str] = []


def pytest_terminal_summary(terminalreporter) -> None:
    if FIGURES:
        terminalreporter.section("observed")
        for figure in FIGURES:
            terminalreporter.write_line(figure)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(make_text(300), encoding="utf-8")
    return path


@pytest.fixture
def train(tmp_path: Path, text_file: Path, monkeypatch):
    """Train in this process: `train("name", "--flag", "value", ...)` returns the run directory.

    Exact precision, a cache of its own, the tiny model, and `text_file` unless the flags name other text.
    """
    from accelerate.state import AcceleratorState

    from stylegen.train import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(name: str, *flags: str, code: int = 0, tiny: bool = True) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        data = (
            ()
            if {"--train_file", "--dataset_name", "--prompt_file"} & set(flags)
            else ("--train_file", str(text_file))
        )
        defaults = ("--mixed_precision", "no") if "--mixed_precision" not in flags else ()
        if not tiny and "--style_steps" not in flags:
            defaults += ("--style_steps", "never")
        folder = tmp_path / name
        assert main([*data, *(TINY if tiny else ()), *defaults, "--output_dir", str(folder), *flags]) == code
        return folder

    return run


@pytest.fixture
def command(tmp_path: Path):
    """Run a root script in its own process: `command("run_clm.py", ...)` returns the finished process."""

    def run(script: str, *arguments: str, environment: dict[str, str] | None = None, timeout: float = 300):
        return subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=tmp_path,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def start(tmp_path, text_file):
    """`start("fsdp", "--flag", ...)` starts two processes under `accelerate launch` and returns the launcher."""

    def launch(
        config: str,
        *flags: str,
        script: Path = ROOT / "run_clm.py",
        options: tuple = (),
        prefix: tuple = (),
        tiny: bool = True,
        **variables,
    ):
        command = [*prefix, ACCELERATE, "launch", "--config_file", f"configs/accelerate/{config}.yaml"]
        command += [
            "--num_processes",
            "2",
            *options,
            str(script),
            "--train_file",
            str(text_file),
            *(TINY if tiny else ()),
            *EXACT,
        ]
        command += ["--cache_dir", str(tmp_path / "cache")]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", **variables}
        return subprocess.Popen(
            [*command, *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return launch


@pytest.fixture
def launch(start):
    """The same, to its end: (exit code, stdout, stderr)."""

    def run(*arguments, **options):
        process = start(*arguments, **options)
        output, log = process.communicate(timeout=300)
        return process.returncode, output, log

    return run


def our_lines(log: str) -> list[str]:
    """What we print, without the launcher's."""
    return [line for line in log.splitlines() if "error: " in line and "torch" not in line]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A plain Transformers folder of a tiny model with 32 positions."""
    from stylegen.model import build_model, save_model, scratch_config
    from stylegen.tokenizer import train_tokenizer

    tokenizer = train_tokenizer("char", [[make_text(50)]], 0, None, "none")
    config = scratch_config("gpt2", None, {"n_layer": 1, "n_head": 1, "n_embd": 8}, block_size=32)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(build_model(config, tokenizer, dtype="float32", attn_implementation=None), tokenizer, folder)
    return folder


def metrics(folder: Path) -> list[dict]:
    """Every row of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def evaluations(folder: Path) -> list[dict]:
    return [row for row in metrics(folder) if "eval/loss" in row]


def training_losses(folder: Path) -> dict[int, float]:
    """step -> train/loss"""
    return {row["train/global_step"]: row["train/loss"] for row in metrics(folder) if "train/loss" in row}
