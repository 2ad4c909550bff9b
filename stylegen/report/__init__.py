"""What is made of a run directory: report.md, report.html (self-contained), and the model card README.md."""

from stylegen.report.pages import compare_runs, write_report
from stylegen.report.record import RunRecord, Sample
from stylegen.report.templates import TEMPLATES
from stylegen.report.words import speed_in_words, style_in_words, summarize

__all__ = [
    "TEMPLATES",
    "RunRecord",
    "Sample",
    "compare_runs",
    "speed_in_words",
    "style_in_words",
    "summarize",
    "write_report",
]
