"""Every mixture of experts of the installed transformers works exactly, or is refused at load for a reason we know."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from every_family import CONTEXT, PAGE, PARTS, REASONS, mixtures, multimodal, network, page, row
from safetensors.torch import load_file, save_file
from small_models import TEXTS, save
from torch import Tensor, nn

from realmodels import record
from realmodels.calibrate import calibrate
from realmodels.damage import expected_damage
from realmodels.deploy import STATUSES, Chip, deploy, deployed, withdraw
from realmodels.evaluate import block_results, evaluate
from realmodels.load import load
from realmodels.model import Model
from realmodels.prefix import Prefix
from realmodels.record import hooked
from realmodels.scores import scores
from theory.errors import InputError
from theory.hardware import Hardware
from theory.placement import STRATEGIES, Placement, place

KINDS = mixtures()
WORKING = [kind for kind in KINDS if f"| `{kind}` | works |" in PAGE.read_text()]
TILE = 16
EXACT = Hardware(c=0.0, dac_bits=None, adc_bits=None, tile_size=TILE)
NOISY = Hardware(c=1.5, tile_size=TILE)
TOKENS = torch.arange(5, 45)[None]


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "CALIBRATION_TOKENS", 2 * CONTEXT)


def loaded(kind: str, folder: Path, **options: Any) -> Model | InputError:
    """The tiny model of the type, saved and loaded, or why it is refused."""
    folder.mkdir(exist_ok=True)
    try:
        return load(save(network(kind), folder), **options)
    except InputError as error:
        return error


def placements(model: Model) -> Iterator[Placement]:
    """Everything analog; and everything but half of the experts."""
    layers = model.map.num_experts
    yield Placement(layers, tuple(() for _ in layers), model.map.dense_kinds)
    half = place(scores(model), 0.5)
    yield Placement(layers, half.digital_experts, model.map.dense_kinds)


@torch.no_grad()
def logits(model: Model) -> Tensor:
    return model.network(input_ids=TOKENS, use_cache=False).logits


def test_families_are_found() -> None:
    assert {"olmoe", "deepseek_v3", "qwen3_next", "llama4", "gemma4_text"} <= set(KINDS)
    assert not {"llama", "jetmoe2", *PARTS} & set(KINDS) and len(KINDS) >= 60


def test_the_page_is_that_of_these_families() -> None:
    """Its rows are those of the test below, which compares each."""
    rows = [each for each in PAGE.read_text().splitlines() if each.startswith("| `")]
    assert PAGE.read_text() == page(rows), "python tests/realmodels/every_family.py"
    assert [each.split("`")[1] for each in rows] == KINDS
    assert all(any(reason in each for each in rows) for reason in REASONS)
    assert sum("| works |" in each for each in rows) >= 63


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_works_exactly_or_is_refused(kind: str, tmp_path: Path) -> None:
    """Deployed without noise and converters it is the digital model to the last bit, every parameter is counted, and
    withdrawn it is as it was."""
    model = loaded(kind, tmp_path)
    assert row(kind, model) in PAGE.read_text().splitlines(), "python tests/realmodels/every_family.py"
    if isinstance(model, InputError):
        assert "\n" not in str(model) and any(reason in str(model) for reason in REASONS)
        return
    digital = logits(model)
    parameters = sum(each.numel() for each in model.network.parameters())
    calibration = calibrate(model, TEXTS, EXACT)
    for placement in placements(model):
        with deployed(model, placement, EXACT, calibration) as report:
            assert torch.equal(logits(model), digital)
            assert sum(report.count(status) for status in STATUSES) == report.total == parameters
            listed = sum(sum(report.parameters.get(kind, {}).values()) for kind in ("indexers", "other"))
            assert sum(report.by_name.values()) == listed
    assert torch.equal(logits(model), digital)


@pytest.mark.parametrize("kind", ["aria", "gemma4", "llama4", "qwen3_5_moe", "qwen4_exp"])
def test_a_multimodal_checkpoint_is_loaded_as_its_text_part(kind: str, tmp_path: Path) -> None:
    whole = multimodal(kind)
    model = load(save(whole, tmp_path))
    assert not any("vision" in name or "visual" in name for name, _ in model.network.named_parameters())
    text: Any = whole.language_model if kind == "llama4" else whole  # all of Llama 4 asks for pictures
    with torch.no_grad():
        assert torch.equal(text(input_ids=TOKENS, use_cache=False).logits, logits(model))


def test_multimodal_checkpoints_that_cannot_be_loaded_as_text(tmp_path: Path) -> None:
    for kind, reason in (
        (
            "qwen3_vl_moe",
            "no class for its text part alone, only Qwen3VLMoeForConditionalGeneration for all of it",
        ),
        (
            "minimax_m3_vl",
            "MiniMaxM3VLForCausalLM, the class for its text part, does not find [0-9]+ tensors",
        ),
    ):
        with pytest.raises(InputError, match=reason):
            load(save(multimodal(kind), tmp_path / kind))


def test_a_tensor_of_the_text_part_may_not_be_superfluous(tmp_path: Path) -> None:
    folder = save(multimodal("llama4"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["language_model.model.layers.0.extra.weight"] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match="1 of its tensors do not fit .*layers.0.extra.weight is superfluous"
    ):
        load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORKING)
def test_a_family_goes_all_the_way(kind: str, tmp_path: Path) -> None:
    model = loaded(kind, tmp_path)
    assert isinstance(model, Model)
    digital = logits(model)
    with torch.no_grad():
        assert torch.equal(network(kind)(input_ids=TOKENS, use_cache=False).logits, digital)
    for strategy in STRATEGIES:
        assert scores(model, strategy, TEXTS).isfinite().all()
    for gradient in (False, True):
        damage = expected_damage(model, TEXTS, NOISY, gradient=gradient)
        assert (damage >= 0).all() and (damage.sum(1) > 0).all()
    _, half = placements(model)
    calibration = calibrate(model, TEXTS, NOISY)
    assert calibrate(model, TEXTS, NOISY, "model").layers.keys() == calibration.layers.keys()
    deploy(model, half, NOISY, calibration)
    assert not torch.equal(logits(model), digital)
    assert evaluate(model, TEXTS).loss > 0
    withdraw(model)
    assert torch.equal(logits(model), digital)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORKING)
def test_analog_modules_compute_what_digital_ones_do(kind: str, tmp_path: Path) -> None:
    """With an ADC of 16 bits, wide ranges and no noise: each module for itself, on what it is given."""
    model = loaded(kind, tmp_path)
    assert isinstance(model, Model)
    fine = Hardware(c=0.0, dac_bits=None, adc_bits=16, tile_size=TILE, kappa=100.0, lam=1.0)
    names = [*model.map.linears, *(name for layer in model.map.moe_layers for name in layer.modules)]
    calls: dict[str, tuple[Any, Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, given: Sequence[Any], named: dict[str, Any], output: Tensor) -> None:
            assert not named
            calls[name] = tuple(each.clone() for each in given), output.clone()  # a block may write into it

        return hook

    with hooked(model.network, {name: keep(name) for name in names}):
        logits(model)
    assert calls.keys() == set(
        names
    )  # what is read and never called would stay digital, whatever a placement says
    calibration = calibrate(model, TEXTS, fine)
    for placement in placements(model):
        with deployed(model, placement, fine, calibration), torch.no_grad():
            for name, (given, output) in calls.items():
                error = model.network.get_submodule(name)(*given) - output
                assert error.abs().max() <= 0.01 * output.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORKING)
def test_a_chip_and_what_is_kept_before_it(kind: str, tmp_path: Path) -> None:
    """A chip for any placement is a deployment, and modules before the first analog one need not be called again."""
    model = loaded(kind, tmp_path)
    assert isinstance(model, Model)
    blocks = TOKENS.view(2, 20)
    calibration = calibrate(model, TEXTS, NOISY)
    chip, prefix = Chip(model, NOISY, calibration, seed=3), Prefix(model.network, blocks)
    for placement in placements(model):
        with deployed(model, placement, NOISY, calibration, seed=3):
            expected = block_results(model.network, blocks)
        for kept in (None, prefix, prefix):
            with chip.placed(placement):
                assert all(map(torch.equal, block_results(model.network, blocks, kept), expected))


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORKING)
def test_generation_with_a_cache_is_that_without(kind: str, tmp_path: Path) -> None:
    """As far as indexers let all tokens through: beyond, rounding chooses other ones, also in the digital model."""
    model = loaded(kind, tmp_path)
    assert isinstance(model, Model)
    prompt, length = TOKENS[:, :9], 16 if model.map.never_analog["indexers"] else 40
    hardware = Hardware(c=1.5, dac_bits=None, adc_bits=None, tile_size=TILE)
    for placement in placements(model):
        with deployed(model, placement, hardware, calibrate(model, TEXTS, hardware)):
            cached, uncached = (
                model.network.generate(  # type: ignore[operator]
                    prompt,
                    max_length=length,
                    do_sample=False,
                    use_cache=cache,
                    eos_token_id=-1,
                    pad_token_id=0,
                )
                for cache in (True, False)
            )
            assert torch.equal(cached, uncached) and cached.shape[1] == length


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORKING)
def test_bf16(kind: str, tmp_path: Path) -> None:
    model = loaded(kind, tmp_path, dtype=torch.bfloat16)
    assert isinstance(model, Model)
    digital, hardware = logits(model), Hardware(c=1.5, tile_size=TILE)
    calibration = calibrate(model, TEXTS, EXACT)
    for placement in placements(model):
        with deployed(model, placement, EXACT, calibration):
            assert torch.equal(logits(model), digital)
    with deployed(model, placement, hardware, calibrate(model, TEXTS, hardware)):
        assert logits(model).isfinite().all() and logits(model).dtype == digital.dtype
