"""configs/slurm/ on a real SLURM of two nodes (tests/slurm_cluster.py): on CPUs, but for a fake launcher on fake GPUs.

What takes minutes, a time limit or a rendezvous, is submitted by the first test that asks for any of it, and runs
beside the others.
"""

import re
import shlex
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY, make_text, metrics
from slurm_cluster import Cluster, cluster, what_is_missing

from stylegen.tracking import read_metrics

pytestmark = pytest.mark.slurm

TRAIN = "configs/slurm/train.sbatch"
TRAIN_SRUN = "configs/slurm/train_srun.sbatch"
EXACT = (*TINY, "--mixed_precision", "no", "--train_file", "text.txt", "--logging_steps", "1")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The cluster, in a folder that has the repository's scripts and a text."""
    if reason := what_is_missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("configs", "run_clm.py"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "text.txt").write_text(make_text(300), encoding="utf-8")
    with cluster(
        folder,
        PATH=f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        XDG_CACHE_HOME=str(folder / "cache"),
    ) as started:
        yield started


@pytest.fixture(scope="module")
def waiting(slurm):
    """The jobs that take minutes: name -> number. Beyond its first lives, "limited" is as long as its preset says."""
    preset = {"output_dir": "out/limited", "max_train_steps": 10_000_000, "report_to": ["wandb"]}
    preset |= {"lr_scheduler_type": "constant", "eval_steps": 2000, "checkpointing_steps": "end"}
    (slurm.folder / "limited.yaml").write_text(yaml.safe_dump(preset))
    write_launcher(slurm, "late", '[ "$SLURM_NODEID" != "$ABSENT" ] || sleep 600')
    late = {"PATH": f"{slurm.folder}/late:{slurm.environment['PATH']}"}
    return {
        "limited": slurm.submit("--time=2", "--signal=B:USR1@30", TRAIN, "limited.yaml", *EXACT),
        "no head": slurm.submit(TRAIN, *EXACT, "--output_dir", "out/no-head", ABSENT="0", **late),
        "no other": slurm.submit(TRAIN, *EXACT, "--output_dir", "out/no-other", ABSENT="1", **late),
    }


def write_launcher(slurm: Cluster, name: str, script: str) -> None:
    """An `accelerate` in a folder of this name that does something first, or instead if that exits."""
    real = Path(sys.executable).parent / "accelerate"
    path = slurm.folder / name / "accelerate"
    path.parent.mkdir()
    path.write_text(f'#!/bin/bash\n{script}\nexec {shlex.quote(str(real))} "$@"\n')
    path.chmod(0o755)


def training_steps(run_dir: Path) -> list[int]:
    """The steps of the training rows, as they stand in the file."""
    return [row["train/global_step"] for row in metrics(run_dir) if "train/loss" in row]


def wait_for_rows(run_dir: Path, job: str, slurm: Cluster) -> None:
    end = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").exists() or len(metrics(run_dir)) < 20:
        assert time.monotonic() < end, slurm.log(job) + slurm.logs(job)
        time.sleep(0.5)


@pytest.mark.parametrize("script", [TRAIN, TRAIN_SRUN])
def test_slurm_accepts_the_scripts_as_they_are(slurm, script):
    for options in ((), ("--gpus-per-node=1",), ("--gres=gpu:1", "--array=1-3")):
        said = slurm.run("sbatch", "--test-only", *options, script).stderr
        assert re.search(r"Job \d+ to start at .* on nodes n\[1-2\]", said), said


def test_an_array_trains_a_seed_in_each_task_and_only_the_stopped_one_is_requeued(slurm, waiting):
    array = slurm.submit("--nodes=1", "--array=1-2", TRAIN, *EXACT, "--max_train_steps", "1500")
    folder = slurm.folder / "out" / f"array-{array}"
    # The number of the array is that of one of its tasks too: that one is stopped.
    shown = slurm.run("scontrol", "show", "job", array).stdout
    task = re.search(rf"JobId={array} ArrayJobId={array} ArrayTaskId=(\d)", shown)[1]
    other = {"1": "2", "2": "1"}[task]
    wait_for_rows(folder / task, f"{array}_{task}", slurm)
    slurm.run("scancel", "--batch", "--signal=USR1", f"{array}_{task}")
    for name, restarts in ((task, "1"), (other, "0")):
        ended = slurm.wait(f"{array}_{name}", 200)
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", restarts), slurm.log(f"{array}_{name}")
        assert training_steps(folder / name) == list(range(1, 1501))
        settings = yaml.safe_load((folder / name / "config.yaml").read_text())
        assert (settings["seed"], settings["group"]) == (int(name), f"array-{array}")
        assert not (folder / name / "STOP").exists()


def test_the_signal_may_come_before_the_training_listens(slurm, waiting):
    job = slurm.submit("--nodes=1", TRAIN, *EXACT, "--output_dir", "out/early", "--max_train_steps", "3000")
    while slurm.show(job)["JobState"] == "PENDING":
        time.sleep(0.2)
    (slurm.folder / "out" / "early").mkdir(parents=True)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    ended = slurm.wait(job, 200)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), slurm.log(job)
    assert training_steps(slurm.folder / "out" / "early") == list(range(1, 3001))


def test_a_users_stop_is_no_reason_to_queue_again(slurm, waiting):
    run_dir = slurm.folder / "out" / "stopped"
    job = slurm.submit(TRAIN_SRUN, *EXACT, "--output_dir", "out/stopped", "--max_train_steps", "100000")
    wait_for_rows(run_dir, job, slurm)
    (run_dir / "STOP").touch()
    ended = slurm.wait(job, 60)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0")
    assert "not requeued: it was stopped by STOP" in slurm.log(job)
    assert "stopped by STOP" in slurm.logs(job)
    assert sorted(path.name for path in (slurm.folder / "logs" / job).glob("*.log")) == [
        "rank-0.log", "rank-1.log",
    ]  # fmt: skip


def test_an_error_is_not_requeued(slurm, waiting):
    misspelt = slurm.submit(TRAIN, *EXACT, "--output_dir", "out/misspelt", "--max_train_steps", "many")
    ended = slurm.wait(misspelt, 60)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    said = slurm.log(misspelt).splitlines()
    assert said[-1] == "error: max_train_steps in the command line is 'many', but must be a whole number"
    diverged = slurm.submit(TRAIN, *EXACT, "--output_dir", "out/diverged", "--learning_rate", "1e30")
    ended = slurm.wait(diverged, 120)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0")
    said = slurm.log(diverged)
    assert f"logs/{diverged}/node-0.log:[default0]:error: 6 steps in a row, up to step 7, had to be" in said
    assert "step 0 -> 0: not requeued: the training ended with exit code 1" in said


def test_nodes_with_other_numbers_of_gpus_are_refused(slurm):
    job = slurm.submit("--gpus=3", TRAIN, *EXACT, "--output_dir", "out/unequal")
    assert slurm.wait(job, 60)["ExitCode"] == "2:0"
    assert slurm.log(job) == (
        "error: the nodes have different numbers of GPUs (n1 2, n2 1); ask for --gpus-per-node=N, or leave a node "
        "out with --exclude=NODE\n"
    )


@pytest.mark.parametrize(
    ("options", "variables", "expected"),
    [
        (("--gpus-per-node=1",), {}, ("multinode_ddp.yaml", 2, 2)),
        (("--gres=gpu:1",), {"ACCELERATE_CONFIG": "multinode_fsdp.yaml"}, ("multinode_fsdp.yaml", 2, 2)),
        (("--nodes=1", "--gpus-per-node=2"), {"ACCELERATE_CONFIG": "zero2.yaml"}, ("zero2.yaml", 1, 2)),
        (("--gpus-per-node=1",), {"PROCESSES_PER_NODE": "3"}, ("multinode_ddp.yaml", 2, 6)),
    ],
)
def test_the_launcher_is_told_what_slurm_gave(slurm, options, variables, expected):
    """There are no GPUs here: a launcher that prints what it was asked for takes the place of accelerate."""
    if not (slurm.folder / "fake").exists():
        write_launcher(slurm, "fake", 'echo "$SLURM_NODEID:" "${ACCELERATE_USE_CPU:-gpu}" "$@"; exit')
    path = f"{slurm.folder}/fake:{slurm.environment['PATH']}"
    job = slurm.submit(*options, TRAIN, *EXACT, "--output_dir", "out/a b", PATH=path, **variables)
    assert slurm.wait(job, 60)["JobState"] == "COMPLETED"
    config, nodes, processes = expected
    said = slurm.logs(job).splitlines()
    assert len(said) == nodes
    for node, line in enumerate(said):
        assert line.startswith(f"{node}: gpu launch --machine_rank {node} --rdzv_conf timeout=")
        assert f"{config} --num_machines {nodes} --num_processes {processes} " in line
        assert f"--main_process_ip n1 --main_process_port {20000 + int(job) % 20000} run_clm.py " in line
        assert line.endswith("--output_dir out/a b")


@pytest.mark.parametrize("who", ["no head", "no other"])
def test_no_rendezvous_names_host_and_port(slurm, waiting, who):
    job = waiting[who]
    ended = slurm.wait(job, 400)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0")
    print(f"\n{who}: {ended['RunTime']}\n{slurm.log(job)}")
    assert f"error: no rendezvous at n1 port {20000 + int(job) % 20000}: " in slurm.log(job)


def test_a_run_longer_than_its_time_limit_finishes_in_several_lives(slurm, waiting):
    job, run_dir = waiting["limited"], slurm.folder / "out" / "limited"
    # Lives last as long as SLURM wants, steps as long as this machine needs: the end is set when there were two.
    end = time.monotonic() + 500
    while (state := slurm.show(job))["JobState"] != "PENDING" or int(state["Restarts"]) < 2:
        assert time.monotonic() < end and state["JobState"] != "FAILED", slurm.log(job) + slurm.logs(job)
        time.sleep(0.5)
    last = training_steps(run_dir)[-1] + 500
    preset = slurm.folder / "limited.yaml"
    preset.write_text(preset.read_text().replace("10000000", str(last)))
    ended = slurm.wait(job, 200)
    shown = slurm.run("scontrol", "show", "job", job).stdout
    print(f"\n{shown}{slurm.log(job)}{(slurm.folder / 'logs' / job / 'lives.txt').read_text()}")
    assert ended["JobState"] == "COMPLETED" and int(ended["Restarts"]) >= 2 and ended["NumNodes"] == "2"
    assert training_steps(run_dir) == list(range(1, last + 1))
    rows = [
        row["train/global_step"] for row in read_metrics(run_dir / "metrics.jsonl") if "train/loss" in row
    ]
    assert rows == training_steps(run_dir)
    lives = [
        line.split("\t") for line in (slurm.folder / "logs" / job / "lives.txt").read_text().splitlines()
    ]
    assert [int(life[1]) for life in lives] == [0, *(int(life[2]) for life in lives[:-1])]
    assert len(lives) == int(ended["Restarts"]) + 1 and int(lives[-1][2]) == last
    assert [life[3].partition(":")[0] for life in lives] == ["requeued"] * (len(lives) - 1) + ["not requeued"]
    runs = {path.name.rpartition("-")[2] for path in (slurm.folder / "wandb").glob("offline-run-*")}
    assert runs == {(run_dir / "wandb_run_id").read_text()}
    assert len(list((slurm.folder / "wandb").glob("offline-run-*"))) == len(lives)
    assert not (run_dir / "STOP").exists()
