"""What may the user ask for? The options of the command line, and the one line about a wrong one."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from figures.catalogue import PRESETS
from figures.output import COMMITTED, FORMATS
from theory.errors import InputError, did_you_mean
from theory.separation import FIRST_FRESH_SEED

ROOT = Path(__file__).parents[1]
# By option: the fields of hardware [theory.hardware.Hardware] that it gives, what it takes, and what that is.
HARDWARE_OPTIONS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "c": (("c",), "C", "magnitude of the programming noise, 0 for none"),
    "noise": (("programming",), "NAME", "programming noise: pcm, hermes, proportional or constant"),
    "w_max": (
        ("w_max",),
        "tile|column|layer",
        "the weights whose largest noise and ADC bound are relative to",
    ),
    "tile": (("tile_size",), "N", "rows and columns of a tile"),
    "bits": (("dac_bits", "adc_bits"), "N|none", "bits of every DAC and ADC; none for no converters"),
    "dac_bits": (("dac_bits",), "N|none", "bits of every DAC"),
    "adc_bits": (("adc_bits",), "N|none", "bits of every ADC"),
    "kappa": (("kappa",), "K|none", "DAC bound in standard deviations of its inputs; none: calibrated"),
    "lam": (("lam",), "L|none", "ADC bound in DAC bounds times w_max; none: calibrated"),
}
DEVICES = ("cpu", "cuda", "auto")
PLAN = "plan"  # the command's name
BUDGETS: Mapping[str, tuple[str, str]] = {
    "digital_experts": ("N|N%", "at most so many digital experts, or such a share of all"),
    "digital_parameters": (
        "N|N%",
        "at most so many digital parameters (experts and dense modules), or a share",
    ),
    "digital_memory": ("BYTES", "for all digital weights at 2 bytes each; 1.5GB, say"),
    "energy": ("J", "at most so many joules per token"),
    "throughput": ("N", "at least so many tokens/s"),
    "loss_increase": ("NATS|N%", "at most so much more loss per token; of such placements the smallest"),
    "accuracy_drop": ("POINTS", "at most so many points of accuracy on --tasks; likewise the smallest"),
}


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in args:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in self._option_string_actions:
                hint = did_you_mean(name, self._option_string_actions) or "; see --help"
                raise InputError(f"{name}: no such option{hint}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> Any:
        raise InputError(message if message.endswith("?") else f"{message}; see --help")


def parser(program: str, report: str) -> argparse.ArgumentParser:
    """The parser of the program's arguments; what is unusable raises InputError.

    report: name of the file that --report writes.
    """
    options = _Parser(
        prog=program,
        description="Reproduce an exhibit: numbers, picture, verdicts. Another command, `plan --help`: what of a model"
        " should be digital?",
        epilog="Files are called EXHIBIT.PRESET.json, .csv, .png, ..., with options that change the numbers in the"
        f" name, and EXHIBIT.{COMMITTED}.json, ... with --from-data. None replaces another's, but for a run on another"
        " --device.",
        allow_abbrev=False,
    )
    add = options.add_argument
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--figure", metavar="NAME", help="a figure: a number of the paper, or a name of our own"
    )
    what.add_argument("--table", metavar="NAME", help="a table")
    what.add_argument("--all", action="store_true", help="every exhibit in turn, whatever becomes of another")
    what.add_argument("--list", action="store_true", help="every exhibit, its times, its committed verdicts")
    what.add_argument("--claims", action="store_true", help="every statement: derivation, tests, verdicts")
    add("--version", action="version", version=f"paper-repro {_version()}")
    add("--json", action="store_true", help="--list or --claims for programs: fields in figures/ledger.py")
    add(
        "--preset",
        type=_one_of(PRESETS),
        metavar="|".join(PRESETS),
        help="how much to compute (default: default); quick decides nothing",
    )
    add(
        "--tasks",
        type=_text,
        metavar="NAMES",
        help="tasks of lm-eval, too: names with commas between, or paper for the paper's",
    )
    _add_measured(
        add,
        f"the first of the seeds (default: {FIRST_FRESH_SEED}, or what the exhibit's rules say): another one"
        " gives fresh draws and trainings",
    )
    add(
        "--out",
        type=_folder,
        metavar="DIR",
        default=Path("results"),
        help="folder of files and cache (default: results)",
    )
    add(
        "--forget", action="store_true", help="delete what the exhibit's runs have kept in --out; run nothing"
    )
    add(
        "--workers",
        type=_count,
        metavar="N",
        help="processes (default: one per core; 1 on cuda and auto); on cuda each has a GPU of its own",
    )
    add(
        "--cluster",
        type=_address,
        metavar="HOST:PORT",
        help="compute on the workers of this Dask scheduler, which see the same --out; --workers is then how many units"
        " at once. Give one that you trust: the client, too, runs what comes from it",
    )
    add(
        "--from-data",
        action="store_true",
        help="draw the committed result, run nothing; with --report, rather one that a run without such options left"
        " in --out",
    )
    add("--format", type=_formats, metavar="LIST", default=("png", "pdf"), help="of png,pdf,svg")
    add("--report", action="store_true", help=f"all that is shown as one page, {report}")
    return options


def _add_measured(add: Callable[..., Any], first_seed: str) -> None:
    """The options of whatever measures a model: which one, on what text, hardware and device.

    first_seed: help of --first-seed.
    """
    add("--model", type=_text, help="tiny-olmoe, a folder or a hub id")
    add(
        "--device",
        type=_one_of(DEVICES),
        metavar="|".join(DEVICES),
        help="where to compute (default: cpu); auto: one model over all GPUs and CPU memory",
    )
    add("--seeds", type=_count, metavar="N", help="independent noise draws or trainings")
    add("--first-seed", type=_seed, metavar="N", help=first_seed)
    add(
        "--text",
        type=_text,
        metavar="TEXT",
        help="evaluate on docstrings (default), on prose, or on a UTF-8 file; ./prose: a file of such a name",
    )
    add(
        "--calibration",
        type=_text,
        metavar="FILE",
        help="a UTF-8 file for converter ranges and scores, in the place of our own calibration text",
    )
    add(
        "--hardware",
        type=_text,
        metavar="NAME|FILE",
        help="analog hardware: pcm, hermes, ideal, paper, or a .json or .toml file with fields of it",
    )
    for name, (_, metavar, words) in HARDWARE_OPTIONS.items():
        add(flag(name), type=_text, metavar=metavar, help=f"hardware: {words}")


def plan_parser(program: str) -> argparse.ArgumentParser:
    """The parser of the command `plan`; what is unusable raises InputError."""
    options = _Parser(
        prog=f"{program} {PLAN}",
        description="Which experts and dense modules should be digital, within budgets? What will that cost?",
        epilog="Give one or several budgets. Writes placement.json, experts.csv, frontier.csv, plan.json, plan.html and"
        " two pictures.",
        allow_abbrev=False,
    )
    add = options.add_argument
    for name, (metavar, words) in BUDGETS.items():
        add(flag(name), type=_text, metavar=metavar, help=f"budget: {words}")
    add(
        "--tasks",
        type=_text,
        metavar="LIST",
        help="measure accuracy on these, or on `paper`; needs make tasks",
    )
    add("--questions", type=_count, metavar="N", help="of each task (default: 100)")
    add("--score", type=_text, metavar="NAME", help="what experts are ranked by (default: expected_damage)")
    _add_measured(add, f"the first of the seeds (default: {FIRST_FRESH_SEED}): another one gives fresh draws")
    add(
        "--batch",
        type=_count,
        metavar="N",
        help="sequences that are generated at once, for energy and throughput",
    )
    add(
        "--from",
        dest="saved",
        type=_text,
        action="append",
        metavar="FILE",
        default=[],
        help="a plan.json to compare with: of another model or hardware; may be given several times",
    )
    add(
        "--out",
        type=_folder,
        metavar="DIR",
        default=Path("results") / PLAN,
        help="folder of files (default: results/plan)",
    )
    return options


def hardware_of(options: argparse.Namespace) -> tuple[dict[str, Any] | None, str]:
    """The fields of hardware that the user gave, None for none, and a line about them.

    Options override the fields of --hardware, which the line says. InputError for two options that give one field.
    """
    given = {name: getattr(options, name) for name in HARDWARE_OPTIONS if getattr(options, name) is not None}
    if options.hardware is None and not given:
        return None, ""
    from theory.hardware_files import field_from_text, named_fields  # only here: torch takes seconds

    named = {} if options.hardware is None else named_fields(options.hardware)
    own, by = dict[str, Any](), dict[str, str]()
    for name, text in given.items():
        for field in HARDWARE_OPTIONS[name][0]:
            if field in own:
                raise InputError(f"{by[field]} and {flag(name)} both give {field}: leave one of them out")
            try:
                own[field] = field_from_text(field, text)
            except InputError as error:
                raise InputError(f"{flag(name)}: {error}") from None
            by[field] = flag(name)
    fields = named | own
    line = ", ".join(f"{field} {value}" for field, value in fields.items())
    over = [f"{by[field]} overrides {field} {named[field]}" for field in own if field in named]
    return fields, "; ".join([f"hardware: {line}", *over])


def flag(name: str) -> str:
    """The option as the user writes it: `--first-seed` of first_seed."""
    return f"--{name.replace('_', '-')}"


def _version() -> str:
    try:
        return version("paper-repro")
    except PackageNotFoundError:  # a checkout that is not installed
        import tomllib

        return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def _one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    def chosen(text: str) -> str:
        if text not in allowed:
            hint = did_you_mean(text, allowed)
            raise argparse.ArgumentTypeError(
                f"{text!r} is not allowed: give one of {', '.join(allowed)}{hint}"
            )
        return text

    return chosen


def _text(text: str) -> str:
    """What a result records has to be text."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: give a text that is not empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8: give another name") from None
    return text


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("'' is not allowed: give a folder, . for this one")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text}: there is no such home; give a folder") from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: give a whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not allowed: give a whole number of at least 0")
    return int(text)


def _address(text: str) -> str:
    if not re.search(r":\d+$", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: give HOST:PORT")
    return text


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(text.split(",")))
    for name in formats:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is not allowed: give one or more of {','.join(FORMATS)}{did_you_mean(name, FORMATS)}"
            )
    return formats
