"""Does the kernel of Coq check the formulas themselves, and does every proof break with its formula?"""

import math
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from theory import functions, kernel, moments, tolerance
from theory.claims import CLAIMS
from theory.derivations import AXIOMS, NOT_RUN, NotRunError, lemmas
from theory.functions import Phi, exp, log, phi, sqrt
from theory.hardware import PROGRAMMING_NOISE, ProgrammingNoise
from theory.kernel import coq
from theory.kernel.__main__ import main
from theory.kernel.terms import Term, definition

DEFINITION = re.compile(r"Definition (\w+)(?: \(([\w ]+) : R\))? : R :=\n  (.+)\.\n")
OPERATIONS: dict[str, Callable[..., float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": operator.pow,
    "exp": math.exp,
    "ln": math.log,
    "sqrt": math.sqrt,
    "erfc": special.erfc,
    "Rmax": max,
}


def has_coq() -> bool:
    try:
        coq.require_coq()
    except NotRunError:
        return False
    return True


needs_coq = pytest.mark.skipif(not has_coq(), reason="Coq and Coquelicot are not installed")


# From Python to Coq


def test_a_definition_is_the_formula_operation_by_operation() -> None:
    assert definition("f", lambda a, b: -(a**2) / 2 + 0.56 * (1 - b)) == (
        "Definition f (a b : R) : R :=\n  (((- (a ^ 2)) / 2) + ((14 / 25) * (1 - b))).\n"
    )
    assert definition("half", lambda: 0.5) == "Definition half : R :=\n  (1 / 2).\n"
    assert repr(Term(np.float64(0.1))) == "(1 / 10)"
    assert repr(Term(-3) * Term(-0.25)) == "((- 3) * (- (1 / 4)))"
    assert repr(2 / sqrt(Term("x"))) == "(2 / (sqrt x))" and repr(log(Term(1e-5))) == "(ln (1 / 100000))"


@pytest.mark.parametrize("power", [0.5, -1, Term("n")])
def test_powers_are_whole(power: Any) -> None:
    with pytest.raises(TypeError, match="only whole powers"):
        Term("x") ** power


def evaluated(term: str, values: dict[str, float]) -> float:
    """Value of a term, read as Coq reads it: every operation stands in brackets of its own."""
    tokens = iter(re.findall(r"[()]|[^\s()]+", term))

    def group() -> float:
        parts: list[Any] = []
        for token in tokens:
            if token == ")":
                break
            if token == "(":
                parts.append(group())
            elif token in OPERATIONS:
                parts.append(OPERATIONS[token])
            else:
                parts.append(values[token] if token in values else int(token))
        if len(parts) == 3 and callable(parts[1]):
            return float(parts[1](parts[0], parts[2]))
        if parts[0] is operator.sub:
            return -float(parts[1])
        return float(parts[0](*parts[1:])) if callable(parts[0]) else float(parts[0])

    return group()


@given(values=st.lists(st.floats(0.1, 1), min_size=4, max_size=4))
def test_definitions_have_the_values_of_the_formulas(values: list[float]) -> None:
    hermes = PROGRAMMING_NOISE["hermes"]
    others: dict[str, Callable[..., Any]] = {
        "gaussian_tail": lemmas.gaussian_tail,
        "pcm": lambda r: 25 * PROGRAMMING_NOISE["pcm"].sigma(r),
        "hermes_one_device": lambda r: 180 * ProgrammingNoise(hermes.pieces[:1], 180.0, 180.0).sigma(r),
        "hermes_two_devices": lambda r: 180 * ProgrammingNoise(hermes.pieces[1:], 180.0, 180.0).sigma(r),
        "hermes_border": lambda: 52.5 / 180,
    }
    found = DEFINITION.findall(kernel.formulas())
    assert len(found) == kernel.formulas().count("Definition") > len(others)
    for name, parameters, term in found:
        modules = (functions, moments, tolerance)
        formula = others.get(name) or next(getattr(each, name) for each in modules if hasattr(each, name))
        own = dict(zip(parameters.split(), values, strict=False))
        expected = float(formula(**own))
        assert evaluated(f"({term})", own | {"PI": math.pi}) == pytest.approx(expected, rel=1e-12, abs=1e-15)


# The proofs


def test_every_theorem_is_a_step_and_every_step_a_theorem() -> None:
    stated = {
        f"theory/kernel/{file}.v: {name}"
        for file, text in coq.proofs().items()
        for name in coq.theorems(text)
    }
    steps = [step for claim in CLAIMS for step in claim.steps() if step.kind == "kernel"]
    assert {step.reference for step in steps} == stated
    assert len({step.reference for step in steps}) == len(set(steps)) == len(stated)
    assert set(kernel.STEPS) <= {claim.id for claim in CLAIMS}


@pytest.mark.parametrize("missing", ["coqc", "coqchk"])
def test_without_coq_nothing_is_proved(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None if program == missing else f"/bin/{program}")
    coq.check.cache_clear()
    for own in kernel.STEPS.values():
        for step in own:
            assert step.failure() == f"{NOT_RUN}: no {missing}: {coq.MISSING}"
    assert main() == 1


@needs_coq
@pytest.mark.slow
def test_every_theorem_is_proved_on_the_named_axioms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    checked = coq.check(kernel.formulas())
    assert checked.axioms == AXIOMS and not checked.failures
    count = len(checked.theorems)
    assert f"\n{count} of {count} theorems in " in capsys.readouterr().out
    assert checked.failure("Moments.no_such") == "Moments.v has no theorem of this name"


@needs_coq
@pytest.mark.slow
def test_a_changed_formula_fails_its_steps_and_what_needs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(moments, "relu_second_moment", lambda a, sigma: (a**2 + sigma**2) * Phi(a / sigma))
    failures = {step.reference: step.failure() for own in kernel.STEPS.values() for step in own}
    broken = failures["theory/kernel/Moments.v: relu_second_moment_is_the_mean"]
    assert broken and broken.startswith("BrokenProofError: relu_second_moment_is_the_mean breaks: ")
    assert failures["theory/kernel/Tail.v: relu_bias_at_0"] is None
    assert main() == 1
    assert "FAILS, BrokenProofError: relu_second_moment_is" in capsys.readouterr().out


@needs_coq
@pytest.mark.slow
def test_the_same_formula_in_other_words_keeps_its_proofs(folder: Path) -> None:
    other = definition("relu_mean", lambda a, sigma: phi(a / sigma) * sigma + Phi(a / sigma) * a)
    assert other not in kernel.formulas()
    assert not coq.compiled(folder, "Again", with_definition("Moments", "relu_mean_is_the_mean", other))


@needs_coq
@pytest.mark.slow
def test_a_gap_in_a_proof_is_an_axiom_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = coq.proofs()
    gap = re.sub(r"(Theorem pcm_range.*?)Proof\..*?Qed\.", r"\1Admitted.", ours["Noise"], flags=re.DOTALL)
    monkeypatch.setattr(coq, "proofs", lambda: {**ours, "Noise": gap})
    checked = coq.check(kernel.formulas() + "\n")
    assert checked.failure("Noise.pcm_range") == "the theorems rest on pcm_range"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files, compiled."""
    path = tmp_path_factory.mktemp("kernel")
    for file in coq.FILES:
        source = kernel.formulas() if file == coq.FORMULAS else coq.proofs()[file]
        assert not coq.compiled(path, file, source)
    return path


def changed_noise(name: str, piece: int, power: int, coefficient: float) -> Callable[[Term], Term]:
    """A noise in which one coefficient of the polynomial is another."""
    noise = PROGRAMMING_NOISE[name]
    pieces = ({**noise.pieces[piece], power: coefficient},)
    return lambda r: noise.scale * ProgrammingNoise(pieces, noise.x_max, noise.scale).sigma(r)


# For each theorem a formula that it is about, and a wrong one in its place.
MUTANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "Tail.Q_falls": ("Q", Phi),
    "Tail.gaussian_tail_is_above_Q": ("gaussian_tail", lambda t: exp(-(t**2) / 2) / 3),
    "Tail.relu_bias_is_between_0_and_its_value_at_0": (
        "relu_bias",
        lambda a, sigma: moments.relu_bias(a, sigma) + sigma / 100,
    ),
    "Tail.relu_bias_at_0": ("relu_bias", lambda a, sigma: moments.relu_bias(a, 2 * sigma)),
    "Tail.relu_bias_is_even": ("relu_bias", lambda a, sigma: moments.relu_bias(a, sigma) + a),
    "Tail.relu_bias_falls": ("relu_bias", lambda a, sigma: -moments.relu_bias(a, sigma)),
    "Tail.relu_bias_is_enclosed": ("relu_bias", lambda a, sigma: moments.relu_bias(a, sigma**2)),
    "Moments.density_has_mass_1": ("phi", lambda x: phi(x) / 2),
    "Moments.relu_mean_is_the_mean": (
        "relu_mean",
        lambda a, sigma: a * Phi(a / sigma) - sigma * phi(a / sigma),
    ),
    "Moments.relu_second_moment_is_the_mean": (
        "relu_second_moment",
        lambda a, sigma: (a**2 + sigma) * Phi(a / sigma) + a * sigma * phi(a / sigma),
    ),
    "Moments.relu_variance_is_the_variance": (
        "relu_variance",
        lambda a, sigma: moments.relu_second_moment(a, sigma) - moments.relu_mean(a, sigma),
    ),
    "Moments.relu_variance_is_between_0_and_sigma_squared": (
        "relu_variance",
        moments.relu_second_moment,
    ),
    "Moments.relu_third_moment_about_is_the_mean": (
        "relu_third_moment_about",
        lambda centre, a, sigma: moments.relu_third_moment_about(centre, a, sigma) - centre**3,
    ),
    "Moments.relu_third_moment_is_the_mean": (
        "relu_third_moment",
        lambda a, sigma: moments.relu_third_moment_about(0, a, sigma),
    ),
    "Moments.relu_exponential_is_the_mean": (
        "relu_exponential",
        lambda theta, a, sigma: tolerance.relu_exponential(theta, a, sigma) - 1,
    ),
    "Upper.relu_mean_rises": ("relu_mean", lambda a, sigma: -moments.relu_mean(a, sigma)),
    "Upper.relu_variance_rises": (
        "relu_variance",
        lambda a, sigma: moments.relu_second_moment(a, sigma) - 2 * moments.relu_mean(a, sigma) ** 2,
    ),
    "Upper.relu_third_moment_rises": (
        "relu_third_moment",
        lambda a, sigma: moments.relu_third_moment(a, sigma) - a,
    ),
    "Upper.relu_mean_is_enclosed": ("relu_mean", lambda a, sigma: 2 * moments.relu_mean(a, sigma)),
    "Upper.error_bound_falls": (
        "error_bound",
        lambda ratio, third, sd: functions.Q(ratio) - tolerance.BERRY_ESSEEN * third / sd**3 * ratio,
    ),
    "Bound.tolerable_noise_is_the_solution": (
        "tolerable_noise",
        lambda margin, bias, lipschitz, tau: margin / (bias - tau * lipschitz),
    ),
    "Bound.failure_bound_is_delta_at_tau": ("concentration", lambda delta: sqrt(log(1 / delta))),
    "Bound.failure_bound_is_at_most_delta": (
        "failure_bound",
        lambda mean, lipschitz: exp(-((mean / lipschitz) ** 2)),
    ),
    "Bound.noise_up_to_the_bound_fails_at_most_delta": (
        "tolerable_noise",
        lambda margin, bias, lipschitz, tau: 2 * margin / (bias + tau * lipschitz),
    ),
    "Bound.noise_above_the_bound_is_not_guaranteed": (
        "tolerable_noise",
        lambda margin, bias, lipschitz, tau: margin / (bias + tau * lipschitz) / 2,
    ),
    "Bound.tolerable_noise_falls": (
        "tolerable_noise",
        lambda margin, bias, lipschitz, tau: margin / (bias + lipschitz / tau),
    ),
    "Bound.events_share_delta": ("failure_bound", lambda mean, lipschitz: exp(-((mean / lipschitz) ** 2))),
    "Bound.events_of_the_setting": (
        "tail_events",
        lambda analog, tokens, one_label: analog * (2 * tokens + one_label),
    ),
    "Noise.pcm_range": ("pcm", changed_noise("pcm", 0, 1, 1.9651)),
    "Noise.hermes_one_device_range": ("hermes_one_device", changed_noise("hermes", 0, 0, 2.579)),
    "Noise.hermes_two_devices_range": ("hermes_two_devices", changed_noise("hermes", 1, 3, 1.233e-5)),
}


def test_every_theorem_has_a_mutant() -> None:
    stated = {f"{file}.{name}" for file, text in coq.proofs().items() for name in coq.theorems(text)}
    assert stated == set(MUTANTS)


@needs_coq
@pytest.mark.slow
@pytest.mark.parametrize("theorem", MUTANTS)
def test_a_wrong_formula_breaks_the_proof(theorem: str, folder: Path) -> None:
    """What the theorem rests on compiles with the right formula in place of itself, and not with the wrong one."""
    file, _, name = theorem.partition(".")
    formula, wrong = MUTANTS[theorem]
    if formula in ("phi", "Q"):  # the other files know these through Normal.v
        file, name = "Normal", ""
    right = next(each for each in DEFINITION.finditer(kernel.formulas()) if each[1] == formula)
    assert not coq.compiled(folder, "Again", with_definition(file, name, right[0]))
    assert " breaks: " in coq.compiled(
        folder, "Again", with_definition(file, name, definition(formula, wrong))
    )


def with_definition(file: str, theorem: str, own: str) -> str:
    """A file with a definition of its own, in which theorems that the named one does not use are taken for granted."""
    source = coq.proofs()[file].replace("Open Scope R_scope.\n", f"Open Scope R_scope.\n{own}", 1)
    texts = dict(re.findall(r"^Theorem (\w+)(.*?)\bQed\.", source, re.DOTALL | re.MULTILINE))
    used = {theorem}
    for name in reversed(coq.theorems(source)):
        if any(re.search(rf"\b{name}\b", texts[user]) for user in used & {*texts}):
            used.add(name)
    for name in {*coq.theorems(source)} - used:
        proof = re.compile(rf"^(Theorem {name}\b.*?)^Proof\..*?\bQed\.", re.DOTALL | re.MULTILINE)
        source = proof.sub(r"\1Admitted.", source)
    return source
