"""What a run wrote, ready for a page: cards by prompt and step, copied passages apart, long ones cut."""

from collections.abc import Sequence
from dataclasses import dataclass

from stylegen.report.marks import Marks
from stylegen.report.record import RunRecord
from stylegen.report.tables import Look, evenly, shown
from stylegen.tracking import AXIS, Sample

MOST_STEPS = 24  # of a run, evenly over its samples
MOST_TEXTS = 8  # of a sample
MOST_CHARACTERS = 400_000  # on a page; HTML writes a hostile character with six
MOST_PASSAGES = 20


@dataclass(frozen=True)
class Card:
    """One text: `pieces` are (text, whether it is copied), `left` is how many characters there are more."""

    title: str
    note: str
    pieces: list[tuple[str, bool]]
    left: int = 0
    look: Look | None = None

    @property
    def copied(self) -> float:
        """The share of its characters that is copied."""
        length = sum(len(text) for text, _ in self.pieces)
        return sum(len(text) for text, is_copied in self.pieces if is_copied) / max(length, 1)


@dataclass(frozen=True)
class Strip:
    """Texts of one prompt, by step or by run."""

    prompt: str
    cards: list[Card]


def shown_samples(record: RunRecord) -> list[Sample]:
    """The samples that a page has room for, the first and the last among them."""
    return evenly(record.samples, MOST_STEPS)


def learning(record: RunRecord, marks: Marks) -> list[Strip]:
    """For each prompt its texts by step."""
    samples = shown_samples(record)
    losses = {row[AXIS]: row["eval/loss"] for row in record.evaluations}
    strips: dict[tuple[str, int], list[Card]] = {}
    limit = _limit(sum(len(sample.texts[:MOST_TEXTS]) for sample in samples))
    for sample in samples:
        loss = losses.get(sample.step)
        note = "" if loss is None else f"validation loss {shown(loss, '.4f')}"
        for key, text in _by_prompt(sample):
            strips.setdefault(key, []).append(_card(f"step {sample.step:,}", note, text, limit, marks))
    return [Strip(prompt, cards) for (prompt, _), cards in strips.items()]


def side_by_side(runs: Sequence[tuple[str, Look, RunRecord, Marks]]) -> list[Strip]:
    """For each prompt the last texts of several runs, given as (name, look, record, marks)."""
    strips: dict[tuple[str, int], list[Card]] = {}
    limit = _limit(MOST_TEXTS * len(runs))
    for name, look, record, marks in runs:
        for sample in record.samples[-1:]:
            for key, text in _by_prompt(sample):
                card = _card(name, f"step {sample.step:,}", text, limit, marks, look)
                strips.setdefault(key, []).append(card)
    return [Strip(prompt, cards) for (prompt, _), cards in list(strips.items())[:MOST_TEXTS]]


def copied_passages(strips: Sequence[Strip]) -> list[str]:
    """The longest copied passages, each with the card that it is in, for a page that cannot mark them."""
    found = [
        (len(text), f"{card.title}: {' '.join(text.split())}")
        for strip in strips
        for card in strip.cards
        for text, is_copied in card.pieces
        if is_copied
    ]
    return [line for _, line in sorted(found, key=lambda pair: -pair[0])[:MOST_PASSAGES]]


def as_text(sample: Sample, limit: int) -> str:
    """A sample as its file has it, as far as there is room."""
    header = f"# {sample.header}\n" if sample.header else ""
    whole = header + "\n====\n".join(sample.texts)
    return whole if len(whole) <= limit else f"{whole[:limit]}…\n({len(whole) - limit:,} characters more)"


def _by_prompt(sample: Sample) -> list[tuple[tuple[str, int], str]]:
    """((prompt, the how manieth text of it), text) of each text."""
    seen: dict[str, int] = {}
    pairs = []
    for prompt, text in list(zip(sample.prompts, sample.texts, strict=True))[:MOST_TEXTS]:
        seen[prompt] = seen.get(prompt, 0) + 1
        pairs.append(((prompt, seen[prompt]), text))
    return pairs


def _limit(count: int) -> int:
    return max(MOST_CHARACTERS // max(count, 1), 200)


def _card(title: str, note: str, text: str, limit: int, marks: Marks, look: Look | None = None) -> Card:
    return Card(title, note, marks.pieces(text[:limit]), max(len(text) - limit, 0), look)
