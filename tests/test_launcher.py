"""What a launcher may not do: start other processes than asked, or fix what belongs to the run."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT

from stylegen.config import TrainArguments, UsageError
from stylegen.config.launcher import OWNED_BY_THE_RUN, _asked_processes, check_launcher
from stylegen.metrics import training_bytes
from stylegen.runtime import process

ACCELERATE = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
DEEPSPEED = sorted((ROOT / "configs/deepspeed").glob("*.json"))


@pytest.fixture
def deepspeed(monkeypatch, tmp_path):
    """`deepspeed(config)` is a launcher that asks for DeepSpeed with this JSON; returns the path of the file."""

    def ask(config: dict | str | None) -> str:
        pytest.importorskip("deepspeed") if config is None else None
        path = tmp_path / "ds.json"
        if config is not None:
            path.write_text(config if isinstance(config, str) else json.dumps(config))
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
        monkeypatch.setattr("stylegen.config.launcher.importlib.util.find_spec", lambda name: True)
        return str(path)

    return ask


def refusal(arguments: TrainArguments | None = None) -> str:
    with pytest.raises(UsageError) as error:
        check_launcher(arguments or TrainArguments())
    return str(error.value)


# --- our own configurations


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_takes_the_file_and_it_fixes_nothing_of_the_run(path):
    from accelerate.commands.config.config_args import load_config_from_file

    load_config_from_file(str(path))
    config = yaml.safe_load(path.read_text())
    assert not {"mixed_precision", "gradient_accumulation_steps", "gradient_clipping"} & config.keys()
    named = config.get("deepspeed_config", {}).get("deepspeed_config_file")
    assert named is None or (ROOT / named).is_file()
    assert "cls_to_wrap" not in path.read_text()  # any architecture, not that of GPT-2 alone


@pytest.mark.parametrize("path", DEEPSPEED, ids=lambda path: path.stem)
def test_our_deepspeed_files_leave_everything_to_the_run(path, deepspeed):
    config = json.loads(path.read_text())
    assert all(config[key] == "auto" for key in OWNED_BY_THE_RUN)
    deepspeed(config)
    check_launcher(TrainArguments())


@pytest.mark.slow
def test_the_two_single_process_configurations_train(command, text_file):
    accelerate = os.path.join(os.path.dirname(sys.executable), "accelerate")
    for name in ("cpu", "single_gpu"):
        config = str(ROOT / f"configs/accelerate/{name}.yaml")
        flags = ["--train_file", str(text_file), "--output_dir", str(text_file.parent / name), "--max_train_steps", "1",
                 "--block_size", "32", "--train_tokenizer", "char", "--cache_dir", str(text_file.parent / "cache"),
                 "--config_overrides", "n_layer=1,n_head=1,n_embd=8"]  # fmt: skip
        result = subprocess.run(
            [accelerate, "launch", "--config_file", config, str(ROOT / "run_clm.py"), *flags],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "1 process on cpu" in result.stderr


# --- what is refused


@pytest.mark.parametrize(("key", "argument"), OWNED_BY_THE_RUN.items())
def test_a_deepspeed_file_that_fixes_what_the_run_owns_is_refused_naming_both(key, argument, deepspeed):
    path = deepspeed({key: 4})
    assert (
        refusal()
        == f'{path} sets {key} to 4, which belongs to the run; write "auto" there, and give --{argument}'
    )


def test_precision_and_optimizer_of_a_deepspeed_file_are_refused(deepspeed):
    path = deepspeed({"bf16": {"enabled": True}})
    assert refusal() == (
        f'{path} sets bf16.enabled to true, which belongs to the run; write "auto" there, and give --mixed_precision'
    )
    path = deepspeed({"optimizer": {"type": "AdamW"}})
    assert (
        refusal() == f"{path} has a section optimizer, which belongs to the run; delete it, and give --optim"
    )


def test_a_deepspeed_file_that_cuts_nothing_is_refused(deepspeed):
    path = deepspeed({"zero_optimization": {"stage": 0}})
    assert refusal().startswith(
        f"{path} cuts nothing (zero_optimization.stage is 0 or missing); use configs/accelerate/"
    )


def test_clipping_in_the_accelerate_file_is_refused(deepspeed, monkeypatch):
    deepspeed({})
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "0.5")
    assert (
        "sets gradient_clipping to 0.5, which belongs to the run; take it out, and give --max_grad_norm"
        in refusal()
    )


def test_a_deepspeed_file_that_is_missing_or_broken_is_named(deepspeed, tmp_path):
    path = deepspeed("{")
    assert refusal().startswith(f"the launcher's deepspeed_config_file {path} is not valid JSON")
    (tmp_path / "ds.json").unlink()
    assert refusal() == (
        f"the launcher's deepspeed_config_file {path} does not exist; start from the folder it is given from"
    )


def test_muon_and_zero_are_refused_by_name(deepspeed):
    deepspeed({})
    message = refusal(TrainArguments(optim="muon"))
    assert message.startswith(
        "optim muon needs whole weight matrices, which DeepSpeed ZeRO cuts into flat pieces"
    )
    assert "--optim adamw" in message and "fsdp.yaml" in message


def test_deepspeed_that_is_not_installed_is_refused(deepspeed, monkeypatch):
    deepspeed({})
    monkeypatch.setattr("stylegen.config.launcher.importlib.util.find_spec", lambda name: None)
    assert refusal() == "the launcher asks for DeepSpeed, which is not installed; pip install deepspeed"


def test_the_first_fsdp_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    assert "FSDP version 1, which is not supported; set fsdp_version: 2" in refusal()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--cpu --num_processes 2 run_clm.py", 2),
        ("--num-processes=4 run_clm.py", 4),
        ("--config_file {config} run_clm.py", 3),
        ("--config_file {config} --num_processes 1 run_clm.py", 1),
        ("run_clm.py --num_processes 5", 1),
        ("--config_file nowhere.yaml run_clm.py", 1),
    ],
)
def test_how_many_processes_a_command_line_asks_for(options, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "three.yaml").write_text("num_processes: 3\n")
    words = options.format(config=tmp_path / "three.yaml").split()
    assert _asked_processes(["python", "accelerate", "launch", *words]) == expected


@pytest.mark.parametrize(
    ("rank", "what"), [("0", "the other ranks did not come"), ("1", "rank 0 cannot be reached")]
)
def test_no_rendezvous_names_host_and_port(rank, what, monkeypatch):
    """Without torchrun: one task a process, as srun starts them."""
    port = str(23000 + os.getpid() % 9000)
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": rank,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process, "RENDEZVOUS_SECONDS", 2)
    with pytest.raises(UsageError, match=f"^no rendezvous at 127.0.0.1 port {port}: {what} within 2 s"):
        process.build_accelerator("no")


def test_more_processes_than_gpus_are_refused_naming_the_machine(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"has 2 GPUs for 4 processes; every node needs the same number"):
        process._check_devices()


# --- shares of a machine


@pytest.mark.parametrize(
    ("processes", "own", "task", "torchrun", "expected"),
    [
        (2, None, None, "x", 4), (3, None, None, "x", 2), (16, None, None, "x", 1), (2, "3", None, None, None),
        (2, None, "4", "x", 2), (2, None, "4", None, 4), (1, None, None, None, None),
    ],
)  # fmt: skip
def test_processes_share_the_cores(processes, own, task, torchrun, expected, monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    variables = {"OMP_NUM_THREADS": own, "SLURM_CPUS_PER_TASK": task, "TORCHELASTIC_RUN_ID": torchrun}
    for name, value in variables.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    process._share_threads()
    assert set_to == ([expected] if expected else [])


def test_memory_of_a_process_by_hand():
    """A thousand parameters: 4 bytes each of weights and gradients, 8 of AdamW's state; in bf16 2, 2 and 12."""
    assert training_bytes(1000, 4, stage=0) == 16_000
    assert training_bytes(1000, 4, stage=1) == 8_000 + 8_000 / 4
    assert training_bytes(1000, 4, stage=2) == 4_000 + 12_000 / 4
    assert training_bytes(1000, 4, stage=3) == 16_000 / 4
    assert training_bytes(1000, 4, stage=2, bytes_per_weight=2) == 2_000 + 14_000 / 4
