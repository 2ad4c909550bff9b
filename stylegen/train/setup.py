"""Everything a run consists of, built in the order in which it can go wrong; nothing is written before it is."""

import contextlib
import hashlib
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stylegen.blocks import (
    TokenCache,
    cache_folder,
    cut_blocks,
    describe,
    describe_text,
    predicted_bytes,
    prepare_text,
)
from stylegen.blocks.ahead import TextAhead, set_tokenizer_threads
from stylegen.checkpoint import (
    Saver,
    check_room,
    is_writer,
    leave_behind,
    load_training_state,
)
from stylegen.compiled import compile_layers
from stylegen.config import TrainArguments, UsageError, resolve_arguments
from stylegen.config.processes import world_size
from stylegen.corpus import Source
from stylegen.flops import device_peak_flops, training_flops_per_token
from stylegen.lora import add_adapter, saved_parameters
from stylegen.loss import LanguageModelLoss
from stylegen.metrics import training_bytes
from stylegen.model import (
    build_model,
    check_isolation,
    config_for,
    embedding_rows,
    fit_embedding,
    load_model,
    num_parameters,
    num_trained,
    parameter_groups,
    save_description,
)
from stylegen.optim import build_optimizer, build_schedule
from stylegen.runtime import (
    Watchdog,
    build_accelerator,
    check_machines,
    check_same,
    check_shared,
    code_fingerprint,
    cuts_weights,
    describe_environment,
    describe_topology,
    logger,
    resolve_precision,
    seed_everything,
    start_logging,
    zero_stage,
)
from stylegen.sharding import undo_rounding, weight_checksums
from stylegen.stop import StopRequest
from stylegen.tokenizer import num_ids
from stylegen.tracking import Tracker
from stylegen.train import directory, style
from stylegen.train.feed import Feed
from stylegen.train.memory import fit_micro_batch
from stylegen.train.resume import ended_by_itself, find_checkpoint, refuse_other_text, start_state
from stylegen.train.state import Run, State


def set_up(
    arguments: TrainArguments,
    train_source: Source,
    validation_source: Source | None,
    stop: StopRequest,
    ahead: TextAhead | None = None,
) -> tuple[Run, State]:
    """Build the run and the state it starts from. Raises UsageError for what the user can put right."""
    with stop.deaf() if world_size() > 1 else contextlib.nullcontext():
        accelerator = _start_process(arguments)
    arguments, config = _resolve(arguments, accelerator)
    if not arguments.save_on_each_node:
        check_shared(accelerator, arguments.output_path)
    checkpoint = find_checkpoint(arguments, accelerator)
    seed_everything(arguments.seed)
    cache = _prepare_text(arguments, train_source, validation_source, accelerator, ahead)
    train_blocks, validation_blocks = cut_blocks(arguments, cache)
    style.check_size(arguments, train_blocks)
    model = _build_model(arguments, config, cache, checkpoint)
    if arguments.torch_compile:
        compile_layers(model, cache_folder(arguments), accelerator.device)
    assert arguments.total_batch_size and arguments.learning_rate
    steps_per_epoch = math.ceil(len(train_blocks) / arguments.total_batch_size)
    num_steps = _num_steps(arguments, steps_per_epoch)
    schedule = build_schedule(
        arguments.lr_scheduler_type, arguments.learning_rate, arguments.num_warmup_steps, num_steps,
        arguments.lr_scheduler_kwargs,
    )  # fmt: skip
    optimizer = build_optimizer(
        arguments.optim, parameter_groups(model, arguments.weight_decay), arguments.learning_rate,
        (arguments.adam_beta1, arguments.adam_beta2), arguments.adam_epsilon,
    )  # fmt: skip
    num_params = num_parameters(model), num_trained(model)
    flops = training_flops_per_token(model, arguments.block_size or 0)
    saver = _build_saver(arguments, accelerator, model, cache.tokenizer, num_steps, steps_per_epoch)
    prepared, optimizer = _prepare(arguments, accelerator, model, optimizer)
    state = start_state(checkpoint, arguments.output_path, accelerator, num_steps)
    arguments = fit_micro_batch(arguments, accelerator, prepared, train_blocks, checkpoint)
    _open_directory(arguments, accelerator, checkpoint, num_params)
    tracker = Tracker(arguments.output_path, accelerator.is_main_process, num_steps, state.step)
    run = Run(
        arguments=arguments, accelerator=accelerator, model=prepared, base_model=model, optimizer=optimizer,
        schedule=schedule, train_blocks=train_blocks,
        feed=Feed(arguments, accelerator, train_blocks, steps_per_epoch), validation_blocks=validation_blocks,
        validation_bytes=predicted_bytes(cache.validation, validation_blocks, cache.tokenizer),
        tokenizer=cache.tokenizer, fingerprints=cache.fingerprints,
        steps_per_epoch=steps_per_epoch, num_steps=num_steps, tracker=tracker,
        resumed_at=state.step if checkpoint else None,
        was_killed=checkpoint is not None and not ended_by_itself(checkpoint),
        watchdog=Watchdog(accelerator, arguments.watchdog_seconds), stop=stop,
        saver=saver, flops_per_token=flops, peak_flops=device_peak_flops(accelerator.device, arguments),
    )  # fmt: skip
    _describe(run, cache, num_params)
    if checkpoint:
        load_training_state(checkpoint, accelerator, model, optimizer, arguments.seed)
    elif accelerator.process_index > 0:  # dropout of one rank is not to be that of another
        seed_everything(arguments.seed, accelerator.process_index)
    return run, state


def _prepare(
    arguments: TrainArguments, accelerator: Accelerator, model: PreTrainedModel, optimizer: Optimizer
) -> tuple[nn.Module, Optimizer]:
    """Wrap model and optimizer as the launcher's configuration says."""
    if not zero_stage(accelerator):
        return accelerator.prepare(LanguageModelLoss(model), optimizer)
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = arguments.per_device_train_batch_size
    config["gradient_accumulation_steps"] = 1  # the loop weighs its passes itself, and says which is the last
    config["gradient_clipping"] = arguments.max_grad_norm
    before: tuple[dict[str, Any], ...] = ()
    if arguments.mixed_precision != "no":
        parts = model.named_parameters(), model.named_buffers()
        before = tuple({name: tensor.detach().clone() for name, tensor in part} for part in parts)
    prepared, optimizer = accelerator.prepare(LanguageModelLoss(model), optimizer)
    if before:
        undo_rounding(model, *before)
    return prepared, optimizer


def _start_process(arguments: TrainArguments) -> Accelerator:
    accelerator = build_accelerator(arguments.mixed_precision, arguments.ddp_timeout)
    start_logging(accelerator.is_main_process)
    check_machines(accelerator)
    check_same(accelerator, "code", code_fingerprint())
    if accelerator.gradient_accumulation_steps != 1:
        raise UsageError(
            f"the launcher sets gradient_accumulation_steps {accelerator.gradient_accumulation_steps}, which belongs "
            f"to the run; take it out of the launcher's configuration and give --gradient_accumulation_steps"
        )
    if arguments.tf32:
        torch.set_float32_matmul_precision("high")
    set_tokenizer_threads(arguments)
    return accelerator


def _resolve(arguments: TrainArguments, accelerator: Accelerator) -> tuple[TrainArguments, Any]:
    """The arguments with nothing left open, and the model's configuration."""
    arguments = resolve_arguments(arguments, accelerator.num_processes)
    config, block_size = config_for(arguments)
    precision = resolve_precision(arguments.mixed_precision)
    arguments = replace(arguments, mixed_precision=precision, block_size=block_size)
    check_same(accelerator, "arguments", asdict(arguments))
    _check_whole_weights(arguments, accelerator)
    return arguments, config


def _check_whole_weights(arguments: TrainArguments, accelerator: Accelerator) -> None:
    """Raise UsageError for what cannot be done where each process has a piece of the weights only."""
    if not cuts_weights(accelerator):
        return
    if arguments.torch_compile and zero_stage(accelerator):
        raise UsageError(
            "torch_compile is not for ZeRO-3, which fetches the weights of each layer as it is called; leave it out, "
            "or use configs/accelerate/fsdp.yaml"
        )
    if arguments.auto_micro_batch:
        raise UsageError(
            "auto_micro_batch cannot try a batch under FSDP and ZeRO-3, where the processes compute together; leave it "
            "out, and give a smaller --per_device_train_batch_size with the same --total_batch_size"
        )
    if arguments.detect_desync_steps:
        raise UsageError(
            "detect_desync_steps compares copies of the weights, and FSDP and ZeRO-3 keep none; leave it out"
        )


def _prepare_text(
    arguments: TrainArguments,
    train: Source,
    validation: Source | None,
    accelerator: Accelerator,
    ahead: TextAhead | None,
) -> TokenCache:
    """The token cache, which the first process to come builds and the others wait for."""
    if ahead:
        return ahead.result()
    if not arguments.overwrite_cache:
        cache = prepare_text(arguments, train, validation)
    else:
        with accelerator.main_process_first():  # it is made anew once, and not while others read it
            again = replace(arguments, overwrite_cache=accelerator.is_main_process)
            cache = prepare_text(again, train, validation)
    check_same(accelerator, "texts", cache.fingerprints)
    return cache


def _num_steps(arguments: TrainArguments, steps_per_epoch: int) -> int:
    if arguments.max_train_steps is not None:
        return arguments.max_train_steps
    return math.ceil((arguments.num_train_epochs or 0) * steps_per_epoch)


def _build_model(
    arguments: TrainArguments, config, cache: TokenCache, checkpoint: Path | None
) -> PreTrainedModel:
    """The model to train on: of the checkpoint, the pretrained one, or a new one."""
    options: dict[str, Any] = {"dtype": arguments.dtype, "attn_implementation": arguments.attn_implementation}
    if checkpoint:
        refuse_other_text(checkpoint, cache.fingerprints)
    if checkpoint and not arguments.lora_r:
        model = load_model(str(checkpoint), **options)
    elif arguments.model_name_or_path:
        model = load_model(
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            gguf_file=arguments.gguf_file,
            **options,
        )
        _fit_embedding(model, cache, arguments)
        model.generation_config.suppress_tokens = None  # what it never wrote it may learn here
    else:
        model = build_model(config, cache.tokenizer, **options)
    if arguments.lora_r:
        # A checkpoint has the adapter alone.
        digest = hashlib.sha256(weight_checksums(model).numpy().tobytes()).hexdigest()
        cache.fingerprints["base model"] = digest
        if checkpoint:
            refuse_other_text(checkpoint, cache.fingerprints)
        add_adapter(model, arguments, checkpoint)
    if arguments.packing == "document":
        check_isolation(model)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        if arguments.lora_r:
            model.enable_input_require_grads()  # else nothing asks for gradients where the frozen part begins
    return model


def _fit_embedding(model: PreTrainedModel, cache: TokenCache, arguments: TrainArguments) -> None:
    if arguments.lora_r and (words := num_ids(cache.tokenizer)) > (rows := embedding_rows(model)):
        raise UsageError(
            f"the tokenizer has {words} words, {arguments.model_name_or_path} only {rows}, and an adapter trains no "
            f"embeddings; use the model's own tokenizer, or leave out lora_r"
        )
    fit_embedding(model, cache.tokenizer)


def _build_saver(
    arguments: TrainArguments,
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    num_steps: int,
    steps_per_epoch: int,
) -> Saver:
    """What will save the run, once it is known that there is room for all that it will keep. A collective."""
    rhythm, each_node = arguments.checkpointing_steps, arguments.save_on_each_node
    apart = {"end": num_steps, "epoch": steps_per_epoch}.get(str(rhythm), rhythm)
    planned = max(math.ceil(num_steps / max(int(apart), 1)), 1)
    kept = min(planned, (arguments.save_total_limit or planned) + 1)  # the one being written among them
    numbers = sum(parameter.numel() for _, parameter in saved_parameters(model))
    model_size = numbers * getattr(torch, arguments.dtype).itemsize
    size = 3 * model_size  # AdamW keeps two values of each weight
    check_room(
        arguments.output_path, accelerator, size, model_size, kept, each_node,
        lambda folder: save_description(model, tokenizer, folder),
    )  # fmt: skip
    return Saver(
        arguments.output_path, accelerator, arguments.save_total_limit, each_node, arguments.async_save, size
    )


def _open_directory(
    arguments: TrainArguments, accelerator: Accelerator, checkpoint: Path | None, num_params: tuple[int, int]
) -> None:
    """Make the run directory ready, on every machine that keeps one. A collective."""
    folder = arguments.output_path
    if is_writer(accelerator, arguments.save_on_each_node):
        if checkpoint is None:
            directory.clear_directory(folder)
        directory.clear_leftovers(folder)
        if checkpoint and arguments.resume_from_checkpoint not in ("auto", "never"):
            leave_behind(folder, checkpoint)
        sizes = dict(zip(("parameters", "trained_parameters"), num_params, strict=True))
        environment = describe_environment(accelerator, arguments.mixed_precision)
        directory.record_start(arguments, environment | sizes)
    accelerator.wait_for_everyone()


def _describe(run: Run, cache: TokenCache, num_params: tuple[int, int]) -> None:
    arguments, accelerator = run.arguments, run.accelerator
    for line in describe_text(cache):
        logger.info(line)
    logger.info(describe("train", cache.train, run.train_blocks))
    logger.info(describe("validation", cache.validation, run.validation_blocks))
    total, passes = arguments.total_batch_size or 0, arguments.gradient_accumulation_steps
    logger.info(
        f"{describe_topology(accelerator)}, precision {arguments.mixed_precision}; a step is {total} blocks = "
        f"{arguments.per_device_train_batch_size} x {accelerator.num_processes} processes x {passes} passes = "
        f"{total * (arguments.block_size or 0):,} tokens"
    )
    stage = 3 if cuts_weights(accelerator) else zero_stage(accelerator)
    rounded = zero_stage(accelerator) and arguments.mixed_precision != "no"
    total_params, trained = num_params
    memory = training_bytes(trained, accelerator.num_processes, stage, 2 if rounded else 4)
    memory += (
        (total_params - trained) * (2 if rounded else 4) / (accelerator.num_processes if stage == 3 else 1)
    )
    adapter = f" ({trained:,} of them trained)" if trained < total_params else ""
    logger.info(
        f"{total_params:,} parameters{adapter}, vocabulary {len(cache.tokenizer):,}, {run.num_steps:,} steps, "
        f"{run.steps_per_epoch:,} a pass over the text; weights, gradients and optimizer take about "
        f"{memory / 2**20:,.0f} MB a process, activations come on top"
    )
