"""A model and its tokenizer, ready to fill rows with text."""

from collections.abc import Callable
from dataclasses import fields

import torch

from stylegen.export import load_for_writing
from stylegen.generate.plan import Plan, Row
from stylegen.runtime import apply_speed_settings, free_memory_bytes, pick_device, start_logging
from stylegen.sampling import (
    SamplingSettings,
    can_pack,
    pack_weights,
    warn_of_long_prompts,
    write_batch,
    write_texts,
)


class Writer:
    """One checkpoint, loaded. Warns of prompts that are longer than its context."""

    def __init__(self, plan: Plan, name: str, device: torch.device | None = None, is_main: bool = True):
        start_logging(is_main)
        apply_speed_settings()
        device = device or pick_device(plan.arguments.device)
        self.model, self.tokenizer = load_for_writing(name, plan.arguments, device)
        size = sum(weight.nbytes for weight in self.model.parameters())
        if can_pack(self.model) and 2 * size < free_memory_bytes():  # half of it is left for what is written
            pack_weights(self.model)
        warn_of_long_prompts(self.model, self.tokenizer, [prompt.text for prompt in plan.prompts])

    def fill(self, rows: list[Row], on_text: Callable[[str], None] | None = None) -> list[Row]:
        """Write the text of each row of a batch, into it; `on_text` is for a single row."""
        for temperature in dict.fromkeys(row["temperature"] for row in rows):
            part = [row for row in rows if row["temperature"] == temperature]
            settings = SamplingSettings(
                **{field.name: part[0][field.name] for field in fields(SamplingSettings)}
            )
            prompts, numbers = [row["prompt"] for row in part], [row["number"] for row in part]
            if settings.num_beams > 1:  # all are of one prompt
                pairs = write_texts(
                    self.model, self.tokenizer, prompts[:1], settings, num_return_sequences=len(part)
                )
                texts = [text for _, text in pairs]
            else:
                texts = write_batch(self.model, self.tokenizer, prompts, numbers, settings, on_text=on_text)
            for row, text in zip(part, texts, strict=True):
                row["text"] = text
        return rows
