"""A model of which most is kept on disk gives the numbers of the same model in memory, bit for bit on a CPU."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils.offload import OffloadedWeightsLoader
from small_models import EXPERTS, HIDDEN, TEXTS, network_named, save, small_network
from torch.multiprocessing.reductions import StorageWeakRef

from realmodels import deploy, evaluate, load, reprogram, scores, tasks, withdraw
from realmodels.analog import AnalogExperts, AnalogLinear
from realmodels.calibrate import Calibration, calibrate
from realmodels.compare import expert_damage, losses, mean_shift
from realmodels.damage import expected_damage
from realmodels.deploy import Chip, deployed
from realmodels.devices import device_of, fetched_again_for_gradients, is_offloaded, weights_of
from realmodels.evaluate import block_results, token_blocks
from realmodels.families import describe
from realmodels.load import Model
from realmodels.prefix import Prefix
from realmodels.tasks import CONTINUATION, evaluate_tasks
from theory.errors import InputError
from theory.hardware import Hardware
from theory.placement import STRATEGIES, Placement

# Our own class, one whose weights are changed by loading, transposed ones with biases, and an nn.ModuleList.
NAMES = ("olmoe", "deepseek", "gpt_oss", "list_moe")
TEXT = TEXTS[:4]
CONVERTERS = Hardware(programming="proportional", c=0.1, tile_size=16)
NOISE_ONLY = Hardware(programming="proportional", c=0.1, tile_size=16, dac_bits=None, adc_bits=None)


@dataclass(frozen=True)
class Pair:
    """One checkpoint loaded twice."""

    whole: Model
    split: Model
    ranges: tuple[Calibration, Calibration]  # of CONVERTERS

    def __iter__(self) -> Any:
        return iter((self.whole, self.split))


def load_split(folder: Path, offload_folder: Path, share: float = 0.5, **options: Any) -> Model:
    """Load with CPU memory for a share of the checkpoint's bytes; the rest is on disk."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    memory: dict[int | str, int | str] = {"cpu": int(share * size)}
    return load(folder, device="auto", max_memory=memory, offload_folder=offload_folder, **options)


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = save(network_named(request.param), tmp_path_factory.mktemp("checkpoint"))
    whole, split = load(folder), load_split(folder, tmp_path_factory.mktemp("rest"))
    return Pair(whole, split, (calibrate(whole, TEXT, CONVERTERS), calibrate(split, TEXT, CONVERTERS)))


def offloaded_parameters(model: Model) -> set[str]:
    """Parameters that nobody holds now: loaded for a call, they are gone after it."""
    return {name for name, parameter in model.network.named_parameters() if parameter.is_meta}


def mixed(model: Model) -> Placement:
    """Some experts digital and some analog, but all analog in the last layer, and some dense modules."""
    layers = len(model.map.moe_layers)
    digital = ((0, 2),) * (layers - 1) + ((),) if layers > 1 else ((0, 2),)
    dense = tuple(kind for kind in ("attention", "lm_head", "shared_experts") if model.map.dense[kind])
    return Placement(model.map.num_experts, digital, analog_modules=dense)


# -------------------------------------------------------------------------------------------------- loading


def test_experts_are_on_disk(pair: Pair) -> None:
    on_disk = offloaded_parameters(pair.split)
    for layer in pair.split.map.moe_layers:
        assert on_disk.issuperset(layer.weights)
        holders = {weight.rpartition(".")[0] for weight in layer.weights}
        assert all(is_offloaded(pair.split.network.get_submodule(name)) for name in holders)
    assert not offloaded_parameters(pair.whole)
    assert (pair.split.map, pair.split.weights_hash) == (pair.whole.map, pair.whole.weights_hash)
    assert describe(pair.split.network) == pair.whole.map
    assert device_of(pair.split.network) == torch.device("cpu")
    assert not any(parameter.requires_grad for parameter in pair.split.network.parameters())


def test_weights_are_read_from_disk(pair: Pair) -> None:
    expected = dict(pair.whole.network.named_parameters())
    before = offloaded_parameters(pair.split)
    found = {
        f"{name}.{own}": weight
        for name, module in pair.split.network.named_modules()
        for own, weight in weights_of(module).items()
    }
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], parameter) for name, parameter in expected.items())
    assert offloaded_parameters(pair.split) == before


@pytest.mark.parametrize("share", [0.0, 0.8])
def test_other_splits_and_precisions(share: float, tmp_path: Path) -> None:
    """All is on disk, or a part, in bf16, which is rounded when it is loaded or each time it is read."""
    folder, dtype = save(small_network(), tmp_path / "model"), (torch.bfloat16 if share else torch.float32)
    whole, split = load(folder, dtype=dtype), load_split(folder, tmp_path / "rest", share / 2, dtype=dtype)
    on_disk = offloaded_parameters(split)
    assert (len(on_disk) == len(list(split.network.parameters()))) == (share == 0)
    assert on_disk and {parameter.dtype for parameter in split.network.parameters()} == {dtype}
    assert evaluate(split, TEXT) == evaluate(whole, TEXT)
    assert torch.equal(scores(split), scores(whole))


def test_a_model_that_fits_is_loaded_whole(tmp_path: Path) -> None:
    model = load(save(small_network(), tmp_path), device="auto", max_memory={"cpu": "1GB"})
    assert not offloaded_parameters(model) and device_of(model.network) == torch.device("cpu")


def test_two_models_share_an_offload_folder(tmp_path: Path) -> None:
    """The parameters of both models have the same names."""
    models = []
    for seed in (0, 1):
        folder = save(small_network(seed), tmp_path / str(seed))
        models.append((load(folder), load_split(folder, tmp_path / "rest")))
    for whole, split in models:
        assert torch.equal(scores(split), scores(whole))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "auto", "max_memory": {"cpu": 0}}, "give load an offload_folder with space"),
        ({"device": "auto", "max_memory": {"cpu": "much"}}, "much is not.*another max_memory"),
        ({"device": "cpu", "max_memory": {"cpu": 10}}, "device cpu: max_memory and offload_folder are for"),
        ({"device": "cpu", "offload_folder": "rest"}, "device cpu: max_memory and offload_folder are for"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, small_model_folder: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(small_model_folder, **options)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scores(strategy: Any, pair: Pair) -> None:
    assert torch.equal(*(scores(model, strategy, TEXT) for model in pair))


def test_calibration(pair: Pair) -> None:
    assert pair.ranges[0] == pair.ranges[1]


def test_evaluation(pair: Pair) -> None:
    before = offloaded_parameters(pair.split)
    assert evaluate(pair.whole, TEXT) == evaluate(pair.split, TEXT)
    assert offloaded_parameters(pair.split) == before


@pytest.mark.parametrize("hardware", [CONVERTERS, NOISE_ONLY])
def test_deployment(hardware: Hardware, pair: Pair) -> None:
    """Compares the report, what the model computes with each seed, and the model that is left."""
    digital = evaluate(pair.whole, TEXT)
    results = []
    for model, own in zip(pair, pair.ranges, strict=True):
        before = offloaded_parameters(model)
        ranges = own if hardware is CONVERTERS else calibrate(model, TEXT, hardware)
        report = deploy(model, mixed(model), hardware, ranges, seed=1)
        first = evaluate(model, TEXT)
        assert report.count("analog") + report.count("digital by placement") + report.count(
            "never analog"
        ) == sum(parameter.numel() for parameter in model.network.parameters())
        reprogram(model, seed=2, mirrored=True)
        results.append((report, first, evaluate(model, TEXT)))
        for module in model.analog_modules.values():
            assert all(buffer.device.type == "cpu" for buffer in module.buffers())
        assert offloaded_parameters(model) == before  # digital experts' weights are not kept
        withdraw(model)
        assert evaluate(model, TEXT) == digital
        assert offloaded_parameters(model) == before and not model.analog_modules
    assert results[0] == results[1]
    assert results[0][1] != digital and results[0][1] != results[0][2]


def test_modules_without_anything_digital_read_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fully analog experts, and linear layers without a bias, need no weights."""
    read: list[str] = []
    fetch = OffloadedWeightsLoader.__getitem__

    def noted(self: OffloadedWeightsLoader, key: str) -> torch.Tensor:
        read.append(key)
        return fetch(self, key)

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", noted)
    model = pair.split
    with deployed(model, mixed(model), CONVERTERS, pair.ranges[1]):
        read.clear()
        evaluate(model, TEXT)
        for name, module in model.analog_modules.items():
            weights = {f"{name}.{own}" for own, _ in module.named_parameters()} & offloaded_parameters(model)
            biased = any(own.endswith("bias") for own in weights)
            something_digital = (
                bool(module.digital) if isinstance(module, AnalogExperts) else not module.is_analog
            )
            # An expert in an nn.ModuleList without tokens is not called.
            expected = weights if biased or something_digital else set()
            assert set(read) & weights in (
                [expected, set()] if isinstance(module, AnalogLinear) else [expected]
            )
    assert read


def test_one_chip_and_what_is_computed_once(pair: Pair) -> None:
    """One placement after the other, and each twice; then nothing is patched any more."""
    tokens = token_blocks(pair.whole, TEXT, 16, 3).tokens
    sizes = pair.whole.map.num_experts
    everything = Placement(sizes, ((),) * len(sizes))
    found = []
    for model, ranges in zip(pair, pair.ranges, strict=True):
        chip, prefix = Chip(model, CONVERTERS, ranges, 3), Prefix(model.network, tokens)
        for placement in (mixed(model), everything, mixed(model)):
            with chip.placed(placement):
                results = [block_results(model.network, tokens, each) for each in (None, prefix, prefix)]
            found.append(torch.stack([torch.stack(each) for each in results]))
            assert found[-1].diff(dim=0).eq(0).all()
    assert all(torch.equal(*each) for each in zip(found[:3], found[3:], strict=True))
    before = offloaded_parameters(pair.split)
    assert evaluate(pair.split, TEXT) == evaluate(pair.whole, TEXT)
    assert offloaded_parameters(pair.split) == before != set()


def test_placements_at_once(pair: Pair) -> None:
    if any(layer.linears for layer in pair.whole.map.moe_layers):
        pytest.skip("placements takes fused experts")
    tokens = token_blocks(pair.whole, TEXT, 16, 3).tokens
    layers = len(pair.whole.map.moe_layers)
    generator = torch.Generator().manual_seed(0)
    digital = torch.rand(3, layers, EXPERTS, generator=generator) < 0.5
    copied = torch.rand(3, layers, EXPERTS, generator=generator) < 0.3
    found = []
    for model, ranges in zip(pair, pair.ranges, strict=True):
        shift = mean_shift(model, CONVERTERS, ranges, 0, tokens)
        found.append(
            losses(model, digital, CONVERTERS, ranges, 0, tokens, copied=copied, copy_seed=1, shift=shift)
        )
        assert shift.shape == (layers, EXPERTS, HIDDEN) and shift.any()
    assert torch.equal(*found)
    damages = [
        expert_damage(model, NOISE_ONLY, calibrate(model, TEXT, NOISE_ONLY), [0], tokens) for model in pair
    ]
    assert torch.equal(*damages)
    assert offloaded_parameters(pair.split)


@pytest.mark.parametrize("gradient", [False, True])
def test_expected_damage(gradient: bool, pair: Pair) -> None:
    assert torch.equal(*(expected_damage(model, TEXT, CONVERTERS, gradient=gradient) for model in pair))


def test_a_head_tied_to_the_embedding_is_counted_once(tmp_path: Path) -> None:
    folder = save(small_network(tie_word_embeddings=True), tmp_path / "model")
    whole, split = load(folder), load_split(folder, tmp_path / "rest", share=0.0)
    assert {"model.embed_tokens.weight"} < offloaded_parameters(split)
    reports, evaluations = [], []
    for model in (whole, split):
        evaluate(model, TEXT)  # after a call, offloaded parameters are other objects
        ranges = calibrate(model, TEXT, CONVERTERS)
        with deployed(model, mixed(model), CONVERTERS, ranges) as report:
            reports.append(report)
            evaluations.append(evaluate(model, TEXT))
    assert reports[0] == reports[1] and evaluations[0] == evaluations[1]
    assert reports[0].total == sum(parameter.numel() for parameter in whole.network.parameters())


@pytest.mark.parametrize("simulator", ["aihwkit", "lightning"])
def test_peers(simulator: Any, pair: Pair) -> None:
    """The peers are programmed anew, and the model is digital afterwards."""
    pytest.importorskip("aihwkit")  # its wheels are for Linux on x86-64 only
    from realmodels.peers import PeerExperts, PeerLinear, deployed_on

    if (
        any(layer.linears for layer in pair.whole.map.moe_layers)
        or pair.whole.network.config.model_type == "gpt_oss"
    ):
        pytest.skip("the peers take experts that are laid out as OLMoE's")
    digital, results = evaluate(pair.whole, TEXT), []
    for model, ranges in zip(pair, pair.ranges, strict=True):
        before = offloaded_parameters(model)
        with deployed_on(simulator, model, mixed(model), CONVERTERS, ranges, seed=1) as report:
            assert {type(each) for each in model.analog_modules.values()} == {PeerLinear, PeerExperts}
            first = evaluate(model, TEXT)
            reprogram(model, seed=2)
            results.append((report, first, evaluate(model, TEXT)))
            assert offloaded_parameters(model) == before
        assert evaluate(model, TEXT) == digital
        assert offloaded_parameters(model) == before and not model.analog_modules
    assert results[0] == results[1]
    assert results[0][1] != digital and results[0][1] != results[0][2]


@pytest.mark.parametrize("tied", [False, True])
def test_tasks(tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers and log-likelihoods agree for a model that is all on disk, also the embedding, digital and deployed."""
    network = small_network(tie_word_embeddings=tied, max_position_embeddings=512)  # the questions' context
    folder = save(network, tmp_path / "model")
    whole, split = load(folder), load_split(folder, tmp_path / "rest", share=0.0)
    assert split.network.device.type == "meta"
    samples: list[Any] = []
    real = tasks.log_likelihoods

    def noted(*arguments: Any) -> Any:
        samples.append(real(*arguments).tolist())
        return real(*arguments)

    monkeypatch.setattr(tasks, "log_likelihoods", noted)
    results = []
    for model in (whole, split):
        samples.clear()
        evaluate(model, TEXTS)  # after a call, a tied head's parameter is another empty one
        before = offloaded_parameters(model)
        digital = evaluate_tasks(model, [CONTINUATION], 12)
        with deployed(model, mixed(model), CONVERTERS, calibrate(model, TEXTS, CONVERTERS)):
            analog = evaluate_tasks(model, [CONTINUATION], 12)
        assert evaluate_tasks(model, [CONTINUATION], 12) == digital
        assert offloaded_parameters(model) == before and not model.analog_modules
        assert samples[0] == samples[2] != samples[1]
        results.append((digital, analog, samples[:2]))
    assert results[0] == results[1]


# -------------------------------------------------------------------------------------------------- memory


def test_the_backward_pass_keeps_no_offloaded_weights(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient is that of a pass that keeps all weights."""
    fetched: list[StorageWeakRef] = []
    fetch = OffloadedWeightsLoader.__getitem__

    def tracked(self: OffloadedWeightsLoader, key: str) -> torch.Tensor:
        weight = fetch(self, key)
        fetched.append(StorageWeakRef(weight.untyped_storage()))
        return weight

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", tracked)
    network, tokens = pair.split.network, token_blocks(pair.split, TEXT, 16, 2).tokens
    kept, gradients = [], []
    for context in (nullcontext(), fetched_again_for_gradients(network)):
        embedded = network.get_input_embeddings()(tokens).requires_grad_()
        fetched.clear()
        with torch.enable_grad(), context:
            loss = network(inputs_embeds=embedded, use_cache=False).logits.square().sum()
        kept.append(sum(not each.expired() for each in fetched))
        gradients.extend(torch.autograd.grad(loss, embedded))
    assert kept[0] > len(fetched) // 4 and kept[1] == 0
    assert torch.equal(*gradients) and gradients[0].any()
    assert offloaded_parameters(pair.split)
