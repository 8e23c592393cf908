"""How does a model go on simulated analog hardware, in place, with every parameter accounted for?

Noise comes from one generator per module, seeded with the deployment's seed and the module's name. So the noise of a
module does not depend on the placement, and placements are compared under the same noise. It is drawn on the model's
device, and differs between kinds of devices: the same model, placement, hardware, calibration and seed on the same kind
of device is the same chip, in any process. A chip that is to outlive them is saved [realmodels.chip].
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from realmodels.analog import AnalogExperts, AnalogLinear
from realmodels.calibrate import Calibration, calibrate
from realmodels.devices import device_of
from realmodels.families import DENSE_KINDS, NEVER_ANALOG_KINDS
from realmodels.fused import fused_layout
from realmodels.model import Deployment, Model, require_model
from theory.errors import InputError, require_kind
from theory.hardware import Hardware, require_hardware
from theory.placement import Placement
from theory.strict_json import is_whole

_LOG = logging.getLogger(__name__)
SAVED_DIGITAL = "model %s is deployed: its digital weights are saved; save_chip(model, file) keeps the chip"
STATUSES = ("analog", "digital by placement", "never analog")
LISTED = ("indexers", "other")  # of the kinds that are never analog


@dataclass(frozen=True)
class DeploymentReport:
    """Where the parameters of a model are.

    parameters: by kind and status (`analog`, `digital by placement`, `never analog`), how many there are.
    total: how many the model has.
    by_name: of the kinds LISTED, by the name that parameters have in every layer ("model.layers.*.conv1d.weight").
    """

    parameters: Mapping[str, Mapping[str, int]]
    total: int
    by_name: Mapping[str, int] = field(default_factory=dict)

    def count(self, status: str) -> int:
        return sum(counts[status] for counts in self.parameters.values())

    def __str__(self) -> str:
        totals = {status: self.count(status) for status in STATUSES}
        lines = [f"{'parameters':<18}" + "".join(f"{status:>22}" for status in STATUSES)]
        for kind, counts in {**self.parameters, "all": totals}.items():
            cells = (f"{counts[status]:>14,} {counts[status] / self.total:>7.2%}" for status in STATUSES)
            lines.append(f"{kind:<18}" + "".join(cells))
        if self.by_name:
            lines.append(f"never analog of {' and '.join(LISTED)}:")
        lines += [f"  {count:>14,} {name}" for name, count in self.by_name.items()]
        return "\n".join(lines)


def deploy(
    model: Model,
    placement: Placement,
    hardware: Hardware,
    calibration: Sequence[str] | Calibration,
    seed: int = 0,
    *,
    mirrored: bool = False,
    fp32: bool = False,
) -> DeploymentReport:
    """Replace what `placement` does not keep digital by analog modules with freshly programmed weights.

    A placement that puts nothing on analog hardware is a deployment, too: it can be withdrawn.

    calibration: texts, or what `calibrate` made of them for hardware with the same converters and tiles.
    seed: seed of the programming noise.
    mirrored: take the opposite noise [theory.hardware.program].
    fp32: on an NVIDIA GPU, keep programmed weights in fp32; that is slower [`realmodels.analog.layers`].
    InputError, before anything is changed, if the model is deployed already or the placement does not fit it.
    """
    _check_seed(seed)
    report, modules = planned(model, placement)
    calibration = _calibration(model, calibration, hardware)
    analog = {name: made(model, name, each, hardware, calibration, fp32) for name, each in modules.items()}
    for name, module in analog.items():
        _program(name, module, seed, mirrored)
    install(model, analog, Deployment(placement, hardware, seed, mirrored, fp32))
    return report


def reprogram(model: Model, seed: int, *, mirrored: bool = False) -> None:
    """Program a deployed model's analog weights anew, as `deploy` with this seed (and `mirrored`) would."""
    _check_seed(seed)
    for name, module in _require_deployed(model).items():
        _program(name, module, seed, mirrored)
        module.deployment = replace(module.deployment, seed=seed, mirrored=mirrored)


def withdraw(model: Model) -> None:
    """Make the model digital again, bit for bit."""
    for name, module in _require_deployed(model).items():
        model.network.set_submodule(name, module.original)


class Chip:
    """A model's weights on analog hardware, programmed once for any number of placements.

    A module is programmed when a placement first needs it, with all of its experts, and then kept: memory for all
    programmed weights is needed. Under every placement the model gives what `deploy` with the same seed gives, bit for
    bit.

    Arguments are those of `deploy`, and so are the errors.
    """

    def __init__(
        self,
        model: Model,
        hardware: Hardware,
        calibration: Sequence[str] | Calibration,
        seed: int = 0,
        *,
        mirrored: bool = False,
        fp32: bool = False,
    ) -> None:
        _check_seed(seed)
        self.model, self.hardware = model, hardware
        self._calibration = _calibration(model, calibration, hardware)
        self.seed, self._mirrored, self._fp32 = seed, mirrored, fp32
        self._modules: dict[tuple[str, bool], AnalogLinear | AnalogExperts] = {}

    @contextmanager
    def placed(self, placement: Placement) -> Iterator[DeploymentReport]:
        """Deploy with this placement for the length of a `with` block, as `deployed` does."""
        report, modules = planned(self.model, placement)
        analog = {name: self._module(name, each) for name, each in modules.items()}
        try:
            on = Deployment(placement, self.hardware, self.seed, self._mirrored, self._fp32)
            install(self.model, analog, on)
            yield report
        finally:
            for name, module in analog.items():
                self.model.network.set_submodule(name, module.original)

    def _module(self, name: str, digital: bool | tuple[int, ...]) -> AnalogLinear | AnalogExperts:
        key = name, digital is True
        if key not in self._modules:
            never = digital if isinstance(digital, bool) else ()
            self._modules[key] = made(self.model, name, never, self.hardware, self._calibration, self._fp32)
        module = self._modules[key]
        if isinstance(module, AnalogExperts) and isinstance(digital, tuple):
            module.keep_digital(digital)
        if not module.is_programmed:
            _program(name, module, self.seed, self._mirrored)
        return module


@contextmanager
def deployed(
    model: Model,
    placement: Placement,
    hardware: Hardware,
    calibration: Sequence[str] | Calibration,
    seed: int = 0,
    *,
    mirrored: bool = False,
) -> Iterator[DeploymentReport]:
    """Deploy for the length of a `with` block, and withdraw at the end of it, whatever happens inside."""
    report = deploy(model, placement, hardware, calibration, seed, mirrored=mirrored)
    try:
        yield report
    finally:
        withdraw(model)


def install(model: Model, analog: Mapping[str, AnalogLinear | AnalogExperts], on: Deployment) -> None:
    """Put programmed modules into the network, by their names."""
    for name, module in analog.items():
        module.deployment = on
        model.network.set_submodule(name, module)
    hooks = model.network._state_dict_pre_hooks.values()
    if not any(getattr(hook, "func", None) is _say_what_is_saved for hook in hooks):
        model.network.register_state_dict_pre_hook(partial(_say_what_is_saved, model.name))


def _say_what_is_saved(name: str, network: nn.Module, *_: object) -> None:
    """Before weights are taken as a state dict, by save_pretrained, say."""
    if any(isinstance(module, AnalogLinear | AnalogExperts) for module in network.modules()):
        _LOG.warning(SAVED_DIGITAL, name)


def _require_deployed(model: Model) -> dict[str, AnalogLinear | AnalogExperts]:
    require_model(model)
    deployed = model.analog_modules
    if not deployed:
        raise InputError(f"model {model.name} is not deployed: call deploy first")
    return deployed


def planned(model: Model, placement: Placement) -> tuple[DeploymentReport, dict[str, bool | tuple[int, ...]]]:
    """Where parameters will be; and of each module that is replaced whether it is digital, or its digital experts.

    Also modules that stay digital are replaced: a deployment with nothing analog can then be told from none.
    """
    require_model(model)
    require_kind(
        placement, Placement, "placement", "as place makes it of scores and Placement.load of a file"
    )
    model.require_digital()
    if placement.num_experts != model.map.num_experts:
        raise InputError(
            f"placement.num_experts is {placement.num_experts}, but {model.name} has {model.map.num_experts}: make"
            " the placement from scores of this model"
        )
    linears = model.map.resolve(placement.analog_modules)
    modules: dict[str, bool | tuple[int, ...]] = dict.fromkeys(linears, False)
    for layer, digital in zip(model.map.moe_layers, placement.digital_experts, strict=True):
        if not layer.linears:
            modules[layer.experts] = digital
        for expert, names in enumerate(layer.linears):
            modules |= dict.fromkeys(names, expert in digital)
    return _account(model, placement, linears), modules


def _calibration(model: Model, given: Sequence[str] | Calibration, hardware: Hardware) -> Calibration:
    require_hardware(hardware)
    if not isinstance(given, Calibration):
        return calibrate(model, given, hardware)
    if _ranges(given.hardware) != _ranges(hardware):
        raise InputError(
            f"calibration is for {given.hardware}, deployment for {hardware}: calibrate for the latter"
        )
    return given


def made(
    model: Model,
    name: str,
    digital: bool | tuple[int, ...],
    hardware: Hardware,
    calibration: Calibration,
    fp32: bool,
) -> AnalogLinear | AnalogExperts:
    """The module that replaces the one of this name, not yet programmed."""
    original = model.network.get_submodule(name)
    if isinstance(digital, tuple):
        both = {each: calibration[f"{name}.{each}"] for each in fused_layout(original).weights}
        return AnalogExperts(original, digital, hardware, both, fp32=fp32)
    assert isinstance(original, nn.Linear)
    return AnalogLinear(original, hardware, None if digital else calibration[f"{name}.weight"], fp32=fp32)


def _program(name: str, module: AnalogLinear | AnalogExperts, seed: int, mirrored: bool) -> None:
    if not module.is_analog:
        return
    device = device_of(module)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    module.program(generator, mirrored=mirrored)
    if device.type == "cuda" and module.why_not_fused:
        _LOG.info("%s takes a slower path: %s", name, module.why_not_fused)


def _ranges(hardware: Hardware) -> tuple[object, ...]:
    """The settings of the hardware that a calibration depends on."""
    return hardware.tile_size, hardware.w_max, hardware.dac_bits, hardware.adc_bits, hardware.kappa


def _check_seed(seed: int) -> None:
    if not is_whole(seed):
        raise InputError(f"seed is {seed!r}: give a whole number")


def _account(model: Model, placement: Placement, linears: tuple[str, ...]) -> DeploymentReport:
    """Count every parameter once; one with two uses (a tied LM head) is analog if one of the uses is."""
    kinds = ("experts", *DENSE_KINDS, *NEVER_ANALOG_KINDS)
    counts = {kind: dict.fromkeys(STATUSES, 0) for kind in kinds}
    # By name: offloaded parameters with two uses are two empty ones.
    same = model.network.all_tied_weights_keys
    seen: set[str] = set()

    by_name: dict[str, int] = {}

    def add(kind: str, status: str, name: str, count: int | None = None) -> None:
        first = same.get(name, name)
        if count is None:
            count = 0 if first in seen else model.network.get_parameter(name).numel()
        counts[kind][status] += count
        if kind in LISTED and count:
            everywhere = re.sub(r"\.\d+(?=\.)", ".*", name)
            by_name[everywhere] = by_name.get(everywhere, 0) + count
        seen.add(first)

    for layer, digital in zip(model.map.moe_layers, placement.digital_experts, strict=True):
        for name in () if layer.linears else layer.weights:
            weight = model.network.get_parameter(name)
            each = weight[0].numel()
            add("experts", "analog", name, each * (layer.num_experts - len(digital)))
            add("experts", "digital by placement", name, each * len(digital))
            unread = each * (len(weight) - layer.num_experts)  # rows for experts without weights
            add("other", "never analog", name, unread)
        for expert, names in enumerate(layer.linears):
            for name in names:
                add("experts", "digital by placement" if expert in digital else "analog", f"{name}.weight")
    for analog in (True, False):  # analog uses first
        for kind, names in model.map.dense.items():
            for name in names:
                if (name in linears) == analog:
                    add(kind, "analog" if analog else "digital by placement", f"{name}.weight")
    for kind, names in model.map.never_analog.items():
        for name in names:
            add(kind, "never analog", name)
    total = sum(
        parameter.numel()
        for name, parameter in model.network.named_parameters(remove_duplicate=False)
        if name not in same
    )
    used = {kind: each for kind, each in counts.items() if any(each.values())}
    report = DeploymentReport(used, total, by_name)
    counted = sum(report.count(status) for status in STATUSES)
    if counted != total:
        raise InputError(
            f"{counted} of {total} parameters of {model.name} are accounted for: this model is not supported"
        )
    return report
