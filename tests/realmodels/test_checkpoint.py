"""The shipped checkpoints are what their model cards say, on the whole evaluation text."""

import json
from dataclasses import asdict

import pytest
import torch

from realmodels import evaluate, load
from realmodels.load import CHECKPOINTS
from realmodels.pretrain import Recipe
from realmodels.pretrain.baselines import xz_bits_per_byte
from realmodels.statistics import routing

# Numbers on the cards; the last one needs the training text, which is not shipped.
BITS_PER_BYTE = {"tiny-olmoe": 1.121, "tiny-deepseek-moe": 1.116}
KNESER_NEY_BITS_PER_BYTE, DENSE_TWIN_OF_OLMOE = 1.590, 1.162

models = pytest.mark.parametrize("name", BITS_PER_BYTE)


def test_every_checkpoint_is_here() -> None:
    assert {folder.name for folder in CHECKPOINTS.iterdir()} == set(BITS_PER_BYTE)


@models
def test_the_checkpoint_is_small_and_follows_its_recipe(name: str) -> None:
    folder = CHECKPOINTS / name
    files = list(folder.glob("*.safetensors"))
    assert len(files) == 1 and files[0].stat().st_size <= 16 * 2**20
    recipe = Recipe(**json.loads((folder / "recipe.json").read_text()))
    wanted, found = recipe.model_config().to_dict(), json.loads((folder / "config.json").read_text())
    for key in found.keys() - {"dtype", "transformers_version", "architectures"}:
        assert found[key] == wanted[key], key
    model = load(name)
    assert asdict(recipe)["context"] == model.context == found["max_position_embeddings"]
    assert not found["tie_word_embeddings"] and len(model.map.num_experts) >= 4
    assert set(model.map.num_experts) == {recipe.experts} and recipe.experts >= 32


@models
def test_the_curve_is_that_of_the_recipe(name: str) -> None:
    folder = CHECKPOINTS / name
    recipe = json.loads((folder / "recipe.json").read_text())
    trials = json.loads((folder / "trials.json").read_text())
    (run,) = [run for run in trials["runs"] if run["kind"] == name]
    assert Recipe(**run["recipe"]) == Recipe(**recipe)
    steps, *_ = zip(*run["log"], strict=True)
    assert list(steps) == sorted(steps) and steps[-1] == recipe["steps"]


@pytest.mark.slow
@models
def test_it_beats_xz_the_n_gram_and_the_dense_model(name: str) -> None:
    model = load(name)
    texts = model.texts("evaluation")
    found = evaluate(model, texts, block_tokens=model.context).bits_per_byte
    assert found == pytest.approx(BITS_PER_BYTE[name], abs=5e-3)  # the last partial block is left out
    assert 1.8 * found < xz_bits_per_byte(texts)
    assert found < DENSE_TWIN_OF_OLMOE < KNESER_NEY_BITS_PER_BYTE


@pytest.mark.slow
@models
def test_no_expert_has_less_than_a_quarter_of_its_fair_share(name: str) -> None:
    model = load(name)
    frequency = routing(model, list(model.texts("evaluation"))).frequency
    fair = model.network.config.num_experts_per_tok / frequency.shape[1]
    assert torch.all(frequency > fair / 4)
    assert frequency.sum(1).numpy() == pytest.approx(fair * frequency.shape[1])
