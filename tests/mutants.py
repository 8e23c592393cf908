"""Is every small change of a formula, a verdict or a separation noticed? The mutation test.

    python tests/mutants.py [--claim ID] [--module NAME] [--most N] [--verdicts N] [--workers N]

A mutant is a copy of a module with one change:
- in a formula (FORMULAS, ON_TENSORS): a sign flipped, a factor dropped, a product turned into a quotient, < into <=, a
  constant or a function replaced. It is caught if a step in the derivation of a claim of that formula fails, or else
  a test that carries such a claim;
- where verdicts are made (DECIDING, and all that `summarise` of an exhibit reaches, with the constants of the module
  that it uses): the same, and conditions negated, differences reversed, directions, extremes and slices exchanged. It
  is caught if a test of the module's own tests fails within TEST_SECONDS; those that take longer train or run models;
- where texts and seeds are kept apart, in the whole module of an exhibit: another split of the text, another purpose
  of a seed. Tests may take SEPARATION_SECONDS.
Mutants that cannot be noticed, as they are the same function or the same supremum, are listed in EQUIVALENT with the
reason. Exit status 1
if a mutant is not caught.
"""

import argparse
import ast
import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import accumulate
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

# Imported once, and not in each of the processes that are forked below. Of theory, only what no mutant changes.
import flint  # noqa: F401
import hypothesis
import matplotlib.pyplot  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import sympy  # noqa: F401
import torch
import transformers.models.deepseek_v2.modeling_deepseek_v2
import transformers.models.olmoe.modeling_olmoe  # noqa: F401
import z3  # noqa: F401

from theory.claims import CLAIMS, marked_tests
from theory.errors import InputError, run

TESTS = Path(__file__).parent
PACKAGES = ("theory", "synthetic", "realmodels", "figures")
STEP_SECONDS = 60  # a step that takes longer has not proved its equation
MUTANT_SECONDS = 240  # a mutant that takes longer does not end
EXAMPLES = 10  # how many each property test tries
TEST_SECONDS = 4  # a test that takes longer catches no mutant of a verdict
SEPARATION_SECONDS = 120  # and none of a separation

# The functions that state the formulas of a claim; all claims of a function can catch its mutants.
FORMULAS: dict[str, dict[str, tuple[str, ...]]] = {
    "theory.moments": {
        "relu_mean": ("M1",),
        "relu_bias": ("M1",),
        "relu_second_moment": ("M2",),
        "relu_variance": ("M2",),
        "relu_third_moment": ("M3",),
        "relu_third_moment_about": ("M3",),
        "_cubic_tail": ("M3",),
        "_ratio": ("M1", "M2", "M3"),
    },
    "theory.growth": {
        "own_gate": ("G",),
        "token_choice_gate": ("G-token",),
        "growth_rate": ("G",),
        "own_token_weight": ("G",),
        "ratio_correction": ("G",),
        "class_margin": ("G",),
        "knee": ("G",),
        "saturating_weight": ("G",),
        "weight_ratio": ("G",),
        "late_ratio": ("G",),
        "leakage": ("G",),
        "norm_ratio": ("G",),
        "dead_probability": ("G",),
        "momentum_step": ("G-linear",),
        "logistic_time": ("G-logistic",),
        "adam_moments": ("G-adam",),
        "adam_step": ("G-adam",),
        "adam_rate": ("G-adam",),
    },
    "theory.tolerance.formulas": {
        "concentration": ("B",),
        "tolerable_noise": ("B", "Cor"),
        "failure_bound": ("B-mean",),
        "error_bound": ("U",),
        "relu_exponential": ("B-exp",),
        "tail_events": ("Bu",),
        "ideal_frequent_sd": ("Gain",),
        "ideal_third": ("Gain",),
    },
    "theory.damage": {"product_variance": ("D", "D-dense", "D-sum"), "gated_variance": ("D",)},
    "theory.end_to_end": {
        "evaluate": ("E",),
        "_score": ("E",),
        "_share": ("E",),
        "failure_probability": ("E",),
        "deviation": ("E",),
        "step_unit": ("E",),
        "class_counts": ("E",),
        "gaussian_size": ("E",),
        "binomial_tail": ("E",),
        "rise_size": ("E",),
        "rise_exponent": ("E",),
        "gate_rest": ("E",),
        "most_decrease": ("E",),
        "least_margin": ("E",),
        "most_output": ("E",),
        "most_mean": ("E",),
        "digital_floor": ("E",),
        "noise_sd": ("E",),
        "frequent_lyapunov": ("E",),
        "rare_lyapunov": ("E",),
    },
    "theory.derivations.lemmas": {"gaussian_tail": ("P",)},
    "theory.derivations.moments": {"_first": ("M1",), "_second": ("M2",), "_third": ("M3",)},
}
# Functions that take tensors only, so that no derivation calls them: tests alone catch their mutants.
ON_TENSORS: dict[str, dict[str, tuple[str, ...]]] = {
    "theory.tolerance.network": {
        "Network.noise": ("B",),
        "Network.preactivations": ("B", "H"),
        "Network.token_noise": ("B", "H"),
        "Network.lipschitz_squared": ("B", "H"),
    },
    "theory.tolerance.terms": {
        "Terms.margin": ("B",),
        "Terms.bias": ("B",),
        "Terms.mean": ("B-mean", "P"),
        "Terms.variance": ("P",),
        "terms_of": ("B", "H", "P"),
        "adc_loss": ("H",),
    },
    "theory.tolerance.bounds": {
        "mean_shift": ("C",),
        "uniform_bound": ("Bu",),
        "predicted_accuracy": ("P",),
        "pointwise": ("B",),
        "exact_mean_bound": ("B-mean",),
        "exponential_bound": ("B-exp",),
        "upper_bound": ("U",),
        "inverse_scale": ("U",),
        "largest": ("B-mean", "B-exp", "U"),
    },
    "theory.tolerance.classes": {
        "tolerance_floor": ("B-mean", "B-exp", "Cor", "U"),
        "tolerance_ceiling": ("U",),
        "predicted_tolerance": ("P",),
        "linear_gain": ("Gain",),
        "_by_kind": ("B-mean", "P", "U"),
    },
    "theory.damage": {"expected_damage": ("D",), "linear_damage": ("D-dense",)},
    "realmodels.damage": {"dense_damage": ("D-dense",)},
}
# Where else it is decided what holds: modules and their tests.
DECIDING: dict[str, tuple[str, ...]] = {
    "theory.evidence": ("figures/test_evidence.py",),
    "theory.separation": ("theory/test_separation.py",),
    "theory.trend": ("theory/test_trend.py",),
    "theory.placement": ("theory/test_placement.py",),
    "theory.hardware_files": ("theory/test_hardware_files.py",),
    "synthetic.robustness": ("synthetic/test_robustness.py",),
    "realmodels.compare": ("realmodels/test_compare.py",),
    "realmodels.pretrain.size": ("realmodels/test_transfer.py",),
    "realmodels.pretrain.transfer": ("realmodels/test_transfer.py",),
}
# Modules that hand texts to exhibits, and their tests.
HANDING: dict[str, tuple[str, ...]] = {
    "realmodels.experiments.rig": ("realmodels/experiments/test_rig.py",),
    "realmodels.record": ("realmodels/test_splits.py",),
    "realmodels.statistics": ("realmodels/test_splits.py",),
    "realmodels.tasks": ("realmodels/test_tasks.py",),
}


def _exhibits() -> dict[str, tuple[str, ...]]:
    """The modules of exhibits, and their tests."""
    return {
        f"{package}.experiments.{path.stem}": tuple(
            f"{package}/experiments/{name}.py"
            for name in (f"test_{path.stem}_exhibit", "test_rig")
            if (TESTS / package / "experiments" / f"{name}.py").is_file()
        )
        for package in ("synthetic", "realmodels")
        for path in sorted((TESTS.parent / package / "experiments").glob("*.py"))
        if "\ndef summarise(" in path.read_text(encoding="utf-8")
    }


EXHIBITS = _exhibits()
MODULES = tuple(dict.fromkeys([*FORMULAS, *ON_TENSORS, *DECIDING, *EXHIBITS, *HANDING]))
SUPREMUM = "the supremum is the same with and without the end of the interval"
EQUIVALENT = {
    "synthetic.experiments.stress._rule_of_thumb: each.statistics[name] >= threshold"
    " -> each.statistics[name] > threshold": "no value lies on a threshold, which is between two values",
    "realmodels.experiments.figure_4._findings_on_tasks: 12 -> 13": "rounding errors are smaller than either",
    "theory.evidence.averaged: each.mean(0) - each.mean() -> each.mean() - each.mean(0)": (
        "products of deviations of units enter the interval, and their signs cancel"
    ),
    "theory.evidence.averaged: rows[:, None] + np.concatenate(columns)"
    " -> rows[:, None] - np.concatenate(columns)": "the same: deviations of units enter as products",
    "theory.trend.Line._variance: x - self.centre -> self.centre - x": "its square alone enters",
    "theory.trend.fit: values - values.mean() - slope * away -> slope * away - (values - values.mean())": (
        "its square alone enters"
    ),
    "theory.evidence.best_threshold: side * values >= side * threshold -> side * values > side * threshold": (
        "no value lies on a threshold, which is between two values"
    ),
    "synthetic.experiments.growth.Run.unsaturated: self.knee(True, sign) > self.steps[-1]"
    " -> self.knee(True, sign) >= self.steps[-1]": "a knee is no whole number of steps",
    "synthetic.robustness.SILU_NODES: 64 -> 65": "one node more changes the mean by rounding alone",
    "synthetic.robustness._silu_mean: a[..., None] + sigma[..., None] * nodes"
    " -> a[..., None] - sigma[..., None] * nodes": "nodes lie symmetrically, with equal weights",
    "theory.damage.linear_damage: 0 -> 1": "inputs have no variance that the weight would be multiplied by",
    "theory.growth.weight_ratio: 1 -> 2": "the rate of both weights, which the ratio does not depend on",
    "theory.tolerance.bounds.mean_shift: shift.mean(1) * network.analog[:, None] -> shift.mean(1)": (
        "a digital expert has no noise, and so no shift"
    ),
    "theory.tolerance.bounds.predicted_accuracy: sd > 0 -> sd >= 0": "mean/0 is infinite or nan, too",
    "theory.tolerance.bounds.exact_mean_bound: terms.least_mean(low, high) >= tau * terms.lipschitz * high"
    " -> terms.least_mean(low, high) > tau * terms.lipschitz * high": SUPREMUM,
    "theory.tolerance.bounds.exponential_bound: terms.most_error(low, high) <= delta"
    " -> terms.most_error(low, high) < delta": SUPREMUM,
    "theory.tolerance.bounds.upper_bound: terms.least_error(low, high) > failure"
    " -> terms.least_error(low, high) >= failure": SUPREMUM,
    "theory.tolerance.classes.linear_gain: torch.inf * one -> torch.inf / one": "one is 1",
    "theory.tolerance.classes.linear_gain: torch.inf * one -> torch.inf": "one is 1",
    "theory.tolerance.classes.linear_gain: quantile > 0 -> quantile >= 0": "a quantile of 0 gives a gain of 0",
    "theory.tolerance.classes.predicted_tolerance: float(error.mean()) > failure"
    " -> float(error.mean()) >= failure": SUPREMUM,
    "theory.tolerance.classes.tolerance_ceiling: independent(terms).least_error(*ends).mean(0, keepdim=True) > failure"
    " -> independent(terms).least_error(*ends).mean(0, keepdim=True) >= failure": SUPREMUM,
    "theory.tolerance.classes.tolerance_floor: terms.most_error(*ends).mean(0, keepdim=True) <= failure"
    " -> terms.most_error(*ends).mean(0, keepdim=True) < failure": SUPREMUM,
    "theory.tolerance.bounds.uniform_bound: margin <= 0 -> margin < 0": "the formula gives 0 for a margin of 0",
    "theory.tolerance.terms.terms_of: gates > 0 -> gates >= 0": "a token without weight is a term of coefficient 0",
    "theory.tolerance.terms.terms_of: 0 -> 1 (2)": "no inputs have no terms, of whichever number",
    "theory.tolerance.terms.terms_of: labels[:, None, None, None] * network.signs[:, None, None]"
    " -> labels[:, None, None, None] / network.signs[:, None, None]": "a sign is its own inverse",
}

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
# Attributes of tensors and of torch that a mutant swaps.
ATTRIBUTES = {"minimum": "maximum", "maximum": "minimum", "amax": "amin", "sum": "mean"}
# The same where verdicts are made.
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "argmax": "argmin", "argmin": "argmax"}
WORDS = {"above": "below", "below": "above"}
# And where texts and seeds are handed out.
SPLITS = {"calibration": "evaluation", "evaluation": "calibration"}
PURPOSES = {"search": "evaluation", "copies": "evaluation", "evaluation": "search"}


@dataclass(frozen=True)
class Mutant:
    """A module with one change.

    name: "module.function: what -> what".
    source: source of the whole module with the change.
    symbolic: True if derivations evaluate the function.
    """

    name: str
    module: str
    claims: tuple[str, ...]
    source: str
    symbolic: bool = True
    tests: tuple[str, ...] = ()
    seconds: int = 0

    @property
    def group(self) -> str:
        """Under what it is counted."""
        return self.claims[0] if self.claims else self.module


def mutants(module: str) -> Iterator[Mutant]:
    """Every mutant of the module, in the order of the source."""
    source = (
        TESTS.parent / f"{module.replace('.', '/')}.py"
    ).read_bytes()  # importing it would load its package
    starts = [0, *accumulate(len(line) for line in source.splitlines(keepends=True))]
    names: Counter[str] = Counter()
    for where, node, variant, fields in _changes(module, ast.parse(source)):
        what = ast.unparse(variant)
        name = f"{module}.{where}: {ast.unparse(node)} -> {what}"
        names[name] += 1
        if names[name] > 1:
            name += f" ({names[name]})"
        assert isinstance(node, ast.expr) and node.end_lineno and node.end_col_offset  # for mypy
        before = source[: starts[node.lineno - 1] + node.col_offset]
        after = source[starts[node.end_lineno - 1] + node.end_col_offset :]
        changed = (before + f"({what})".encode() + after).decode()
        yield Mutant(name, module, source=changed, **fields)


Change = tuple[
    str, ast.AST, ast.AST, dict[str, Any]
]  # where, what is changed into what, fields of the mutant


def _changes(module: str, tree: ast.Module) -> Iterator[Change]:
    tensors = ON_TENSORS.get(module, {})
    for function, claims in (FORMULAS.get(module, {}) | tensors).items():
        for node in _formula_nodes(_find(tree, function)):
            for variant in _variants(node):
                yield function, node, variant, {"claims": claims, "symbolic": function not in tensors}
    tests = DECIDING.get(module, EXHIBITS.get(module, ()))
    fields = {"claims": (), "symbolic": False, "tests": tests, "seconds": TEST_SECONDS}
    for where, definition in _deciding(module, tree) if tests else ():
        for node in _formula_nodes(definition, words=False):
            for changed, variant in (*((node, each) for each in _variants(node)), *_decisions(node)):
                yield where, changed, variant, fields
    tests = HANDING.get(module, EXHIBITS.get(module, ()))
    fields = {"claims": (), "symbolic": False, "tests": tests, "seconds": SEPARATION_SECONDS}
    for where, definition in _definitions(tree).items() if tests else ():
        for node in ast.walk(definition):
            for word, other in _handed_out(node):
                yield where, word, other, fields


def _deciding(module: str, tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Where verdicts are made: all of a module in DECIDING, what `summarise` reaches in an exhibit.

    Of constants, only numbers.
    """
    definitions = _definitions(tree)
    reached, waiting = {"summarise"}, ["summarise"] if module in EXHIBITS else []
    while waiting:
        for node in ast.walk(definitions[waiting.pop()]):
            used = node.id if isinstance(node, ast.Name) else getattr(node, "attr", None)
            found = {name for name in definitions if name.rpartition(".")[2] == used} - reached
            reached |= found
            waiting += found
    for name, node in definitions.items():
        number = not isinstance(node, ast.Expr) or _is_number(node.value)
        if number and (name in reached or module in DECIDING):
            yield name, node


def _definitions(tree: ast.Module) -> dict[str, ast.AST]:
    """Functions, methods, and values of constants, by their names in the module."""
    found: dict[str, ast.AST] = {}
    for node in tree.body:
        match node:
            case ast.FunctionDef(name):
                found[name] = node
            case ast.ClassDef(name, body=body):
                found |= {f"{name}.{each.name}": each for each in body if isinstance(each, ast.FunctionDef)}
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(
                ast.Name(name), value=ast.expr() as value
            ):
                found[name] = ast.Expr(value)
            case ast.Assign([ast.Tuple(names)], ast.Tuple(values)):
                found |= {ast.unparse(name): ast.Expr(each) for name, each in zip(names, values, strict=True)}
    return found


def _find(tree: ast.AST, name: str) -> ast.FunctionDef:
    """The function or method with this dotted name."""
    node = tree
    for part in name.split("."):
        node = next(
            each
            for each in ast.iter_child_nodes(node)
            if isinstance(each, ast.ClassDef | ast.FunctionDef) and each.name == part
        )
    assert isinstance(node, ast.FunctionDef)
    return node


def _formula_nodes(node: ast.AST, words: bool = True) -> Iterator[ast.AST]:
    """Nodes that compute: no annotations, checks of the input, indices, or dimensions given to tensor methods.

    words: False for no f-strings and no dicts either, which tables and pictures show, and no options of reductions.
    """
    if isinstance(node, ast.FunctionDef):
        children: list[ast.AST] = list(node.body)
    elif isinstance(node, ast.AnnAssign):
        children = [node.value] if node.value else []
    elif isinstance(node, ast.Subscript):
        children = [node.value]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        children = [node.func, *(each for each in node.args if not _is_number(each)), *node.keywords]
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        guard = isinstance(child, ast.If) and all(isinstance(each, ast.Raise) for each in child.body)
        option = isinstance(child, ast.keyword) and child.arg in (
            "strict",
            "keepdims",
            "keepdim",
            "axis",
            "dim",
        )
        wording = not words and (option or isinstance(child, ast.JoinedStr | ast.Dict))
        if not guard and not wording and not isinstance(child, ast.Assert | ast.Raise):
            yield child
            yield from _formula_nodes(child, words)


def _is_number(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _is_number(node.operand)
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _variants(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.BinOp(left, operator, right):
            text = any(
                isinstance(each, ast.Constant) and isinstance(each.value, str) for each in (left, right)
            )
            if type(operator) in SWAPPED and not text:
                yield ast.BinOp(left, SWAPPED[type(operator)](), right)  # type: ignore[arg-type]
            if isinstance(operator, ast.Mult | ast.Div | ast.Pow):
                yield left
            if isinstance(operator, ast.Mult):
                yield right
        case ast.UnaryOp(ast.USub(), operand):
            yield operand
        case ast.Compare(left, [operator], right) if type(operator) in SWAPPED:
            yield ast.Compare(left, [SWAPPED[type(operator)]()], right)  # type: ignore[list-item]
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            yield ast.Constant(value + 1 if isinstance(value, int) or value == 0 else 1.1 * value)
        case ast.Call(ast.Name(name), [argument, *_]) if name in ("Phi", "Q"):
            yield ast.Call(ast.Name("Q" if name == "Phi" else "Phi"), [argument], [])
        case ast.Attribute(value, name) if name in ATTRIBUTES:
            yield ast.Attribute(value, ATTRIBUTES[name])


def _decisions(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """What else changes a verdict: pairs of a part of the node and its variant."""
    match node:
        case ast.If(test) | ast.IfExp(test):
            yield test, ast.UnaryOp(ast.Not(), test)
        case ast.comprehension(ifs=tests):
            yield from ((test, ast.UnaryOp(ast.Not(), test)) for test in tests)
        case ast.BoolOp(operator, values):
            yield node, ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not() | ast.Invert(), operand):
            yield node, operand
        case ast.BinOp(left, ast.Sub(), right):
            yield node, ast.BinOp(right, ast.Sub(), left)
        case ast.Call(ast.Name(name) as function) if name in NAMES:
            yield function, ast.Name(NAMES[name])
        case ast.Attribute(value, name) if name in NAMES:
            yield node, ast.Attribute(value, NAMES[name])
        case ast.Constant(bool() as value):
            yield node, ast.Constant(not value)
        case ast.Constant(str() as value) if value in WORDS:
            yield node, ast.Constant(WORDS[value])
        case ast.Subscript(value, ast.Slice(None | ast.Constant(0 | 1), None, ast.Constant(2)) as part):
            start = None if part.lower else ast.Constant(1)
            yield node, ast.Subscript(value, ast.Slice(start, None, part.step))
        case ast.Subscript(value, ast.Slice(lower, upper, None)) if lower or upper:
            yield node, value
        case ast.Subscript(value, ast.UnaryOp(ast.USub(), ast.Constant(1))):  # often all rows after the first
            yield node, ast.Subscript(value, ast.Constant(0))


def _handed_out(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """The splits of texts and the purposes of seeds that a call names, and others."""
    match node:
        case ast.Call(
            ast.Attribute(attr="texts") | ast.Name("held_out"), [ast.Constant(str() as split) as word]
        ):
            yield word, ast.Constant(SPLITS[split])
        case ast.keyword("purpose", ast.Constant(str() as split) as word):
            yield word, ast.Constant(SPLITS[split])
        case ast.Call(ast.Name("seed" | "seed_of"), [ast.Constant(str() as purpose) as word, _]):
            yield word, ast.Constant(PURPOSES[purpose])


# Judging one mutant, in a process of its own


def _judge(mutant: Mutant, nodes: Sequence[str], answer: Connection) -> None:
    """Send what catches the mutant: a step, a test, or nothing ("")."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        try:
            _load(mutant)
            caught = (_failing_step(mutant) if mutant.symbolic else "") or _failing_test(
                nodes, mutant.seconds
            )
        except Exception as error:
            caught = f"does not load: {type(error).__name__}: {error}"
    answer.send(caught)


class _Source(SourceFileLoader):
    """Loads a mutant's source in place of the module's own."""

    def __init__(self, mutant: Mutant, path: str) -> None:
        super().__init__(mutant.module, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._mutant.source, self._mutant.name, "exec")


class _Finder(MetaPathFinder):
    """Finds the mutant wherever its module is imported, also from within the package that holds it."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.origin is not None
        spec.loader = _Source(self._mutant, spec.origin)
        return spec


def _load(mutant: Mutant) -> None:
    """Import the mutant in place of the module, so that nothing imported from now on knows the module itself."""
    for name, loaded in list(sys.modules.items()):
        own = name.partition(".")[0] in PACKAGES
        if own or Path(getattr(loaded, "__file__", None) or "").is_relative_to(TESTS):
            del sys.modules[name]
            package, _, attribute = name.rpartition(".")
            vars(sys.modules.get(package, loaded)).pop(attribute, None)
    sys.meta_path.insert(0, _Finder(mutant))
    import_module(mutant.module)


def _failing_step(mutant: Mutant) -> str:
    def too_late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_late)
    for claim in CLAIMS:
        for step in claim.steps() if claim.id in mutant.claims else ():
            if step.kind == "kernel":  # half a minute for each mutant; test_kernel.py changes formulas, too
                continue
            signal.alarm(STEP_SECONDS)
            failure = step.failure()
            signal.alarm(0)
            if failure is not None:
                return f"step: {step.equation}"
    return ""


class _FewExamples:
    """Plugin of pytest: it runs few examples of each property test, always the same, and ends at the first failure.

    seconds: tests that take longer are skipped, in seconds of the processor, so that a busy machine skips no more of
        them; 0 for no limit.
    """

    failed = ""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None, None, None]:
        with self._limited():
            yield

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, None, None]:
        with self._limited():
            yield

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        def too_late(*_: object) -> None:
            raise pytest.skip.Exception("it takes too long")

        signal.signal(signal.SIGPROF, too_late)
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session
        hypothesis.settings.register_profile(
            "mutants",
            max_examples=EXAMPLES,
            derandomize=True,
            deadline=None,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # the first failure is enough
        )
        hypothesis.settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid
            self.session.shouldstop = self.failed

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = report.nodeid


def _failing_test(nodes: Sequence[str], seconds: int) -> str:
    if not nodes:
        return ""
    plugin = _FewExamples(seconds)
    options = [
        "-q",
        "--assert=plain",
        "-p",
        "no:cacheprovider",
        "-c",
        str(TESTS.parent / "pyproject.toml"),
    ]
    status = pytest.main([*options, *(str(TESTS / node) for node in nodes)], [plugin])
    return "" if status == pytest.ExitCode.OK else f"test: {plugin.failed or status}"


def judge_all(chosen: Sequence[Mutant], workers: int) -> Iterator[tuple[Mutant, str]]:
    """Pairs of a mutant and what catches it, in the order in which they finish."""
    context, tests = multiprocessing.get_context("fork"), marked_tests(TESTS)
    waiting = list(reversed(chosen))
    running: dict[ForkProcess, tuple[Mutant, Connection, float]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            mutant = waiting.pop()
            marked = (node for claim in mutant.claims for node in tests.get(claim, ()))
            nodes = list(dict.fromkeys((*marked, *mutant.tests)))
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_judge, args=(mutant, nodes, sender))
            process.start()
            sender.close()
            running[process] = mutant, receiver, time.monotonic() + MUTANT_SECONDS
        wait([process.sentinel for process in running], timeout=1)
        for process, (mutant, receiver, end) in list(running.items()):
            if process.is_alive() and time.monotonic() < end:
                continue
            caught = receiver.recv() if receiver.poll() else "does not end"
            process.kill()
            process.join()
            del running[process]
            yield mutant, caught


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Change formulas, verdicts and separations, and see that it is noticed."
    )
    parser.add_argument("--claim", help="mutants of this claim's formulas only")
    parser.add_argument("--module", help="mutants of this module only, theory.evidence")
    parser.add_argument(
        "--most", type=int, default=sys.maxsize, metavar="N", help="of a function, drawn at random"
    )
    parser.add_argument(
        "--verdicts",
        type=int,
        default=sys.maxsize,
        metavar="N",
        help="mutants without a claim, drawn at random",
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    options = parser.parse_args()
    if options.claim not in (None, *(claim.id for claim in CLAIMS)):
        raise InputError(f"--claim {options.claim}: give one of {', '.join(claim.id for claim in CLAIMS)}")
    if options.module not in (None, *MODULES):
        raise InputError(f"--module {options.module}: give one of {', '.join(MODULES)}")
    chosen = _choose(options.claim, options.module, options.most, options.verdicts)
    started = time.monotonic()
    counts: dict[str, Counter[str]] = {}
    wrong = []
    for mutant, caught in judge_all(chosen, options.workers):
        kind = caught.partition(":")[0] or ("equivalent" if mutant.name in EQUIVALENT else "not caught")
        if kind in ("not caught", "does not load") or (caught and mutant.name in EQUIVALENT):
            wrong.append(mutant.name)
        counts.setdefault(mutant.group, Counter())[kind] += 1
        print(f"{mutant.name}\n    {caught or EQUIVALENT.get(mutant.name, 'NOT CAUGHT')}", flush=True)
    print()
    for claim, count in counts.items():
        print(
            f"{claim}: {count.total()} mutants;", ", ".join(f"{n} {kind}" for kind, n in count.most_common())
        )
    total = sum(counts.values(), Counter[str]())
    print(
        f"all: {total.total()} mutants in {time.monotonic() - started:.0f} s;"
        f" {', '.join(f'{n} {kind}' for kind, n in total.most_common())}"
    )
    if wrong:
        print("not as it should be:", *wrong, sep="\n    ")
        sys.exit(1)


def _choose(claim: str | None, only: str | None, most: int, verdicts: int) -> list[Mutant]:
    chosen: list[Mutant] = []
    others: list[Mutant] = []
    for module in MODULES if only is None else (only,):
        by_function: dict[str, list[Mutant]] = {}
        for mutant in mutants(module):
            if not mutant.claims:
                others.append(mutant)
            elif claim in (None, *mutant.claims):
                by_function.setdefault(mutant.name.partition(":")[0], []).append(mutant)
        for function, group in by_function.items():
            chosen += random.Random(function).sample(group, min(most, len(group)))
    if claim is None:  # drawn by their names, so that a new mutant leaves the others in the sample
        chosen += sorted(others, key=lambda mutant: hashlib.sha256(mutant.name.encode()).digest())[:verdicts]
    return chosen


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main)
