"""Deployment: all of a model is accounted for, what was not asked for stays digital, and nothing is left behind."""

import copy
import hashlib
import itertools
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from small_models import (
    EXPERTS,
    HIDDEN,
    LAYERS,
    MODELS,
    TEXTS,
    TOP_K,
    VOCABULARY,
    Matrix,
    as_model,
    gated,
    in_fp64,
    leave_experts_idle,
    network_named,
    save,
    small_model,
    small_network,
    unfused,
)
from torch import Tensor, nn

from realmodels import (
    calibrate,
    dense_damage,
    deploy,
    evaluate,
    expected_damage,
    load,
    load_chip,
    reprogram,
    save_chip,
    scores,
    withdraw,
)
from realmodels.analog import AnalogExperts, AnalogLinear, LayerCalibration, for_experts
from realmodels.calibrate import Calibration
from realmodels.cost import OLMOE, Shape, cost
from realmodels.deploy import STATUSES, Chip
from realmodels.families import MoELayer
from realmodels.load import Model
from theory.errors import InputError
from theory.hardware import (
    LARGEST_FACTOR,
    LARGEST_TILE,
    SMALLEST_BOUND,
    Granularity,
    Hardware,
    analog_matmul,
    program,
    programming_sigma,
)
from theory.placement import Placement, place

IDEAL = Hardware(c=0.0, dac_bits=None, adc_bits=None)
NOISY = Hardware(c=1.5, dac_bits=None, adc_bits=None)
ALL, NONE = ((),) * LAYERS, (tuple(range(EXPERTS)),) * LAYERS  # of the experts analog
KINDS = ("attention", "lm_head")
BOUNDS = (SMALLEST_BOUND, LARGEST_FACTOR)
SIZES = (EXPERTS,) * LAYERS
EVERYTHING = Placement(SIZES, ALL, KINDS)
TOKENS = torch.randint(0, VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(0))
# Which parts are analog, as in Figure 3.
ARMS = {
    "attention": Placement(SIZES, NONE, ("attention",)),
    "LM head": Placement(SIZES, NONE, ("lm_head",)),
    "all dense modules": Placement(SIZES, NONE, KINDS),
    "some experts": Placement(SIZES, ((0, 3), (1, 2, 5))),
    "experts of one layer": Placement(SIZES, (NONE[0], ())),
    "all experts": Placement(SIZES, ALL),
    "one projection": Placement(SIZES, NONE, ("model.layers.1.self_attn.v_proj",)),
    "everything": EVERYTHING,
    "nothing": Placement(SIZES, NONE),
}


@cache
def calibration(hardware: Hardware, seed: int = 0, name: str = "olmoe") -> Calibration:
    return calibrate(fresh(name, seed), TEXTS, hardware)


def fresh(name: str = "olmoe", seed: int = 0) -> Model:
    return as_model(network_named(name, seed))


def deployed(
    placement: Placement = EVERYTHING, hardware: Hardware = NOISY, seed: int = 0, name: str = "olmoe"
) -> Model:
    model = fresh(name)
    deploy(model, placement, hardware, calibration(hardware, name=name), seed)
    return model


def logits(model: Model, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model.network(**({"input_ids": TOKENS} | inputs)).logits


def state(model: Model) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def modules(model: Model) -> dict[str, nn.Module]:
    return dict(model.network.named_modules())


def programmed(model: Model) -> dict[str, Tensor]:
    return {
        f"{name}.{parameter}": crossbars.programmed()
        for name, module in model.analog_modules.items()
        for parameter, crossbars in module.crossbars.items()
        if not isinstance(module, AnalogExperts) or module.analog
    }


@st.composite
def placements(draw: st.DrawFn, model: Model) -> Placement:
    digital = tuple(
        tuple(draw(st.lists(st.integers(0, size - 1), unique=True))) for size in model.map.num_experts
    )
    kinds = [kind for kind, names in model.map.dense.items() if names]
    names = st.sampled_from([*kinds, *model.map.linears, "model", "model.layers.1.self_attn"])
    return Placement(model.map.num_experts, digital, tuple(draw(st.lists(names, unique=True))))


# ------------------------------------------------------------------------------------------- the report


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(["tied", *MODELS]))
def test_every_parameter_is_accounted_for(data: st.DataObject, name: str) -> None:
    """The report tells of the modules that are there."""
    model = small_model(tie_word_embeddings=True) if name == "tied" else fresh(name)
    placement = data.draw(placements(model))
    sizes = {name: parameter.numel() for name, parameter in model.network.named_parameters()}
    linears = model.map.resolve(placement.analog_modules)
    report = deploy(model, placement, IDEAL, calibration(IDEAL, name=name if name != "tied" else "olmoe"))

    found = {
        name
        for name, module in model.analog_modules.items()
        if isinstance(module, AnalogLinear) and module.is_analog
    }
    in_experts = {True: 0, False: 0}  # by whether they are analog
    for layer, digital in zip(model.map.moe_layers, placement.digital_experts, strict=True):
        experts = model.network.get_submodule(layer.experts)
        if not layer.linears:
            assert isinstance(experts, AnalogExperts) and tuple(experts.digital) == digital
            experts = experts.original
        for expert in range(EXPERTS):
            in_experts[expert not in digital] += sum(each.weight.numel() for each in unfused(experts, expert))
            if layer.linears and expert not in digital:
                names = {f"{layer.experts}.{expert}.{each}_proj" for each in ("gate", "up", "down")}
                assert names <= found
                found -= names
    assert found == set(linears)
    assert report.parameters["experts"] == {
        "analog": in_experts[True],
        "digital by placement": in_experts[False],
        "never analog": 0,
    }
    if name == "tied":  # one parameter, two uses: told of as what may be analog
        sizes["lm_head.weight"] = sizes.pop("model.embed_tokens.weight")
        assert "embeddings" not in report.parameters
    for kind, own in model.map.dense.items():
        analog = sum(sizes[f"{each}.weight"] for each in own if each in linears)
        rest = sum(sizes[f"{each}.weight"] for each in own) - analog
        if own:
            expected = {"analog": analog, "digital by placement": rest, "never analog": 0}
            assert report.parameters[kind] == expected
    for kind, own in model.map.never_analog.items():
        count = sum(sizes.get(each, 0) for each in own)
        if count:
            expected = {"analog": 0, "digital by placement": 0, "never analog": count}
            assert report.parameters[kind] == expected
    assert report.total == sum(sizes.values()) == sum(report.count(status) for status in STATUSES)


def test_a_parameter_with_two_uses_is_analog_if_one_of_them_is() -> None:
    network = small_network()
    first, second = (layer.self_attn.q_proj for layer in network.model.layers)
    second.weight = first.weight
    for analog in range(LAYERS):
        model = as_model(network)
        report = deploy(
            model, Placement(SIZES, NONE, (f"model.layers.{analog}.self_attn.q_proj",)), IDEAL, TEXTS
        )
        assert report.count("analog") == first.weight.numel()
        withdraw(model)


def test_report_as_text() -> None:
    report = deploy(fresh(), Placement(SIZES, ALL, ("lm_head",)), IDEAL, calibration(IDEAL))
    head, *rows = str(report).splitlines()
    assert head.split("  ")[0] == "parameters" and all(status in head for status in STATUSES)
    assert [row.split()[0] for row in rows] == [*(kind.split()[0] for kind in report.parameters), "all"]
    share = report.count("analog") / report.total
    assert f"{report.count('analog'):,}" in rows[-1] and f"{share:.2%}" in rows[-1]
    assert len({len(row) for row in (head, *rows)}) == 1


def test_parameters_that_nobody_knows_are_refused() -> None:
    model = small_model()
    model.network.extra = nn.Parameter(torch.zeros(3))  # after the map was made
    before = modules(model)
    with pytest.raises(InputError, match=r"\d+ of \d+ parameters of small are accounted for"):
        deploy(model, EVERYTHING, IDEAL, calibration(IDEAL))
    assert modules(model) == before


# ------------------------------------------------------------------------------------------- and back again


@settings(max_examples=40)
@given(
    data=st.data(),
    name=st.sampled_from(MODELS),
    hardware=st.sampled_from([NOISY, Hardware(), Hardware(c=0.5, w_max="column", tile_size=16)]),
    seeds=st.lists(st.integers(), min_size=1, max_size=3),
)
def test_withdraw_restores_bit_for_bit(
    data: st.DataObject, name: str, hardware: Hardware, seeds: list[int]
) -> None:
    """The very modules come back, after any number of programming events."""
    model = fresh(name)
    before, weights, digital = modules(model), state(model), logits(model)
    deploy(model, data.draw(placements(model)), hardware, calibration(hardware, name=name), seeds[0])
    logits(model)
    for seed in seeds[1:]:
        reprogram(model, seed)
    withdraw(model)
    after = modules(model)
    assert after.keys() == before.keys() and all(after[key] is before[key] for key in before)
    assert equal(state(model), weights) and torch.equal(logits(model), digital)
    assert not model.analog_modules


def test_deployed_again_as_often_as_wanted() -> None:
    model = fresh()
    first = deploy(model, ARMS["attention"], NOISY, calibration(NOISY))
    noisy = logits(model)
    withdraw(model)
    deploy(model, EVERYTHING, Hardware(), calibration(Hardware()), seed=5)
    withdraw(model)
    assert deploy(model, ARMS["attention"], NOISY, calibration(NOISY)) == first
    assert torch.equal(logits(model), noisy)


def test_experts_are_kept_in_fp32_if_that_is_wanted() -> None:
    for fp32 in (False, True):
        model = fresh()
        deploy(model, ARMS["all experts"], Hardware(), calibration(Hardware()), fp32=fp32)
        reasons = {module.why_not_fused for module in model.analog_modules.values()}
        assert reasons == {"fp32" if fp32 else "they are not on an NVIDIA GPU"}


def test_withdraw_after_a_change_of_precision() -> None:
    """The result is the model that a digital one would have become."""
    for converters in (NOISY, Hardware()):
        model = deployed(hardware=converters)
        model.network.to(torch.bfloat16)  # type: ignore[arg-type]
        assert logits(model).dtype == torch.bfloat16
        withdraw(model)
        plain = as_model(small_network().to(torch.bfloat16))
        assert equal(state(model), state(plain)) and torch.equal(logits(model), logits(plain))


def test_a_copy_is_a_deployment_of_its_own() -> None:
    model = deployed()
    twin, noisy = copy.deepcopy(model), logits(model)
    assert torch.equal(logits(twin), noisy)
    withdraw(twin)
    assert torch.equal(logits(twin), logits(fresh())) and equal(state(twin), state(fresh()))
    twin.network.get_parameter("lm_head.weight").data.zero_()
    assert torch.equal(logits(model), noisy)
    withdraw(model)
    assert torch.equal(logits(model), logits(fresh()))


@pytest.mark.parametrize("name", ["olmoe", "tied", "gpt_oss", "list_moe"])
def test_state_dict_and_checkpoint_are_the_digital_ones(name: str, tmp_path: Path) -> None:
    model = small_model(tie_word_embeddings=True) if name == "tied" else fresh(name)
    digital, names = state(model), [name for name, _ in model.network.named_parameters()]
    deploy(model, EVERYTHING, Hardware(), TEXTS)
    assert equal(state(model), digital)
    assert sorted(name for name, _ in model.network.named_parameters()) == sorted(names)
    reloaded = load(save(model.network, tmp_path))
    assert equal(state(reloaded), digital)
    withdraw(model)
    # Weights that a file was mapped to need not be aligned as others are, and sums then round differently.
    assert torch.allclose(logits(reloaded), logits(model), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------- what it computes


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arm", ARMS)
def test_ideal_hardware_is_digital_bit_for_bit(arm: str, dtype: torch.dtype, implementation: str) -> None:
    network = small_network().to(dtype)
    network.set_experts_implementation(implementation)
    model = as_model(network)
    digital = logits(model)
    deploy(model, ARMS[arm], IDEAL, calibration(IDEAL))
    assert torch.equal(logits(model), digital)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        pair
        for pair in itertools.product(MODELS, ["eager", "grouped_mm"])
        if pair != ("list_moe", "grouped_mm")
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("digital_fraction", [0.0, 0.5])
def test_ideal_hardware_is_digital_for_every_architecture(
    name: str, dtype: torch.dtype, implementation: str, digital_fraction: float
) -> None:
    """Holds with all analog that can be, too, and after withdrawing."""
    network = network_named(name).to(dtype)
    network.set_experts_implementation(implementation)
    model = as_model(network)
    weights, digital = state(model), logits(model)
    kinds = tuple(kind for kind, names in model.map.dense.items() if names)
    placement = place(scores(model), digital_fraction, analog_modules=kinds)
    report = deploy(model, placement, IDEAL, calibration(IDEAL, name=name))
    assert report.parameters["experts"]["analog"] > 0
    assert (report.count("digital by placement") == 0) == (digital_fraction == 0)
    assert torch.equal(logits(model), digital)
    reprogram(model, 1)
    assert torch.equal(logits(model), digital)
    withdraw(model)
    assert equal(state(model), weights) and torch.equal(logits(model), digital)


def generator_of(seed: int, name: str) -> torch.Generator:
    """The generator of a module's noise."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def programmed_matrices(model: Model, layer: MoELayer, seed: int, hardware: Hardware) -> list[list[Tensor]]:
    """gate, up and down of every expert of an undeployed layer with its noise, from the reference."""
    experts = model.network.get_submodule(layer.experts)
    targets = [[matrix.weight.detach() for matrix in unfused(experts, number)] for number in range(EXPERTS)]
    if layer.linears:
        return [
            [
                program(target, hardware, generator_of(seed, name))
                for target, name in zip(each, names, strict=True)
            ]
            for each, names in zip(targets, layer.linears, strict=True)
        ]
    generator = generator_of(seed, layer.experts)
    gate_up = program(torch.stack([torch.stack(each[:2]) for each in targets]), hardware, generator)
    down = program(torch.stack([each[2] for each in targets]), hardware, generator)
    return [[*both, third] for both, third in zip(gate_up, down, strict=True)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("w_max", ["tile", "column"])
def test_experts_compute_as_the_reference(name: str, w_max: Granularity) -> None:
    """The last layer's experts in a deployed model with noise and converters: matrix by matrix through theory.hardware.

    In fp64, where rounding reaches no converter's code.
    """
    hardware, digital, seed = Hardware(c=0.5, tile_size=16, w_max=w_max), (1, 4), 3
    model = as_model(in_fp64(network_named(name)))
    layer = model.map.moe_layers[-1]
    experts, router = (model.network.get_submodule(each) for each in (layer.experts, layer.router))
    matrices = [unfused(experts, expert) for expert in range(EXPERTS)]
    weights = programmed_matrices(model, layer, seed, hardware)
    ranges = calibrate(model, TEXTS, hardware)
    number = len(model.map.moe_layers)
    deploy(model, Placement((EXPERTS,) * number, (digital,) * number), hardware, ranges, seed)
    seen: list[tuple[Any, Any]] = []
    listened = model.network.get_submodule(layer.block if layer.linears else layer.experts)
    listened.register_forward_hook(lambda _, inputs, output: seen.append((inputs, output)))
    logits(model)
    ((inputs, output),) = seen
    hidden = inputs[0].reshape(-1, HIDDEN)
    if layer.linears:
        routing_weights, index = router(hidden).float().softmax(-1).topk(TOP_K)
    else:
        index, routing_weights = inputs[1:]

    def range_of(expert: int, which: int) -> LayerCalibration:
        if layer.linears:
            return for_experts(ranges[f"{layer.linears[expert][which]}.weight"], 1)[0]
        return for_experts(ranges[f"{layer.experts}.{'down' if which == 2 else 'gate_up'}_proj"], EXPERTS)[
            expert
        ]

    def product(x: Tensor, expert: int, which: int) -> Tensor:
        matrix: Matrix = matrices[expert][which]
        if expert in digital:
            return x @ matrix.weight.T + matrix.bias
        each = range_of(expert, which)
        found = analog_matmul(
            x,
            matrix.weight,
            hardware,
            input_std=each.input_std,
            kappa=each.kappa,
            lam=each.lam,
            programmed=weights[expert][which],
        )
        return found.output + matrix.bias

    expected, exact = torch.zeros_like(hidden), torch.zeros_like(hidden)
    for expert in range(EXPERTS):
        token, choice = torch.where(index == expert)
        gate, up, down = matrices[expert]
        x, weight = hidden[token], routing_weights[token, choice, None]
        inner = gated(experts, product(x, expert, 0), product(x, expert, 1))
        expected.index_add_(0, token, product(inner, expert, 2) * weight)
        inner = gated(experts, x @ gate.weight.T + gate.bias, x @ up.weight.T + up.bias)
        exact.index_add_(0, token, (inner @ down.weight.T + down.bias) * weight)
    result = output.view_as(hidden)
    assert torch.allclose(result, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(result, exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss", "list_moe"])
@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "nothing"])
def test_every_arm_is_noisy(arm: str, name: str) -> None:
    model = deployed(ARMS[arm], name=name)
    assert not torch.equal(logits(model), logits(fresh(name)))


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss", "list_moe"])
def test_nothing_analog_counts_as_deployed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model stays digital, whatever the hardware, so that sweeps need no special case. Nothing is programmed."""
    monkeypatch.setattr(AnalogExperts, "program", None)
    monkeypatch.setattr(AnalogLinear, "program", None)
    model = fresh(name)
    report = deploy(model, ARMS["nothing"], Hardware(c=9.0), calibration(Hardware(), name=name))
    assert report.count("analog") == 0
    assert torch.equal(logits(model), logits(fresh(name)))
    reprogram(model, 1)
    with pytest.raises(InputError, match="deployed already"):
        deploy(model, EVERYTHING, Hardware(), calibration(Hardware(), name=name))
    withdraw(model)
    with pytest.raises(InputError, match="not deployed"):
        withdraw(model)


SMALL = fresh()
A_MODEL = "^model is Olmoe.*: give a Model, as load returns it$"


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (deploy, (SMALL, EVERYTHING, "pcm", TEXTS), "^hardware is 'pcm': give a Hardware, as load_hardware"),
        (Chip, (SMALL, {"c": 1}, TEXTS), "^hardware is {'c': 1}: give a Hardware"),
        (calibrate, (SMALL, TEXTS, None), "^hardware is None"),
        (expected_damage, (SMALL, TEXTS, "pcm"), "^hardware is 'pcm'"),
        (dense_damage, (SMALL, TEXTS, "pcm"), "^hardware is 'pcm'"),
        (deploy, (SMALL, "a.json", IDEAL, TEXTS), "^placement is 'a.json': give a Placement, as place makes"),
        (deploy, (SMALL.network, EVERYTHING, IDEAL, TEXTS), A_MODEL),
        (calibrate, (SMALL.network, TEXTS, IDEAL), A_MODEL),
        (scores, (SMALL.network,), A_MODEL),
        (evaluate, (SMALL.network, TEXTS), A_MODEL),
        (expected_damage, (SMALL.network, TEXTS, IDEAL), A_MODEL),
        (dense_damage, (SMALL.network, TEXTS, IDEAL), A_MODEL),
        (withdraw, (SMALL.network,), A_MODEL),
        (save_chip, (SMALL.network, "a"), A_MODEL),
        (load_chip, ("a", SMALL), "^model is 'a': give a Model"),
        (load_chip, (SMALL, SMALL), "^file is Model.*: give a path"),
        (Shape.of, (SMALL.network,), A_MODEL),
        (cost, (SMALL, 0.5), "^shape is Model.*: give a Shape, as Shape.of makes it of a model"),
        (cost, (OLMOE, 0.5, 32, "a100"), "^machine is 'a100': give a Machine"),
        (evaluate, (SMALL, ["some words", 1]), r"^texts\[1\] is 1: give a text"),
        (SMALL.texts, ("train",), "^split is 'train': give one of "),
    ],
)
def test_arguments_of_another_kind_are_named(function: Any, arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)


def test_converters_err_by_their_steps() -> None:
    """Where nothing saturates, the error goes down as the number of levels goes up, from 127 to 32767."""
    errors = []
    for bits in (8, 16):
        model = deployed(ARMS["LM head"], Hardware(c=0.0, dac_bits=bits, adc_bits=bits, kappa=10.0, lam=4.0))
        model.analog_modules["lm_head"].count_saturation = True
        errors.append(float((logits(model) - logits(fresh())).square().mean().sqrt()))
        fractions = model.analog_modules["lm_head"].saturation()["weight"]
        assert (fractions.input, fractions.output) == (0, 0)
    assert errors[0] / errors[1] == pytest.approx(32767 / 127, rel=0.1)


@pytest.mark.parametrize("programming", ["pcm", "constant"])
@pytest.mark.parametrize(
    "most",
    [
        {"c": LARGEST_FACTOR, "dac_bits": None, "adc_bits": None},
        {"c": LARGEST_FACTOR, "lam": LARGEST_FACTOR},
        {"c": 5e-324},
        *({"dac_bits": 16, "adc_bits": 16, "kappa": kappa, "lam": lam} for kappa in BOUNDS for lam in BOUNDS),
        {"tile_size": 1},
        {"tile_size": LARGEST_TILE},
    ],
    ids=str,
)
def test_all_that_hardware_allows_gives_numbers(programming: str, most: dict[str, Any]) -> None:
    """Without converters an expert's output grows as c^3, and its square in the norm behind it as c^6."""
    hardware = Hardware(programming=programming, **most)
    model, into_norm = fresh("mixtral"), list[Tensor]()
    deploy(model, EVERYTHING, hardware, Calibration(calibration(Hardware(), name="mixtral").layers, hardware))
    model.network.model.norm.register_forward_pre_hook(lambda _, inputs: into_norm.append(inputs[0]))
    assert logits(model).isfinite().all() and into_norm[0].square().isfinite().all()


@pytest.mark.parametrize("kind", ["olmoe", "gpt_oss", "list_moe"])
@pytest.mark.parametrize("given", [True, False])
def test_given_ranges_win(given: bool, kind: str) -> None:
    """Every expert's down projection has a DAC bound of its own."""
    hardware = Hardware(kappa=2.0, lam=0.3) if given else Hardware()
    for name, module in deployed(EVERYTHING, hardware, name=kind).analog_modules.items():
        for parameter, crossbars in module.crossbars.items():
            experts = len(module.down_proj) if isinstance(module, AnalogExperts) else 1
            own = experts if parameter == "down_proj" else 1
            ranges = for_experts(calibration(hardware, name=kind)[f"{name}.{parameter}"], own)
            assert (len({each.input_std for each in ranges}) > 1) == (own > 1)
            bounds = [each.stds[0] * (2.0 if given else each.kappa) for each in ranges]
            assert crossbars.input_bound.flatten().tolist() == bounds
            assert crossbars.lam.tolist() == [0.3 if given else each.lam for each in ranges]


@pytest.mark.parametrize("head", [True, False])
def test_tied_head(head: bool) -> None:
    """The embedding stays digital when the LM head, the same parameter, is analog; and the other way round."""
    model = small_model(tie_word_embeddings=True)
    weights, digital = state(model), logits(model)
    embedded = model.network.get_input_embeddings()(TOKENS)
    placement = Placement(SIZES, NONE if head else ALL, ("lm_head",) if head else ())
    report = deploy(model, placement, NOISY, TEXTS)
    assert (report.parameters["lm_head"]["analog"] > 0) == head
    assert torch.equal(model.network.get_input_embeddings()(TOKENS), embedded)
    hidden = model.network.get_submodule("model")(TOKENS).last_hidden_state
    assert torch.equal(logits(model), hidden @ model.network.lm_head.weight.T) == (not head)
    assert not torch.equal(logits(model), digital)
    assert model.network.lm_head.weight is model.network.model.embed_tokens.weight
    withdraw(model)
    assert model.network.lm_head.weight is model.network.model.embed_tokens.weight
    assert equal(state(model), weights) and torch.equal(logits(model), digital)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_without_gradients(context: Callable[[], Any]) -> None:
    expected = logits(deployed(hardware=Hardware()))
    model = fresh()
    with context():
        deploy(model, EVERYTHING, Hardware(), calibration(Hardware()))
        assert torch.equal(model.network(input_ids=TOKENS).logits, expected)
        reprogram(model, 0)
        assert torch.equal(model.network(input_ids=TOKENS).logits, expected)
        withdraw(model)
    assert equal(state(model), state(fresh()))


# Every analog layer works token by token, so a token's logits depend on its batch as little as digital ones do:
# by rounding. In fp64, where no rounding of a sum reaches a converter's code.


def converted(hardware: Hardware = Hardware(), idle: bool = False) -> Model:  # noqa: B008
    network = in_fp64(small_network())
    if idle:
        leave_experts_idle(network)
    model = as_model(network)
    deploy(model, EVERYTHING, hardware, TEXTS)
    return model


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_matter(side: str) -> None:
    model = converted()
    alone = [
        logits(model, input_ids=row[None, :length]) for row, length in zip(TOKENS, (17, 9, 1), strict=True)
    ]
    ids, mask = torch.zeros_like(TOKENS), torch.zeros_like(TOKENS)
    places = []
    for row, expected in enumerate(alone):
        length = expected.shape[1]
        place = slice(0, length) if side == "right" else slice(17 - length, 17)
        ids[row, place], mask[row, place] = TOKENS[row, :length], 1
        places.append(place)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    together = logits(model, input_ids=ids, attention_mask=mask, position_ids=positions)
    for row, (place, expected) in enumerate(zip(places, alone, strict=True)):
        assert torch.allclose(together[row, place], expected[0], rtol=0, atol=1e-5)
    # Or else the tolerance would hide everything.
    assert not torch.allclose(logits(fresh(), input_ids=TOKENS[:1]).double(), alone[0], atol=1e-2)


def test_one_token_at_a_time() -> None:
    model = converted()
    whole, cache_, parts = logits(model, input_ids=TOKENS[:1]), None, []
    for token in TOKENS[0]:
        with torch.no_grad():
            output = model.network(input_ids=token.view(1, 1), past_key_values=cache_, use_cache=True)
        cache_ = output.past_key_values
        parts.append(output.logits)
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


def test_generate_with_and_without_cache() -> None:
    model = converted()
    generate: Any = model.network.generate
    made = [
        generate(
            TOKENS[:, :4],
            attention_mask=torch.ones_like(TOKENS[:, :4]),
            max_new_tokens=12,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=None,
            pad_token_id=0,
        )
        for use_cache in (True, False)
    ]
    assert made[0].shape == (3, 16) and torch.equal(*made)
    withdraw(model)
    plain = generate(TOKENS[:, :4], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert not torch.equal(made[0], plain)


@pytest.mark.parametrize("digital", [ALL, NONE, ((0, 1, 2, 3),) * LAYERS, ((4, 5), (0, 4))])
def test_idle_experts(digital: tuple[tuple[int, ...], ...]) -> None:
    """Idle or busy experts may be analog; with one token there are idle experts of either kind anyway."""
    network = small_network()
    leave_experts_idle(network)
    model = as_model(network)
    exact = logits(model)
    ranges = calibrate(model, TEXTS, Hardware(c=0.0))
    deploy(model, Placement(SIZES, digital), Hardware(c=0.0), ranges)
    close = logits(model)
    assert close.isfinite().all() and logits(model, input_ids=TOKENS[:1, :1]).isfinite().all()
    assert (close - exact).square().mean() < 0.05 * exact.square().mean()
    busy = {expert for layer in digital for expert in range(4) if expert not in layer}
    assert torch.equal(close, exact) == (not busy)
    withdraw(model)


# ------------------------------------------------------------------------------------------- noise


@settings(max_examples=20)
@given(
    data=st.data(),
    seed=st.integers(),
    hardware=st.sampled_from([NOISY, Hardware(tile_size=16)]),
    name=st.sampled_from(["olmoe", "gpt_oss", "list_moe"]),
)
def test_placements_share_their_noise(data: st.DataObject, seed: int, hardware: Hardware, name: str) -> None:
    """A module's and an expert's programmed weights do not depend on what else is analog."""
    everything = deployed(EVERYTHING, hardware, seed, name)
    model = fresh(name)
    some = data.draw(placements(model))
    deploy(model, some, hardware, calibration(hardware, name=name), seed)
    whole = programmed(everything)
    for name, weights in programmed(model).items():
        module = model.analog_modules[name.rpartition(".")[0]]
        expected = whole[name]
        if isinstance(module, AnalogExperts):
            expected = expected.index_select(0 if hardware == NOISY else 1, torch.tensor(module.analog))
        assert torch.equal(weights, expected), name


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(),
    hardware=st.sampled_from([NOISY, Hardware(c=1.5), Hardware(tile_size=16, w_max="column")]),
    name=st.sampled_from(["olmoe", "gpt_oss", "list_moe"]),
    mirrored=st.booleans(),
)
def test_a_chip_serves_every_placement_as_a_fresh_deployment_would(
    data: st.DataObject, seed: int, hardware: Hardware, name: str, mirrored: bool
) -> None:
    """To the last bit, whatever was placed before; and the model is digital afterwards."""
    model, ranges = fresh(name), calibration(hardware, name=name)
    digital, before = logits(model), state(model)
    chip = Chip(model, hardware, ranges, seed, mirrored=mirrored)
    for placement in data.draw(st.lists(placements(model), min_size=1, max_size=3)):
        other = fresh(name)
        expected = deploy(other, placement, hardware, ranges, seed, mirrored=mirrored)
        with chip.placed(placement) as report:
            assert report == expected
            assert torch.equal(logits(model), logits(other))
            assert model.analog_modules.keys() == other.analog_modules.keys()
        assert not model.analog_modules and equal(state(model), before)
    assert torch.equal(logits(model), digital)


def test_a_chip_programs_each_module_once_and_only_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for kind in (AnalogLinear, AnalogExperts):
        real = kind.program

        def spy(module: Any, generator: Any, *, mirrored: bool, real: Any = real) -> None:
            seen.append(module)
            real(module, generator, mirrored=mirrored)

        monkeypatch.setattr(kind, "program", spy)
    model = fresh()
    chip = Chip(model, NOISY, calibration(NOISY))
    for arm in ("LM head", "nothing", "LM head"):
        with chip.placed(ARMS[arm]):
            pass
    assert len(seen) == 1
    for placement in (EVERYTHING, ARMS["all experts"], ARMS["experts of one layer"], EVERYTHING):
        with chip.placed(placement):
            pass
    assert len(seen) == len(set(seen)) == 1 + 4 * LAYERS + LAYERS


def test_a_chip_needs_a_digital_model_and_leaves_one() -> None:
    model = fresh()
    chip = Chip(model, NOISY, calibration(NOISY))
    with chip.placed(EVERYTHING), pytest.raises(InputError, match="deployed already"):
        chip.placed(EVERYTHING).__enter__()
    with pytest.raises(RuntimeError, match="inside"), chip.placed(EVERYTHING):
        raise RuntimeError("inside")
    assert not model.analog_modules
    with pytest.raises(InputError, match="seed is 0.5"):
        Chip(model, NOISY, calibration(NOISY), 0.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="calibrate for the latter"):
        Chip(model, Hardware(), calibration(NOISY))
    with pytest.raises(InputError, match="make the placement from scores of this model"):
        chip.placed(Placement((EXPERTS,), ((),))).__enter__()


@settings(max_examples=20)
@given(
    seeds=st.lists(st.integers(), min_size=2, max_size=2, unique=True),
    arm=st.sampled_from(sorted(ARMS)),
    name=st.sampled_from(["olmoe", "gpt_oss", "list_moe"]),
)
def test_reprogramming_is_a_fresh_deployment(seeds: list[int], arm: str, name: str) -> None:
    model, other = (deployed(ARMS[arm], seed=seed, name=name) for seed in seeds)
    before = {name: weights.clone() for name, weights in programmed(model).items()}
    assert all(not torch.equal(weights, before[name]) for name, weights in programmed(other).items())
    reprogram(model, seeds[1])
    assert equal(programmed(model), programmed(other)) and torch.equal(logits(model), logits(other))
    reprogram(model, seeds[0])
    assert equal(programmed(model), before)


@pytest.mark.parametrize("kind", ["olmoe", "list_moe"])
def test_noise_is_standard_and_independent(kind: str) -> None:
    """In units of sigma. The noise of any two modules or seeds is uncorrelated: failure probability 1e-9 each."""

    def noise(seed: int) -> dict[str, Tensor]:
        model = deployed(seed=seed, name=kind)
        found = {}
        for name, weights in programmed(model).items():
            target = model.network.get_parameter(name)
            split = target.unflatten(1, (2, -1)) if name.endswith("gate_up_proj") else target
            sigma = programming_sigma(split, NOISY).reshape(target.shape)
            found[name] = ((weights.view(target.shape) - target) / sigma).flatten().double()
        return found

    first, second = noise(0), noise(1)
    quantile = 6.2  # of a standard normal, two sides, 1e-9 and some more for the tails of correlations
    for name, values in first.items():
        assert abs(values.mean()) < quantile / math.sqrt(len(values)), name
        assert abs(values.square().mean() - 1) < quantile * math.sqrt(2 / len(values)) * 1.2, name
    pairs = [*itertools.combinations(first.values(), 2), *zip(first.values(), second.values(), strict=True)]
    for one, other in pairs:
        count = min(len(one), len(other))
        correlation = float((one[:count] * other[:count]).mean())
        assert abs(correlation) < quantile / math.sqrt(count)


def test_weights_that_are_programmed_are_the_models() -> None:
    model = deployed(hardware=Hardware(c=0.0, dac_bits=None, adc_bits=None))
    for name, weights in programmed(model).items():
        target = model.network.get_parameter(name)
        assert torch.equal(weights.view(target.shape), target)
        exact = program(target, IDEAL, torch.Generator())
        assert torch.equal(weights.view(target.shape), exact)


# ------------------------------------------------------------------------------------------- devices


def test_a_deployed_model_moves_as_a_whole() -> None:
    model = deployed()
    model.network.to("meta")  # type: ignore[arg-type]
    tensors = [*model.network.parameters(), *model.network.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    withdraw(model)
    assert {parameter.device.type for parameter in model.network.parameters()} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("hardware", [NOISY, Hardware()])
def test_cuda(hardware: Hardware) -> None:
    moved = deployed(hardware=hardware)
    expected = programmed(moved)
    moved.network.to("cuda")  # type: ignore[arg-type]
    assert equal({name: each.cpu() for name, each in programmed(moved).items()}, expected)
    on_cuda = logits(moved, input_ids=TOKENS.cuda())
    moved.network.to("cpu")  # type: ignore[arg-type]
    assert equal(programmed(moved), expected)
    # A few codes may flip, and a router may choose other experts for a token: nearly all tokens agree.
    difference = (on_cuda.cpu() - logits(moved)).abs().amax(-1)
    assert (difference < 0.05).double().mean() > 0.8
    withdraw(moved)
    assert equal(state(moved), state(fresh()))
    there = fresh()
    there.network.to("cuda")  # type: ignore[arg-type]
    deploy(there, EVERYTHING, hardware, TEXTS)
    withdraw(there)
    there.network.to("cpu")  # type: ignore[arg-type]
    assert equal(state(there), state(fresh()))


# ------------------------------------------------------------------------------------------- bad input


def incomplete() -> Calibration:
    whole, missing = calibration(Hardware()), "model.layers.1.mlp.experts.down_proj"
    return Calibration({name: each for name, each in whole.layers.items() if name != missing}, Hardware())


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"placement": Placement((5, 5), ALL)}, r"num_experts is \(5, 5\), but small has \(6, 6\)"),
    "layers": ({"placement": Placement((6,), ((),))}, r"num_experts is \(6,\), but small has \(6, 6\)"),
    "module": (
        {"placement": Placement(SIZES, ALL, ("lm_head", "mlp"))},
        "'mlp', which matches no dense module",
    ),
    "kind": ({"placement": Placement(SIZES, ALL, ("shared_experts",))}, "'shared_experts', which matches no"),
    "tile": ({"hardware": Hardware(tile_size=64)}, "calibration is for Hardware.*calibrate for the latter"),
    "w_max": ({"hardware": Hardware(w_max="column")}, "calibration is for Hardware"),
    "DAC": ({"hardware": Hardware(dac_bits=7)}, "calibration is for Hardware"),
    "ADC": ({"hardware": Hardware(adc_bits=7)}, "calibration is for Hardware"),
    "kappa": ({"hardware": Hardware(kappa=3.0)}, "calibration is for Hardware"),
    "incomplete": ({"calibration": incomplete}, "calibration has no model.layers.1.mlp.experts.down_proj"),
    "short text": ({"calibration": ["short"]}, "two blocks of 64 are needed"),
    "no text": ({"calibration": []}, "texts is empty"),
    "seed of truth": ({"seed": True}, "seed is True: give a whole number"),
    "seed of halves": ({"seed": 0.5}, "seed is 0.5: give a whole number"),
    "seed in letters": ({"seed": "1"}, "seed is '1': give a whole number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_changes_nothing(name: str) -> None:
    changes, message = BAD[name]
    arguments: dict[str, Any] = {"placement": EVERYTHING, "hardware": Hardware()}
    arguments |= {"calibration": calibration(Hardware())} | changes
    if callable(arguments["calibration"]):
        arguments["calibration"] = arguments["calibration"]()
    model = fresh()
    before = modules(model)
    with pytest.raises(InputError, match=message) as caught:
        deploy(model, **arguments)
    assert "\n" not in str(caught.value)
    assert modules(model) == before and torch.equal(logits(model), logits(fresh()))


def test_programming_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    before = modules(model)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(AnalogExperts, "program", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        deploy(model, EVERYTHING, NOISY, calibration(NOISY))
    assert modules(model) == before
    monkeypatch.undo()
    deploy(model, EVERYTHING, NOISY, calibration(NOISY))


def test_calibration_serves_all_hardware_with_its_converters() -> None:
    """Programming noise and a given lam play no part in calibration."""
    model = fresh()
    for other in (Hardware(c=2.0), Hardware(programming="hermes"), Hardware(lam=0.2)):
        deploy(model, EVERYTHING, other, calibration(Hardware()))
        withdraw(model)


def test_deploying_twice() -> None:
    model = deployed()
    before, noisy = modules(model), logits(model)
    with pytest.raises(InputError, match=r"model small is deployed already: call withdraw\(model\) first"):
        deploy(model, EVERYTHING, NOISY, calibration(NOISY), seed=1)
    assert modules(model) == before and torch.equal(logits(model), noisy)


def test_what_needs_a_deployed_model() -> None:
    model = fresh()
    for action in (withdraw, lambda model: reprogram(model, 0)):
        with pytest.raises(InputError, match="model small is not deployed: call deploy first"):
            action(model)
    deploy(model, EVERYTHING, NOISY, calibration(NOISY))
    before = {name: weights.clone() for name, weights in programmed(model).items()}
    with pytest.raises(InputError, match=r"seed is 0.5"):
        reprogram(model, 0.5)  # type: ignore[arg-type]
    assert equal(programmed(model), before)


# ------------------------------------------------------------------------------------------- in use


def test_as_the_readme_has_it() -> None:
    model = small_model()
    before = evaluate(model, TEXTS, 32)
    placement = place(scores(model, "maxnn"), digital_fraction=0.25)
    report = deploy(model, placement, Hardware(programming="pcm", c=1.5), calibration=TEXTS, seed=0)
    assert 0 < report.parameters["experts"]["digital by placement"] < report.parameters["experts"]["analog"]
    assert report.parameters["attention"]["analog"] == 0
    noisy = evaluate(model, TEXTS, 32)
    assert noisy.loss != before.loss
    assert noisy == evaluate(model, TEXTS, 32)
    withdraw(model)
    assert evaluate(model, TEXTS, 32) == before
