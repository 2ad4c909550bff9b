"""Learning rates against Transformers' own schedulers, optimizers against torch's own."""

import io

import pytest
import torch
from transformers import get_scheduler

from stylegen.config import UsageError
from stylegen.config.fields import SCHEDULES
from stylegen.optim import MuonWithAdamW, build_optimizer, build_schedule, set_learning_rate

PEAK, NUM_STEPS = 3e-3, 40
# What a schedule cannot do without.
OPTIONS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
}
BETAS, EPSILON = (0.8, 0.95), 1e-6


def reference(name, num_warmup_steps, options):
    """The learning rate of every step as a real scheduler sets it, stepped like in any training loop."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps, NUM_STEPS, options)
    rates = []
    for _ in range(NUM_STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


# Schedules


@pytest.mark.parametrize("num_warmup_steps", [0, 1, 7])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_is_that_of_transformers_at_every_step(name, num_warmup_steps):
    options = OPTIONS.get(name, {})
    # Warm-up is left out by `constant`, and without a length the decay of the stable schedule is none.
    twin = "constant_with_warmup" if name == "constant" and num_warmup_steps else name
    decay = {"num_decay_steps": 8} if name == "warmup_stable_decay" else {}
    schedule = build_schedule(name, PEAK, num_warmup_steps, NUM_STEPS, options)
    assert [schedule(step) for step in range(NUM_STEPS)] == reference(twin, num_warmup_steps, options | decay)


def test_every_schedule_is_one_that_transformers_has():
    assert len(SCHEDULES) == len(set(SCHEDULES)) == 10


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_step_needs_none_of_those_before(name):
    schedule = build_schedule(name, PEAK, 5, NUM_STEPS, OPTIONS.get(name, {}))
    forwards = [schedule(step) for step in range(NUM_STEPS)]
    assert [schedule(step) for step in reversed(range(NUM_STEPS))] == forwards[::-1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_learning_rate_lies_between_zero_and_the_peak(name):
    for num_warmup_steps in (0, 0.5, 1, NUM_STEPS, 2 * NUM_STEPS):
        schedule = build_schedule(name, PEAK, num_warmup_steps, NUM_STEPS, OPTIONS.get(name, {}))
        assert all(0 <= schedule(step) <= PEAK * (1 + 1e-12) for step in range(NUM_STEPS))


def test_these_are_the_rates_of_a_linear_schedule():
    schedule = build_schedule("linear", 1.0, 2, 6, {})
    assert [schedule(step) for step in range(6)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("fraction", "num_steps", "expected"),
    [(0.1, 40, 4), (0.25, 10, 2), (0.5, 4, 2), (0.01, 10, 0), (0.0, 9, 0)],
)
def test_a_warm_up_below_one_is_a_fraction_of_all_steps(fraction, num_steps, expected):
    by_fraction = build_schedule("linear", PEAK, fraction, num_steps, {})
    by_steps = build_schedule("linear", PEAK, expected, num_steps, {})
    assert [by_fraction(step) for step in range(num_steps)] == [by_steps(step) for step in range(num_steps)]
    assert [by_fraction(step) < PEAK for step in range(expected)] == [True] * expected
    assert by_fraction(expected) == PEAK


def test_one_warm_up_step_is_one_step_and_not_all_of_them():
    schedule = build_schedule("linear", PEAK, 1, NUM_STEPS, {})
    assert (schedule(0), schedule(1)) == (0.0, PEAK)


def test_constant_keeps_its_warm_up():
    schedule = build_schedule("constant", 1.0, 4, 10, {})
    assert [schedule(step) for step in range(10)] == [0.0, 0.25, 0.5, 0.75, *[1.0] * 6]


def test_the_stable_schedule_decays_over_a_fifth_unless_told_otherwise():
    schedule = build_schedule("warmup_stable_decay", 1.0, 0, 20, {})
    assert [step for step in range(20) if schedule(step) < 1.0] == [17, 18, 19]  # from 1.0 at step 16
    longer = build_schedule("warmup_stable_decay", 1.0, 0, 20, {"num_decay_steps": 10})
    assert [step for step in range(20) if longer(step) < 1.0] == list(range(11, 20))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [0, 1])
def test_a_run_of_hardly_any_steps_has_a_schedule(name, num_steps):
    """max_train_steps 0 evaluates only."""
    schedule = build_schedule(name, PEAK, 0, num_steps, OPTIONS.get(name, {}))
    assert 0 <= schedule(0) <= PEAK


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_option_that_the_schedule_does_not_have_is_refused(name):
    with pytest.raises(UsageError, match=f"^lr_scheduler_type {name} with lr_scheduler_kwargs .*'speed': 3"):
        build_schedule(name, PEAK, 2, NUM_STEPS, {**OPTIONS.get(name, {}), "speed": 3})


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_the_schedule_needs_is_asked_for(name):
    with pytest.raises(UsageError, match=rf"^lr_scheduler_type {name} .*min_lr or min_lr_rate should be set"):
        build_schedule(name, PEAK, 2, NUM_STEPS, {})


@pytest.mark.parametrize("num_warmup_steps", [0, 2])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cosine", {"num_cycles": "two"}),
        ("polynomial", {"power": "two"}),
        ("cosine_with_restarts", {"num_cycles": "2x"}),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_before_the_first_step(name, options, num_warmup_steps):
    """During warm-up nothing looks at it: the run would fail when the warm-up ends."""
    with pytest.raises(UsageError, match=f"^lr_scheduler_type {name} with lr_scheduler_kwargs"):
        build_schedule(name, PEAK, num_warmup_steps, NUM_STEPS, options)


def test_a_peak_below_the_end_of_the_polynomial_is_refused():
    with pytest.raises(UsageError, match=r"lr_end .* must be smaller than initial lr"):
        build_schedule("polynomial", 1e-8, 0, NUM_STEPS, {})


# Optimizers


def parameters():
    """Two matrices, an embedding and two vectors, the same each time."""
    shapes = {"wide": (6, 16), "tall": (16, 6), "embedding": (10, 6), "scale": (6,), "bias": (16,)}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()
    }


def groups_of(params, weight_decay=0.1):
    """As `model.parameter_groups` makes them."""
    return [
        {"name": "matrices", "params": [params["wide"], params["tall"]], "weight_decay": weight_decay},
        {"name": "embeddings", "params": [params["embedding"]], "weight_decay": 0.0},
        {"name": "vectors", "params": [params["scale"], params["bias"]], "weight_decay": 0.0},
    ]


def give_gradients(params, step):
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in params.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def built(name, params, learning_rate=1e-2, weight_decay=0.1):
    return build_optimizer(name, groups_of(params, weight_decay), learning_rate, BETAS, EPSILON)


def plain_adamw(params, learning_rate=1e-2, weight_decay=0.1):
    """torch's own AdamW, one group a parameter, and its plain loop instead of the fused one."""
    decay = {"wide": weight_decay, "tall": weight_decay}
    groups = [{"params": [p], "weight_decay": decay.get(name, 0.0)} for name, p in params.items()]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, eps=EPSILON, foreach=False)


def stepped(optimizer, params, steps):
    for step in steps:
        give_gradients(params, step)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in params.items()}


def test_adamw_is_that_of_torch_with_the_decay_of_each_group():
    ours, theirs = parameters(), parameters()
    after = stepped(built("adamw", ours), ours, range(3))
    expected = stepped(plain_adamw(theirs), theirs, range(3))
    for name in after:
        torch.testing.assert_close(after[name], expected[name], rtol=1e-6, atol=1e-7)  # fused sums otherwise


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_group_has_the_options_asked_for(optimizer):
    groups = built(optimizer, parameters()).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
    assert {group["lr"] for group in groups} == {1e-2}
    adamw = [group for group in groups if "betas" in group]
    assert len(adamw) == {"adamw": 3, "muon": 2}[optimizer]
    assert {(group["betas"], group["eps"]) for group in adamw} == {(BETAS, EPSILON)}


def test_muon_leaves_embeddings_and_vectors_to_adamw():
    muon, adamw = parameters(), parameters()
    after = stepped(built("muon", muon), muon, range(3))
    expected = stepped(built("adamw", adamw), adamw, range(3))
    for name in ("embedding", "scale", "bias"):
        assert torch.equal(after[name], expected[name])
    for name in ("wide", "tall"):
        assert not torch.allclose(after[name], expected[name], atol=1e-3)


@pytest.mark.parametrize("name", ["wide", "tall"])
def test_muon_moves_a_matrix_by_the_same_length_in_every_direction(name):
    """All singular values of the update are near one, up to the scale that makes its mean square AdamW's (0.2)."""
    params = parameters()
    before = params[name].detach().clone()
    after = stepped(built("muon", params, weight_decay=0.0), params, [0])
    update = (before - after[name]) / 1e-2
    singular = torch.linalg.svdvals(update) / (0.2 * max(update.shape) ** 0.5)
    assert (
        (singular > 0.6) & (singular < 1.3)
    ).all()  # the five Newton-Schulz steps of the paper come so near
    assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.15)
    gradient = torch.linalg.svdvals(params[name].grad)
    assert gradient.max() / gradient.min() > singular.max() / singular.min()


def test_muon_in_float32_is_that_of_torch_but_for_rounding(monkeypatch):
    """A processor without bf16 takes it, which emulates bf16 more than ten times slower."""
    from stylegen import optim

    after = {}
    for fast in (True, False):
        monkeypatch.setattr(optim, "cpu_multiplies_bf16", lambda fast=fast: fast)
        params = parameters()
        optimizer = built("muon", params)
        assert isinstance(optimizer.parts[0], optim._MuonInFloat32) != fast
        after[fast] = stepped(optimizer, params, range(3))
    for name, weight in after[True].items():
        assert torch.allclose(weight, after[False][name], rtol=0, atol=2e-3), name


def test_muon_decays_its_matrices():
    params = parameters()
    before = params["wide"].detach().clone()
    optimizer = built("muon", params, weight_decay=0.5)
    for parameter in params.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(params["wide"].detach(), before * (1 - 1e-2 * 0.5))


def test_muon_takes_the_matrices_beside_a_convolution():
    """A weight of three dimensions, as of a convolution or of stacked experts, is AdamW's; the matrices stay Muon's."""
    params = parameters()
    kernel = torch.nn.Parameter(torch.ones(4, 3, 2))
    groups = groups_of(params)
    groups[0]["params"].append(kernel)
    optimizer = build_optimizer("muon", groups, 1e-2, BETAS, EPSILON)
    kernel.grad = torch.ones_like(kernel)
    before = {name: parameter.detach().clone() for name, parameter in params.items()}
    after = stepped(optimizer, params, [0])
    assert all(not torch.equal(after[name], before[name]) for name in params)
    # The first step of AdamW is one learning rate long, after a decay of 0.1.
    torch.testing.assert_close(kernel.detach(), torch.full((4, 3, 2), 1 - 1e-2 * 0.1 - 1e-2))
    alone = parameters()
    assert torch.equal(after["wide"], stepped(built("muon", alone), alone, [0])["wide"])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_restored_optimizer_goes_on_bit_by_bit(name):
    whole = parameters()
    expected = stepped(built(name, whole), whole, range(5))

    first = parameters()
    optimizer = built(name, first)
    stepped(optimizer, first, range(3))
    file = io.BytesIO()
    torch.save({"params": first, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    second = {key: torch.nn.Parameter(value.detach().clone()) for key, value in saved["params"].items()}
    restored = built(name, second, learning_rate=7.0)  # what the state says counts
    restored.load_state_dict(saved["optimizer"])
    after = stepped(restored, second, range(3, 5))
    assert all(torch.equal(after[key], expected[key]) for key in expected)


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_learning_rate_reaches_every_parameter(name, restored):
    params = parameters()
    optimizer = built(name, params)
    stepped(optimizer, params, range(2))
    if restored:  # it then has new groups
        optimizer.load_state_dict(optimizer.state_dict())
    before = {key: parameter.detach().clone() for key, parameter in params.items()}
    set_learning_rate(optimizer, 0.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    after = stepped(optimizer, params, [2])
    assert all(torch.equal(after[key], before[key]) for key in params)
    set_learning_rate(optimizer, 0.5)
    after = stepped(optimizer, params, [3])
    assert all(not torch.equal(after[key], before[key]) for key in params)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_gradients_are_cleared_on_every_parameter(name):
    params = parameters()
    optimizer = built(name, params)
    give_gradients(params, 0)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in params.values())
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in params.values()}


def test_muon_is_an_optimizer_of_torch():
    """`Accelerator.prepare` and the gradient scaler look for that."""
    assert isinstance(built("muon", parameters()), torch.optim.Optimizer)
    assert isinstance(built("muon", parameters()), MuonWithAdamW)
