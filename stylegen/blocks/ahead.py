"""A text prepared by a thread of its own while the libraries are imported, which is the better part of a start.

Reading, training a tokenizer and tokenizing need none of them, and do most of their work outside of Python's lock. Two
threads must not import the same library at a time: where it comes to Transformers the thread waits until it is asked
for the result, and goes on while the asker waits.
"""

import contextlib
import logging
import os
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

from stylegen.blocks.cache import TokenCache
from stylegen.blocks.prepare import prepare_text
from stylegen.config import SHAKESPEARE, TrainArguments, resolve_arguments
from stylegen.config.processes import world_size
from stylegen.corpus import Source
from stylegen.corpus.files import TABLE_SUFFIXES, text_suffix

# Of more the imports are a small part, and who leaves early would wait until a tokenizer is trained.
MOST_BYTES = 16 << 20
THREAD = "text ahead"
logger = logging.getLogger("stylegen")


class TextAhead:
    """The token cache of these sources, begun when this is made; once, to be asked for by `result`, or to be left.

    Errors come when it is asked for, and what it logs is kept until then: before that others have their say.
    """

    def __init__(self, arguments: TrainArguments, train: Source, validation: Source | None):
        self._asked, self._left = threading.Event(), False
        self._held: list[logging.LogRecord] = []
        logger.setLevel(logging.INFO)
        logger.addFilter(self._hold)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=THREAD)
        self._future = self._pool.submit(self._prepare, arguments, train, validation)

    def result(self) -> TokenCache:
        """The token cache. Raises what `prepare_text` does."""
        logger.removeFilter(self._hold)
        for record in self._held:
            logger.handle(record)
        self._asked.set()
        return self._future.result()

    def leave(self) -> None:
        """Have the thread end, if nobody has asked for the result; what it has written is deleted."""
        self._left = not self._asked.is_set()
        self._asked.set()
        self._pool.shutdown()
        logger.removeFilter(self._hold)

    def _prepare(self, arguments: TrainArguments, train: Source, validation: Source | None) -> TokenCache:
        return prepare_text(resolve_arguments(arguments, 1), train, validation, self._wait)

    def _hold(self, record: logging.LogRecord) -> bool:
        """Whether a line is to be logged now: not if it is the thread's."""
        if record.threadName and record.threadName.startswith(THREAD):
            self._held.append(record)
            return False
        return True

    def _wait(self) -> None:
        self._asked.wait()
        if self._left:
            raise CancelledError


def begin_text(arguments: TrainArguments, train: Source, validation: Source | None) -> TextAhead | None:
    """Begin to prepare the text; None where that needs a library, takes long, or several processes would do it."""
    sources = [train] if validation is None else [train, validation]
    if world_size() > 1 or any(source.dataset not in (None, SHAKESPEARE) for source in sources):
        return None
    paths = [path for source in sources for path in source.paths()]
    if any(text_suffix(path) in TABLE_SUFFIXES for path in paths):
        return None
    with contextlib.suppress(OSError):  # of a file that is gone: it is told where it is read
        if sum(path.stat().st_size for path in paths) <= MOST_BYTES:
            set_tokenizer_threads(arguments)
            return TextAhead(arguments, train, validation)
    return None


def set_tokenizer_threads(arguments: TrainArguments) -> None:
    """Tell the library of tokenizers, which reads it when it is first used, how many threads it may have."""
    if arguments.preprocessing_num_workers:
        os.environ["RAYON_NUM_THREADS"] = str(arguments.preprocessing_num_workers)
