"""Our messages on stderr, from the first rank only; the libraries' chatter and bars off."""

import logging
import sys

import transformers
from tqdm import tqdm

logger = logging.getLogger("stylegen")


class _ConsoleHandler(logging.Handler):
    """Log lines on stderr that do not cut through a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def start_logging(is_main: bool) -> None:
    """Send our messages to stderr, those of other ranks than the first only if they are errors."""
    logger.handlers = [_ConsoleHandler()]
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    logger.propagate = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it would write to stdout
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
