"""The tables of docs/scaling.md: what models of known sizes take on GPUs; worked out from shapes, not measured."""

import dataclasses

from stylegen.config import PlanArguments, resolve_arguments
from stylegen.metrics import GPUS, Gpu
from stylegen.plan.estimate import TOPOLOGIES, Cluster, Model, Topology
from stylegen.plan.shape import shape_of

GPT2, LLAMA = ("gpt2", 50257, 1024), ("llama", 32000, 4096)  # architecture, vocabulary, tokens in a block
SIZES = {
    "GPT-2 124M": (GPT2, {}),
    "GPT-2 355M": (GPT2, {"n_layer": 24, "n_head": 16, "n_embd": 1024}),
    "GPT-2 774M": (GPT2, {"n_layer": 36, "n_head": 20, "n_embd": 1280}),
    "GPT-2 1.5B": (GPT2, {"n_layer": 48, "n_head": 25, "n_embd": 1600}),
    "Llama 2 7B": (LLAMA, {}),
    "Llama 2 13B": (
        LLAMA,
        {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    ),
    "Llama 2 70B": (
        LLAMA,
        {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
         "num_key_value_heads": 8},
    ),
}  # fmt: skip
MFU = 0.4
H100, NETWORK_BYTES, PER_NODE = GPUS["h100"], 50e9, 8
PAYS = 1.5


def shape(name: str) -> Model:
    """One of SIZES as it trains here: weights in fp32, products in bf16, one block in a pass."""
    (model_type, num_words, block_size), overrides = SIZES[name]
    arguments = PlanArguments(
        train_file=["any"], model_type=model_type, config_overrides=overrides, block_size=block_size,
        per_device_train_batch_size=1,
    )  # fmt: skip
    return shape_of(resolve_arguments(arguments, 1), num_words, "bfloat16")


def model_row(name: str, model: Model) -> str:
    """Parameters, arithmetic, what a block takes, and what the loss of 16 takes with our head and with all logits."""
    speed = MFU * H100.bf16 * 1e12 / model.flops_per_token
    many = dataclasses.replace(model, micro_batch=16)
    sizes = (
        model.activations(False), model.activations(True), model.head_bytes, many.head_bytes, many.logits_bytes,
    )  # fmt: skip
    return (
        f"| {name} | {model.num_parameters:,} | {model.flops_per_token:.3g} | {speed:,.0f} | {speed * 8:,.0f} | "
        + " | ".join(f"{size / 2**30:.2f}" for size in sizes)
        + " |"
    )


def memory_row(name: str, model: Model) -> str:
    """GiB of a GPU without activations: DDP, ZeRO-1, ZeRO-2, FSDP2, ZeRO-3 on 8 GPUs, and the last two on 64."""
    cells = [_resident(each, model, 8) for each in TOPOLOGIES]
    cells += [_resident(each, model, 64) for each in TOPOLOGIES if each.stage == 3]
    return f"| {name} | " + " | ".join(f"{size:,.1f}" for size in cells) + " |"


def traffic_row(name: str, model: Model) -> str:
    """GB that each of 16 GPUs sends in a step of one pass, and from how many tokens on a second node pays."""
    cells = [f"{each.volume(model, 16, 1) / 1e9:,.1f}" for each in TOPOLOGIES]
    seconds = [
        f"{_nodes(2).seconds(each.volume(model, 16, 1)):.2g}"
        for each in TOPOLOGIES
        if each.name in ("ddp", "fsdp")
    ]
    return f"| {name} | " + " | ".join([*cells, *seconds, *map(_thousands, tokens_that_pay(model))]) + " |"


def gpu_row(name: str, gpu: Gpu) -> str:
    """Its memory, what it sends to the others of its node, and dense peaks in TFLOPS."""
    peaks = [f"{peak:,g}" if peak else "" for peak in (gpu.bf16, gpu.fp16, gpu.tf32, gpu.fp32)]
    return f"| `{name}` | {gpu.memory_gib} | {gpu.link_gb:g} | " + " | ".join(peaks) + " |"


def tokens_that_pay(model: Model) -> tuple[float, float]:
    """(tokens of a step under DDP, tokens of a GPU in a pass under FSDP2) from which a second node is worth it.

    That is, two nodes are 1.5 times as fast as one though nothing is sent while computing.
    """
    seconds = model.flops_per_token / (MFU * H100.bf16 * 1e12)  # of a token on one GPU
    ddp, fsdp = (
        [_nodes(count).seconds(each.volume(model, count * PER_NODE, 1)) for count in (1, 2)]
        for each in TOPOLOGIES
        if each.name in ("ddp", "fsdp")
    )
    # s n / 8 + a = 1.5 (s n / 16 + b); and the same with n tokens a GPU, where two nodes take half the passes.
    return (
        (PAYS * ddp[1] - ddp[0]) / (seconds / PER_NODE * (1 - PAYS / 2)),
        (PAYS / 2 * fsdp[1] - fsdp[0]) / (seconds * (1 - PAYS / 2)),
    )


def _resident(topology: Topology, model: Model, num_gpus: int) -> float:
    memory = topology.memory(model, num_gpus)
    return sum(memory[name] for name in ("weights", "gradients", "optimizer", "buffers")) / 2**30


def _nodes(count: int) -> Cluster:
    return Cluster(H100, count * PER_NODE, PER_NODE, NETWORK_BYTES)


def _thousands(number: float) -> str:
    return f"{number / 1000:,.0f}k"


if __name__ == "__main__":
    models = {name: shape(name) for name in SIZES}
    for title, row in (("model", model_row), ("memory", memory_row), ("traffic", traffic_row)):
        print(title)
        for name, model in models.items():
            print(row(name, model))
    print("gpu")
    for name, gpu in GPUS.items():
        print(gpu_row(name, gpu))
