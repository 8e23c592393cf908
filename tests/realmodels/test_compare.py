"""Many placements at once are what `deploy` gives one at a time; damages, copies and shifts are what they say."""

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import EXPERTS, HIDDEN, LAYERS, TEXTS, as_model, in_fp64, small_network
from torch import Tensor

from realmodels import compare
from realmodels.calibrate import Calibration, calibrate
from realmodels.compare import as_mask, expert_damage, losses, mean_losses, mean_shift
from realmodels.deploy import deploy, deployed, reprogram, withdraw
from realmodels.evaluate import block_results, token_blocks
from realmodels.load import Model
from theory.errors import InputError
from theory.hardware import Hardware
from theory.placement import Placement

MODEL = as_model(in_fp64(small_network()))
TOKENS = token_blocks(MODEL, TEXTS, 16, 4).tokens
CONVERTERS, NO_CONVERTERS = Hardware(c=2.0), Hardware(c=2.0, dac_bits=None, adc_bits=None)
CALIBRATIONS = {hardware: calibrate(MODEL, TEXTS, hardware) for hardware in (CONVERTERS, NO_CONVERTERS)}
DIGITAL_LOSS = block_results(MODEL.network, TOKENS)[0]

masks = st.lists(
    st.lists(st.booleans(), min_size=LAYERS * EXPERTS, max_size=LAYERS * EXPERTS), min_size=1, max_size=3
).map(lambda rows: torch.tensor(rows).view(-1, LAYERS, EXPERTS))


def test_a_choice_as_a_mask() -> None:
    assert as_mask(((0, 2), ()), 3).tolist() == [[True, False, True], [False, False, False]]


def placement_of(mask: Tensor) -> Placement:
    return Placement((EXPERTS,) * LAYERS, tuple(tuple(row.nonzero()[:, 0].tolist()) for row in mask))


def one_at_a_time(mask: Tensor, hardware: Hardware, seed: int, mirrored: bool = False) -> Tensor:
    with deployed(MODEL, placement_of(mask), hardware, CALIBRATIONS[hardware], seed):
        if mirrored:
            reprogram(MODEL, seed, mirrored=True)
        return block_results(MODEL.network, TOKENS)[0]


@pytest.mark.parametrize("hardware", [CONVERTERS, NO_CONVERTERS], ids=["converters", "none"])
@pytest.mark.parametrize("mirrored", [False, True])
@settings(max_examples=10)
@given(digital=masks, seed=st.integers(0, 100))
def test_all_at_once_is_one_at_a_time(hardware: Hardware, mirrored: bool, digital: Tensor, seed: int) -> None:
    found = losses(MODEL, digital, hardware, CALIBRATIONS[hardware], seed, TOKENS, mirrored=mirrored)
    expected = torch.stack([one_at_a_time(mask, hardware, seed, mirrored) for mask in digital])
    # Converters work in fp32: a code may flip where sums are taken in another order.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 if hardware is CONVERTERS else 1e-6)


def test_passes_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    digital = torch.rand(5, LAYERS, EXPERTS, generator=torch.Generator().manual_seed(0)) < 0.5
    arguments = (MODEL, digital, NO_CONVERTERS, CALIBRATIONS[NO_CONVERTERS], 0, TOKENS)
    whole = losses(*arguments)
    for rows in (1, len(TOKENS[0]), 2 * TOKENS.numel(), 3 * TOKENS.numel() - 1):
        # The package's function of this name hides the module.
        monkeypatch.setitem(import_module("realmodels.evaluate").TOKENS_PER_BATCH, "cpu", rows)
        torch.testing.assert_close(losses(*arguments), whole, rtol=0, atol=1e-9)


def test_all_digital_is_the_digital_model_and_the_model_stays_so() -> None:
    before = dict(MODEL.network.named_modules())
    found = losses(
        MODEL,
        torch.ones(1, LAYERS, EXPERTS, dtype=torch.bool),
        CONVERTERS,
        CALIBRATIONS[CONVERTERS],
        0,
        TOKENS,
    )
    torch.testing.assert_close(found[0], DIGITAL_LOSS, rtol=0, atol=1e-12)
    assert dict(MODEL.network.named_modules()) == before
    with pytest.raises(RuntimeError):
        losses(
            MODEL,
            torch.ones(1, LAYERS, EXPERTS, dtype=torch.bool),
            CONVERTERS,
            CALIBRATIONS[CONVERTERS],
            0,
            TOKENS,
            shift=torch.zeros(LAYERS, EXPERTS, HIDDEN + 1),
        )
    assert dict(MODEL.network.named_modules()) == before


def test_a_mirror_image_has_the_opposite_noise() -> None:
    weights = []
    with deployed(
        MODEL, placement_of(torch.zeros(LAYERS, EXPERTS)), NO_CONVERTERS, CALIBRATIONS[NO_CONVERTERS]
    ):
        for mirrored in (False, True):
            reprogram(MODEL, 3, mirrored=mirrored)
            weights.append(
                [each.crossbars["down_proj"].programmed() for each in MODEL.analog_modules.values()]
            )
    for layer, first, second in zip(MODEL.map.moe_layers, *weights, strict=True):
        exact = MODEL.network.get_parameter(f"{layer.experts}.down_proj")
        assert not torch.allclose(first, exact, atol=1e-3)
        torch.testing.assert_close((first + second) / 2, exact)


def test_damage_is_the_difference_that_one_expert_makes() -> None:
    start = torch.rand(LAYERS, EXPERTS, generator=torch.Generator().manual_seed(1)) < 0.5
    found = expert_damage(MODEL, NO_CONVERTERS, CALIBRATIONS[NO_CONVERTERS], [4, 5], TOKENS, digital=start)
    for layer, expert in ((0, 1), (1, 0), (1, 5)):
        analog, digital = start.clone(), start.clone()
        analog[layer, expert], digital[layer, expert] = False, True
        differences = [
            (
                one_at_a_time(analog, NO_CONVERTERS, seed, mirrored)
                - one_at_a_time(digital, NO_CONVERTERS, seed, mirrored)
            )[own]
            for seed, own in ((4, slice(0, 2)), (5, slice(2, 4)))  # each draw has half of the blocks
            for mirrored in (False, True)
        ]
        assert float(found[layer, expert]) == pytest.approx(float(torch.stack(differences).mean()), abs=1e-7)
    alone = expert_damage(MODEL, NO_CONVERTERS, CALIBRATIONS[NO_CONVERTERS], [4], TOKENS)
    everything = torch.ones(LAYERS, EXPERTS, dtype=torch.bool)
    assert torch.equal(
        alone,
        expert_damage(MODEL, NO_CONVERTERS, CALIBRATIONS[NO_CONVERTERS], [4], TOKENS, digital=everything),
    )


@pytest.mark.parametrize("seeds", [[], [0, 1, 2]])
def test_blocks_are_shared_out_evenly(seeds: list[int]) -> None:
    nothing = torch.zeros(1, LAYERS, EXPERTS, dtype=torch.bool)
    with pytest.raises(InputError, match=f"4 blocks for {len(seeds)} draws: give a multiple"):
        mean_losses(MODEL, nothing, NO_CONVERTERS, CALIBRATIONS[NO_CONVERTERS], seeds, TOKENS)


def chips(hardware: Hardware, *seeds: int) -> list[compare.AnalogExperts]:
    """The first layer's experts, all analog, for each seed."""
    found = []
    for seed in seeds:
        deploy(MODEL, placement_of(torch.zeros(LAYERS, EXPERTS)), hardware, CALIBRATIONS[hardware], seed)
        module = MODEL.analog_modules[MODEL.map.moe_layers[0].experts]
        assert isinstance(module, compare.AnalogExperts)
        found.append(module)
        withdraw(MODEL)
    return found


def routed(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(tokens, HIDDEN, generator=generator, dtype=torch.float64)
    index = torch.stack([torch.randperm(EXPERTS, generator=generator)[:2] for _ in range(tokens)])
    return hidden, index, torch.rand(tokens, 2, generator=generator, dtype=torch.float64)


@given(copied=st.lists(st.booleans(), min_size=EXPERTS, max_size=EXPERTS))
def test_copied_experts_are_the_mean_of_two_chips(copied: list[bool]) -> None:
    first, second = chips(NO_CONVERTERS, 7, -8)
    original = MODEL.network.get_submodule(MODEL.map.moe_layers[0].experts)
    shift = torch.randn(EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(3)).double()
    switched = compare._Switched(original, first, second, shift)
    switched.digital = torch.zeros(1, EXPERTS, dtype=torch.bool)
    switched.copied = torch.tensor([copied])
    hidden, index, weights = routed(20)
    twice = switched.copied[0][index]
    expected = first(hidden, index, weights * ~twice)
    expected = expected + (first(hidden, index, weights * twice) + second(hidden, index, weights * twice)) / 2
    # Only experts on one chip alone are corrected.
    expected = expected - ((weights * ~twice)[..., None] * shift[index]).sum(1)
    torch.testing.assert_close(switched(hidden, index, weights), expected)


def test_copies_of_digital_experts_change_nothing_and_no_copies_are_none() -> None:
    nothing, everything = (torch.full((1, LAYERS, EXPERTS), value) for value in (False, True))
    arguments = (NO_CONVERTERS, CALIBRATIONS[NO_CONVERTERS], 0, TOKENS)
    torch.testing.assert_close(
        losses(MODEL, everything, *arguments, copied=everything, copy_seed=1)[0],
        DIGITAL_LOSS,
        rtol=0,
        atol=1e-12,
    )
    without = losses(MODEL, nothing, *arguments)
    assert torch.equal(losses(MODEL, nothing, *arguments, copied=nothing, copy_seed=1), without)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_copy_has_the_noise_of_its_own_seed(mirrored: bool) -> None:
    nothing, everything = (torch.full((1, LAYERS, EXPERTS), value) for value in (False, True))
    calibration = CALIBRATIONS[NO_CONVERTERS]

    def found(seed: int, copy_seed: int) -> Tensor:
        arguments = (MODEL, nothing, NO_CONVERTERS, calibration, seed, TOKENS)
        return losses(*arguments, mirrored=mirrored, copied=everything, copy_seed=copy_seed)

    torch.testing.assert_close(found(3, 4), found(4, 3), rtol=0, atol=1e-12)
    once = losses(MODEL, nothing, NO_CONVERTERS, calibration, 3, TOKENS, mirrored=mirrored)
    assert not torch.allclose(found(3, 4), once) and not torch.allclose(found(3, 4), found(3, 5))


@pytest.mark.parametrize(("copied", "copy_seed"), [(True, 7), (True, None), (False, 8)])
def test_copies_without_noise_of_their_own_are_refused(copied: bool, copy_seed: int | None) -> None:
    nothing = torch.zeros(1, LAYERS, EXPERTS, dtype=torch.bool)
    arguments = (MODEL, nothing, NO_CONVERTERS, CALIBRATIONS[NO_CONVERTERS], 7, TOKENS)
    with pytest.raises(InputError, match=f"copy_seed is {copy_seed}: copied experts need one that is not 7"):
        losses(*arguments, copied=nothing if copied else None, copy_seed=copy_seed)


def test_copies_halve_the_variance_of_small_noise() -> None:
    small = Hardware(c=0.05, dac_bits=None, adc_bits=None)
    CALIBRATIONS[small] = CALIBRATIONS[NO_CONVERTERS]  # without converters there is nothing to calibrate
    original = MODEL.network.get_submodule(MODEL.map.moe_layers[0].experts)
    inputs = routed(50)
    errors = []
    for seed in range(40):
        first, second = chips(small, seed, -1 - seed)
        switched = compare._Switched(original, first, second, None)
        switched.digital = torch.zeros(1, EXPERTS, dtype=torch.bool)
        for value in (False, True):
            switched.copied = torch.full((1, EXPERTS), value)
            errors.append((switched(*inputs) - original(*inputs)).square().mean())
    once, twice = torch.stack(errors).view(-1, 2).mean(0)
    assert float(twice / once) == pytest.approx(0.5, rel=0.1)


def test_the_mean_shift_leaves_no_mean_error() -> None:
    """Holds on the very text it was measured on, in the first layer, whose inputs noise does not change."""
    calibration = CALIBRATIONS[NO_CONVERTERS]
    shift = mean_shift(MODEL, NO_CONVERTERS, calibration, 0, TOKENS)
    assert shift.shape == (LAYERS, EXPERTS, HIDDEN) and shift.abs().max() > 0
    name = MODEL.map.moe_layers[0].experts
    original = MODEL.network.get_submodule(name)
    given: list[tuple[Tensor, ...]] = []
    handle = original.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    block_results(MODEL.network, TOKENS)
    handle.remove()
    (analog,) = chips(NO_CONVERTERS, 0)
    switched = compare._Switched(original, analog, None, shift[0])
    switched.digital = switched.copied = torch.zeros(1, EXPERTS, dtype=torch.bool)
    for expert in range(EXPERTS):
        errors = []
        for hidden, index, _ in given:
            rows = hidden[(index == expert).any(1)]
            alone, once = torch.full((len(rows), 1), expert), torch.ones(len(rows), 1, dtype=torch.float64)
            errors.append(switched(rows, alone, once) - original(rows, alone, once))
        error = torch.cat(errors)
        assert error.abs().max() > 1e-3
        # The shift is kept in fp32.
        torch.testing.assert_close(error.mean(0), torch.zeros(HIDDEN).double(), rtol=0, atol=1e-5)


def test_the_mean_shift_of_a_single_token_is_its_own() -> None:
    token = TOKENS[:1, :2]
    shift = mean_shift(MODEL, NO_CONVERTERS, CALIBRATIONS[NO_CONVERTERS], 0, token)[0]
    original = MODEL.network.get_submodule(MODEL.map.moe_layers[0].experts)
    given: list[tuple[Tensor, ...]] = []
    handle = original.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    block_results(MODEL.network, token)
    handle.remove()
    (hidden, index, _), once = given[0], torch.ones(1, 1, dtype=torch.float64)
    (analog,) = chips(NO_CONVERTERS, 0)
    for expert in range(EXPERTS):
        one = torch.tensor([[expert]])
        error = (analog(hidden, one, once) - original(hidden, one, once))[0] * (index == expert).any()
        torch.testing.assert_close(shift[expert].double(), error, rtol=1e-5, atol=1e-7)


def test_batches_do_not_matter_for_the_mean_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mean_shift(MODEL, CONVERTERS, CALIBRATIONS[CONVERTERS], 0, TOKENS)
    # The package's function of this name hides the module.
    monkeypatch.setitem(import_module("realmodels.evaluate").TOKENS_PER_BATCH, "cpu", 1)
    torch.testing.assert_close(mean_shift(MODEL, CONVERTERS, CALIBRATIONS[CONVERTERS], 0, TOKENS), whole)


@pytest.mark.parametrize(
    "digital",
    [
        torch.zeros(LAYERS, EXPERTS, dtype=torch.bool),
        torch.zeros(1, LAYERS, EXPERTS),
        torch.zeros(1, LAYERS, EXPERTS + 1, dtype=torch.bool),
    ],
)
def test_unusable_placements(digital: Tensor) -> None:
    with pytest.raises(InputError, match="digital is .* give bools"):
        losses(MODEL, digital, CONVERTERS, CALIBRATIONS[CONVERTERS], 0, TOKENS)


def test_a_deployed_model_is_refused() -> None:
    model: Model = as_model(small_network())
    calibration: Calibration = calibrate(model, TEXTS, CONVERTERS)
    deploy(model, placement_of(torch.zeros(LAYERS, EXPERTS)), CONVERTERS, calibration)
    with pytest.raises(InputError, match="deployed already"):
        losses(model, torch.zeros(1, LAYERS, EXPERTS, dtype=torch.bool), CONVERTERS, calibration, 0, TOKENS)
