"""What a run goes on from: which checkpoint, whether it is of the same training, and the state in it."""

from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from stylegen.checkpoint import (
    find_damage,
    is_writer,
    list_checkpoints,
    newest_checkpoint,
    read_manifest,
    recover_folders,
    step_of,
)
from stylegen.config import TrainArguments, UsageError
from stylegen.export import BEST
from stylegen.runtime import asked_once, check_same, logger
from stylegen.train import directory
from stylegen.train.state import State


def find_checkpoint(arguments: TrainArguments, accelerator: Accelerator) -> Path | None:
    """The checkpoint to go on from, the same on all ranks, or None to start at step 0. A collective.

    Raises UsageError if neither is right.
    """
    if is_writer(accelerator, arguments.save_on_each_node):
        recover_folders(arguments.output_path)
    accelerator.wait_for_everyone()
    if not arguments.save_on_each_node:  # the files are large, and the same for all
        return asked_once(accelerator, lambda: _checkpoint_to_resume(arguments))
    checkpoint = _checkpoint_to_resume(arguments)
    check_same(accelerator, "checkpoints to go on from", {"checkpoint": checkpoint and checkpoint.name})
    return checkpoint


def refuse_other_text(checkpoint: Path, fingerprints: dict[str, str]) -> None:
    """Raise UsageError, with both fingerprints, if the text or the tokenizer is not that of a checkpoint."""
    before = read_manifest(checkpoint)["fingerprints"]
    changed = [name for name in fingerprints if fingerprints[name] != before[name]]
    if changed:
        each = ", ".join(f"{name} {before[name][:12]}, now {fingerprints[name][:12]}" for name in changed)
        raise UsageError(
            f"the {' and the '.join(changed)} {'is' if len(changed) == 1 else 'are'} not that of {checkpoint} "
            f"(fingerprints: {each}); restore it, choose another --output_dir, or start afresh with "
            f"--overwrite_output_dir"
        )


def ended_by_itself(checkpoint: Path) -> bool:
    """Whether the life that wrote a checkpoint ended with it: finished, or stopped as it was asked to."""
    state = read_manifest(checkpoint)["state"]
    return bool(state["finished"] or state["stopped_by"])


def start_state(checkpoint: Path | None, run_dir: Path, accelerator: Accelerator, num_steps: int) -> State:
    """The state of step 0, or that of the checkpoint."""
    if checkpoint is None:
        return State(num_steps=num_steps)
    state = State(**read_manifest(checkpoint)["state"])
    logger.info(f"going on from {checkpoint}, step {state.step} of {num_steps}")
    if state.num_steps != num_steps:
        logger.info(f"the learning rate now follows {num_steps} steps, it followed {state.num_steps} before")
    if state.step >= num_steps and not state.finished:  # fewer steps than it had: these are the last turn's
        state = replace(state, turned=None)
    if not (state.best_step is None or (run_dir / BEST).is_dir() or directory.has_model(run_dir)):
        logger.info(
            f"the best model so far, of step {state.best_step}, is not in {run_dir}: it is looked for anew"
        )
        state = replace(
            state,
            best_loss=None,
            best_step=None,
            check_loss=None,
            stale_evaluations=0,
            watched=None,
            best_watched=None,
        )
    # The first rank has the loss sum of all.
    loss_sum = state.loss_sum if accelerator.is_main_process else 0.0
    return replace(state, num_steps=num_steps, finished=False, loss_sum=loss_sum)


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
    everyone: list[list[str]] = gather_object([mine])
    common = set(mine).intersection(*everyone)
    if any(everyone) and not common:
        raise UsageError(
            f"the machines have no checkpoint in common in {folder}; copy one from one to the others, or start afresh "
            f"with --overwrite_output_dir"
        )
    return folder / max(common, key=lambda name: step_of(Path(name))) if common else None
