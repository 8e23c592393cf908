"""A dense model becomes a mixture of experts: exactly at first; it writes its own text; it heals, and resumes."""

import json
import re
import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import VOCABULARY, as_model, network_of, save, small_tokenizer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from realmodels import load, scores, upcycle
from realmodels.pretrain import END_OF_TEXT, experts, runs
from realmodels.pretrain.processes import ALONE, Group
from realmodels.pretrain.training import cast_parameters, forward
from realmodels.tasks import CONTINUATION
from realmodels.upcycle import (
    Decoder,
    Distillation,
    HeadDivergence,
    Healing,
    Prompts,
    Recipe,
    Writer,
    balanced_clusters,
    divergence,
    generation,
    max_neuron_spread,
    prompts,
    source,
)
from realmodels.upcycle import healing as healer
from realmodels.upcycle.__main__ import main
from realmodels.upcycle.acceptance import Check, OnTask
from realmodels.upcycle.healing import step_blocks
from theory.errors import InputError

TINY = Recipe(
    copies=4,
    slices=2,
    calibration_tokens=256,
    context=32,
    rows=20,
    generated_tokens=20 * 32 * 4,
    healing_tokens=256 * 45,
    batch_tokens=256,
    micro_tokens=128,
    router_perturbation=0.3,
    weight_perturbation=0.3,
    learning_rate=2e-3,
)
CONSTRUCTIONS = ("random", "coactivation")
DEEPSEEK = replace(TINY, slices=4, shared_experts=2, dense_layers=1)
SHAPES = {"mixtral": TINY, "deepseek": DEEPSEEK}
RUNS = Path(upcycle.__file__).parent / "runs"


def unbroken(recipe: Recipe) -> Recipe:
    return replace(recipe, router_perturbation=0.0, weight_perturbation=0.0)


UNBROKEN = unbroken(TINY)
of_both_shapes = pytest.mark.parametrize("recipe", SHAPES.values(), ids=SHAPES)


def dense_network(seed: int = 0, **changes: Any) -> Any:
    """SmolLM2 in small: grouped queries, tied embeddings."""
    config = LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": None,
            **changes,
        }
    )
    return network_of(config, seed)


def some_tokens(blocks: int, length: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (blocks, length), generator=torch.Generator().manual_seed(seed))


def mixture(recipe: Recipe = TINY, dense: Any = None) -> Any:
    return upcycle.convert(dense or dense_network(), recipe, some_tokens(8))


def trainable(recipe: Recipe, dense: Any) -> Any:
    network = mixture(recipe, dense)
    network.set_experts_implementation(experts.NAME)
    return network.requires_grad_(True)


def same(a: Any, b: Any) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][k], states[1][k]) for k in states[0]
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("construction", CONSTRUCTIONS)
@of_both_shapes
def test_at_first_it_computes_what_the_dense_model_does(
    recipe: Recipe, construction: Any, tied: bool
) -> None:
    dense, recipe = dense_network(tie_word_embeddings=tied), replace(recipe, construction=construction)
    tokens = some_tokens(4, seed=1)
    network = mixture(unbroken(recipe), dense)
    torch.testing.assert_close(network(tokens).logits, dense(tokens).logits, rtol=0, atol=1e-4)
    broken = mixture(recipe, dense)
    assert (broken(tokens).logits - dense(tokens).logits).abs().max() > 0.01


@of_both_shapes
def test_a_copy_is_chosen_whole(recipe: Recipe) -> None:
    _, routings = forward(mixture(unbroken(recipe)), some_tokens(4, seed=1))
    assert len(routings) == 2 - recipe.dense_layers
    for routing in routings:
        copies = routing.chosen.sort().values.view(-1, recipe.used)
        assert (copies == copies[:, :1] // recipe.used * recipe.used + torch.arange(recipe.used)).all()
        assert len(copies[:, 0].unique()) == recipe.copies


def test_no_copy_is_preferred() -> None:
    dense = dense_network()
    for layer in dense.model.layers:  # a large mean, as hidden states of trained models have
        layer.post_attention_layernorm.weight[:2] = 4.0
    dense.model.embed_tokens.weight[:, :2] += 3.0
    network = mixture(UNBROKEN, dense)
    for routing in forward(network, some_tokens(8))[1]:
        assert (routing.load() * TINY.experts).min() > 0.25
        logits = routing.probabilities.log()
        logits = logits[:, :: TINY.slices]
        # Softmax takes a common part away, so that differences are what is left: of variance near 2, of mean 0.
        differences = logits - logits.roll(1, 1)
        assert differences.mean(0).abs().max() < 1e-3
        assert differences.std(0).min() > 0.3 and differences.std(0).max() < 2.1


@of_both_shapes
def test_every_expert_is_a_slice_of_the_dense_ffn(recipe: Recipe) -> None:
    dense = dense_network()
    ffn, mlp = dense.model.layers[1].mlp, mixture(unbroken(recipe), dense).model.layers[1].mlp
    wanted = torch.cat([ffn.gate_proj.weight, ffn.up_proj.weight], 1)

    def places(gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, times: int) -> list[int]:
        """The neurons of the dense FFN that these are; down projections are so many times the dense ones."""
        rows = torch.cat([gate, up], 1)
        found = torch.cdist(rows, wanted).argmin(1)
        assert torch.equal(rows, wanted[found])
        assert torch.equal(down, times * ffn.down_proj.weight.T[found])
        return found.tolist()

    shared: list[int] = []
    if recipe.shared_experts:
        own = [getattr(mlp.shared_experts, f"{name}_proj").weight for name in ("gate", "up", "down")]
        shared = places(own[0], own[1], own[2].T, 1)
        assert len(shared) == recipe.shared_experts * 16
    gates, ups = mlp.experts.gate_up_proj.chunk(2, 1)
    for copy in range(recipe.copies):
        mine = slice(copy * recipe.used, (copy + 1) * recipe.used)
        gate, up, down = (each[mine].flatten(0, 1) for each in (gates, ups, mlp.experts.down_proj.mT))
        assert sorted(shared + places(gate, up, down, recipe.used)) == list(range(64))


def test_shared_experts_have_the_neurons_that_add_most() -> None:
    dense = dense_network()
    ffn = dense.model.layers[0].mlp
    ffn.down_proj.weight.data[:, :20] *= 30.0
    inputs = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    shared, groups = upcycle.neuron_groups(inputs, ffn, DEEPSEEK, 0)
    assert set(range(20)) <= set(shared.tolist())
    assert groups.shape == (2, 16) and sorted([*shared.tolist(), *groups.flatten().tolist()]) == list(
        range(64)
    )


def test_dense_layers_keep_their_ffn() -> None:
    dense = dense_network()
    network = mixture(DEEPSEEK, dense)
    before, after = dense.model.layers[0].mlp.state_dict(), network.model.layers[0].mlp.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_hashes_of_committed_recipes_stay() -> None:
    files = sorted(RUNS.glob("*/recipe.json"))
    assert files
    for file in files:
        made = json.loads(file.read_text())
        assert Recipe(**made["recipe"]).hash() == made["hash"]
    assert DEEPSEEK.hash() != TINY.hash() != replace(TINY, slices=4).hash()


def test_the_perturbation_is_of_the_stated_size_and_seeded() -> None:
    exact, broken = mixture(UNBROKEN), mixture(TINY)
    assert same(broken, mixture(TINY)) and not same(broken, mixture(replace(TINY, seed=1)))
    for before, after in zip(exact.model.layers, broken.model.layers, strict=True):
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(before.mlp.experts, name)
            noise = getattr(after.mlp.experts, name) - weight
            assert (noise.std() / weight.std()).item() == pytest.approx(TINY.weight_perturbation, rel=0.05)
            assert (noise[0] - noise[TINY.slices]).std() > noise.std()  # copies get noise of their own
        noise = after.mlp.gate.weight - before.mlp.gate.weight
        assert (noise.norm() / before.mlp.gate.weight.norm()).item() == pytest.approx(
            TINY.router_perturbation, rel=0.5
        )
    untouched = [name for name, _ in exact.named_parameters() if ".mlp." not in name]
    assert all(torch.equal(exact.get_parameter(name), broken.get_parameter(name)) for name in untouched)


def test_clusters_are_of_equal_size_and_hold_what_is_active_together() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(4).repeat(8)[torch.randperm(32, generator=generator)]
    bursts = torch.rand(4, 200, generator=generator) < 0.2
    activity = bursts[kinds] * (1 + torch.rand(32, 1, generator=generator))
    activity += 0.1 * torch.rand(32, 200, generator=generator)
    groups = balanced_clusters(activity, 4, generator)
    assert groups.shape == (4, 8) and sorted(groups.flatten().tolist()) == list(range(32))
    assert all(len(kinds[group].unique()) == 1 for group in groups)


def test_spread_among_copies_and_among_slices() -> None:
    recipe = replace(TINY, copies=2, slices=3)
    slices = torch.tensor([1.0, 2.0, 3.0])
    assert max_neuron_spread(slices.repeat(1, 2), recipe) == pytest.approx({"copies": 0, "slices": 0.5})
    apart = torch.stack([slices * 0.9, slices * 1.1]).view(1, 6)
    found = max_neuron_spread(apart, recipe)
    assert found == pytest.approx({"copies": 0.1 * 2**0.5, "slices": 0.5})


def test_a_single_copy_or_slice_has_no_spread() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    assert max_neuron_spread(scores, replace(TINY, copies=1, slices=3)) == {"copies": 0.0, "slices": 0.5}
    assert max_neuron_spread(scores, replace(TINY, copies=3, slices=1)) == {"copies": 0.5, "slices": 0.0}


def test_models_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(InputError, match="the dense model is a mixtral: give a llama"):
        mixture(dense=mixture())
    with pytest.raises(InputError, match="biases"):
        mixture(dense=dense_network(attention_bias=True))
    with pytest.raises(InputError, match=r"recipe\.slices is 3: the dense FFN has 64 neurons"):
        mixture(replace(TINY, slices=3))
    with pytest.raises(InputError, match=r"dense_layers is 2: the dense model has 2 layers; give fewer"):
        mixture(replace(DEEPSEEK, dense_layers=2))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"bare": 1.5}, "a share"),
        ({"rows": 7}, "generated_tokens is .* a multiple of 224"),
        ({"batch_tokens": 100}, "a multiple of 128"),
        ({"construction": "best"}, "random, coactivation"),
        ({"shared_experts": 1}, "shared_experts is 1: give at most slices - 2 = 0"),
        ({"dense_layers": 1}, "dense_layers is 1: give 0, or shared_experts of at least 1"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TINY, **entry)


def test_the_rate_rises_and_falls_to_0() -> None:
    recipe = replace(TINY, healing_tokens=256 * 100, warmup=0.1)
    rates = [recipe.rate(step) for step in range(101)]
    assert rates[0] == 0.1 and rates[10] > 0.95 and rates[50] == pytest.approx(0.5) and rates[100] == 0
    assert rates[10:] == sorted(rates[10:], reverse=True)


# What the dense model writes.


def test_a_decoder_computes_what_the_model_does() -> None:
    dense = dense_network()
    tokens = some_tokens(3, seed=2)
    wanted = dense(tokens).logits
    with torch.no_grad():
        decoder = Decoder(dense, 3, 32)
        for position in range(32):
            logits = decoder(tokens[:, position], torch.tensor([position]), 16 if position < 16 else 32)
            torch.testing.assert_close(logits, wanted[:, position], rtol=1e-4, atol=1e-4)


def fixed_prompts() -> Prompts:
    """Prompts of which each token says where it is: 10 p, 10 p + 1, ... for prompt p."""
    return Prompts.padded([[10 * p + i for i in range(1 + p % 4)] for p in range(1, 9)], 6)


class Scripted:
    """In the place of a decoder: after some steps it wants token 0, before that token 299."""

    def __init__(self, end_at: Sequence[int]) -> None:
        self.end_at = end_at

    def __call__(self, token: torch.Tensor, position: torch.Tensor, length: int) -> torch.Tensor:
        wanted = 0 if position.item() + 1 in self.end_at else 299
        return 1000.0 * F.one_hot(torch.full((len(token),), wanted), VOCABULARY)


def test_blocks_are_prompts_and_answers_one_after_the_other() -> None:
    own = fixed_prompts()
    writer = Writer(dense_network(), own, [0], TINY)
    writer.decoder = Scripted([9, 15, 16])  # type: ignore[assignment]
    blocks = writer.round(3)
    assert blocks.shape == (TINY.rows, TINY.context) and blocks.dtype == np.uint16
    order = own.order(TINY, 3)
    for row, prompts_of_row in zip(blocks, order, strict=True):
        wanted: list[int] = []
        queue = [own.tokens[p, : own.lengths[p]].tolist() for p in prompts_of_row]
        reading = queue.pop(0)
        for position in range(TINY.context):
            if reading:
                wanted.append(reading.pop(0))
                continue
            wanted.append(0 if position in (9, 15, 16) else 299)
            reading = queue.pop(0) if wanted[-1] == 0 else reading
        assert row.tolist() == wanted


def test_tokens_are_samples_of_the_model() -> None:
    """The empirical distribution of the token after a prompt is the softmax of the model's logits."""
    recipe = replace(TINY, rows=20_000, context=8, generated_tokens=160_000, bare=0.0)
    own = Prompts.padded([[5, 6, 7]], 1)
    own = Prompts(own.tokens.repeat(2, 1), own.lengths.repeat(2), 1)
    dense = dense_network()
    blocks = Writer(dense, own, [0], recipe).round(0)
    assert (blocks[:, :3] == [5, 6, 7]).all()
    wanted = dense(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    found = torch.from_numpy(np.bincount(blocks[:, 3], minlength=VOCABULARY) / recipe.rows)
    # The total variation of so many samples is below sqrt(vocabulary / rows) / 2 on average.
    assert (found - wanted).abs().sum() / 2 < (VOCABULARY / recipe.rows) ** 0.5


def test_the_seed_decides_what_is_written() -> None:
    own = fixed_prompts()
    writer = Writer(dense_network(), own, [0], TINY)
    first, second = writer.round(0), writer.round(1)
    assert (first != second).mean() > 0.5
    assert (writer.round(0) == first).all()
    other = Writer(dense_network(), own, [0], replace(TINY, seed=1))
    assert (other.round(0) != first).mean() > 0.5


def test_shares_of_requests_and_beginnings() -> None:
    own = fixed_prompts()
    order = own.order(replace(TINY, rows=500, generated_tokens=16_000), 0)
    assert (order >= own.requests).double().mean().item() == pytest.approx(TINY.bare, abs=0.02)
    assert set(order.flatten().tolist()) == set(range(8))


def chat_tokenizer() -> Any:
    tokenizer = deepcopy(small_tokenizer())  # which other tests share
    tokenizer.chat_template = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}<answer>"
    return tokenizer


def test_prompts_are_topics_in_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set(prompts.TOPICS)) == len(prompts.TOPICS) > 200 and all(prompts.TOPICS)
    assert all(form.count("{}") == 1 for form in (*prompts.REQUESTS, *prompts.BEGINNINGS))
    generating = vars(generation)
    monkeypatch.setitem(generating, "TOPICS", ("noise",))
    monkeypatch.setitem(generating, "REQUESTS", ("Explain {}.",))
    monkeypatch.setitem(generating, "BEGINNINGS", ("{} is",))
    tokenizer = chat_tokenizer()
    own = Prompts.of(tokenizer)
    texts = [tokenizer.decode(row[:length]) for row, length in zip(own.tokens, own.lengths, strict=True)]
    assert texts == ["<user>Explain noise.<answer>", f"{END_OF_TEXT}Noise is"] and own.requests == 1


# Healing.


def test_chunked_divergence_is_the_direct_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healer, "TOKENS_PER_CHUNK", 7)
    generator = torch.Generator().manual_seed(0)
    hidden, head, target, target_head = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((20, 8), (50, 8), (20, 8), (50, 8))
    )
    leaves = hidden.requires_grad_(), head.requires_grad_()
    chunked = HeadDivergence.apply(hidden, head, target, target_head, divergence)
    direct = F.kl_div(
        (hidden @ head.T).log_softmax(-1),
        (target @ target_head.T).log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    torch.testing.assert_close(chunked.double(), direct, rtol=1e-5, atol=0)
    for found, wanted in zip(
        torch.autograd.grad(3 * chunked, leaves), torch.autograd.grad(3 * direct, leaves), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_pass_gives_divergence_balance_and_load() -> None:
    dense, tokens = dense_network(), some_tokens(4, seed=1)
    exact = Distillation(dense, mixture(UNBROKEN, dense), False).measure(tokens, 2)
    assert abs(exact.divergence) < 1e-6
    network = mixture(TINY, dense)
    found = Distillation(dense, network, False)(tokens)
    direct = F.kl_div(
        network(tokens).logits.log_softmax(-1).flatten(0, 1),
        dense(tokens).logits.log_softmax(-1).flatten(0, 1),
        log_target=True,
        reduction="batchmean",
    )
    torch.testing.assert_close(found.divergence, direct)
    routings = forward(network, tokens)[1]
    torch.testing.assert_close(found.balance, sum(each.balance_loss() for each in routings))
    assert torch.equal(found.load, torch.stack([each.load() for each in routings]))


def blocks_of_tokens(count: int = 400) -> np.ndarray:
    return some_tokens(count, seed=3).numpy().astype(np.uint16)


def healing(recipe: Recipe = TINY, blocks: np.ndarray | None = None) -> Healing:
    dense = dense_network()
    network = trainable(recipe, dense)
    return Healing(recipe, dense, network, blocks_of_tokens() if blocks is None else blocks, ALONE, False)


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("healed") / "out"
    assert upcycle.heal(healing(), small_tokenizer(), out)
    return out


def test_it_heals_and_stays_balanced(healed: Path) -> None:
    start = healing()
    before = start.distillation.measure(start.held_out, 4).divergence.item()
    entries = log(healed)
    assert [entry["step"] for entry in entries] == [20, 40, 45]
    assert entries[-1]["held_out_divergence"] < 0.75 * before
    assert entries[-1]["divergence"] < entries[0]["divergence"]
    assert 0.25 < entries[-1]["smallest_share"] < 1 < entries[-1]["largest_share"]
    assert 1 <= entries[-1]["balance_loss"] < 1.1
    assert entries[-1]["tokens"] == TINY.healing_tokens


def test_what_is_saved_loads_without_loss(healed: Path) -> None:
    model = load(healed)
    assert model.map.num_experts == (TINY.experts,) * 2
    assert not (healed / "checkpoint.safetensors").exists()
    recipe = json.loads((healed / "recipe.json").read_text())
    assert Recipe(**recipe["recipe"]) == TINY and recipe["hash"] == TINY.hash()
    again = AutoModelForCausalLM.from_pretrained(healed, dtype=torch.float32)
    assert same(model.network, again)
    end = Distillation(dense_network(), model.network, False)
    held_out = torch.from_numpy(blocks_of_tokens()[-healer.HELD_OUT_BLOCKS :].astype(np.int64))
    assert end.measure(held_out, 4).divergence.item() == pytest.approx(
        log(healed)[-1]["held_out_divergence"], rel=0.05
    )


def test_a_deepseek_heals_and_loads(tmp_path: Path) -> None:
    recipe = replace(DEEPSEEK, weight_perturbation=2.0)
    start = healing(recipe)
    before = start.distillation.measure(start.held_out, 4).divergence.item()
    assert upcycle.heal(start, small_tokenizer(), tmp_path)
    assert log(tmp_path)[-1]["held_out_divergence"] < 0.75 * before
    model = load(tmp_path)
    assert model.map.num_experts == (DEEPSEEK.experts,)
    assert {"shared_experts", "dense_ffn"} <= set(model.map.dense_kinds)
    found = upcycle.check(model, dense_network(), recipe, some_tokens(8, seed=3))
    assert found.divergence < 0.75 * before and len(found.smallest_share) == 1
    assert min(found.max_neuron_spread.values()) > 0


def test_a_stopped_run_ends_with_the_same_bits(healed: Path, tmp_path: Path) -> None:
    assert not upcycle.heal(healing(), small_tokenizer(), tmp_path, minutes=0)
    assert [entry["step"] for entry in log(tmp_path)] == [20]
    with (tmp_path / "log.jsonl").open("a") as entries:
        entries.write('{"step": 40}\n')  # of a run that was killed after this entry
    assert upcycle.heal(healing(), small_tokenizer(), tmp_path)
    assert [entry["step"] for entry in log(tmp_path)] == [20, 40, 45]
    assert (tmp_path / "model.safetensors").read_bytes() == (healed / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a finished model"):
        upcycle.heal(healing(), small_tokenizer(), tmp_path)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    upcycle.heal(healing(), small_tokenizer(), tmp_path, minutes=0)
    with pytest.raises(InputError, match="another recipe"):
        upcycle.heal(healing(replace(TINY, balance=0.3)), small_tokenizer(), tmp_path)


def test_a_checkpoint_without_later_entries_goes_on(healed: Path, tmp_path: Path) -> None:
    earlier = healing()
    state, later = earlier.state(), ("shared_experts", "dense_layers")
    told = {name: value for name, value in state["recipe"].items() if name not in later}
    earlier.state = lambda: state | {"recipe": told}  # type: ignore[method-assign]
    (tmp_path / "log.jsonl").touch()
    runs.save_checkpoint(earlier, tmp_path, 0.0)
    assert upcycle.heal(healing(), small_tokenizer(), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (healed / "model.safetensors").read_bytes()


def test_passes_of_a_step_add_up() -> None:
    """A step of several passes is the step on all of its blocks, but for the balance loss, which is of one pass."""
    recipe = replace(TINY, balance=0.0)
    steps = [healing(each) for each in (recipe, replace(recipe, micro_tokens=256))]
    found = [each.advance() for each in steps]
    torch.testing.assert_close(found[0].divergence, found[1].divergence)
    torch.testing.assert_close(steps[0].gradient, steps[1].gradient, rtol=1e-3, atol=1e-6)


def test_processes_share_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one after the other: the sum of their gradients is that of one process."""
    parts: list[list[torch.Tensor]] = []
    monkeypatch.setattr(Group, "sum", lambda self, *tensors: parts.append([each.clone() for each in tensors]))
    for rank in range(2):
        member = healing()
        member.group = Group(rank, 2)
        member.advance()
    healing().advance()
    for first, second, whole in zip(*parts, strict=True):
        torch.testing.assert_close(first + second, whole, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="2 passes.*3 processes"):
        Healing(TINY, dense_network(), mixture(), blocks_of_tokens(), Group(0, 3), False)


def test_experts_in_training_are_those_of_transformers() -> None:
    """Outputs and gradients; an expert without tokens gets a gradient of 0."""
    layer = mixture().requires_grad_(True).model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 32, generator=generator, requires_grad=True)
    chosen = torch.stack([torch.randperm(7, generator=generator)[:2] for _ in range(40)])
    weights = torch.rand(40, 2, generator=generator, requires_grad=True)
    slopes = torch.randn(40, 32, generator=generator)
    leaves = hidden, weights, layer.gate_up_proj, layer.down_proj
    found = experts.gathered_grouped_mm(layer, hidden, chosen, weights)
    layer.config._experts_implementation = "eager"
    wanted = layer(hidden, chosen, weights)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(each, leaves, slopes) for each in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not gradients[0][2][7].any() and gradients[0][2][:7].abs().sum((1, 2)).min() > 0


@pytest.mark.parametrize("count", [2**15, 2**15 + 1, 40_000])
def test_any_number_of_experts_can_be_trained(count: int) -> None:
    class Many(torch.nn.Module):
        num_experts = count
        act_fn = torch.nn.SiLU()

        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.gate_up_proj = torch.randn(count, 16, 8, generator=generator).bfloat16()
            self.down_proj = torch.randn(count, 8, 8, generator=generator).bfloat16()

    layer = Many()
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 8, generator=generator).bfloat16()
    chosen = torch.tensor([[0, count - 1], [count - 2, 1], [count - 1, 5], [300, count // 2]])
    found = experts.gathered_grouped_mm(layer, hidden, chosen, torch.ones(4, 2).bfloat16())
    for row, pair, output in zip(hidden, chosen, found, strict=True):
        wanted = torch.zeros(8)
        for expert in pair:
            gate, up = (layer.gate_up_proj[expert] @ row).chunk(2)
            wanted += (layer.down_proj[expert] @ (F.silu(gate) * up)).float()
        torch.testing.assert_close(output.float(), wanted, rtol=0.05, atol=0.3)


def test_every_block_is_read_once_in_an_epoch() -> None:
    epoch = np.concatenate([step_blocks(24, TINY, step) for step in range(6)])
    assert sorted(epoch[:24]) == sorted(epoch[24:]) == list(range(24))
    assert (epoch[:24] != epoch[24:]).any()


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(InputError, match="there are 40 blocks"):
        healing(blocks=blocks_of_tokens(40))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of dynamo itself
def test_layers_are_compiled_once_for_all() -> None:
    """As many graphs as functions: no layer has one of its own, and none is broken."""
    from torch._dynamo.testing import CompileCounter

    dense = dense_network(num_hidden_layers=4)
    network = trainable(TINY, dense)
    for each in (dense, network):
        cast_parameters(each, torch.bfloat16)  # as on a GPU; others cannot be compiled
    plain = Distillation(dense, network, False)
    compiled = Distillation(dense, network, False)
    counters = {name: CompileCounter() for name in ("layer", "loss")}
    torch._dynamo.reset()
    for name, counter in counters.items():
        setattr(compiled, name, torch.compile(getattr(compiled, name), backend=counter, fullgraph=True))
    tokens = some_tokens(4)
    found, wanted = compiled(tokens), plain(tokens)
    torch.testing.assert_close(found.divergence, wanted.divergence, rtol=0.05, atol=0)
    compiled(tokens)
    # Layers with experts, and dense ones.
    assert {name: counter.frame_count for name, counter in counters.items()} == {"layer": 2, "loss": 1}


# All of it.


def test_the_command_line_goes_from_a_dense_model_to_a_checked_mixture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, moe, tokens, out = (tmp_path / name for name in ("dense", "moe", "tokens", "out"))
    save(dense_network(), dense)
    chat_tokenizer().save_pretrained(dense)
    entries = [f"{name}={value}" for name, value in vars(replace(TINY, healing_tokens=256)).items()]
    common = ["--device", "cpu", "--set", *entries]
    main(["convert", str(dense), str(moe), *common])
    main(["generate", str(dense), str(tokens), *common])
    (tokens / "blocks-0001.npy").unlink()  # a run that was stopped there
    kept = (tokens / "blocks-0002.npy").stat().st_mtime_ns
    main(["generate", str(dense), str(tokens), *common])
    assert (tokens / "blocks-0002.npy").stat().st_mtime_ns == kept
    text = tmp_path / "prose.txt"
    text.write_text("noise on analog tiles\0hurts dense modules " * 40)
    main(["encode", str(dense), str(tmp_path / "prose"), str(text), *common])
    folders = [str(tmp_path / "prose"), str(tokens)]
    main(["heal", str(dense), str(moe), str(out), *common, "--tokens", *folders])
    capsys.readouterr()
    main(["check", str(dense), str(out), "--device", "cpu", "--text", str(text), "--tasks", "none"])
    shown = capsys.readouterr().out
    found = json.loads((out / "check.json").read_text())
    assert f"{found['divergence']:.4f}" in shown and re.search("accepted|refused", shown)
    assert bool(found["refused"]) == (min(found["smallest_share"]) < 0.25) and found["divergence"] > 0
    assert found["recipe_hash"] == json.loads((out / "recipe.json").read_text())["hash"]
    spread = found["max_neuron_spread"]
    model = load(out)
    assert spread == max_neuron_spread(scores(model), TINY)
    assert min(spread.values()) > 0
    other = [each if not each.startswith("weight_pert") else "weight_perturbation=0.1" for each in entries]
    with pytest.raises(InputError, match=r"weight_perturbation is 0\.1, but .*moe was made with 0\.3"):
        main(
            ["heal", str(dense), str(moe), str(tmp_path / "other"), "--set", *other, "--tokens", str(tokens)]
        )
    shutil.rmtree(tokens)
    with pytest.raises(InputError, match="no blocks"):
        main(["heal", str(dense), str(moe), str(tmp_path / "other"), *common, "--tokens", str(tokens)])


def test_check_finds_starved_experts() -> None:
    dense = dense_network()
    network = mixture(UNBROKEN, dense)
    network.model.layers[1].mlp.gate.weight.data.zero_()[: 2 * TINY.slices] = torch.randn(1, 32)
    found = upcycle.check(as_model(network), dense, UNBROKEN, some_tokens(8))
    assert found.starved >= 4 and found.smallest_share[1] == 0
    assert found.refused == (f"{found.starved} experts get less than 0.25 of a fair share",)
    assert found.smallest_share[0] > 0.25
    assert found.max_neuron_spread["copies"] < 1e-6 < found.max_neuron_spread["slices"]


def test_the_source_is_asked_for_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is no file"):
        upcycle.dequantise(tmp_path / "none.gguf", tmp_path / "out")
    monkeypatch.setattr(source, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="make smollm2"):
        source.installed_gguf()


def on_task(dense: float, mixture: float) -> OnTask:
    return OnTask("acc", 100, dense, (0.0, 1.0), mixture, (0.0, 1.0), dense - mixture, (-1.0, 1.0))


@pytest.mark.parametrize(
    ("tasks", "reasons"),
    [
        ({"piqa": (0.6, 0.59), "boolq": (0.5, 0.48)}, []),
        ({"piqa": (0.65, 0.59), "boolq": (0.5, 0.51)}, ["2.5% below"]),
        ({"piqa": (0.58, 0.57)}, ["piqa is 7.0% above chance"]),
        ({"hellaswag": (0.33, 0.32), "arc_easy": (0.3, 0.32)}, ["arc_easy is 7.0%", "hellaswag is 7.0%"]),
        ({}, []),
    ],
)
def test_what_is_accepted(tasks: dict[str, tuple[float, float]], reasons: list[str]) -> None:
    of_tasks = {task: on_task(*each) for task, each in tasks.items()}
    found = Check("hash", 1, 0.1, (0.3,), (2.0,), 0, {"copies": 1.0, "slices": 1.0}, of_tasks)
    assert len(found.refused) == len(reasons)
    for reason, expected in zip(found.refused, reasons, strict=True):
        assert expected in reason
    assert ("accepted" in str(found)) == (not reasons)


def test_what_is_lost_has_an_interval() -> None:
    """Errors of different tasks are independent: half widths of .04 and .03 are .05 together, and .025 of the mean."""
    of_tasks = {
        "piqa": replace(on_task(0.66, 0.6), lost_interval=(0.02, 0.1)),
        "boolq": replace(on_task(0.5, 0.51), lost_interval=(-0.04, 0.02)),
    }
    found = Check("hash", 1, 0.1, (0.3,), (2.0,), 0, {"copies": 1.0, "slices": 1.0}, of_tasks)
    assert found.lost_interval == pytest.approx((0.0, 0.05))
    assert "2.5% [0.0%, 5.0%]" in str(found) and found.refused[0].endswith("below the dense model's")


def test_both_models_are_asked_the_same(tmp_path: Path) -> None:
    """An unbroken mixture answers as the dense model, which is not a mixture, and nothing is lost."""
    tokenizer = load().tokenizer
    dense = dense_network(vocab_size=len(tokenizer), max_position_embeddings=512)
    model = replace(as_model(mixture(UNBROKEN, dense)), tokenizer=tokenizer)
    found = upcycle.check(model, dense, UNBROKEN, some_tokens(8), [CONTINUATION], 40).tasks[CONTINUATION]
    assert found.questions == 40 and found.mixture == found.dense > 0 and found.lost == 0


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec(source.PACKAGE) and find_spec("gguf")), reason="`make smollm2` installs the dense model"
)
def test_the_real_model_is_read_and_cut(tmp_path: Path) -> None:
    """Its first layers: all thirty take minutes."""
    upcycle.dequantise(source.installed_gguf(), tmp_path)
    dense: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(dense(tokens).logits[0, -1].argmax()) == " Paris"
    assert Prompts.of(tokenizer).requests == len(prompts.TOPICS) * len(prompts.REQUESTS)
    dense.model.layers = dense.model.layers[:4]
    dense.config.num_hidden_layers = 4
    exact = replace(Recipe(), router_perturbation=0.0, weight_perturbation=0.0)
    blocks = torch.randint(49152, (2, 512), generator=torch.Generator().manual_seed(0))
    network = upcycle.convert(dense, exact, blocks)
    torch.testing.assert_close(network(tokens).logits, dense(tokens).logits, rtol=0, atol=1e-4)
