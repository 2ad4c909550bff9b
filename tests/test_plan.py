"""The plan of a run on GPUs: counts against published ones, sums against ones by hand, and the page of the docs."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from stylegen.metrics import GPUS
from stylegen.plan.__main__ import main
from stylegen.plan.estimate import TOPOLOGIES, Cluster, Model

SCALING = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
PRESET = str(ROOT / "configs/scratch_gpt2_small.yaml")
TABLES = runpy.run_path(str(ROOT / "benchmarks/scaling.py"))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("GPT-2 124M", 124_439_808), ("GPT-2 355M", 354_823_168), ("GPT-2 774M", 774_030_080),
        ("GPT-2 1.5B", 1_557_611_200), ("Llama 2 7B", 6_738_415_616), ("Llama 2 13B", 13_015_864_320),
        ("Llama 2 70B", 68_976_648_192),
    ],
)  # fmt: skip
def test_models_have_their_published_sizes_and_the_rows_of_the_docs(name, parameters):
    model = TABLES["shape"](name)
    assert model.num_parameters == parameters
    for row in ("model_row", "memory_row", "traffic_row"):
        assert TABLES[row](name, model) in SCALING


def model(**changes) -> Model:
    values = {
        "num_parameters": 1000, "num_trained": 1000, "largest_layer": 100, "other_parameters": 200, "vocab_size": 50,
        "hidden_size": 8, "num_layers": 4, "flops_per_token": 6000.0, "weight_bytes": 4, "compute_bytes": 2,
        "block_size": 16, "micro_batch": 2, "block_activations": 4096.0, "cast_bytes": 2000.0, "checkpointing": False,
        "chunk_rows": 8,
    }  # fmt: skip
    return Model(**{**values, **changes})


def test_memory_is_that_of_a_hand_computation():
    ddp, zero1, zero2, fsdp, zero3 = (each.memory(model(), 4) for each in TOPOLOGIES)
    # DDP: fp32 weights, gradients, two values of AdamW; buckets as large as the gradients, and the cast weights.
    assert [ddp[name] for name in ("weights", "gradients", "optimizer", "buffers")] == [
        4000,
        4000,
        8000,
        6000,
    ]
    # DeepSpeed under bf16: 2 + 2 bytes, and 12 of fp32 weights and AdamW, cut by 4 from the stage on.
    assert [zero1[name] for name in ("weights", "gradients", "optimizer")] == [2000, 2000, 3000]
    assert [zero2[name] for name in ("weights", "gradients", "optimizer")] == [2000, 500, 3000]
    assert [zero3[name] for name in ("weights", "gradients", "optimizer")] == [500, 500, 3000]
    assert [fsdp[name] for name in ("weights", "gradients", "optimizer")] == [1000, 1000, 2000]
    # Two blocks; with checkpointing the inputs of 4 layers, 2 x 16 x 8 in fp32, and what one layer of them keeps.
    assert ddp["activations"] == 8192
    assert TOPOLOGIES[0].memory(model(), 4, True)["activations"] == 4 * 1024 + 2048
    # 8 of 32 rows of logits in bf16 and fp32; of the output layer the gradient, a copy and a product; hidden states.
    assert ddp["head"] == 8 * 50 * 6 + 50 * 8 * 8 + 32 * 8 * 4
    assert model(chunk_rows=None).head_bytes == 32 * 50 * 8


def test_traffic_is_that_of_rings():
    sent = [each.volume(model(), 4, 3) for each in TOPOLOGIES]
    once = 1000 * 3 / 4  # elements that an all-gather or a reduce-scatter sends
    assert sent == [8 * once, 4 * once, 4 * 2 * once, 3 * (4 + 4) * once, 3 * (4 + 2) * once]
    assert [each.volume(model(), 1, 3) for each in TOPOLOGIES] == [0.0] * 5
    gpu = GPUS["h100"]
    assert Cluster(gpu, 8, 8, 50e9).seconds(450e9) == 1
    assert Cluster(gpu, 16, 8, 50e9).seconds(450e9) == 9  # by the network between nodes
    assert Cluster(gpu, 1, 8, 50e9).seconds(0) == 0


def test_the_page_of_the_docs_is_what_the_command_prints():
    command = re.search(r"python (-m stylegen\.plan .*)", SCALING)
    assert command
    result = subprocess.run(
        [sys.executable, *command[1].split()], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"```\n{result.stdout}```" in SCALING
    assert "124,439,808 parameters" in result.stdout and "not measured" in result.stdout


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the highest memory")
def test_a_model_that_fits_no_machine_is_planned_without_its_weights(tmp_path):
    shape = "hidden_size=8192,intermediate_size=28672,num_hidden_layers=80,num_attention_heads=64,num_key_value_heads=8"
    code = (
        "import sys; from stylegen.plan.__main__ import main; code = main(sys.argv[1:]);"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'));"
        "print(status['VmHWM'].split()[0], file=sys.stderr); sys.exit(code)"  # getrusage would tell the parent's
    )
    flags = ("--train_file", "any", "--model_type", "llama", "--config_overrides", shape, "--block_size", "4096",
             "--vocab_size", "32000", "--gpus", "64", "--per_device_train_batch_size", "1")  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "68,976,648,192 parameters" in result.stdout
    assert int(result.stderr.split()[-1]) < 2**20  # KiB


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--gpu", "h1000"), "h100"),
        (("--gpus", "0"), "gpus"),
        (("--gpus", "7"), "total_batch_size"),
        (("--mfu", "2"), "mfu"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(flags, words, capsys):
    assert main([PRESET, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and words in err and len(err.splitlines()) == 1


def test_a_preset_that_is_not_there_is_named(capsys):
    assert main(["no-such.yaml"]) == 2
    assert "no-such.yaml" in capsys.readouterr().err
