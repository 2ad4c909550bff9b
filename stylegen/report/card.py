"""The model card: README.md of the run directory, which the hub shows."""

from stylegen.report.record import RunRecord
from stylegen.report.templates import TEMPLATES


def write_card(record: RunRecord) -> None:
    """Write README.md into the run directory."""
    page = TEMPLATES.get_template("card.md.j2").render(
        name=record.name, settings=record.settings, start=record.start, best=record.best
    )
    (record.directory / "README.md").write_text(page, encoding="utf-8")
