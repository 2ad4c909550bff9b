"""Which process of the job this is, as its launcher says in the environment."""

import os


def world_size() -> int:
    """Processes of the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process in the job, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_world_size() -> int:
    """Processes of the job on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def local_rank() -> int:
    """The number of this process among those on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", str(rank())))
