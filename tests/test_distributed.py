"""Several processes under the real launcher: the numbers of one, whole models, named failures."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ACCELERATE, ROOT, TINY, metrics, our_lines
from lives import DATA, Fault, as_variable
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

PLAIN = ("--config_overrides", "n_layer=2,n_head=2,n_embd=32,resid_pdrop=0,embd_pdrop=0,attn_pdrop=0")
ENDLESS = ("--max_train_steps", "100000", "--eval_steps", "100000")


def benchmark(script: str, *arguments: str) -> str:
    """Run a benchmark that compares numbers and fails if they differ; returns its table."""
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# --- the same numbers


def test_ddp_and_fsdp_give_the_numbers_of_one_process():
    assert "FSDP2" in benchmark(
        "topologies.py", "--only", "8 x 1 accumulated", "2 processes x 4", "FSDP2, 2 x 2 x 2"
    )


@pytest.mark.slow
def test_four_processes_and_two_machines_too():
    benchmark("topologies.py", "--only", "4 processes x 2", "2 machines x 4")


@pytest.mark.slow
def test_no_layer_of_gpt2_is_named_anywhere():
    benchmark("topologies.py", "--model_type", "llama", "--only", "2 processes x 4", "FSDP2, 2 x 2 x 2")


@pytest.mark.deepspeed
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_zero_gives_the_numbers_of_one_process(model_type):
    stages = [f"ZeRO-{stage}, 2 x 2 x 2" for stage in (1, 2, 3)]
    benchmark("topologies.py", "--model_type", model_type, "--only", *stages)


@pytest.mark.slow
def test_a_run_goes_on_with_more_and_fewer_processes():
    benchmark("resume_elsewhere.py", "--only", "DDP")


@pytest.mark.slow
def test_a_sharded_run_goes_on_with_more_and_fewer_processes():
    benchmark("resume_elsewhere.py", "--only", "FSDP2")


@pytest.mark.deepspeed
def test_a_run_goes_on_under_another_topology():
    benchmark("resume_elsewhere.py", "--only", "ZeRO-2", "ZeRO-3", "mixed")


def test_the_processes_of_one_step_share_its_blocks_without_overlap():
    from stylegen.blocks import micro_batches, step_indices

    for position in range(3):
        indices = step_indices(7, 1, position, 21, 8)
        for world_size in (1, 2, 4):
            shares = [micro_batches(indices, 2, world_size, rank) for rank in range(world_size)]
            assert (
                len({len(share) for share in shares}) == 1
            )  # as many passes on each, or they would wait for ever
            assert sorted(int(i) for share in shares for part in share for i in part) == sorted(indices)


# --- whole models and samples from pieces


SHARDED = [
    "fsdp",
    pytest.param("zero2", marks=pytest.mark.deepspeed),
    pytest.param("zero3", marks=pytest.mark.deepspeed),
]


@pytest.mark.parametrize("config", SHARDED)
def test_a_sharded_run_writes_the_samples_and_the_model_of_one_process(config, train, launch, tmp_path):
    flags = (
        *PLAIN,
        "--total_batch_size",
        "8",
        "--max_train_steps",
        "4",
        "--sample_steps",
        "2",
        "--eval_steps",
        "2",
    )
    one = train("one", *flags, "--logging_steps", "1")
    code, _, log = launch(
        config, *flags, "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "two")
    )
    assert code == 0, log[-3000:]
    assert f"{tmp_path / 'two'} loads in Transformers and gives the loss it was saved with" in log
    for step in ("000002", "000004"):
        sample = f"samples/step-{step}.txt"
        assert (tmp_path / "two" / sample).read_text() == (one / sample).read_text()
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "two", one))
    assert ours.keys() == theirs.keys() and "lm_head.weight" not in ours  # tied, and not written twice
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (tmp_path / "two", one)]
    ids = torch.arange(32)[None]
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in models]
    assert models[0].dtype == torch.float32
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
    topology = {"fsdp": "FSDP2", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}[config]
    assert (
        f"2 processes ({topology} over gloo) on cpu, 1 threads each, precision no; a step is 8 blocks = 2 x 2 "
        f"processes x 2 passes = 256 tokens" in log
    )
    assert re.search(r"weights, gradients and optimizer take about \d MB a process", log)
    assert json.loads((tmp_path / "two/environment.json").read_text())["world_size"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("config", SHARDED)
def test_bf16_keeps_fp32_weights_and_an_exact_sum(config, launch, tmp_path):
    """Neither is what Accelerate does by itself: FSDP would hand out the loss in bf16, DeepSpeed round the weights."""
    code, _, log = launch(
        config, *PLAIN, "--mixed_precision", "bf16", "--max_train_steps", "4", "--learning_rate", "1e-9",
        "--eval_steps", "1", "--checkpointing_steps", "1", "--save_total_limit", "none", "--sample_steps", "end",
        "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 0, log[-3000:]
    for path in (tmp_path / "out").rglob(
        "model.safetensors"
    ):  # all of it, in each checkpoint and in the final model
        for name, weight in load_file(path).items():
            assert weight.dtype == torch.float32, (path, name)
            assert weight.ndim < 2 or not torch.equal(weight, weight.bfloat16().float()), (path, name)
    losses = [row["train/loss"] for row in metrics(tmp_path / "out") if "train/loss" in row]
    assert any(loss != torch.tensor(loss).bfloat16().item() for loss in losses)


# --- the launcher


def test_a_launch_that_started_one_process_of_two_is_refused_with_the_right_command(text_file, tmp_path):
    command = [
        ACCELERATE,
        "launch",
        "--cpu",
        "--num_processes",
        "2",
        "run_clm.py",
        "--train_file",
        str(text_file),
    ]
    result = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode != 0 and not (tmp_path / "out").exists()
    assert (
        "error: accelerate launch was asked for 2 processes and started one, as it does with --cpu and with "
        "distributed_type MULTI_CPU; several processes on CPUs: ACCELERATE_USE_CPU=true accelerate launch "
        "--config_file configs/accelerate/ddp.yaml --num_processes 2 run_clm.py ..." in result.stderr
    )


def test_lonely_processes_are_refused_once(launch, tmp_path):
    """A host without GPUs, and nobody said that CPUs are meant."""
    code, _, log = launch("ddp", "--output_dir", str(tmp_path / "out"), ACCELERATE_USE_CPU="false")
    assert code != 0 and not (tmp_path / "out").exists()
    (line,) = our_lines(log)
    assert (
        "the launcher says 2 processes, but each of them trains alone" in line
        and "ACCELERATE_USE_CPU=true" in line
    )


def test_another_total_batch_on_other_processes_is_refused_with_the_way_to_keep_it(train, launch, tmp_path):
    train("out", *PLAIN, "--max_train_steps", "1", "--per_device_train_batch_size", "8")
    code, _, log = launch("ddp", *PLAIN, "--max_train_steps", "2", "--per_device_train_batch_size", "8",
                          "--output_dir", str(tmp_path / "out"))  # fmt: skip
    assert code != 0
    assert re.search(
        r"\(total_batch_size: 8 -> 16\); give --total_batch_size 8 to go on with it, choose", log
    )


def test_processes_with_different_arguments_are_refused_naming_the_argument(launch, tmp_path):
    """As where each machine reads its own copy of a preset."""
    (tmp_path / "differ.py").write_text(
        "import os, sys\nfrom stylegen.train import main\n"
        "sys.exit(main([*sys.argv[1:], '--seed', os.environ['RANK']]))\n"
    )
    code, _, log = launch(
        "ddp", "--output_dir", str(tmp_path / "out"), script=tmp_path / "differ.py", PYTHONPATH=str(ROOT)
    )
    assert code != 0 and not (tmp_path / "out").exists()
    (line,) = our_lines(log)
    assert line == (
        "error: the processes have different arguments: seed is 0 on rank 0 and 1 on rank 1; give all of them the same"
    )


def test_a_batch_that_the_processes_cannot_divide_is_refused_with_the_arithmetic(launch, tmp_path):
    code, _, log = launch("ddp", "--total_batch_size", "18", "--per_device_train_batch_size", "4",
                          "--output_dir", str(tmp_path / "out"))  # fmt: skip
    assert code != 0
    (line,) = our_lines(log)
    assert line == (
        "error: total_batch_size 18 is not a multiple of per_device_train_batch_size 4 x 2 processes = 8; "
        "the nearest that work: 16 or 24"
    )


@pytest.mark.slow
def test_machines_with_different_numbers_of_processes_are_refused(tmp_path, text_file):
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nnodes", "2", "--master_addr", "127.0.0.1"]
    port = str(21000 + os.getpid() % 9000)
    jobs = [
        subprocess.Popen(
            [*torchrun, "--master_port", port, "--node_rank", str(node), "--nproc_per_node", str(node + 1),
             "run_clm.py", "--train_file", str(text_file), *TINY, "--output_dir", str(tmp_path / "out")],
            cwd=ROOT, env={**os.environ, "ACCELERATE_USE_CPU": "true"}, stderr=subprocess.PIPE, text=True,
        )
        for node in (0, 1)
    ]  # fmt: skip
    logs = [job.communicate(timeout=120)[1] for job in jobs]
    assert all(job.returncode for job in jobs)
    assert re.search(
        r"error: the machines have different numbers of processes \(1 on \S+, 2 on \S+\)", logs[0]
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount of its own for one machine needs root")
@pytest.mark.parametrize("each_node", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_directory_that_only_the_first_machine_sees(each_node, start, tmp_path):
    place = tmp_path / "local"
    place.mkdir()
    flags = ("--max_train_steps", "2", "--output_dir", str(place / "out"))
    flags += ("--save_on_each_node",) if each_node else ()
    options = ("--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port",
               str(22000 + os.getpid() % 9000), "--rdzv_conf", "timeout=60")  # fmt: skip
    first = start("multinode_ddp", *flags, options=(*options, "--machine_rank", "0"))
    second = start("multinode_ddp", *flags, options=(*options, "--machine_rank", "1"), prefix=(
        "unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {place}; "$@" && ls {place}/out/*/', "sh"))  # fmt: skip
    (_, log), (listing, _) = (process.communicate(timeout=200) for process in (first, second))
    if each_node:
        assert first.returncode == 0, log[-2000:]
        for names in (listing, "\n".join(path.name for path in place.rglob("*"))):
            assert (
                "manifest.json" in names
                and "model.safetensors" in names
                and "optimizer-00001-of-00001" in names
            )
    else:
        assert first.returncode and not list(place.iterdir())
        (line,) = our_lines(log)
        assert f"error: what rank 0 writes into output_dir {place}/out cannot be seen on" in line
        assert "or give --save_on_each_node" in line


# --- a rank that hangs; other ways to fail are in test_faults.py


def test_a_rank_that_hangs_is_named_with_its_stack(launch, tmp_path):
    hang = Fault(DATA, f"wait {tmp_path}/never", 5, rank=1)
    code, _, log = launch("ddp", *ENDLESS, "--output_dir", str(tmp_path / "out"), "--watchdog_seconds", "4",
                          script=ROOT / "tests/lives.py", **as_variable(hang))  # fmt: skip
    assert code != 0
    assert re.search(
        r"error: rank 1 on \S+ hangs: nothing for 4 s, last seen in step \d+, pass \d of \d: reading; the other ranks",
        log,
    )
    assert re.search(r"rank 1 of 2 stands in step \d+, pass \d of \d: reading:\n(.*\n)+.*time.sleep\(", log)


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder of its own for each machine needs root")
@pytest.mark.slow
def test_machines_with_their_own_checkpoints_go_on_from_the_newest_that_all_have(start, tmp_path):
    """One was killed between its rename and the other's: the last checkpoint is on the first machine only."""
    for name in ("here", "first", "second"):
        (tmp_path / name).mkdir()

    def both(steps: str) -> str:
        flags = ["--save_on_each_node", "--checkpointing_steps", "1", "--save_total_limit", "none"]
        flags += ["--lr_scheduler_type", "constant", "--max_train_steps", steps]
        flags += ["--output_dir", str(tmp_path / "here/out")]
        options = ("--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port",
                   str(24000 + os.getpid() % 9000), "--rdzv_conf", "timeout=60")  # fmt: skip
        jobs = [
            start("multinode_ddp", *flags, options=(*options, "--machine_rank", str(rank)), prefix=(
                "unshare", "--mount", "sh", "-c", f'mount --bind {tmp_path / name} {tmp_path}/here; exec "$@"', "sh"))
            for rank, name in enumerate(("first", "second"))
        ]  # fmt: skip
        logs = [job.communicate(timeout=200)[1] for job in jobs]
        assert not any(job.returncode for job in jobs), logs[0][-3000:]
        return logs[0]

    both("3")
    shutil.rmtree(tmp_path / "second/out/checkpoint-000003")
    assert "going on from" in (log := both("4")) and "step 2 of 4" in log
    assert [row["train/global_step"] for row in metrics(tmp_path / "first/out") if "train/loss" in row] == [
        1,
        2,
        3,
        3,
        4,
    ]
    models = [load_file(tmp_path / name / "out/model.safetensors") for name in ("first", "second")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
