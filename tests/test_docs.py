"""Every command of README and docs, and the test that runs it, or why none does: `python tests/test_docs.py` lists them."""

# ruff: noqa: E501  a table of commands

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ACCELERATE, ROOT, make_text

from stylegen.config import ExportArguments, GenerateArguments, StyleArguments, TrainArguments

ARGUMENTS = (TrainArguments, GenerateArguments, StyleArguments, ExportArguments)

SMALL = ("--max_train_steps 2 --vocab_size 300 --block_size 32 --cache_dir cache --style_steps never "
         "--config_overrides n_layer=1,n_head=2,n_embd=32").split()  # fmt: skip
FEW = "--max_new_tokens 20".split()
ON_OURS = [
    *"--model_name_or_path out/quickstart --block_size 16 --max_train_steps 2 --cache_dir cache".split()
]
HERE = "test_docs.py::test_the_commands_of_the_docs_run"
README = "test_readme.py::"
# Run one after the other by the test below, in a folder with texts and small runs, with these further flags.
RUN_HERE = {
    "ACCELERATE_USE_CPU=true accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 2 run_clm.py configs/quickstart.yaml --output_dir out/two":
        [*SMALL, "--train_file", "mine.txt"],
    'python generate.py out/quickstart --prompt "ROMEO:" --num_return_sequences 3': FEW,
    "python generate.py out/quickstart --prompt_file prompts.jsonl --temperature 0.7,1.0,1.2 --output texts.jsonl": FEW,
    "python generate.py out/start out/run --prompt_file prompts.jsonl --compare compare.html": FEW,
    "accelerate launch --config_file configs/accelerate/ddp.yaml generate.py out/run --prompt_file prompts.jsonl --output texts.jsonl":
        [*FEW, "--overwrite_output"],
    "python -m stylegen.export out/quickstart plain": [],
    "python run_clm.py configs/finetune_lora.yaml --train_file mine.txt --output_dir out/adapter": ON_OURS,
    'python generate.py out/adapter --prompt "ROMEO"': FEW,
    "python -m stylegen.export out/adapter plain": [],
    "python -m stylegen.report out/quickstart": [],
    "python -m stylegen.report out/adamw out/muon": [],
    "python generate.py out/quickstart --num_return_sequences 100 --output texts.jsonl": [*FEW, "--overwrite_output"],
    "python -m stylegen.style --train plays/ --validation unseen.txt --texts texts.jsonl others.jsonl": [],
    "python run_clm.py configs/quickstart.yaml --report_to wandb --project verse --group tries":
        [*SMALL, "--train_file", "mine.txt", "--output_dir", "out/tracked"],
    "WANDB_MODE=offline python run_clm.py configs/quickstart.yaml --report_to wandb":
        [*SMALL, "--train_file", "mine.txt", "--output_dir", "out/adamw", "--overwrite_output_dir"],
    "python -m stylegen.report out/adamw --wandb --dry_run report.json": [],
}  # fmt: skip
RUN_ELSEWHERE = {
    "make quickstart": README + "test_make_quickstart_from_nothing",
    "make test": "is what runs this",
    "python run_clm.py configs/quickstart.yaml --train_file mine.txt --output_dir out/mine": README + "test_training_on_a_file",
    "python run_clm.py configs/finetune_gpt2.yaml --train_file mine.txt --output_dir out/tuned": README + "test_fine_tuning_preset",
    "accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 2 run_clm.py configs/scratch_gpt2_small.yaml --train_file texts/ --output_dir out/gpt2":
        README + "test_training_from_scratch_under_the_launcher",
    "sbatch configs/slurm/train.sbatch configs/scratch_gpt2_small.yaml --train_file texts/ --output_dir out/gpt2":
        "test_slurm.py, with another preset",
    "accelerate launch --config_file configs/accelerate/single_gpu.yaml run_clm.py configs/finetune_gpt2.yaml --train_file mine.txt --output_dir out/tuned":
        "needs a GPU and the network",
    "python -m stylegen.plan configs/scratch_gpt2_small.yaml --gpus 16 --gpu h100": "test_plan.py",
    'python generate.py out/quickstart --prompt "ROMEO" --seed 1': README + "test_writing",
    'python generate.py out/mine out/adapter --prompt "ROMEO" "To be" --compare out/compare.html':
        README + "test_an_adapter_is_compared_and_texts_are_measured",
    "python generate.py out/mine --num_samples 50 --output out/mine.jsonl":
        README + "test_an_adapter_is_compared_and_texts_are_measured",
    "python -m stylegen.style --train mine.txt --texts out/mine.jsonl":
        README + "test_an_adapter_is_compared_and_texts_are_measured",
    "python -m stylegen.blocks configs/one_play.yaml": "test_presets.py",
    "python -m stylegen.tokenizer mine.txt --vocab_size 1000 --output_dir tokenizer": "test_presets.py",
    "for form in none nfc nfd nfkc nfkd; do": "test_presets.py::test_normalizers_are_compared_in_one_figure",
    "python run_clm.py configs/normalizers.yaml --train_file mine.txt --normalizer $form --output_dir out/normalizers/$form":
        "test_presets.py::test_normalizers_are_compared_in_one_figure",
    "done": "test_presets.py::test_normalizers_are_compared_in_one_figure",
    "python -m stylegen.report out/normalizers/*": "test_presets.py::test_normalizers_are_compared_in_one_figure",
    "python generate.py out/quickstart --num_samples inf --output samples.jsonl": "test_generate.py",
    "python generate.py out/quickstart --interactive": "test_generate.py::test_a_session_at_a_terminal",
    "wandb sweep configs/wandb/sweep_learning_rate.yaml": "test_wandb.py::test_a_sweep_makes_one_run_a_trial",
    "python -m stylegen.report out/adamw out/muon --wandb": "test_workspace.py, against a stand-in",
    "python -m stylegen.report out/seed1 out/seed2 out/seed3 --wandb": "test_workspace.py, against a stand-in",
    "python run_clm.py configs/quickstart.yaml --train_file mine.txt --output_dir out/mine --push_to_hub":
        "test_card.py, against a stand-in; needs the network",
    "hf auth login": "needs the network: the hub's own",
    "accelerate launch --config_file configs/accelerate/multinode_ddp.yaml --num_machines 2 --num_processes 16 --machine_rank 0 --main_process_ip 10.0.0.1 --main_process_port 29500 --rdzv_conf timeout=60 run_clm.py PRESET.yaml":
        "needs several machines with GPUs; test_distributed.py with small numbers",
    'pip install "stylegen[wandb]"': "needs the network: installed by make test",
    'pip install "stylegen[report]"': "needs the network: installed by make test",
}  # fmt: skip


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line in a block of shell commands, comments left out."""
    found = []
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            lines = [re.sub(r"\s+#.*", "", line).strip() for line in block.splitlines()]
            found += [(page.name, line) for line in lines if line and not line.startswith("#")]
    return found


def how_it_is_run(command: str) -> str:
    """The test that runs a command, or what it would need. Raises KeyError for one that nobody has looked at."""
    return HERE if command in RUN_HERE else RUN_ELSEWHERE[command]


def test_every_command_is_accounted_for():
    shown = {command for _, command in commands()}
    assert shown == {*RUN_HERE, *RUN_ELSEWHERE}


@pytest.mark.parametrize(
    "place", sorted({place for place in RUN_ELSEWHERE.values() if place.startswith("test_")})
)
def test_the_tests_that_are_named_exist(place):
    file, _, name = place.partition("::")
    text = (ROOT / "tests" / re.split(r"[,; ]", file)[0]).read_text()
    assert not name or f"def {name}(" in text


def test_every_flag_that_a_page_names_exists():
    """In a right-hand column of migrating.md: the flags of ours that stand for theirs."""
    known = {field.name for cls in ARGUMENTS for field in dataclasses.fields(cls)}
    page = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    ours = [line.rsplit(" | ", 1)[1] for line in page.splitlines() if line.startswith("| ")]
    flags = {flag for cell in ours for flag in re.findall(r"--([a-z][a-z_0-9]+)", cell)}
    assert len(flags) > 40 and flags - known == set()


@pytest.mark.slow
def test_the_commands_of_the_docs_run(tmp_path):
    """As they stand there, in the order of the pages, on small models."""
    from test_readme import run

    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name in ("mine.txt", "plays/one.txt", "unseen.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(make_text(400, seed=len(name)))
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in ("ROMEO:", "Thou"))
    )
    (tmp_path / "others.jsonl").write_text(json.dumps({"prompt": "", "text": make_text(100, seed=9)}) + "\n")
    train = "python run_clm.py configs/quickstart.yaml --train_file mine.txt --output_dir".split()
    run(tmp_path, *train, "out/quickstart", *SMALL)
    for name in ("start", "run", "adamw", "muon"):
        shutil.copytree(tmp_path / "out/quickstart", tmp_path / "out" / name)
    for command, further in RUN_HERE.items():
        if "stylegen.export" in command:
            shutil.rmtree(tmp_path / "plain", ignore_errors=True)  # of the page before
        words = shlex.split(command)
        variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        words = [ACCELERATE if word == "accelerate" else word for word in words[len(variables) :]]
        run(
            tmp_path, *words, *further, **{"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", **variables}
        )
    assert (tmp_path / "report.json").exists() and (tmp_path / "out" / "comparison.html").exists()
    assert Path(tmp_path / "compare.html").exists() and (tmp_path / "plain" / "config.json").exists()


if __name__ == "__main__":
    for page, command in commands():
        print(f"{page:18}{how_it_is_run(command):62}{command}")
