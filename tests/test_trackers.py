"""Other trackers, by their real clients: what they have of a run is what metrics.jsonl has."""

import pytest
from conftest import TINY, evaluations, make_text, metrics

from stylegen.tracking import AXIS
from stylegen.train import main


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run directory of 4 steps that went on to 6, with tensorboard."""
    from accelerate.state import AcceleratorState

    folder = tmp_path_factory.mktemp("tracked")
    (folder / "text.txt").write_text(make_text(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for steps in (4, 6):
            AcceleratorState._reset_state(reset_partial_state=True)
            rhythm = f"--max_train_steps {steps} --eval_steps 2 --logging_steps 2 --sample_steps 3"
            assert (
                main([
                    "--train_file", str(folder / "text.txt"), *TINY, "--mixed_precision", "no", *rhythm.split(),
                    "--output_dir", str(folder / "a run"), "--report_to", "tensorboard",
                ])
                == 0
            )  # fmt: skip
    return folder / "a run"


# --- tensorboard


def test_tensorboard_has_every_number_of_metrics_jsonl(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "tensorboard" / "a run"))
    events.Reload()
    rows = metrics(tracked)
    names = {key for row in rows for key in row}
    assert names <= set(events.Tags()["scalars"])
    for name in names:
        expected = [(row[AXIS], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected
    assert len(evaluations(tracked)) == len(events.Scalars("eval/loss")) == 4


def test_tensorboard_has_the_samples_as_text(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "tensorboard" / "a run"))
    events.Reload()
    shown = events.Tensors("samples/0/text_summary")
    assert [event.step for event in shown] == [3, 4, 6]
    last = (tracked / "samples" / "step-000006.txt").read_text(encoding="utf-8").split("\n", 1)[1]
    assert shown[-1].tensor_proto.string_val[0].decode() == last.removesuffix("\n")


# --- the others, in a process of their own, offline


OFFLINE = {  # not clearml: offline it writes all, and then does not always end
    "trackio": {},
    "mlflow": {},
    "aim": {},
    "comet_ml": {"COMET_START_ONLINE": "0"},
    "dvclive": {},
    "swanlab": {"SWANLAB_MODE": "offline"},
}
# Where each leaves something that is written, under the folder of the test.
LEFT = {
    "trackio": "trackio/*.db", "mlflow": "mlflow.db", "aim": ".aim/**/*", "comet_ml": "comet/*.zip",
    "dvclive": "out/dvclive/plots/metrics/eval/loss.tsv",
    "swanlab": "swanlog/**/*.swanlab",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLINE)
def test_a_tracker_takes_a_run(command, text_file, tmp_path, name):
    """Where it is installed; `pip install` of its name does."""
    pytest.importorskip(name)
    (tmp_path / "home").mkdir()
    environment = {
        "HOME": str(tmp_path / "home"), "TRACKIO_DIR": str(tmp_path / "trackio"), "COMET_OFFLINE_DIRECTORY": "comet",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", **OFFLINE[name],
    }  # fmt: skip
    flags = "--max_train_steps 4 --eval_steps 2 --logging_steps 2 --sample_steps 2 --output_dir out".split()
    done = command(
        "run_clm.py",
        "--train_file",
        str(text_file),
        *TINY,
        *flags,
        "--report_to",
        name,
        environment=environment,
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("warning: ")], done.stderr
    assert [path for path in tmp_path.glob(LEFT[name]) if path.is_file() and path.stat().st_size]
