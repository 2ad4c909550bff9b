"""Everything a run consists of, built in the order in which it can go wrong; nothing is written before it is."""

import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from stylegen.blocks import (
    TokenCache,
    cut_blocks,
    describe,
    describe_text,
    predicted_bytes,
    prepare_text,
)
from stylegen.checkpoint import (
    Saver,
    check_room,
    find_damage,
    is_writer,
    list_checkpoints,
    load_training_state,
    newest_checkpoint,
    read_manifest,
    recover_folders,
)
from stylegen.config import TrainArguments, UsageError, resolve_arguments
from stylegen.config.processes import world_size
from stylegen.corpus import Source
from stylegen.metrics import training_bytes
from stylegen.model import (
    LanguageModelLoss,
    build_model,
    check_isolation,
    config_for,
    fit_embedding,
    load_model,
    num_parameters,
    parameter_groups,
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
from stylegen.sharding import undo_rounding
from stylegen.stop import StopRequest
from stylegen.tracking import Tracker
from stylegen.train import directory
from stylegen.train.state import Run, State


def set_up(
    arguments: TrainArguments, train_source: Source, validation_source: Source | None, stop: StopRequest
) -> tuple[Run, State]:
    """Build the run and the state it starts from. Raises UsageError for what the user can put right."""
    accelerator = _start_process(arguments)
    arguments, config = _resolve(arguments, accelerator)
    if not arguments.save_on_each_node:
        check_shared(accelerator, arguments.output_path)
    if is_writer(accelerator, arguments.save_on_each_node):
        recover_folders(arguments.output_path)
    accelerator.wait_for_everyone()
    checkpoint = _checkpoint_to_resume(arguments)
    check_same(accelerator, "checkpoints to go on from", {"checkpoint": checkpoint and checkpoint.name})
    seed_everything(arguments.seed)
    cache = _prepare_text(arguments, train_source, validation_source, accelerator)
    train_blocks, validation_blocks = cut_blocks(arguments, cache)
    model = _build_model(arguments, config, cache, checkpoint)
    assert arguments.total_batch_size and arguments.learning_rate
    steps_per_epoch = math.ceil(len(train_blocks) / arguments.total_batch_size)
    num_steps = arguments.max_train_steps
    if num_steps is None:
        num_steps = math.ceil((arguments.num_train_epochs or 0) * steps_per_epoch)
    schedule = build_schedule(
        arguments.lr_scheduler_type, arguments.learning_rate, arguments.num_warmup_steps, num_steps,
        arguments.lr_scheduler_kwargs,
    )  # fmt: skip
    optimizer = build_optimizer(
        arguments.optim, parameter_groups(model, arguments.weight_decay), arguments.learning_rate,
        (arguments.adam_beta1, arguments.adam_beta2), arguments.adam_epsilon,
    )  # fmt: skip
    num_params = num_parameters(model)
    prepared, optimizer = _prepare(arguments, accelerator, model, optimizer)
    state = _start_state(checkpoint, accelerator, num_steps)
    model_bytes = num_params * getattr(torch, arguments.dtype).itemsize
    size = 3 * model_bytes  # AdamW keeps two values of each weight
    check_room(
        arguments.output_path, accelerator, size, model_bytes, _kept_checkpoints(arguments, num_steps, steps_per_epoch),
        arguments.save_on_each_node,
    )  # fmt: skip
    _open_directory(arguments, accelerator, afresh=checkpoint is None)
    tracker = Tracker(arguments.output_path, accelerator.is_main_process, num_steps, state.step)
    run = Run(
        arguments=arguments, accelerator=accelerator, model=prepared, base_model=model, optimizer=optimizer,
        schedule=schedule, train_blocks=train_blocks, validation_blocks=validation_blocks,
        validation_bytes=predicted_bytes(cache.validation, validation_blocks, cache.tokenizer),
        tokenizer=cache.tokenizer, fingerprints=cache.fingerprints,
        steps_per_epoch=steps_per_epoch, num_steps=num_steps, tracker=tracker,
        resumed_at=state.step if checkpoint else None,
        watchdog=Watchdog(accelerator, arguments.watchdog_seconds), stop=stop,
        saver=Saver(
            arguments.output_path, accelerator, arguments.save_total_limit, arguments.save_on_each_node,
            arguments.async_save, size,
        ),
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
    if arguments.preprocessing_num_workers:
        os.environ["RAYON_NUM_THREADS"] = str(arguments.preprocessing_num_workers)  # read by tokenizers
    return accelerator


def _resolve(arguments: TrainArguments, accelerator: Accelerator) -> tuple[TrainArguments, Any]:
    """The arguments with nothing left open, and the model's configuration."""
    arguments = resolve_arguments(arguments, accelerator.num_processes)
    config, block_size = config_for(arguments)
    precision = resolve_precision(arguments.mixed_precision)
    arguments = replace(arguments, mixed_precision=precision, block_size=block_size)
    check_same(accelerator, "arguments", asdict(arguments))
    return arguments, config


def _checkpoint_to_resume(arguments: TrainArguments) -> Path | None:
    """The checkpoint to go on from, or None to start at step 0. Raises UsageError if neither is right."""
    asked, folder = arguments.resume_from_checkpoint, arguments.output_path
    if asked not in ("auto", "never"):
        checkpoint = Path(asked)
        damage = find_damage(checkpoint)
        if damage is None and "state" not in read_manifest(checkpoint):
            damage = (
                "it is a model without the state of its training; give --model_name_or_path to start from it"
            )
        if damage:
            raise UsageError(f"resume_from_checkpoint {asked} cannot be used: {damage}")
    elif arguments.overwrite_output_dir or not (folder / directory.SETTINGS).is_file():
        return None
    elif asked == "never":
        raise UsageError(
            f"{folder} holds a run; choose another --output_dir, or start afresh with --overwrite_output_dir"
        )
    else:
        newest = newest_checkpoint(folder) if not arguments.save_on_each_node else _newest_on_all(folder)
        if newest is None and directory.has_model(folder):
            raise UsageError(
                f"{folder} holds a finished model, but no checkpoint to go on from; choose another --output_dir, "
                f"or start afresh with --overwrite_output_dir"
            )
        if newest is None:  # it ended before its first checkpoint: there are no past steps to keep
            return None
        checkpoint = newest
    directory.refuse_changes(read_manifest(checkpoint)["arguments"], arguments, checkpoint)
    return checkpoint


def _newest_on_all(folder: Path) -> Path | None:
    """The newest checkpoint that every machine has whole: one may have been stopped before it had the last."""
    mine = [path.name for path in list_checkpoints(folder) if find_damage(path) is None]
    everyone: list[list[str]] = [mine] if world_size() == 1 else gather_object([mine])
    common = set(mine).intersection(*everyone)
    if any(everyone) and not common:
        raise UsageError(
            f"the machines have no checkpoint in common in {folder}; copy one from one to the others, or start afresh "
            f"with --overwrite_output_dir"
        )
    return folder / max(common, key=lambda name: int(name.rpartition("-")[2])) if common else None


def _prepare_text(
    arguments: TrainArguments, train: Source, validation: Source | None, accelerator: Accelerator
) -> TokenCache:
    """The token cache, which the first process to come builds and the others wait for."""
    if not arguments.overwrite_cache:
        cache = prepare_text(arguments, train, validation)
    else:
        with accelerator.main_process_first():  # it is made anew once, and not while others read it
            again = replace(arguments, overwrite_cache=accelerator.is_main_process)
            cache = prepare_text(again, train, validation)
    check_same(accelerator, "texts", cache.fingerprints)
    return cache


def _build_model(
    arguments: TrainArguments, config, cache: TokenCache, checkpoint: Path | None
) -> PreTrainedModel:
    """The model to train on: of the checkpoint, the pretrained one, or a new one."""
    options: dict[str, Any] = {"dtype": arguments.dtype, "attn_implementation": arguments.attn_implementation}
    if checkpoint:
        _refuse_other_text(checkpoint, cache.fingerprints)
        model = load_model(str(checkpoint), **options)
    elif arguments.model_name_or_path:
        model = load_model(
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            gguf_file=arguments.gguf_file,
            **options,
        )
        fit_embedding(model, cache.tokenizer)
    else:
        model = build_model(config, cache.tokenizer, **options)
    if arguments.packing == "document":
        check_isolation(model)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def _refuse_other_text(checkpoint: Path, fingerprints: dict[str, str]) -> None:
    before = read_manifest(checkpoint)["fingerprints"]
    changed = [name for name in fingerprints if fingerprints[name] != before[name]]
    if changed:
        each = ", ".join(f"{name} {before[name][:12]}, now {fingerprints[name][:12]}" for name in changed)
        raise UsageError(
            f"the {' and the '.join(changed)} {'is' if len(changed) == 1 else 'are'} not that of {checkpoint} "
            f"(fingerprints: {each}); restore it, choose another --output_dir, or start afresh with "
            f"--overwrite_output_dir"
        )


def _kept_checkpoints(arguments: TrainArguments, num_steps: int, steps_per_epoch: int) -> int:
    """Checkpoints that are there at a time at the most, the one being written among them."""
    rhythm = arguments.checkpointing_steps
    apart = {"end": num_steps, "epoch": steps_per_epoch}.get(str(rhythm)) or int(rhythm)
    planned = max(math.ceil(num_steps / max(apart, 1)), 1)
    return min(planned, (arguments.save_total_limit or planned) + 1)


def _start_state(checkpoint: Path | None, accelerator: Accelerator, num_steps: int) -> State:
    """The state of step 0, or that of the checkpoint."""
    if checkpoint is None:
        return State(num_steps=num_steps)
    state = State(**read_manifest(checkpoint)["state"])
    logger.info(f"going on from {checkpoint}, step {state.step} of {num_steps}")
    if state.num_steps != num_steps:
        logger.info(f"the learning rate now follows {num_steps} steps, it followed {state.num_steps} before")
    # The first rank has the loss sum of all.
    loss_sum = state.loss_sum if accelerator.is_main_process else 0.0
    return replace(state, num_steps=num_steps, finished=False, loss_sum=loss_sum)


def _open_directory(arguments: TrainArguments, accelerator: Accelerator, afresh: bool) -> None:
    """Make the run directory ready, on every machine that keeps one. A collective."""
    folder = arguments.output_path
    if is_writer(accelerator, arguments.save_on_each_node):
        if afresh:
            directory.clear_directory(folder)
        directory.clear_leftovers(folder)
        directory.record_start(arguments, describe_environment(accelerator, arguments.mixed_precision))
    accelerator.wait_for_everyone()


def _describe(run: Run, cache: TokenCache, num_params: int) -> None:
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
    memory = training_bytes(num_params, accelerator.num_processes, stage, 2 if rounded else 4)
    logger.info(
        f"{num_params:,} parameters, vocabulary {len(cache.tokenizer):,}, {run.num_steps:,} steps, "
        f"{run.steps_per_epoch:,} a pass over the text; weights, gradients and optimizer take about "
        f"{memory / 2**20:,.0f} MB a process, activations come on top"
    )
