"""A model and its tokenizer, ready to fill rows with text."""

from collections.abc import Callable
from dataclasses import fields

import torch

from stylegen.export import load_for_writing
from stylegen.generate.plan import Plan, Row
from stylegen.runtime import apply_speed_settings, pick_device, start_logging
from stylegen.sampling import SamplingSettings, warn_of_long_prompts, write_texts


class Writer:
    """One checkpoint, loaded. Warns of prompts that are longer than its context."""

    def __init__(self, plan: Plan, name: str, device: torch.device | None = None, is_main: bool = True):
        start_logging(is_main)
        apply_speed_settings()
        device = device or pick_device(plan.arguments.device)
        self.model, self.tokenizer = load_for_writing(name, plan.arguments, device)
        warn_of_long_prompts(self.model, self.tokenizer, [prompt.text for prompt in plan.prompts])

    def fill(self, rows: list[Row], on_text: Callable[[str], None] | None = None) -> list[Row]:
        """Write the text of each row, into it. Their numbers are consecutive; `on_text` is for a single row."""
        for temperature in dict.fromkeys(row["temperature"] for row in rows):
            part = [row for row in rows if row["temperature"] == temperature]
            texts_of_a_prompt = len(part) if part[0]["num_beams"] > 1 else 1
            texts = write_texts(
                self.model, self.tokenizer, [row["prompt"] for row in part[::texts_of_a_prompt]],
                SamplingSettings(**{field.name: part[0][field.name] for field in fields(SamplingSettings)}),
                num_return_sequences=texts_of_a_prompt, batch_size=len(part), first_number=part[0]["number"],
                on_text=on_text,
            )  # fmt: skip
            for row, (_, text) in zip(part, texts, strict=True):
                row["text"] = text
        return rows
