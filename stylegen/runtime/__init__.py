"""The process and its launcher: the Accelerator, launcher checks, stop requests, logging, random generators."""

from stylegen.runtime.environment import (
    describe_environment,
    free_memory_bytes,
    max_memory_bytes,
    pick_device,
)
from stylegen.runtime.logs import logger, start_logging
from stylegen.runtime.process import apply_speed_settings, build_accelerator, resolve_precision
from stylegen.runtime.random_state import random_state, restore_random_state, seed_everything
from stylegen.runtime.topology import (
    asked_once,
    check_machines,
    check_same,
    check_shared,
    code_fingerprint,
    cuts_weights,
    describe_topology,
    zero_stage,
)
from stylegen.runtime.watchdog import Watchdog

__all__ = [
    "Watchdog",
    "apply_speed_settings",
    "asked_once",
    "build_accelerator",
    "check_machines",
    "check_same",
    "check_shared",
    "code_fingerprint",
    "cuts_weights",
    "describe_environment",
    "describe_topology",
    "free_memory_bytes",
    "logger",
    "max_memory_bytes",
    "pick_device",
    "random_state",
    "resolve_precision",
    "restore_random_state",
    "seed_everything",
    "start_logging",
    "zero_stage",
]
