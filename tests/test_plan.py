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
from stylegen.plan.estimate import TOPOLOGIES, Cluster, Model, fits

SCALING = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
PRESET = str(ROOT / "configs/scratch_gpt2_small.yaml")
TABLES = runpy.run_path(str(ROOT / "benchmarks/scaling.py"))
DDP, ZERO1, ZERO2, FSDP, ZERO3 = TOPOLOGIES


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
        assert TABLES[row](name, model) in SCALING.splitlines()


def test_the_docs_know_the_gpus_that_the_code_knows():
    rows = re.findall(
        r"^\| `.*\|$", SCALING.partition("## Known GPUs")[2].partition("\n## ")[0], re.MULTILINE
    )
    assert rows == [TABLES["gpu_row"](name, gpu) for name, gpu in GPUS.items()]


def model(**changes) -> Model:
    values = {
        "num_parameters": 1000, "num_trained": 1000, "largest_layer": 100, "other_parameters": 200, "vocab_size": 50,
        "hidden_size": 8, "num_layers": 4, "flops_per_token": 6000.0, "weight_bytes": 4, "compute_bytes": 2,
        "block_size": 16, "micro_batch": 2, "passes": 2, "block_activations": 4096.0, "cast_bytes": 2000.0,
        "checkpointing": False, "chunk_rows": 8,
    }  # fmt: skip
    return Model(**{**values, **changes})


@pytest.mark.parametrize(
    ("topology", "weights", "gradients", "optimizer"),
    [
        (DDP, 4000, 4000, 8000),  # fp32, and two values of AdamW
        (
            ZERO1,
            2000,
            2000,
            3000,
        ),  # DeepSpeed under bf16: 2 + 2 bytes; 12 of fp32 weights and AdamW, cut by 4
        (ZERO2, 2000, 500, 3000),
        (FSDP, 1000, 1000, 2000),
        (ZERO3, 500, 500, 3000),
    ],
)
def test_what_is_cut_is_that_of_a_hand_computation(topology, weights, gradients, optimizer):
    memory = topology.memory(model(), 4)
    assert (memory["weights"], memory["gradients"], memory["optimizer"]) == (weights, gradients, optimizer)


def test_buffers_are_those_of_a_hand_computation():
    def buffers(topology, num_gpus=4, **changes):
        return topology.memory(model(**changes), num_gpus)["buffers"]

    # DDP: the cast weights, and buckets beside the gradients of all passes but the last.
    assert [buffers(DDP), buffers(DDP, passes=1), buffers(DDP, num_gpus=1)] == [6000, 2000, 2000]
    # DeepSpeed: buckets to reduce and to gather in bf16; with stage 3 one of them, and the weights that are in use.
    assert [buffers(ZERO1), buffers(ZERO2), buffers(ZERO3)] == [4000, 4000, 4000]
    large = {"num_parameters": 6 * 10**9, "num_trained": 6 * 10**9}
    assert [buffers(ZERO2, **large), buffers(ZERO3, **large)] == [2 * 10**9, 2 * 1.5e9]
    # FSDP: the rest and two layers in bf16, gradients of the largest of them in bf16 and fp32.
    assert buffers(FSDP) == 2 * (200 + 2 * 100) + 6 * 200


def test_activations_and_the_loss_head_are_those_of_a_hand_computation():
    # Two blocks; with checkpointing the inputs of 4 layers, 2 x 16 x 8 in fp32, and what one layer of them keeps.
    assert DDP.memory(model(), 4)["activations"] == 8192
    assert DDP.memory(model(), 4, True)["activations"] == 4 * 1024 + 2048
    # 8 of 32 rows of logits in bf16 and fp32; of the output layer the gradient, a copy and a product; hidden states.
    assert model().head_bytes == 8 * 50 * 6 + 50 * 8 * 8 + 32 * 8 * 4
    assert model().logits_bytes == model(chunk_rows=None).head_bytes == 32 * 50 * 8


def test_a_tenth_of_a_gpu_stays_free():
    gpu = GPUS["t4"]
    assert fits({"weights": 14.4 * 2**30}, gpu) and not fits({"weights": 14.3 * 2**30, "head": 2**28}, gpu)


def test_traffic_is_that_of_rings():
    sent = [each.volume(model(), 4, 3) for each in TOPOLOGIES]
    once = 1000 * 3 / 4  # elements that an all-gather or a reduce-scatter sends; an all-reduce twice as many
    assert sent == [2 * 4 * once, 2 * 2 * once, 4 * 2 * once, 3 * (4 + 4) * once, 3 * (4 + 2) * once]
    assert [each.volume(model(), 1, 3) for each in TOPOLOGIES] == [0.0] * 5
    gpu = GPUS["h100"]
    assert Cluster(gpu, 8, 8, 50e9).seconds(450e9) == 1
    assert Cluster(gpu, 16, 8, 50e9).seconds(450e9) == 9  # by the network between nodes
    assert Cluster(gpu, 1, 8, 50e9).seconds(0) == 0


def plan_of_a_small_run(capsys, *flags: str) -> str:
    assert main([str(ROOT / "configs/quickstart.yaml"), *flags]) == 0
    return capsys.readouterr().out


def test_the_page_of_the_docs_is_what_the_command_prints(capsys, monkeypatch):
    command = re.search(r"python -m stylegen\.plan (.*)", SCALING)
    assert command
    monkeypatch.chdir(ROOT)
    assert main(command[1].split()) == 0
    page = capsys.readouterr().out
    assert SCALING.endswith(f"\n```\n{page}```\n")
    # 0.4 of 16 x 989.5 TFLOPS, at 6 x 123,532,032 weights multiplied (all but positions, norms and biases) and
    # 12 layers x 12 x 768 x 1,024 of attention for each token
    flops = 6 * (50257 * 768 + 12 * 12 * 768**2) + 12 * 12 * 768 * 1024
    assert f"{0.4 * 16 * 989.5e12 / flops:,.0f} tokens/s" in page
    # DDP: fp32 gradients once a step by a ring of 16
    assert re.search(rf"^ddp +{2 * 15 / 16 * 4 * 124_439_808 / 1e9:.2f} .*yes$", page, re.MULTILINE)


def test_the_batch_is_cut_over_the_gpus_of_the_plan(capsys):
    flags = ("--gpus", "16", "--gradient_accumulation_steps", "2", "--total_batch_size", "512")
    assert "512 blocks of 128 = 16 x 16 GPUs x 2 passes" in plan_of_a_small_run(capsys, *flags)
    assert main([PRESET, "--gpus", "16", "--total_batch_size", "500"]) == 2
    assert "16 x 16 processes = 256; the nearest that work: 256 or 512" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--mixed_precision", "no", "--tf32"), "0.4 of 494.5 TFLOPS a GPU (tf32)"),
        (("--gpu", "V100", "--tf32"), "0.4 of 15.7 TFLOPS a GPU (fp32)"),  # by itself a run is bf16, or exact
        (("--gpu", "mi300x", "--gpus", "8"), "suggested   configs/accelerate/ddp.yaml --num_processes 8"),
    ],
)
def test_the_page_follows_the_gpu_and_the_precision(flags, words, capsys):
    page = plan_of_a_small_run(capsys, *flags)
    assert words in page and page.startswith("Worked out, not measured")


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
    # Its weights alone are 257 GiB: it is cut, on 8 nodes, and each layer computed twice.
    suggested = "multinode_fsdp.yaml --num_processes 64 --num_machines 8, with --gradient_checkpointing"
    assert result.stdout.endswith(f"{suggested}\n")
    assert int(result.stderr.split()[-1]) < 2**20  # KiB


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((PRESET, "--gpu", "h1000"), f"gpu h1000 is not known; give one of {', '.join(sorted(GPUS))}"),
        ((PRESET, "--gpu", "t4", "--mixed_precision", "bf16"), "gpu t4 does not multiply bf16"),
        ((PRESET, "--gpus", "0"), "gpus is 0, but must be at least 1"),
        ((PRESET, "--gpus", "7"), "total_batch_size 512 is not a multiple"),
        ((PRESET, "--gpus", "16", "--gpus_per_node", "6"), "no full nodes of gpus_per_node 6"),
        ((PRESET, "--mfu", "2"), "mfu is 2.0, but must be above 0 and at most 1"),
        (("no-such.yaml",), "preset no-such.yaml does not exist"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(arguments, words, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and words in err and len(err.splitlines()) == 1
