"""What is made of run directories: report.md, report.html (self-contained), the model card README.md; comparisons."""

from stylegen.report.compare import compare_runs
from stylegen.report.marks import Marks
from stylegen.report.pages import write_report
from stylegen.report.record import RunRecord
from stylegen.report.templates import TEMPLATES
from stylegen.report.words import speed_in_words, style_in_words, summarize

__all__ = [
    "TEMPLATES",
    "Marks",
    "RunRecord",
    "compare_runs",
    "speed_in_words",
    "style_in_words",
    "summarize",
    "write_report",
]
