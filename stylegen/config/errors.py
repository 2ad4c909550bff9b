"""What a user's mistake looks like: one line that names the thing and the remedy, exit code 2, no traceback."""

import errno
import gc
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from stylegen.config.processes import local_rank, rank, world_size

# After this long an error is that of this rank only: the launcher ends the others at the first one.
REPEAT_SECONDS = 2.0
# What the communication libraries say when another process is gone, or kept this one waiting.
LOST_CONTACT = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError", "remote process exited",
    "Timed out waiting", "collective operation timeout",
)  # fmt: skip
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UsageError(ValueError):
    """Something the user gave cannot work. The message names it and says what to do."""


class RunError(RuntimeError):
    """A run cannot go on, and all ranks know it. The message says why, what is unharmed and what to do."""


class RankError(RuntimeError):
    """The same of one rank, which the others do not know of and wait for."""


def first_line(error: BaseException) -> str:
    """The first line of a library's message, for one of ours; with the next where it only announces that."""
    lines = [line.strip() for line in (str(error).strip() or type(error).__name__).splitlines()]
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def run_command(command: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run one of our commands; returns the exit code (0 done, 1 failed while running, 2 a usage error, 130 Ctrl-C).

    `--debug` anywhere in `argv` lets the traceback of a usage error through.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return leave(command(arguments) or 0)
    except UsageError as error:
        if "--debug" in arguments:
            raise
        _print_once(error)
        return leave(2)
    except (FloatingPointError, RunError) as error:
        if "--debug" in arguments:
            raise
        _print_once(error)
        return leave(1)
    except RankError as error:
        if "--debug" in arguments:
            raise
        where = f"rank {rank()} on {platform.node()}: " if world_size() > 1 else ""
        print(f"error: {where}{error}", file=sys.stderr)
        return leave(1)
    except KeyboardInterrupt:  # before the training listens
        print("interrupted", file=sys.stderr)
        return leave(130)
    except BrokenPipeError:
        # The reader of our output has left (`generate.py ... | head`). Python would complain once more when
        # it flushes stdout at exit, so give it somewhere to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        is_full = isinstance(error, OSError) and error.errno in FULL_DISK
        if world_size() == 1 and is_full and "--debug" not in arguments:
            print(f"error: {error}; make room there, or choose another place", file=sys.stderr)
            return 1
        if world_size() == 1:
            raise
        return _end_rank(error)


def leave(code: int) -> int:
    """The exit code; where there is a process group, the process ends here and now, and elsewhere soon.

    Python would look for garbage among all that was imported before it ends, for half a second. Taking a process group
    apart can wait for ever: torch joins its threads while it holds Python's lock, which one of them may need to free
    the tensor of the last barrier.
    """
    gc.freeze()
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _print_once(error: Exception) -> None:
    """Print what most likely every rank has to say: the first one does, the others if they live on after that."""
    where = ""
    if world_size() > 1 and rank() > 0:
        time.sleep(REPEAT_SECONDS if local_rank() == 0 else 2 * REPEAT_SECONDS)
        where = f"rank {rank()} on {platform.node()}: "
    print(f"error: {where}{error}", file=sys.stderr, flush=True)


def _end_rank(error: Exception) -> int:
    """Say what happened and leave at once: cleaning up could wait for the other ranks for ever.

    Those notice it by the closed connection, and what they say comes later and is one line.
    """
    where = f"rank {rank()} of {world_size()} on {platform.node()}"
    lost = [words for words in LOST_CONTACT if words in str(error)] if isinstance(error, RuntimeError) else []
    if lost:
        print(
            f"error: {where} lost contact with another rank, which failed, was killed or kept it waiting ({lost[0]}); "
            f"the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
    else:
        print(f"error: {where} failed, and with it the job:\n{traceback.format_exc()}", file=sys.stderr)
    return leave(1)
