"""How is a chip kept in a file? Its programmed weights and ranges, and what it is, as safetensors.

A file belongs to one model, by the hash of its weights as they are loaded, and to one way of storing programmed
weights: fp16 on an NVIDIA GPU, fp32 elsewhere. The header says what the chip is, and holds a hash of header and
weights, with zeros in its own place. Anybody may have made a file: nothing of it runs, and all of it is checked before
the model is changed. Weights are written and read part by part.
"""

import hashlib
import json
import math
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from realmodels.analog import AnalogExperts, AnalogLinear, LayerCalibration
from realmodels.analog.crossbars import Crossbars
from realmodels.analog.ranges import Calibration
from realmodels.deploy import DeploymentReport, install, made, planned
from realmodels.fused import fused_layout
from realmodels.model import Deployment, Model, require_model
from theory.errors import InputError, shown
from theory.files import from_home, write_whole
from theory.hardware import Hardware
from theory.placement import Placement
from theory.strict_json import fields_of, is_whole, loads

FORMAT = "paper-repro chip 1"
LARGEST_HEADER = 2**27  # bytes
# Of converters: far beyond those of any hardware, and products of two are numbers of fp32.
BOUNDS = (1e-15, 1e15)
_ZEROS = 64 * "0"
_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
_ANY = LayerCalibration(1.0, 1.0, 1.0)  # until the ranges of the file are there
_PARTS = ("weight", "input_bound", "lam")  # of a crossbar array, in the file


@dataclass(frozen=True)
class _Content:
    """What the header says of a chip.

    weights_hash: of the digital model. modules: by name, the experts that are programmed; [0] for a linear layer.
    """

    model: str
    weights_hash: str
    placement: Mapping[str, Any]
    hardware: Mapping[str, Any]
    seed: int
    mirrored: bool
    fp32: bool
    modules: Mapping[str, list[int]]


@dataclass(frozen=True)
class _Entry:
    """A tensor of the file, and what gives its content, part by part."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[Tensor]]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def save_chip(model: Model, file: str | Path) -> None:
    """Write the chip that a deployed model is on: the same chip gives the same bytes.

    InputError if the model is not deployed, or if the file cannot be written; it is there whole or not at all.
    """
    require_model(model)
    on = model.deployment
    if on is None:
        raise InputError(f"model {model.name} is not deployed: call deploy first")
    modules, entries = {}, {}
    for name, module in model.analog_modules.items():
        programmed = {key: each for key, each in module.crossbars.items() if _is_programmed(name, each)}
        modules[name] = [] if not programmed else module.held if isinstance(module, AnalogExperts) else [0]
        for key, each in programmed.items():
            entries[f"{name}.{key}.weight"] = _Entry(*each.stored_form, each.parts)
            for part in _PARTS[1:]:
                tensor: Tensor = getattr(each, part)
                entries[f"{name}.{key}.{part}"] = _Entry(
                    tensor.dtype, tuple(tensor.shape), partial(iter, [tensor])
                )
    content = _Content(
        model=Path(model.name).name,
        weights_hash=model.weights_hash,
        placement=asdict(on.placement),
        hardware=asdict(on.hardware),
        seed=on.seed,
        mirrored=on.mirrored,
        fp32=on.fp32,
        modules=modules,
    )
    # Numbers of a file are aligned if larger ones come first.
    ordered = sorted(entries.items(), key=lambda each: -each[1].dtype.itemsize)
    with write_whole(from_home(file), "chip file") as out:
        _write(out, content, ordered)


def _is_programmed(name: str, crossbars: Any) -> bool:
    if not isinstance(crossbars, Crossbars):
        raise InputError(f"{name} is on another simulator's tiles: only chips of this project can be saved")
    return crossbars.is_programmed


def _write(out: BinaryIO, content: _Content, entries: list[tuple[str, _Entry]]) -> None:
    digest = hashlib.sha256()
    header = _header(content, entries, _ZEROS)
    weights = (_bytes(part) for _, entry in entries for part in entry.parts())
    everything: Iterator[bytes | memoryview] = chain([header], weights)
    for data in everything:
        digest.update(data)
        out.write(data)
    out.seek(0)
    out.write(_header(content, entries, digest.hexdigest()))


def _bytes(tensor: Tensor) -> memoryview:
    content: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(content)


def _header(content: _Content, entries: list[tuple[str, _Entry]], digest: str) -> bytes:
    """The beginning of a safetensors file; its library writes none without all tensors at hand."""
    chip = json.dumps(asdict(content))
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "chip": chip, "sha256": digest}}
    end = 0
    for name, entry in entries:
        header[name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": (end, end := end + entry.size),
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def load_chip(model: Model, file: str | Path) -> DeploymentReport:
    """Deploy a model on the chip that `save_chip` wrote; `model.deployment` then says what it is.

    Outputs are those that the model had on it, bit for bit, on the same kind of device. `withdraw` and `reprogram` work
    as after `deploy`. InputError, before anything is changed, if the model is deployed, if the chip is another model's,
    or if the file is damaged or none of ours.
    """
    require_model(model)
    path, where = from_home(file), f"chip file {file}"
    model.require_digital()
    try:
        digest, found = _digests(path)
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError("it is no chip of this project's: give a file that save_chip wrote")
            if metadata.get("sha256") != digest or digest != found:
                raise InputError("it is damaged: get an intact copy")
            content, on = _content(metadata.get("chip", ""))
            if content.weights_hash != model.weights_hash:
                raise InputError(
                    f"it is a chip of the model {shown(content.model)} with the weights"
                    f" {content.weights_hash[:12]}, not of {model.name} with {model.weights_hash[:12]}: load that model"
                )
            report, modules = _restored(model, content, on, opened)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except OSError as error:
        raise InputError(
            f"{where} cannot be read ({error.strerror or error}): give a file that save_chip wrote"
        ) from None
    except SafetensorError as error:
        raise InputError(f"{where} is no intact safetensors file ({error}): get an intact copy") from None
    install(model, modules, on)
    return report


def _digests(path: Path) -> tuple[str, str]:
    """The hash that the header holds, or "", and that of the file with zeros in its place."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError("it is no regular file: give a file that save_chip wrote")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.read(8)
        length = int.from_bytes(size, "little")
        if length > LARGEST_HEADER:
            raise InputError(
                f"it is no safetensors file, or its header has more than {LARGEST_HEADER} bytes: give a file that"
                " save_chip wrote"
            )
        header = file.read(length)
        before, name, after = header.partition(b'"sha256": "')
        digest.update(size + before + name + _ZEROS.encode() + after[64:])
        hashlib.file_digest(file, lambda: digest)  # the rest
    return after[:64].decode(errors="replace"), digest.hexdigest()


def _content(text: str) -> tuple[_Content, Deployment]:
    """What the header says, every field checked."""
    content = _Content(**fields_of(_Content, loads(text), "the chip"))
    kinds = {
        "model": str,
        "weights_hash": str,
        "placement": dict,
        "hardware": dict,
        "mirrored": bool,
        "fp32": bool,
    }
    for name, kind in (kinds | {"modules": dict}).items():
        if not isinstance(getattr(content, name), kind):
            raise InputError(f"the chip's {name} is no {kind.__name__}: get an intact copy")
    if not is_whole(content.seed):
        raise InputError("the chip's seed is no whole number: get an intact copy")
    placement = Placement(**fields_of(Placement, content.placement, "placement"))
    hardware = Hardware(**fields_of(Hardware, content.hardware, "hardware"))
    return content, Deployment(placement, hardware, content.seed, content.mirrored, content.fp32)


@torch.no_grad()
def _restored(
    model: Model, content: _Content, on: Deployment, opened: Any
) -> tuple[DeploymentReport, dict[str, AnalogLinear | AnalogExperts]]:
    """Where parameters will be, and the modules with the weights and ranges of the file."""
    report, plan = planned(model, on.placement)
    if set(plan) != set(content.modules):
        raise InputError("its modules are not those of its placement: get an intact copy")
    left, modules = set(opened.keys()), {}
    for name, digital in plan.items():
        held = content.modules[name]
        modules[name] = module = _module(model, name, digital, held, on)
        if module.is_analog and not held:
            raise InputError(f"{name} is not programmed: get an intact copy")
        for target in module.targets() if held else ():
            key, crossbars = f"{name}.{target.name}", module.crossbars[target.name]
            slices = math.ceil(target.matrices.shape[-1] / on.hardware.tile_size)
            for part, widths in (("input_bound", ((1,), (slices,))), ("lam", ((),))):
                own = [(*crossbars.lam.shape, *width) for width in widths]
                bound = _tensor(opened, f"{key}.{part}", torch.float64, own)
                if not ((bound >= BOUNDS[0]) & (bound <= BOUNDS[1])).all():
                    least, most = BOUNDS
                    raise InputError(f"{key}.{part} is not from {least:g} to {most:g}: get an intact copy")
                setattr(crossbars, part, bound)
            shape = (len(target.experts), *target.matrices.shape[1:])
            dtype, own_shape = crossbars.form(shape, target.stored, target.matrices.dtype)
            read = partial(_tensor, opened, f"{key}.weight", dtype, [own_shape])
            crossbars.restore(target.matrices, target.experts, read)
            left -= {f"{key}.{part}" for part in _PARTS}
    if left:
        raise InputError(f"it holds {shown(min(left))}, which is no part of its chip: get an intact copy")
    return report, modules


def _module(
    model: Model, name: str, digital: bool | tuple[int, ...], held: Any, on: Deployment
) -> AnalogLinear | AnalogExperts:
    """The module, not yet programmed; held: the experts that the file has programmed weights of."""
    if not isinstance(held, list) or not all(map(is_whole, held)):
        raise InputError(f"{name} holds {shown(held)}: whole numbers are needed; get an intact copy")
    original = model.network.get_submodule(name)
    parts = fused_layout(original).weights if isinstance(digital, tuple) else ("weight",)
    ranges = Calibration({f"{name}.{part}": _ANY for part in parts}, on.hardware)
    if not isinstance(digital, tuple):
        if held != ([] if digital else [0]):
            raise InputError(
                f"{name} is programmed where its placement says it is digital, or not programmed"
            )
        return made(model, name, digital, on.hardware, ranges, on.fp32)
    never = set(range(original.get_parameter("down_proj").shape[0])) - set(held)
    module = made(model, name, tuple(sorted(never)), on.hardware, ranges, on.fp32)
    if not isinstance(module, AnalogExperts) or module.held != held:
        raise InputError(f"{name} holds experts that it does not have: get an intact copy")
    module.keep_digital(digital)
    return module


def _tensor(opened: Any, key: str, dtype: torch.dtype, shapes: list[tuple[int, ...]], *part: slice) -> Tensor:
    """A tensor of the file, or a part; InputError unless it has this dtype, one of the shapes, and finite numbers."""
    if key not in opened.keys():  # noqa: SIM118
        raise InputError(f"it lacks {key}: get an intact copy")
    found = opened.get_slice(key)
    if found.get_dtype() != _NAMES[dtype] or tuple(found.get_shape()) not in shapes:
        raise InputError(
            f"{key} is {found.get_dtype()} {found.get_shape()}, where the model here stores {_NAMES[dtype]}"
            f" {list(shapes[-1])}: load the model on the kind of device that the chip was programmed on"
        )
    tensor: Tensor = found[part] if part else opened.get_tensor(key)
    if not tensor.isfinite().all():
        raise InputError(f"{key} has numbers that are not finite: get an intact copy")
    return tensor
