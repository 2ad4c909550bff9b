"""The run: one loop, one paragraph a periodic job, one optimizer step.

Evaluation, samples and checkpoint of a step are done, in this order, before the next step; one extra last turn
does those of the last step. All of them are functions of the step, so a run that goes on after a stop does
what the uninterrupted one would have done.
"""

from dataclasses import asdict

from stylegen.config import TrainArguments
from stylegen.corpus import Source
from stylegen.runtime import StopRequest, logger
from stylegen.train.directory import promote_best
from stylegen.train.finish import finish
from stylegen.train.setup import set_up
from stylegen.train.state import Run, State
from stylegen.train.step import Stopwatch, log_training, train_step
from stylegen.train.turn import evaluate_model, save, write_samples


def train(arguments: TrainArguments, train_source: Source, validation_source: Source | None) -> int:
    """Train as `arguments` say, on the text of the two sources; returns the exit code."""
    run, state = set_up(arguments, train_source, validation_source)
    stop = StopRequest(run.directory)
    try:
        if run.resumed_at is not None and _is_last(run, state):
            logger.info(f"{run.directory} finished at step {state.step}; give more epochs or steps to go on")
            reason = None
        else:
            _start_trackers(run)
            reason = loop(run, state, stop)
        if run.writes and reason is None:
            promote_best(run.directory)
        if run.accelerator.is_main_process:
            finish(run, state, reason)
        run.accelerator.wait_for_everyone()
    finally:
        run.watchdog.stop()
        run.tracker.finish()
        stop.restore()
    run.accelerator.end_training()
    return 0


def loop(run: Run, state: State, stop: StopRequest) -> str | None:
    """Train to the last step; returns the reason if it was asked to stop before."""
    arguments, watch, first = run.arguments, Stopwatch(), state.step
    run.model.train()
    while True:
        run.watchdog.tick(f"the end of step {state.step}")
        reason = stop.agreed(run.accelerator)
        last = _is_last(run, state)
        # What a resumed step asks for was done before its checkpoint was written.
        if state.step != run.resumed_at:
            if (
                last
                or _is_due(arguments.eval_steps, state.step, run)
                or (state.step == 0 and arguments.eval_on_start)
            ):
                evaluate_model(run, state)
                last = _is_last(run, state)
            if last or _is_due(arguments.sample_steps, state.step, run):
                write_samples(run, state)
            if last or reason or _is_due(arguments.checkpointing_steps, state.step, run):
                state.finished, state.stopped_by = last, None if last else reason
                save(run, state)
        if last or reason:
            return None if last else reason
        if state.step > first:  # the first step may compile
            run.watchdog.arm()
        grad_norm = train_step(run, state, watch)
        if state.step % arguments.logging_steps == 0 or state.step == run.num_steps:
            log_training(run, state, watch, grad_norm)
            watch = Stopwatch()


def _start_trackers(run: Run) -> None:
    arguments = run.arguments
    run.tracker.start_trackers(
        arguments.report_to,
        project=arguments.project,
        run_name=arguments.run_name or "",
        group=arguments.group,
        config={**asdict(arguments), "data_fingerprint": run.fingerprint},
    )


def _is_last(run: Run, state: State) -> bool:
    patience = run.arguments.early_stopping_patience
    return state.step >= run.num_steps or (patience is not None and state.stale_evaluations >= patience)


def _is_due(rhythm: int | str, step: int, run: Run) -> bool:
    """Whether something done every `rhythm` steps, or "epoch", or only at the "end", is done after `step` steps."""
    if rhythm == "end" or step == 0:
        return False
    return step % (run.steps_per_epoch if rhythm == "epoch" else int(rhythm)) == 0
