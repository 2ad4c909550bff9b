"""The page of a plan, as lines of text."""

from stylegen.config import PlanArguments
from stylegen.plan.estimate import TOPOLOGIES, USABLE, Cluster, Model, Topology, fits

MULTINODE = ("ddp", "fsdp", "zero3")  # for which configs/accelerate/ has a file for several machines
PAYS = 1.5  # times as fast with a second node


def write_page(
    arguments: PlanArguments, model: Model, cluster: Cluster, peak: float, precision: str, is_bound: bool
) -> list[str]:
    """The whole page.

    arguments  resolved for the GPUs of the plan
    peak       FLOPs a second of one GPU in `precision`
    is_bound   the vocabulary may turn out smaller
    """
    speed = arguments.mfu * peak * cluster.num_gpus / model.flops_per_token  # tokens a second
    topologies = [each for each in TOPOLOGIES if not (each.is_zero and arguments.optim == "muon")]
    if cluster.num_gpus == 1:
        topologies = topologies[:1]
    of_peak = f"MFU is {arguments.mfu:g} of {peak / 1e12:,g} TFLOPS a GPU ({precision})"
    return [
        "Worked out, not measured; docs/scaling.md has the formulas.",
        "",
        *_head(arguments, model, cluster, is_bound),
        *_speed(arguments, model, speed, of_peak),
        "",
        *_memory(model, cluster, topologies),
        "",
        *_traffic(arguments, model, cluster, topologies, speed),
        "",
        f"suggested   {suggest(model, cluster, topologies)}",
    ]


def suggest(model: Model, cluster: Cluster, topologies: list[Topology]) -> str:
    """The configuration of configs/accelerate/ that cuts least and fits, or what to change."""
    count, nodes = cluster.num_gpus, cluster.num_nodes
    for checkpointing in sorted({model.checkpointing, True}):
        for each in topologies:
            if nodes > 1 and each.name not in MULTINODE:
                continue
            if fits(each.memory(model, count, checkpointing), cluster.gpu):
                name = "single_gpu" if count == 1 else "multinode_" * (nodes > 1) + each.name
                more = f" --num_machines {nodes}" * (nodes > 1)
                more += ", with --gradient_checkpointing" * (checkpointing and not model.checkpointing)
                return f"configs/accelerate/{name}.yaml --num_processes {count}{more}"
    return (
        "nothing fits; take more GPUs, a smaller --per_device_train_batch_size with the same --total_batch_size, or a "
        "smaller --block_size"
    )


def _head(arguments: PlanArguments, model: Model, cluster: Cluster, is_bound: bool) -> list[str]:
    gpu, nodes = cluster.gpu, cluster.num_nodes
    frozen = f", {model.num_trained:,} of them trained" * (model.num_trained < model.num_parameters)
    words = f"vocabulary {'at most ' * is_bound}{model.vocab_size:,}{' (the text decides)' * is_bound}"
    return [
        f"GPUs        {cluster.num_gpus} x {arguments.gpu} of {gpu.memory_gib} GiB on {nodes} node{'s' * (nodes > 1)}; "
        f"{gpu.link_gb:g} GB/s from GPU to GPU, {cluster.network_bytes / 1e9:g} GB/s from node to node",
        f"model       {model.num_parameters:,} parameters{frozen}; {model.num_layers} layers, width "
        f"{model.hidden_size:,}, {words}",
    ]


def _speed(arguments: PlanArguments, model: Model, speed: float, of_peak: str) -> list[str]:
    total, steps = arguments.total_batch_size or 0, arguments.max_train_steps
    tokens = total * model.block_size
    run = f"{steps:,} steps in {steps * tokens / speed / 3600:,.3g} h, " if steps else ""
    return [
        f"step        {total:,} blocks of {model.block_size:,} = {model.micro_batch} x {arguments.gpus} GPUs x "
        f"{arguments.gradient_accumulation_steps} passes; {tokens:,} tokens x {model.flops_per_token:.4g} = "
        f"{tokens * model.flops_per_token:.4g} FLOPs",
        f"speed       {speed:,.0f} tokens/s, {tokens / speed:.3g} s a step, if {of_peak}",
        f"time        {run}a billion tokens in {1e9 / speed / 3600:,.3g} h",
    ]


def _memory(model: Model, cluster: Cluster, topologies: list[Topology]) -> list[str]:
    lines = []
    for each in topologies:
        sizes = [each.memory(model, cluster.num_gpus, less) for less in (None, True)]
        parts = "".join(f"{size / 2**30:>12,.2f}" for size in sizes[0].values())
        totals = "".join(
            f"{sum(size.values()) / 2**30:>12,.2f}{'yes' if fits(size, cluster.gpu) else 'no':>6}"
            for size in sizes
        )
        lines.append(f"{each.name:10}{parts}{totals}")
    names = "".join(f"{name:>12}" for name in sizes[0])
    kept = "are held whole" if model.chunk_rows is None else f"come {model.chunk_rows:,} rows at a time"
    return [
        f"{'GiB a GPU':10}{names}{'total':>12}{'fits':>6}{'recomputed':>12}{'fits':>6}",
        *lines,
        f"fits: in {USABLE:.0%} of the GPU's memory; recomputed: the total with --gradient_checkpointing;",
        f"logits {kept}, all of them would take {model.logits_bytes / 2**30:,.2f} GiB",
    ]


def _traffic(
    arguments: PlanArguments, model: Model, cluster: Cluster, topologies: list[Topology], speed: float
) -> list[str]:
    """What is sent in a step; and the same step on one full node and on two."""
    total, per_node = arguments.total_batch_size or 0, cluster.per_node
    computing = total * model.block_size / speed
    places = [cluster, *(Cluster(cluster.gpu, n * per_node, per_node, cluster.network_bytes) for n in (1, 2))]
    lines = []
    for each in topologies:
        passes = [max(total // (model.micro_batch * place.num_gpus), 1) for place in places]
        sent = [each.volume(model, place.num_gpus, n) for place, n in zip(places, passes, strict=True)]
        here, one, two = (place.seconds(volume) for place, volume in zip(places, sent, strict=True))
        alone, both = (computing * cluster.num_gpus / place.num_gpus for place in places[1:])
        low, high = sorted(((alone + one) / (both + two), max(alone, one) / max(both, two)))
        verdict = "yes" if low >= PAYS else "where sending hides behind computing" if high >= PAYS else "no"
        numbers = f"{sent[0] / 1e9:>12,.2f}{here:>12.3g}{here / computing:>12.0%}{one:>12.3g}{two:>12.3g}"
        lines.append(f"{each.name:10}{numbers}{low:>8.2f} to {high:.2f}  {verdict}")
    return [
        f"{'a step':10}{'GB sent':>12}{'seconds':>12}{'of the step':>12}{'one node':>12}{'two nodes':>12}"
        f"{'times as fast':>16}  a second node pays",
        *lines,
        "sent: by each GPU; seconds: at the full speed of the links; one node, two nodes: seconds where they are full;",
        "times as fast: two nodes as one, with nothing sent while computing, and with all of it",
    ]
