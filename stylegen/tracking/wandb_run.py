"""The run on Weights & Biases: one run through all its lives, online, or offline where it cannot be online."""

import atexit
import logging
import os
import secrets
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stylegen.config import first_line
from stylegen.config.privacy import redacted
from stylegen.metrics import best_evaluation
from stylegen.tracking.rows import AXIS, TOKENS, read_metrics
from stylegen.tracking.samples import Sample, read_samples
from stylegen.tracking.services import FINISHED, PREEMPTED, Service

logger = logging.getLogger("stylegen")
# By itself wandb records the command line, the path and the code of the program, the repository's address and changes,
# and all that is printed. An upload that never ends would keep a finished run from ending.
WANDB_SETTINGS = {
    "console": "off", "disable_code": True, "disable_git": True, "disable_job_creation": True, "save_code": False,
    "x_disable_meta": True, "program": "run_clm.py", "finish_timeout": 600.0,
    "finish_timeout_raises": True,
}  # fmt: skip
LOCAL = ("offline", "disabled", "dryrun")  # modes that need no server
MOST_SAMPLES = 100  # steps in the table of samples, which is sent whole each time it grows
QUIET_SECONDS = 600  # between two alerts of one title
BEST = {"loss": "eval/loss", "accuracy": "eval/accuracy", "perplexity": "eval/perplexity",
        "bits_per_byte": "eval/bits_per_byte", "step": AXIS, "epoch": "train/epoch"}  # fmt: skip


class WandbRun(Service):
    """A run of wandb, under the id in RUN_DIR/wandb_run_id.

    Rows go there without wandb's own step, which drops what goes back: `train/global_step` is the axis.
    """

    def __init__(
        self,
        run_dir: Path,
        first_step: int,
        *,
        project: str,
        run_name: str,
        group: str | None,
        config: dict[str, Any],
        was_killed: bool = False,
    ):
        """`was_killed` tells that the life before did not end by itself."""
        self.run_dir = run_dir
        options: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", project),
            "id": run_id(run_dir),
            "resume": "allow",
            "job_type": os.environ.get("WANDB_JOB_TYPE", "train"),
            "settings": {**WANDB_SETTINGS, "init_timeout": float(os.environ.get("WANDB_INIT_TIMEOUT", 60))},
        }
        if group:
            options["group"] = group
        if "WANDB_NAME" not in os.environ and "WANDB_SWEEP_ID" not in os.environ:  # a sweep names its runs
            options["name"] = run_name
        super().__init__("wandb", _start(options))
        self.tracker.config.update(config, allow_val_change=True)
        for axis, values in ((None, AXIS), (AXIS, TOKENS), (AXIS, "*")):
            self.tracker.define_metric(values, step_metric=axis)
        log = run_dir / "metrics.jsonl"
        rows = [row for row in (read_metrics(log) if log.is_file() else []) if row[AXIS] <= first_step]
        self._best = best_evaluation(rows)
        self._samples = [sample for sample in read_samples(run_dir) if sample.step <= first_step]
        if was_killed and self.tracker.offline:
            # It writes its file in large pieces, and the last one went with it.
            for row in rows:
                self.tracker.log(row)

    def log(self, row: dict[str, Any]) -> None:
        self.tracker.log(row)
        if "eval/loss" not in row or best_evaluation([row]) is None:
            return
        self._best = best = best_evaluation([*([self._best] if self._best else []), row])
        assert best
        self.tracker.summary.update({f"best/{name}": best[key] for name, key in BEST.items() if key in best})

    def log_sample(self, sample: Sample) -> None:
        """Send the table of all samples so far: what is shown is the newest table, so it holds all there is."""
        import wandb

        self._samples = [other for other in self._samples if other.step != sample.step] + [sample]
        if len(self._samples) > MOST_SAMPLES:  # every second one; what the model wrote first and last stays
            self._samples = self._samples[:-1:2] + self._samples[-1:]
        rows = [
            [each.step, prompt, text]
            for each in self._samples
            for prompt, text in zip(each.prompts, each.texts, strict=True)
        ]
        self.tracker.log({
            "samples": wandb.Table(columns=["step", "prompt", "text"], data=rows), AXIS: sample.step
        })  # fmt: skip

    def log_figures(self, step: int, paths: Iterable[Path]) -> None:
        import wandb

        images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in paths}
        if images:
            self.tracker.log({**images, AXIS: step})

    def log_model(self, folder: Path, files: Iterable[Path], aliases: list[str], row: dict[str, Any]) -> None:
        """An artifact of type model, a version each time; the newest also has the alias latest."""
        import wandb

        artifact = wandb.Artifact(f"model-{self.tracker.id}", "model", metadata=row)
        for path in files:
            artifact.add_file(str(path), name=str(path.relative_to(folder)))
        self.tracker.log_artifact(artifact, aliases=["latest", *aliases])

    def alert(self, title: str, text: str, level: str) -> None:
        self.tracker.alert(title, text, level=level, wait_duration=QUIET_SECONDS)

    def where(self) -> str | None:
        """The run's page, or the command that sends all of its lives there."""
        return getattr(self.tracker, "url", None) or sync_line(self.run_dir)

    def finish(self, outcome: str) -> None:
        """Close it, and tell wandb how the run has ended, and whether it will go on.

        Of one that has failed it hears at the exit of the process: the error comes first, and other ranks may wait.
        """
        if outcome == FINISHED:
            try:
                self.tracker.finish()
            except Exception as error:
                line = sync_line(self.run_dir, self.tracker.settings.sync_dir)
                raise RuntimeError(f"{first_line(error)}; what is here is sent by: {line}") from error
        elif outcome == PREEMPTED:
            self.tracker.mark_preempting()
            self.tracker.finish(exit_code=1)  # wandb takes exit code 0 for the end of the work
        else:
            atexit.register(self.tracker.finish, exit_code=1)


def run_id(run_dir: Path) -> str:
    """The run's id on wandb: that of its first life, or of WANDB_RUN_ID, or a new one."""
    path = run_dir / "wandb_run_id"
    if not path.exists():
        path.write_text(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    return path.read_text().strip()


def sync_line(run_dir: Path, *others: str) -> str | None:
    """The command that sends what offline lives of a run have left, and `others`; None if there is nothing to send."""
    folder = Path(os.environ.get("WANDB_DIR", ".")) / "wandb"
    lives = sorted(folder.glob(f"offline-run-*-{run_id(run_dir)}"))
    left = [str(life) for life in lives if not list(life.glob("*.wandb.synced"))]
    return shlex.join(["wandb", "sync", *left, *others]) if left or others else None


def _start(options: dict[str, Any]) -> Any:
    """A run online, or offline with a warning where that fails: not logged in, no network, no right to the project."""
    import wandb

    try:
        return wandb.init(**options)
    except Exception as error:
        if os.environ.get("WANDB_MODE") in LOCAL:
            raise
        wandb.teardown()  # it still holds the id
        run = wandb.init(**options, mode="offline")
        logger.warning(
            f"warning: wandb cannot be online ({redacted(first_line(error))}); the run is kept offline, and the end of "
            f"the run says how to send it"
        )
        return run
