"""What a run tells while it runs, here and elsewhere."""

from stylegen.tracking.rows import AXIS, EPOCH, KINDS, TOKENS, read_metrics
from stylegen.tracking.samples import Sample, read_samples, sample_path, write_sample
from stylegen.tracking.services import FAILED, FINISHED, PREEMPTED
from stylegen.tracking.tracker import Tracker

__all__ = [
    "AXIS",
    "EPOCH",
    "FAILED",
    "FINISHED",
    "KINDS",
    "PREEMPTED",
    "TOKENS",
    "Sample",
    "Tracker",
    "read_metrics",
    "read_samples",
    "sample_path",
    "write_sample",
]
