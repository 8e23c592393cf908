"""What the model card of tiny-olmoe says, on the whole evaluation text."""

import json
from dataclasses import asdict

import pytest
import torch

from realmodels import evaluate, load
from realmodels.baselines import xz_bits_per_byte
from realmodels.load import CHECKPOINTS, Model
from realmodels.pretrain import Recipe
from realmodels.statistics import routing

FOLDER = CHECKPOINTS / "tiny-olmoe"
# Of the model card; the last two need the training text, which is not shipped.
CARD_BITS_PER_BYTE = 1.121
KNESER_NEY_BITS_PER_BYTE, DENSE_BITS_PER_BYTE = 1.590, 1.162


@pytest.fixture(scope="module")
def model() -> Model:
    return load("tiny-olmoe")


def test_the_checkpoint_is_small_and_follows_its_recipe(model: Model) -> None:
    files = list(FOLDER.glob("*.safetensors"))
    assert len(files) == 1 and files[0].stat().st_size <= 16 * 2**20
    recipe = Recipe(**json.loads((FOLDER / "recipe.json").read_text()))
    wanted, found = recipe.model_config().to_dict(), json.loads((FOLDER / "config.json").read_text())
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_experts", "vocab_size"):
        assert found[name] == wanted[name]
    assert asdict(recipe)["context"] == model.context == found["max_position_embeddings"]
    assert not found["tie_word_embeddings"] and found["num_hidden_layers"] >= 4
    assert found["num_experts"] >= 32 and found["num_experts_per_tok"] == 4


@pytest.mark.slow
def test_it_beats_xz_the_n_gram_and_the_dense_model(model: Model) -> None:
    texts = model.texts("evaluation")
    found = evaluate(model, texts, block_tokens=model.context).bits_per_byte
    assert found == pytest.approx(CARD_BITS_PER_BYTE, abs=5e-3)  # the last partial block is left out
    assert 1.8 * found < xz_bits_per_byte(texts)
    assert found < DENSE_BITS_PER_BYTE < KNESER_NEY_BITS_PER_BYTE


@pytest.mark.slow
def test_no_expert_has_less_than_a_quarter_of_its_fair_share(model: Model) -> None:
    frequency = routing(model, model.texts("evaluation")).frequency
    fair = model.network.config.num_experts_per_tok / frequency.shape[1]
    assert torch.all(frequency > fair / 4)
    assert frequency.sum(1).numpy() == pytest.approx(fair * frequency.shape[1])
