"""Does the batched model equal the one written out in direct.py, for all routings, experts and dictionaries?"""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from direct import assert_same, direct_expert, direct_forward
from hypothesis import given, settings
from hypothesis import strategies as st
from monte_carlo import assert_normal
from torch import Tensor

from synthetic.data import Dictionary, Task, evaluation_samples
from synthetic.model import Expert, ModelConfig, MoE, Router, Routing, initialise, product
from theory.errors import InputError
from theory.setting import Setting

EXPERTS: tuple[Expert, ...] = get_args(Expert)
ROUTINGS: tuple[Routing, ...] = get_args(Routing)

every_form = pytest.mark.parametrize(("routing", "expert"), [(r, e) for r in ROUTINGS for e in EXPERTS])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[MoE, Tensor]:
    """Two models with random weights, and inputs for each."""
    kinds = draw(st.integers(1, 3))
    specialists = tuple(draw(st.lists(st.integers(1, 2), min_size=kinds, max_size=kinds)))
    routing, n = draw(st.sampled_from(ROUTINGS)), draw(st.integers(1, 5))
    most = n if routing == "expert_choice" else 2 * sum(specialists)
    config = ModelConfig(
        specialists,
        draw(st.integers(1, 3)),
        routing,
        draw(st.integers(1, most)),
        draw(st.sampled_from(EXPERTS)),
        draw(st.sampled_from(get_args(Router))),
        init_std=1.0,
    )
    form: Dictionary = draw(st.sampled_from(get_args(Dictionary)))
    d = draw(st.integers(4, 6))
    task = Task(
        d, n, (1 / kinds,) * kinds, correlation=0.5, dictionary=form, coherence=0.3 * (form == "coherent")
    )
    seeds = (draw(st.integers(0, 1000)), 1001)
    model = initialise(task, config, seeds, dtype=torch.float64)
    if routing == "token_choice":  # specialised routers give equal scores, whose order rounding would decide
        model = replace(
            model, router=model.router + 0.1 * torch.randn(model.router.shape, generator=_generator())
        )
    return model, evaluation_samples(task, 3, seeds).tokens


@given(worlds())
def test_the_forward_pass_through_the_table_is_the_direct_one(world: tuple[MoE, Tensor]) -> None:
    model, inputs = world
    expected = torch.stack([direct_forward(model, seed, inputs[seed]) for seed in range(2)])
    assert_same(model.forward(inputs), expected)


@given(worlds())
def test_the_table_holds_every_expert_s_output_on_every_distinct_token(world: tuple[MoE, Tensor]) -> None:
    model, _ = world
    table = model.table()
    for seed, expert, token in (
        (0, 0, 0),
        (1, model.config.experts - 1, 1),
        (1, 1, model.tokens.shape[1] - 1),
    ):
        weights = {name: weight[seed, expert] for name, weight in model.weights.items()}
        output = direct_expert(model.config, expert, weights, model.tokens[seed, token])
        assert_same(table[seed, expert, token], output)


@given(worlds())
def test_merged_gates_weigh_the_table_to_the_same_output(world: tuple[MoE, Tensor]) -> None:
    model, inputs = world
    gates = model.gates(inputs)
    output = torch.einsum("snkt,skt->sn", gates, model.table())
    assert_same(model.forward(inputs), output)
    if model.config.routing == "expert_choice":
        assert_same(gates.sum(-1), torch.ones_like(gates[..., 0]))
    else:  # over experts, the gates of a token add up to how often it occurs
        counts = torch.nn.functional.one_hot(inputs, gates.shape[-1]).sum(2).to(gates)
        assert_same(gates.sum(2), counts)
    absent = torch.nn.functional.one_hot(inputs, gates.shape[-1]).sum(2) == 0
    assert (gates.masked_select(absent[:, :, None].expand_as(gates)) == 0).all()


@settings(max_examples=30)
@given(worlds())
def test_gradients_are_those_of_the_direct_forward(world: tuple[MoE, Tensor]) -> None:
    model, inputs = world
    parameters = {**model.weights, "router": model.router}
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    router = leaves["router"]
    watched = model.with_weights({name: leaves[name] for name in model.weights}, router)
    direct = torch.stack([direct_forward(watched, seed, inputs[seed]) for seed in range(2)])
    for batched, written_out in zip(
        torch.autograd.grad(watched.forward(inputs).square().sum(), list(leaves.values())),
        torch.autograd.grad(direct.square().sum(), list(leaves.values())),
        strict=True,
    ):
        assert_same(batched, written_out)


@every_form
def test_every_seed_is_a_model_of_its_own(routing: Any, expert: Any) -> None:
    task = Task(d=8, n=5, dictionary="rotated")
    config = ModelConfig((2, 1), 3, routing, 2, expert, init_std=1.0)
    model = initialise(task, config, (3, 5), dtype=torch.float64)
    inputs = evaluation_samples(task, 10, (3, 5)).tokens
    for number, seed in enumerate((3, 5)):
        alone = initialise(task, config, (seed,), dtype=torch.float64)
        part = model.seed(number)
        for one, other in zip(_tensors(alone), _tensors(part), strict=True):
            assert torch.equal(one, other)
        assert_same(model.forward(inputs)[number], alone.forward(inputs[number : number + 1])[0])


def test_specialised_routers_score_as_defined() -> None:
    """Scores are 6 for the own token, -6 for the opposite token, 0 for other discriminative tokens, else N(0, .3^2)."""
    task, config = Task(d=30, frequencies=(0.5, 0.3, 0.2), dictionary="rotated"), ModelConfig((2, 1, 1))
    model = initialise(task, config, tuple(range(200)), dtype=torch.float64)
    scores = model.scores()
    expected = torch.zeros(config.experts, 6, dtype=torch.float64)
    experts = torch.arange(config.experts)
    expected[experts, model.own_tokens] = 6
    expected[experts, model.own_tokens ^ 1] = -6
    torch.testing.assert_close(scores[:, :, :6], expected.expand(200, -1, -1), rtol=0, atol=1e-13)
    noise = scores[:, :, 6:]
    assert_normal(noise, torch.zeros_like(noise[0]), torch.full_like(noise[0], 0.3))


def test_experts_come_kind_by_kind_with_the_positive_ones_first() -> None:
    config = ModelConfig((2, 0, 1))
    assert config.experts == 6
    assert config.kinds.tolist() == [0, 0, 0, 0, 2, 2]
    assert config.signs.tolist() == [1, 1, -1, -1, 1, -1]
    model = initialise(Task(frequencies=(0.5, 0.3, 0.2)), config, (0,))
    assert model.own_tokens.tolist() == [0, 0, 1, 1, 4, 5]
    assert model.output_signs.tolist() == config.signs.tolist()
    for expert in ("two_layer", "gated"):
        trained_output = initialise(Task(frequencies=(0.5, 0.3, 0.2)), replace(config, expert=expert), (0,))
        assert (trained_output.output_signs == 1).all()


def test_initial_weights_are_normal() -> None:
    config = ModelConfig((1, 1), 4, expert="gated", init_std=0.01)
    model = initialise(Task(d=6, n=4), config, tuple(range(500)), dtype=torch.float64)
    for weight in model.weights.values():
        assert_normal(weight, torch.zeros_like(weight[0]), torch.full_like(weight[0], 0.01))


def test_random_routers_know_no_token() -> None:
    model = initialise(Task(d=8, n=4), ModelConfig(router="random"), tuple(range(500)), dtype=torch.float64)
    assert_normal(model.router, torch.zeros_like(model.router[0]), torch.full_like(model.router[0], 0.3))


def test_the_score_is_the_product_over_matrices_of_the_largest_neuron_s_norm() -> None:
    model = initialise(Task(d=8, n=4), ModelConfig((1, 1), 3, expert="gated", init_std=1.0), (0, 1))
    up, gate, down = (model.weights[name].double() for name in ("up", "gate", "down"))
    expected = up.norm(dim=-1).amax(-1) * gate.norm(dim=-1).amax(-1) * down.norm(dim=-1).amax(-1)
    torch.testing.assert_close(model.maxnn(), expected)


def test_equal_scores_go_to_the_expert_that_comes_first() -> None:
    """A frequent token has score 0 with all four rare specialists; the first two follow its own specialist."""
    model = initialise(Task(), ModelConfig((1, 2), routing="token_choice", selected=3), (0,))
    gates = model.gates(torch.zeros(1, 1, 1, dtype=torch.int64))[0, 0, :, 0]
    assert (gates > 0).tolist() == [True, False, True, True, False, False]


def test_products_are_those_of_each_seed_expert_and_draw() -> None:
    weight, tokens = torch.randn(3, 2, 4, 5, 6), torch.randn(2, 7, 6)
    expected = torch.einsum("dskmi,sti->dskmt", weight, tokens)
    torch.testing.assert_close(product(weight, tokens), expected)


def test_settings_give_the_reference_network() -> None:
    assert ModelConfig.of(Setting()) == ModelConfig()
    assert ModelConfig.of(Setting(N_F=3, N_R=1, m=5, l=2)) == ModelConfig((3, 1), 5, selected=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_form
def test_cuda_gives_the_same_model(routing: Any, expert: Any) -> None:
    task, config = Task(), ModelConfig(routing=routing, expert=expert, selected=3, init_std=1.0)
    here = initialise(task, config, (0, 1), dtype=torch.float64)
    there = initialise(task, config, (0, 1), dtype=torch.float64, device="cuda")
    inputs = evaluation_samples(task, 50, (0, 1)).tokens
    assert_same(there.forward(inputs.cuda()).cpu(), here.forward(inputs))
    assert_same(there.gates(inputs.cuda()).cpu(), here.gates(inputs))
    assert here.to("cuda").router.is_cuda


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("specialists", (), "at least 0 for each kind"),
        ("specialists", (1, -1), "at least 0 for each kind"),
        ("specialists", (0, 0), "at least one expert"),
        ("m", 0, "at least 1"),
        ("routing", "soft", "expert_choice, token_choice"),
        ("selected", 0, "at least 1"),
        ("expert", "deep", "one_layer, two_layer, gated"),
        ("router", "hash", "specialised, random"),
        ("init_std", 0.0, "above 0"),
        ("init_std", float("inf"), "finite"),
    ],
)
def test_bad_models_name_the_field_and_what_is_allowed(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError, match=rf"model\.{field} .*{allowed}"):
        replace(ModelConfig(), **{field: value})


def test_models_have_to_fit_their_task() -> None:
    with pytest.raises(InputError, match=r"model\.selected is 9: a token has at most 8 experts"):
        ModelConfig(routing="token_choice", selected=9)
    with pytest.raises(
        InputError, match=r"model\.specialists is \(1,\): give one number for each of .* 2 kinds"
    ):
        initialise(Task(), ModelConfig((1,)), (0,))
    with pytest.raises(InputError, match=r"model\.selected is 17: an input has only 16 tokens"):
        initialise(Task(), ModelConfig(selected=17), (0,))
    with pytest.raises(InputError, match=r"model\.selected is 4: an input has only 3 tokens"):
        initialise(Task(), ModelConfig(), (0,)).forward(torch.zeros(1, 2, 3, dtype=torch.int64))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _tensors(model: MoE) -> list[Tensor]:
    return [model.tokens, model.router, *model.weights.values()]
