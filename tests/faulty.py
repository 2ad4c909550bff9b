"""The training with faults: `FAULTS="nan 3-4 1; drift 5 1" python faulty.py --flag value ...`, or in this process.

kind     nan, inf: what the loss of a forward pass is; oom-forward, oom-backward: a pass of more than 2 blocks has no
         memory; drift: one bit of one weight changes after the step
steps    as 3 or 3-5, counted from 1; 0 is before the first one
rank     of the process that has it
"""

import os
import sys


def install(faults: str, rank: int, put=setattr) -> None:
    """Make the next training of this process have those faults that are of `rank`."""
    import torch

    from stylegen.loss import LanguageModelLoss
    from stylegen.train import run as running

    todo = []
    for kind, steps, where in (fault.split() for fault in faults.split(";")):
        first, _, last = steps.partition("-")
        if int(where) == rank:
            todo.append((kind, range(int(first), int(last or first) + 1)))
    forward, train_step = LanguageModelLoss.forward, running.train_step
    step = 0

    def is_on(kind: str) -> bool:
        return any(kind == name and step in steps for name, steps in todo)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def faulty_forward(self, input_ids, *others, **named):
        training = self.training and torch.is_grad_enabled()
        if training and len(input_ids) > 2 and is_on("oom-forward"):
            fail()
        loss, correct = forward(self, input_ids, *others, **named)
        if training and len(input_ids) > 2 and is_on("oom-backward"):
            loss.register_hook(fail)
        if training and is_on("nan"):
            loss = loss * float("nan")
        if training and is_on("inf"):  # its gradient is finite
            loss = loss + float("inf")
        return loss, correct

    def faulty_step(run, state, watch):
        nonlocal step
        step = state.step + 1
        norm = train_step(run, state, watch)
        if is_on("drift"):
            weight = dict(run.base_model.named_parameters())["transformer.h.1.mlp.c_fc.weight"]
            weight.data.view(torch.int32)[3, 5] ^= 1
        return norm

    put(LanguageModelLoss, "forward", faulty_forward)
    put(running, "train_step", faulty_step)


if __name__ == "__main__":
    from stylegen.train import main

    install(os.environ["FAULTS"], int(os.environ.get("RANK", "0")))
    sys.exit(main())
