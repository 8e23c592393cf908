"""The recorder sees what modules are given and how the loss depends on their outputs, and leaves nothing behind."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import TEXTS, small_model
from torch import Tensor, nn
from torch.nn import functional as F

from realmodels.evaluate import token_blocks
from realmodels.record import hooked, record, spread

MODEL = small_model()
TOKENS = token_blocks(MODEL, TEXTS).tokens
NAMES = (*MODEL.map.linears, *(layer.experts for layer in MODEL.map.moe_layers))


def test_inputs_are_those_of_the_digital_model() -> None:
    seen: dict[str, tuple[Any, ...]] = {}

    def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
        seen[names[module]] = given

    names = {MODEL.network.get_submodule(name): name for name in NAMES}
    handles = [module.register_forward_pre_hook(keep) for module in names]
    calls = record(MODEL, NAMES, TOKENS, gradient=False)
    for handle in handles:
        handle.remove()
    assert sorted(calls) == sorted(NAMES)
    for name, ((call,), expected) in {name: (calls[name], seen[name]) for name in NAMES}.items():
        assert call.gradient is None, name
        assert all(torch.equal(own, each) for own, each in zip(call.inputs, expected, strict=True)), name


def test_gradients_are_finite_differences_of_the_summed_loss() -> None:
    """Moves along one random direction at the output of the last MoE layer, on which no routing depends."""
    name = MODEL.map.moe_layers[-1].experts
    (call,) = record(MODEL, [name], TOKENS)[name]
    assert call.gradient is not None
    direction = torch.randn(call.gradient.shape, generator=torch.Generator().manual_seed(0))

    def loss(step: float) -> float:
        with torch.no_grad(), hooked(MODEL.network, {name: lambda *given: given[-1] + step * direction}):
            logits = MODEL.network(input_ids=TOKENS[:, :-1], use_cache=False).logits
        found = F.cross_entropy(logits.flatten(0, 1).double(), TOKENS[:, 1:].flatten(), reduction="sum")
        return float(found)

    step = 1e-3
    slope = float((call.gradient * direction).sum())
    assert (loss(step) - loss(-step)) / (2 * step) == pytest.approx(slope, rel=0.02)


def test_rows_and_their_gradients_are_taken_at_the_same_places() -> None:
    count = TOKENS[:, 1:].numel()
    whole, part = record(MODEL, NAMES, TOKENS), record(MODEL, NAMES, TOKENS, rows=count // 4)
    for name in NAMES:
        (all_rows,), (some,) = whole[name], part[name]
        assert all_rows.gradient is not None and some.gradient is not None
        assert len(some.gradient) == count // 4
        for own, each in zip(
            (*some.inputs, some.gradient), (*all_rows.inputs, all_rows.gradient), strict=True
        ):
            assert torch.equal(own, spread(each, count // 4, count)), name


def test_what_is_weighed_is_not_kept() -> None:
    def weigh(module: nn.Module, inputs: tuple[Tensor, ...], gradient: Tensor) -> tuple[Any, ...]:
        return module, inputs, gradient

    whole, weighed = record(MODEL, NAMES, TOKENS), record(MODEL, NAMES, TOKENS, weigh=weigh)
    assert list(weighed) == list(whole)
    for name in NAMES:
        (kept,), (call,) = whole[name], weighed[name]
        module, inputs, gradient = call.seen
        assert module is MODEL.network.get_submodule(name) and kept.gradient is not None
        assert all(torch.equal(*pair) for pair in zip(inputs, kept.inputs, strict=True))
        assert torch.equal(gradient, kept.gradient)
        assert call.inputs == () and call.gradient is None


def test_no_hook_stays_behind() -> None:
    module, hooks = MODEL.network.get_submodule(NAMES[0]), {NAMES[0]: lambda *_: None}

    def fail_inside() -> None:
        with hooked(MODEL.network, hooks):
            assert module._forward_hooks
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert not module._forward_hooks
    with pytest.raises(AttributeError, match="nowhere"):
        hooked(MODEL.network, {**hooks, "nowhere": lambda *_: None}).__enter__()
    assert not module._forward_hooks


def test_rows_are_spread_evenly() -> None:
    rows = torch.arange(10.0)[:, None]
    for count, all_tokens, expected in (
        (4, 10, [0, 2, 5, 7]),
        (8, 20, [0, 2, 5, 7]),
        (9, 20, [0, 2, 4, 6, 8]),  # 4.5 of them
        (10, 10, list(range(10))),
        (30, 20, list(range(10))),  # there are fewer tokens than rows are wanted
    ):
        assert spread(rows.view(2, 5, 1), count, all_tokens)[:, 0].tolist() == expected


@given(count=st.integers(1, 5000), rows=st.integers(1, 5000))
def test_of_all_tokens_exactly_as_many_rows_are_looked_at(count: int, rows: int) -> None:
    assert len(spread(torch.zeros(rows, 1), count, rows)) == min(rows, count)
