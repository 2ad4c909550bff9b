"""What a run would take on GPUs that are not here: memory, time, communication. Worked out, not measured.

`python -m stylegen.plan PRESET.yaml --gpus 16 --gpu h100` prints a page. `shape` builds the run's model without its
weights and counts; `estimate` has the formulas, which docs/scaling.md explains; `page` writes.
"""
