"""The formulas of a plan, plain numbers in and out. Sizes are in bytes, times in seconds."""

from dataclasses import dataclass

from stylegen.metrics import Gpu

USABLE = 0.9  # of a GPU's memory: the rest goes to CUDA, the communication library and fragments
# DeepSpeed's own defaults, in numbers of elements, which configs/deepspeed/ leaves as they are.
ZERO_BUCKET = 5e8
ZERO_LIVE_PARAMETERS = 1e9


@dataclass(frozen=True)
class Model:
    """What a plan has to know of a model and of its step."""

    num_parameters: int
    num_trained: int
    largest_layer: int  # parameters of the largest layer that FSDP gathers as one
    other_parameters: int  # outside of these layers: embeddings, output layer, last norm
    vocab_size: int
    hidden_size: int
    num_layers: int
    flops_per_token: float
    weight_bytes: int  # of one weight as it is kept
    compute_bytes: int  # of one weight as it is multiplied
    block_size: int
    micro_batch: int  # blocks in a forward pass
    passes: int  # of a step
    block_activations: float  # bytes that the layers keep of one block for the backward pass
    cast_bytes: float  # of weights that autocast keeps in another type until then
    checkpointing: bool
    chunk_rows: int | None  # rows of logits at a time; None where the loss holds them all

    def activations(self, checkpointing: bool) -> float:
        """Bytes of activations of a forward pass; with checkpointing the inputs of the layers, and one layer's."""
        whole = self.micro_batch * self.block_activations
        if not checkpointing:
            return whole
        inputs = self.micro_batch * self.block_size * self.hidden_size * self.weight_bytes * self.num_layers
        return inputs + whole / self.num_layers

    @property
    def logits_bytes(self) -> float:
        """Of whole logits in the computing type, once more in fp32, and their gradient."""
        rows = self.micro_batch * self.block_size
        return rows * self.vocab_size * (2 * self.compute_bytes + 4)

    @property
    def head_bytes(self) -> float:
        """Of the output layer and the loss: a chunk of logits and its probabilities, and gradients that it keeps."""
        if self.chunk_rows is None:
            return self.logits_bytes
        rows = self.micro_batch * self.block_size
        chunk = min(self.chunk_rows, rows) * self.vocab_size * (self.compute_bytes + 4)
        of_weight = self.vocab_size * self.hidden_size * (4 + 2 * self.compute_bytes)
        return chunk + of_weight + rows * self.hidden_size * 2 * self.compute_bytes


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes."""

    gpu: Gpu
    num_gpus: int
    per_node: int
    network_bytes: float  # a second, between a node and the others

    @property
    def num_nodes(self) -> int:
        return -(-self.num_gpus // self.per_node)

    def seconds(self, volume: float) -> float:
        """Of a ring of all GPUs in which each sends `volume` bytes, every link at its full speed.

        What leaves a node is as much, however many rings share it.
        """
        inside = volume / (self.gpu.link_gb * 1e9) if self.num_gpus > 1 else 0.0
        return max(inside, volume / self.network_bytes) if self.num_nodes > 1 else inside


@dataclass(frozen=True)
class Topology:
    """How a run is cut over its GPUs: `stage` as ZeRO counts (1 optimizer, 2 gradients too, 3 weights too)."""

    name: str
    stage: int
    is_zero: bool  # DeepSpeed

    def memory(self, model: Model, num_gpus: int, checkpointing: bool | None = None) -> dict[str, float]:
        """Bytes of one GPU, by what they are for; with gradient checkpointing as the run has it, unless it is said.

        Weights, gradients and AdamW's two values: Rajbhandari et al., ZeRO, 2020, section 3.
        """
        # DeepSpeed then keeps weights in 16 bits, and the optimizer has fp32 ones.
        rounds = self.is_zero and model.compute_bytes < model.weight_bytes
        weight = model.compute_bytes if rounds else model.weight_bytes
        state = 12 if rounds else 2 * model.weight_bytes
        cut = [num_gpus if self.stage >= stage else 1 for stage in (1, 2, 3)]
        checkpointing = model.checkpointing if checkpointing is None else checkpointing
        return {
            "weights": weight * model.num_parameters / cut[2],
            "gradients": weight * model.num_trained / cut[1],
            "optimizer": state * model.num_trained / cut[0],
            "buffers": self._buffers(model, num_gpus),
            "activations": model.activations(checkpointing),
            "head": model.head_bytes,
        }

    def _buffers(self, model: Model, num_gpus: int) -> float:
        width = model.compute_bytes
        if self.is_zero:
            live = min(ZERO_LIVE_PARAMETERS, model.num_parameters) if self.stage == 3 else 0
            buckets = 1 if self.stage == 3 else 2  # of gradients to reduce, and of weights to gather
            return width * (live + buckets * min(ZERO_BUCKET, model.num_trained))
        if self.stage == 3:  # weights of two layers and of the rest, gradients of the largest in both types
            largest = max(model.largest_layer, model.other_parameters)
            return width * (model.other_parameters + 2 * model.largest_layer) + (width + 4) * largest
        # DDP's gradients live in its buckets, but those of the passes before the last one of a step beside them.
        beside = num_gpus > 1 and model.passes > 1
        return model.cast_bytes + (model.weight_bytes * model.num_trained if beside else 0)

    def volume(self, model: Model, num_gpus: int, passes: int) -> float:
        """Bytes that each GPU sends in a step of so many forward passes; collectives are rings.

        A reduce-scatter or an all-gather of S bytes sends (P - 1) / P S, an all-reduce is one of each. DDP, ZeRO-1
        and the weights of ZeRO-2 meet once a step, all else in every pass; FSDP here reduces gradients in fp32.
        """
        whole, trained, width = model.num_parameters, model.num_trained, model.compute_bytes
        sent = {
            "ddp": 2 * model.weight_bytes * trained,
            "zero1": 2 * width * trained,
            "zero2": (passes + 1) * width * trained,
            "fsdp": passes * (2 * width * whole + 4 * trained),
            "zero3": passes * (2 * width * whole + width * trained),
        }[self.name]
        return sent * (num_gpus - 1) / num_gpus


# In the order in which a run should try them: the less is cut, the less is sent.
TOPOLOGIES = (
    Topology("ddp", 0, False), Topology("zero1", 1, True), Topology("zero2", 2, True), Topology("fsdp", 3, False),
    Topology("zero3", 3, True),
)  # fmt: skip


def fits(memory: dict[str, float], gpu: Gpu) -> bool:
    """Whether a GPU has room for it."""
    return sum(memory.values()) <= USABLE * gpu.memory_gib * 2**30
