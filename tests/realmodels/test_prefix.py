"""What is computed before the first analog module is computed once, and no number is another one for it."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from small_models import MODELS, TEXTS
from test_deploy import ARMS, calibration, fresh, placements
from torch import Tensor, nn

import realmodels.prefix as prefix_module
from realmodels.analog import AnalogLinear, LayerCalibration
from realmodels.deploy import Chip, deployed
from realmodels.evaluate import TOKENS_PER_BATCH, block_results, token_blocks
from realmodels.model import Model
from realmodels.prefix import Prefix
from theory.hardware import Hardware

HARDWARE = Hardware(c=1.5)


def blocks(model: Model) -> Tensor:
    return token_blocks(model, TEXTS, 16, 6).tokens


def calls(network: nn.Module) -> list[str]:
    """The names of the modules whose forward is called from here on: of their classes, whatever stands before it."""
    seen: list[str] = []
    for name, module in network.named_modules():
        if not hasattr(type(module), "forward") or isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        real = module.forward

        def forward(*inputs: Any, name: str = name, real: Any = real, **named: Any) -> Any:
            seen.append(name)
            return real(*inputs, **named)

        module.forward = forward
    return seen


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(MODELS)), batch=st.sampled_from([16, 48, 2048]))
def test_numbers_are_those_without_it(data: st.DataObject, name: str, batch: int) -> None:
    model = fresh(name)
    tokens, chip = blocks(model), Chip(model, HARDWARE, calibration(HARDWARE, name=name))
    prefix = Prefix(model.network, tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOKENS_PER_BATCH, "cpu", batch)
        for placement in data.draw(st.lists(placements(model), min_size=2, max_size=4)):
            with chip.placed(placement):
                expected = block_results(model.network, tokens)
                for _ in range(2):
                    found = block_results(model.network, tokens, prefix)
                    assert all(torch.equal(*each) for each in zip(found, expected, strict=True))
    assert all("forward" not in vars(module) for module in model.network.modules())


@pytest.mark.parametrize(
    ("arm", "skipped", "called"),
    [
        ("LM head", ["model", "model.layers.0"], ["lm_head"]),
        ("all experts", ["model.embed_tokens", "model.layers.0.self_attn"], ["model.layers.1.self_attn"]),
        ("experts of one layer", ["model.layers.0", "model.layers.1.self_attn"], ["model.layers.1.mlp"]),
        (
            "one projection",
            ["model.layers.0", "model.layers.1.self_attn.k_proj"],
            ["model.layers.1.self_attn"],
        ),
        ("attention", ["model.embed_tokens"], ["model.layers.0.self_attn"]),
        ("nothing", [], ["model", "lm_head", "model.layers.0.self_attn"]),
    ],
)
def test_what_is_not_called_again(arm: str, skipped: list[str], called: list[str]) -> None:
    model = fresh()
    tokens = blocks(model)
    prefix = Prefix(model.network, tokens)
    with deployed(model, ARMS[arm], HARDWARE, calibration(HARDWARE)):
        block_results(model.network, tokens, prefix)
        seen = calls(model.network)
        block_results(model.network, tokens, prefix)
    assert not set(seen).intersection(skipped) and set(seen).issuperset(called)


def test_each_arm_records_what_others_have_not() -> None:
    """A module that one placement may not keep is kept by the next that may."""
    model = fresh()
    tokens = blocks(model)
    prefix = Prefix(model.network, tokens)
    for arm in ("attention", "LM head", "all experts"):
        with deployed(model, ARMS[arm], HARDWARE, calibration(HARDWARE)):
            expected = block_results(model.network, tokens)
            for _ in range(2):
                found = block_results(model.network, tokens, prefix)
                assert all(torch.equal(*each) for each in zip(found, expected, strict=True))


class Counted(nn.Module):
    """Doubles its input; with `strange` beside it what is no tensor."""

    def __init__(self, strange: bool) -> None:
        super().__init__()
        self.strange, self.calls = strange, 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return (2 * x, object()) if self.strange else (2 * x, None)


class Toy(nn.Module):
    """An embedding, a module that is counted, and an analog head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embedding, self.counted = nn.Embedding(10, 8), Counted(kind == "strange")
        self.head = AnalogLinear(nn.Linear(8, 10), Hardware(c=1.0), LayerCalibration(1.0, kappa=3.0, lam=0.5))
        self.head.program(torch.Generator().manual_seed(0))

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        hidden = self.embedding(input_ids)
        parts = hidden.split(1) if self.kind == "as often as there are texts" else [hidden]
        doubled = (
            torch.cat([self.counted(each)[0] for each in parts])
            if len(parts) > 1
            else self.counted(parts[0])[0]
        )
        if self.kind == "written into":
            doubled += 1
        output: Tensor = self.head(doubled)
        return output


@pytest.mark.parametrize(
    ("kind", "calls"),
    [("as usual", 1), ("written into", 3), ("strange", 3), ("as often as there are texts", 12)],
)
@torch.no_grad()
def test_what_cannot_be_kept_is_called_each_time(kind: str, calls: int) -> None:
    network, tokens = Toy(kind), torch.arange(12).view(4, 3) % 10
    expected = network(input_ids=tokens, use_cache=False)
    prefix = Prefix(network, tokens)
    network.counted.calls = 0
    for _ in range(3):
        with prefix.reading(0):
            assert torch.equal(network(input_ids=tokens, use_cache=False), expected)
    assert network.counted.calls == calls


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    tokens = blocks(model)
    monkeypatch.setitem(prefix_module.KEPT_BYTES, "cpu", 0)
    prefix = Prefix(model.network, tokens)
    with deployed(model, ARMS["LM head"], HARDWARE, calibration(HARDWARE)):
        block_results(model.network, tokens, prefix)
        seen = calls(model.network)
        block_results(model.network, tokens, prefix)
    assert "model.layers.0" in seen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_numbers_on_a_gpu_are_those_without_it() -> None:
    model, ranges = fresh(), calibration(HARDWARE)
    model.network.to("cuda")  # type: ignore[arg-type]
    tokens, chip = blocks(model), Chip(model, HARDWARE, ranges)
    prefix = Prefix(model.network, tokens)
    for arm in ("attention", "LM head", "all experts", "LM head"):
        with chip.placed(ARMS[arm]):
            expected = block_results(model.network, tokens)
            for _ in range(2):
                found = block_results(model.network, tokens, prefix)
                assert all(torch.equal(*each) for each in zip(found, expected, strict=True))
