"""The run: one loop, one paragraph a periodic job, one optimizer step.

Evaluation and samples of a step are its turn, taken before the next step; then its checkpoint is begun. One extra last
turn is that of the last step. All of them are functions of the step, so a run that goes on after a stop does what the
uninterrupted one would have done: also the turn, where the stop came before it.
"""

import json
from dataclasses import asdict

from stylegen.blocks.ahead import TextAhead
from stylegen.config import RunError, TrainArguments, leave
from stylegen.config.privacy import listed_environment
from stylegen.corpus import Source
from stylegen.runtime import logger
from stylegen.stop import StopRequest
from stylegen.tracking import FAILED, FINISHED, PREEMPTED
from stylegen.train import style
from stylegen.train.artifacts import log_checkpoints
from stylegen.train.finish import finish, promote
from stylegen.train.health import compare_weights
from stylegen.train.profile import StepProfiler
from stylegen.train.publish import publish
from stylegen.train.setup import set_up
from stylegen.train.state import Run, State, is_due, stops_early
from stylegen.train.step import Stopwatch, log_training, note_first_step, train_step
from stylegen.train.turn import evaluate_model, keep_samples, save, write

MOST_TITLE = 63  # characters of an alert's title on wandb


def train(
    arguments: TrainArguments,
    train_source: Source,
    validation_source: Source | None,
    stop: StopRequest,
    ahead: TextAhead | None = None,
) -> int:
    """Train as `arguments` say, on the text of the two sources, which may be begun; returns the exit code."""
    run, state = set_up(arguments, train_source, validation_source, stop, ahead)
    outcome = FAILED
    try:
        if run.resumed_at is not None and state.turned == state.step and _is_last(run, state):
            logger.info(f"{run.directory} finished at step {state.step}; give more epochs or steps to go on")
            reason = None
        else:
            _start_trackers(run)
            reason = loop(run, state)
        outcome = PREEMPTED if reason else FINISHED
        if reason is None:
            promote(run, state)
        if run.accelerator.is_main_process:
            finish(run, state, reason)
        _tell_end(run, state, reason)
        run.accelerator.wait_for_everyone()
    except Exception as error:
        # What an error says may quote the training text, or name folders, and stays here.
        text = f"after step {state.step}, with {type(error).__name__}; its log says why"
        run.tracker.alert(f"{run.arguments.run_name} has failed"[:MOST_TITLE], text, "ERROR")
        raise
    finally:
        run.watchdog.stop()
        run.tracker.finish(outcome)
    run.stop.remove_file()
    if run.arguments.push_to_hub and outcome == FINISHED and run.accelerator.is_main_process:
        with run.stop.deaf():  # nobody waits any more, and it takes as long as the network does
            print(f"{'hub':12}{publish(run.arguments)}")
    return leave(0)  # while the run is still there: taking it apart may hang


def loop(run: Run, state: State) -> str | None:
    """Train to the last step; returns the reason if it was asked to stop before.

    Raises RunError if the last checkpoint could not be written.
    """
    arguments, watch, first = run.arguments, Stopwatch(), state.step
    profiler = StepProfiler(arguments.profile_steps, run.directory, run.accelerator.process_index)
    run.model.train()
    try:
        while True:
            run.watchdog.tick(f"the end of step {state.step}")
            if run.saver.is_ready():
                run.watchdog.rest()
                run.saver.finish()
                log_checkpoints(run, state)
            reason = run.stop.agreed(run.accelerator)
            is_new = state.step != run.resumed_at or state.turned != state.step
            # What a resumed step asks for was done before its checkpoint was written, if there was time for it.
            if state.turned != state.step and not reason and not take_turn(run, state):
                reason = run.stop.agreed(run.accelerator)
            last = _is_last(run, state) and state.turned == state.step
            if is_new and (last or reason or is_due(arguments.checkpointing_steps, state.step, run)):
                state.finished, state.stopped_by = last, None if last else reason
                save(run, state)
            if last and state.step < run.num_steps:
                logger.info(f"stopped early after step {state.step}, by {arguments.early_stopping_metric}")
            if last or reason:
                if error := run.saver.finish(goes_on=False):
                    raise RunError(
                        f"the last checkpoint, of step {state.step}, was not saved: {error}; make room, and start "
                        f"the same command again to go on from the one before"
                    )
                return None if last else reason
            if not arguments.async_save:  # what was written while the training waited counts from now on
                run.saver.finish()
                log_checkpoints(run, state)
            if state.step > first:  # the first step may compile
                run.watchdog.arm()
            with profiler.step(state.step + 1):
                grad_norm = train_step(run, state, watch)
            if state.step == first + 1:
                watch = note_first_step(run, watch)
            if arguments.detect_desync_steps and state.step % arguments.detect_desync_steps == 0:
                compare_weights(run, state)
            if state.step % arguments.logging_steps == 0 or state.step == run.num_steps:
                log_training(run, state, watch, grad_norm)
                watch = Stopwatch()
    except BaseException as error:
        # What all ranks raise alike, or a single process, must not take a save with it that is nearly done.
        if isinstance(error, FloatingPointError | RunError) or run.accelerator.num_processes == 1:
            run.saver.finish(rotating=False)
        raise
    finally:
        profiler.finish()


def take_turn(run: Run, state: State) -> bool:
    """Evaluate and write samples where this step asks for it; False if a request to stop came between."""
    arguments = run.arguments
    evaluates = (
        _is_last(run, state)
        or is_due(arguments.eval_steps, state.step, run)
        or (state.step == 0 and arguments.eval_on_start)
    )
    if evaluates and not evaluate_model(run, state):
        return False
    samples = _is_last(run, state) or is_due(arguments.sample_steps, state.step, run)
    measures = style.is_wanted(run, state, _is_last(run, state), evaluates)
    if samples or measures:
        texts = write(run, max(len(arguments.sample_prompts), arguments.style_samples if measures else 0))
        if measures:
            style.measure_style(run, state, texts)
        if (
            _is_last(run, state) and not evaluates and not evaluate_model(run, state)
        ):  # it just became the last
            return False
        if samples or _is_last(run, state):
            keep_samples(run, state, texts)
    state.turned = state.step
    return True


def _tell_end(run: Run, state: State, reason: str | None) -> None:
    """Alert whoever follows the run elsewhere that it has ended, or will go on later."""
    best = (
        ""
        if state.best_loss is None
        else f"best validation loss {state.best_loss:.4f} at step {state.best_step}"
    )
    if reason:
        title, text = "was stopped, and can go on", f"by {reason} after step {state.step}; {best}"
    else:
        title, text = "has finished", f"{state.step} steps; {best}"
    run.tracker.alert(f"{run.arguments.run_name} {title}"[:MOST_TITLE], text, "WARN" if reason else "INFO")


def _start_trackers(run: Run) -> None:
    arguments = run.arguments
    if not (arguments.report_to and run.accelerator.is_main_process):
        return
    environment = json.loads((run.directory / "environment.json").read_text(encoding="utf-8"))
    run.tracker.start_trackers(
        arguments.report_to,
        project=arguments.project,
        run_name=arguments.run_name or "",
        group=arguments.group,
        arguments=asdict(arguments),
        facts={**environment, **listed_environment(), "data_fingerprint": run.fingerprints["text"]},
        was_killed=run.was_killed,
    )


def _is_last(run: Run, state: State) -> bool:
    return state.step >= run.num_steps or stops_early(run, state)
