"""The style of what the model writes while it trains: texts written for it, measured against the text it trains on."""

from collections.abc import Iterator
from itertools import pairwise

from stylegen.blocks import Blocks, TokenStream
from stylegen.config import TrainArguments, UsageError
from stylegen.runtime import asked_once, logger
from stylegen.style import StyleMeasures, StyleReference, Written
from stylegen.train.state import Run, State, axes, is_due, watch

LARGEST_TEXT = 50_000_000  # tokens: the n-grams of a longer one would take gigabytes of memory


def check_size(arguments: TrainArguments, blocks: Blocks) -> None:
    """Raise UsageError if early stopping goes by the style, and the text is too long to measure it."""
    if arguments.early_stopping_metric.startswith("style/") and len(blocks.stream.framed) > LARGEST_TEXT:
        raise UsageError(
            f"early_stopping_metric {arguments.early_stopping_metric} cannot be measured on more than {LARGEST_TEXT:,} "
            f"tokens of training text; go by eval/loss"
        )


def measure_style(run: Run, state: State, texts: list[tuple[str, str]]) -> None:
    """Measure texts that `turn.write` wrote, and log `style/*`. A collective."""
    chosen = [Written(*pair) for pair in texts[: run.arguments.style_samples]]
    values = asked_once(run.accelerator, lambda: _measured(run, chosen))
    if not values:
        return
    run.tracker.log({**values, **axes(run, state)})
    if state.step > 0:  # the baseline is no candidate
        watch(run, state, values)


def is_wanted(run: Run, state: State, is_last: bool, evaluated: bool) -> bool:
    """Whether the style is measured after this step; before the first one only of a pretrained model."""
    arguments = run.arguments
    rhythm = arguments.style_steps
    if rhythm == "never" or not arguments.style_samples or len(run.train_blocks.stream.framed) > LARGEST_TEXT:
        return False
    if state.step == 0 and not arguments.model_name_or_path:
        return False
    return is_last or (evaluated if rhythm == "eval" else is_due(rhythm, state.step, run))


def _measured(run: Run, texts: list[Written]) -> dict[str, float]:
    try:
        return _measures(run, texts).metrics()
    except UsageError as error:  # a text without words is no reason to stop
        if not run.told_no_distance:
            logger.info(f"no style is measured: {error}")
        run.told_no_distance = True
        return {}


def _measures(run: Run, texts: list[Written]) -> StyleMeasures:
    if run.style is None:
        run.style = StyleReference.build(
            _documents(run, run.train_blocks.stream), _documents(run, run.validation_blocks.stream)
        )
    measures = run.style.measure(texts)
    if measures.distance is None and not run.told_no_distance:
        run.told_no_distance = True
        logger.info(f"no style/distance: {measures.too_little}; give more --style_samples")
    return measures


def _documents(run: Run, stream: TokenStream) -> Iterator[tuple[str, str]]:
    """(name, text) of each document, as the model has seen it."""
    for number, (start, end) in enumerate(pairwise(stream.starts.tolist())):
        ids = stream.framed[start + 1 : end].tolist()
        yield f"document {number + 1}", str(run.tokenizer.decode(ids, skip_special_tokens=True))
