"""Which statements does the theory make, and where is each derived, tested and shown?

`paper_repro.py --claims` prints the list; docs/theory.md is generated from it.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import get_args

from theory.derivations import Step
from theory.errors import InputError
from theory.evidence import Origin


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement of the theory.

    id: its name in tests (`@pytest.mark.claim(id)`), derivations and findings.
    statement: what is stated, in plain words.
    latex: the formula, to be set between `$$`; NOTATION explains the symbols. No command is a backslash and a
        punctuation mark, which Markdown would take for an escape.
    assumptions: under which it is derived; Markdown, with formulas between `$`.
    origin: whose statement it is, `reconstruction` being part of ours of the paper's theorem.
    derivation: the module whose STEPS[id] derive it.
    exhibits: names in the catalogue; every exhibit with a finding about the statement is among them.
    by_tests_alone: True if no exhibit shows it.
    """

    id: str
    statement: str
    latex: str
    assumptions: tuple[str, ...]
    origin: Origin
    derivation: str
    exhibits: tuple[str, ...]
    by_tests_alone: bool = False

    def __post_init__(self) -> None:
        for name in ("id", "statement", "latex", "derivation"):
            if not getattr(self, name).strip():
                raise InputError(f"claim.{name} of {self.id!r} is empty")
        if self.origin not in get_args(Origin):
            raise InputError(
                f"claim.origin of {self.id} is {self.origin!r}: give {', '.join(get_args(Origin))}"
            )

    def steps(self) -> tuple[Step, ...]:
        """Steps of the derivation; none if the module has no steps for the statement, or does not exist.

        After those of the module come those that the kernel of Coq checks [theory.kernel].
        """
        try:
            own = import_module(self.derivation).STEPS.get(self.id, ())
            return (*own, *import_module("theory.kernel").STEPS.get(self.id, ())) if own else ()
        except ModuleNotFoundError as error:
            if error.name != self.derivation:
                raise
            return ()


def sources(claims: Sequence[Claim]) -> dict[str, dict[Step, str]]:
    """The distinct steps of each claim, each with the first of `claims` that has it: its own id, or another's.

    A step that several claims share counts once, for the first of them.
    """
    first: dict[Step, str] = {}
    found = {}
    for claim in claims:
        steps = dict.fromkeys(claim.steps())
        found[claim.id] = {step: first.setdefault(step, claim.id) for step in steps}
    return found


def marked_tests(folder: Path) -> dict[str, list[str]]:
    """Node ids of the tests below `folder`, by the claim that they are marked with on function, class or module.

    A node id is relative to `folder`, as `pytest` takes it: "theory/test_moments.py::test_mean".
    """
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("test_*.py")):
        for claim, test in _marked(ast.parse(file.read_text(encoding="utf-8")).body, []):
            found.setdefault(claim, []).append(f"{file.relative_to(folder).as_posix()}::{test}")
    return found


def _marked(body: Sequence[ast.stmt], inherited: list[str]) -> Iterator[tuple[str, str]]:
    for node in body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [
            "pytestmark"
        ]:
            inherited = inherited + _ids(node.value)
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            ids = inherited + [name for decorator in node.decorator_list for name in _ids(decorator)]
            if isinstance(node, ast.ClassDef):
                yield from ((claim, f"{node.name}::{test}") for claim, test in _marked(node.body, ids))
            elif node.name.startswith("test_"):
                yield from ((claim, node.name) for claim in dict.fromkeys(ids))


def _ids(expression: ast.expr) -> list[str]:
    """The arguments of every `pytest.mark.claim(...)` in the expression."""
    return [
        argument.value
        for call in ast.walk(expression)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.claim"
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]


# Symbols of the formulas below, as LaTeX, with what each means.
NOTATION = {
    r"o_1, o_2": "the two discriminative directions, orthogonal unit vectors: a sample holds one token"
    r" $y o_1$ (frequent) or $y o_2$ (rare), among others that say nothing of the label",
    r"y": "label of an input, $+1$ or $-1$",
    r"\alpha, \rho": r"probability of the rare class, at most 1/2, and $\rho = (1 - \alpha)/\alpha$",
    r"F, R": "as indices: of frequent, of rare specialists (experts whose router looks for $o_1$, for $o_2$)",
    r"N, m, q": "specialists of a kind and sign; neurons of an expert; share of them that are active on their token",
    r"\eta, t": "learning rate and number of training steps",
    r"w_F, w_R": "weight of an active neuron of a frequent, rare specialist on its own token",
    r"x_j, G_j": "token $j$ of an input, and the gate weight that an expert gives it",
    r"a_s": "sign of the output of expert $s$, $+1$ or $-1$",
    r"f, \tilde f": "output of the network without noise, and with noise on the weights of analog experts:"
    r" $f(X) = \sum_s a_s \sum_j G_j (1/m) \sum_r ReLU(w_r \cdot x_j)$",
    r"\mu": "clean margin $y f(X)$ of an input",
    r"A": "the experts on analog hardware",
    r"c": r"noise magnitude: every weight of an analog expert gets $N(0, (c M_s)^2)$",
    r"M_s": "largest absolute weight of expert $s$",
    r"g_s": r"length of $\sum_j G_j x_j$ over the tokens that expert $s$ selects, repeated ones merged",
    r"c_B": "the noise magnitude up to which B vouches for an input",
    r"c^\ast": "tolerance: the largest $c$ at which every class is still right with probability .95",
    r"\delta": "probability of an error that is accepted",
    r"\Phi, \varphi, Q": "distribution function, density and upper tail of the standard normal distribution",
}

_SETTING = "the setting of `theory/setting.py`: orthonormal tokens, one of them discriminative, hinge loss"
_SPECIALIST = "specialised routers; a neuron that is active on its specialist's own token at the start"
_BELOW_ONE = "no margin of the specialist's own class and sign has reached 1"
_NOISE = "independent normal noise of standard deviation $c M_s$ on every weight of an analog expert, none on others"
_GATES = "gates of an expert sum to at most 1"
_ORTHOGONAL = (
    "the distinct tokens of one input have unit norm and are orthogonal to each other; those of two inputs need not be:"
    " in the setting an input holds one of $o_1, -o_1, o_2, -o_2$"
)

CLAIMS = (
    Claim(
        id="M1",
        statement="The mean of a ReLU of a normal, and its bias: between 0 and sigma/sqrt(2 pi), largest at a = 0",
        latex=r"E \mathrm{ReLU}(a + \sigma z) = a \Phi(a/\sigma) + \sigma \varphi(a/\sigma),\quad"
        r" 0 \le b(a) = E \mathrm{ReLU}(a + \sigma z) - \mathrm{ReLU}(a) \le \sigma/\sqrt{2\pi}",
        assumptions=(r"$z \sim N(0, 1)$", r"$\sigma > 0$"),
        origin="reconstruction",
        derivation="theory.derivations.moments",
        exhibits=("figure-tolerance", "figure-placement"),
    ),
    Claim(
        id="M2",
        statement="The second moment of a ReLU of a normal; its variance rises with a from 0 to sigma^2",
        latex=r"E \mathrm{ReLU}(a + \sigma z)^2 = (a^2 + \sigma^2) \Phi(a/\sigma) + a\sigma \varphi(a/\sigma)",
        assumptions=(r"$z \sim N(0, 1)$", r"$\sigma > 0$"),
        origin="reconstruction",
        derivation="theory.derivations.moments",
        exhibits=("figure-tolerance", "figure-bounds"),
    ),
    Claim(
        id="M3",
        statement="The third absolute central moment of a ReLU of a normal, in closed form",
        latex=r"E |R - \mu|^3 = \mu^3 Q(a/\sigma) + T(-a) - 2T(-s),\quad R = \mathrm{ReLU}(a + \sigma z),\quad"
        r" \mu = E R,\quad s = a - \mu,\quad T(y) = -\int_{y/\sigma}^\infty (s + \sigma z)^3 \varphi(z) dz",
        assumptions=(r"$z \sim N(0, 1)$", r"$\sigma > 0$", r"$\mu$ and $s$ are local to this formula"),
        origin="ours",
        derivation="theory.derivations.moments",
        exhibits=("figure-bounds",),
    ),
    Claim(
        id="G",
        statement="Neurons of specialists grow linearly at the frequency of their token: ratio rho up to the knee t_F,"
        " rho t_F/t beyond, N_R q_R/(N_F q_F) in the end",
        latex=r"\frac{w_F(t)}{w_R(t)} = \rho \Bigl(1 + O\bigl(\tfrac{w(0) m}{\eta t \alpha}\bigr)\Bigr),\quad t \le t_F"
        r" = \frac{2m}{\eta G^2 (1 - \alpha) N_F q_F};\qquad \rho \frac{t_F}{t} \to \frac{N_R q_R}{N_F q_F}",
        assumptions=(
            _SETTING,
            _SPECIALIST,
            f"linear growth: {_BELOW_ONE}; expectation over batches",
            "knee and late ratio: the active neurons of a class and sign have equal weights, from 0",
            r"one gate $G$ for both kinds, and $t_F \le t_R$, that is $N_R q_R \le \rho N_F q_F$",
        ),
        origin="reconstruction",
        derivation="theory.derivations.growth",
        exhibits=("figure-growth", "figure-tolerance", "figure-stress"),
    ),
    Claim(
        id="G-linear",
        statement="Momentum and L2 weight decay leave the ratio rho of early growth as it is",
        latex=r"g \mapsto \kappa g \quad\Rightarrow\quad (v_t, w_t) \mapsto (\kappa v_t, \kappa w_t)",
        assumptions=(
            _SETTING,
            _SPECIALIST,
            _BELOW_ONE,
            "weights from 0; gradients $g$ of the two classes proportional; $v_t$ is the velocity after $t$ steps",
        ),
        origin="ours",
        derivation="theory.derivations.growth",
        exhibits=("figure-stress",),
    ),
    Claim(
        id="G-logistic",
        statement="Under the logistic loss the ratio drifts to the late ratio of G; with equal gates and as many active"
        " neurons of either kind it is at most rho from the start",
        latex=r"\kappa w + e^{\kappa w} - 1 = \kappa r t,\quad \kappa = N q G;\qquad"
        r" G_F = G_R, N_F q_F = N_R q_R \Rightarrow \frac{w_F}{w_R} \le \rho;\qquad"
        r" \frac{w_F}{w_R} \to \frac{N_R q_R G_R}{N_F q_F G_F}",
        assumptions=(
            _SETTING,
            _SPECIALIST,
            "equal weights of the active neurons of a class, from 0; small steps",
            "$r$ is what one step of the hinge loss adds to a weight in early growth",
        ),
        origin="ours",
        derivation="theory.derivations.growth",
        exhibits=("figure-stress",),
    ),
    Claim(
        id="G-adam",
        statement="Adam's steps do not depend on the size of the gradient: frequent and rare neurons grow equally",
        latex=r"\Delta w = \eta \frac{g}{|g| + \epsilon}\ \text{at the first step, and at all for constant } g;\qquad"
        r" 1 \le \frac{\Delta w_F}{\Delta w_R} \le \rho;\quad"
        r" \frac{\Delta w_F}{\Delta w_R} \le 1 + \tfrac{\epsilon}{|g_R|}\ \text{for constant } g",
        assumptions=(
            _SETTING,
            _SPECIALIST,
            _BELOW_ONE,
            "tokens along the coordinate axes, as Adam works on coordinates",
            r"$g_F = \rho g_R$ at every step, with gradients that change or are constant",
        ),
        origin="ours",
        derivation="theory.derivations.growth",
        exhibits=("figure-stress",),
    ),
    Claim(
        id="G-token",
        statement="Under token choice the ratio is rho times that of the gates, which lies between N_R/N_F and 1;"
        " in the end it is N_R q_R G_R/(N_F q_F G_F), close to q_R/q_F",
        latex=r"\frac{w_F}{w_R} = \rho \frac{G_F}{G_R},\quad \frac{N_R}{N_F} \le \frac{G_F}{G_R} \le 1,\quad"
        r" G = \frac{e^s}{N e^s + K - N}",
        assumptions=(
            _SETTING,
            _SPECIALIST,
            f"up to the knee: {_BELOW_ONE}; in the end: every margin is 1",
            r"every token goes to $K \ge N_F \ge N_R$ experts",
            r"the specialists of a token have equal scores $s \ge 0$, other experts the score 0",
        ),
        origin="ours",
        derivation="theory.derivations.growth",
        exhibits=("figure-stress",),
    ),
    Claim(
        id="B",
        statement="Up to this noise magnitude an input is still classified correctly with probability 1 - delta",
        latex=r"c \le \frac{\mu}{(2\pi)^{-1/2} \sum_{s \in A, a_s = -y} M_s +"
        r" \sqrt{2\ln(1/\delta)/m} \bigl(\sum_{s \in A} M_s^2 g_s^2\bigr)^{1/2}}",
        assumptions=(
            _NOISE,
            _ORTHOGONAL,
            _GATES,
            r"one input, of clean margin $\mu > 0$",
            "one-layer experts of fixed sign",
            r"for other tokens $g_s^2$ is $\sum_{j, k} G_j G_k \max(x_j \cdot x_k, 0)$: no cross term for $x$ and $-x$",
        ),
        origin="reconstruction",
        derivation="theory.derivations.bound",
        exhibits=("figure-bounds", "figure-tolerance"),
    ),
    Claim(
        id="B-mean",
        statement="B with the exact mean of the noisy output in place of the worst bias: tighter, implicit in c",
        latex=r"E[y\tilde f] \ge c \sqrt{2\ln(1/\delta)/m} \bigl(\textstyle\sum_{s \in A} M_s^2 g_s^2\bigr)^{1/2}"
        r" \quad\Rightarrow\quad P(y\tilde f > 0) \ge 1 - \delta",
        assumptions=(_NOISE, _ORTHOGONAL, _GATES, "one input", "one-layer experts of fixed sign"),
        origin="reconstruction",
        derivation="theory.derivations.bound",
        exhibits=("figure-bounds", "figure-tolerance"),
    ),
    Claim(
        id="B-exp",
        statement="B by the exact exponential moment of the noisy output, or by B-mean where that says more",
        latex=r"P(y\tilde f \le 0) \le E e^{-\kappa y\tilde f/c},\quad E e^{\theta \mathrm{ReLU}(a + \sigma z)} ="
        r" Q(a/\sigma) + e^{\theta a + \theta^2\sigma^2/2} \Phi(a/\sigma + \theta\sigma)",
        assumptions=(
            _NOISE,
            _ORTHOGONAL,
            r"one input; $y \tilde f$ is a sum of independent terms, as orthogonal tokens make it; any $\kappa \ge 0$",
            r"$z \sim N(0, 1)$",
        ),
        origin="ours",
        derivation="theory.derivations.bound",
        exhibits=("figure-bounds",),
    ),
    Claim(
        id="Bu",
        statement="Up to this noise magnitude all inputs of margin mu at once are classified correctly with"
        " probability 1 - delta over the programming",
        latex=r"c \le \frac{\mu}{(2\pi)^{-1/2} \max_y \sum_{s \in A, a_s = -y} M_s +"
        r" \sqrt{2\ln(2|A|d/\delta)/m} \sum_{s \in A} M_s}",
        assumptions=(
            _NOISE,
            "tokens of unit norm, not necessarily orthogonal: the setting has $o_1$ and $-o_1$",
            _GATES,
            r"every input of margin at least $\mu$",
            "one-layer experts of fixed sign",
            "$d + 2$ tokens in all inputs together, of which $o_1, -o_1, o_2, -o_2$ occur with one label each",
            "that is $2(d + 2) - 4 = 2d$ pairs of token and tail; $T$ tokens, $T_1$ with one label, have $2T - T_1$",
        ),
        origin="reconstruction",
        derivation="theory.derivations.bound",
        exhibits=("figure-bounds", "figure-tolerance"),
    ),
    Claim(
        id="Cor",
        statement="Making the frequent experts digital multiplies our bound B by Theta(rho). The paper claims a factor"
        " Omega(1/gamma) of the tolerance itself, which a ratio of two lower bounds does not prove",
        latex=r"\frac{c_B(\text{frequent digital})}{c_B(\text{all analog})} = \Theta(\rho),\quad"
        r" \rho = \frac{1 - \alpha}{\alpha}",
        assumptions=(
            "B, for a rare input",
            r"margin and $M_s$ of rare experts scale with $\alpha$, $M_s$ of frequent ones with $1 - \alpha$",
            "that is what G gives in expectation, for weights from 0",
        ),
        origin="ours",
        derivation="theory.derivations.gain",
        exhibits=("figure-tolerance",),
    ),
    Claim(
        id="Gain",
        statement="In idealised networks the tolerance itself is at least gamma rho times as large with the frequent"
        " experts digital: for N_F = N_R = 2, m = 8, l = 4 certified with gamma = .095 for every rho of 19 or more, and"
        " .0009 for every rho of 3 or more",
        latex=r"\frac{c^\ast(\text{frequent digital})}{c^\ast(\text{all analog})} \ge \gamma\rho,\quad"
        r" \rho \ge \rho_0",
        assumptions=(
            _NOISE,
            _ORTHOGONAL,
            "idealised networks (`idealised` of `theory/tolerance/network.py`), not trained ones",
            r"half of a specialist's neurons are its own token, those of frequent ones $\rho$ times; the others are 0",
            "own tokens have the score 6, all others 0; a specialist without its own token has equal gates",
            "with the frequent experts digital B bounds the tolerance from below, all analog U bounds it from above",
            r"below $\rho = 3$ Berry-Esseen says nothing in this instance",
        ),
        origin="ours",
        derivation="theory.derivations.gain",
        exhibits=("figure-tolerance",),
    ),
    Claim(
        id="U",
        statement="From this noise magnitude on an input is classified wrongly with more than a given probability: an"
        " upper bound on what a network tolerates",
        latex=r"P(y\tilde f \le 0) \ge Q\Bigl(\frac{E[y\tilde f]}{\mathrm{sd}}\Bigr) -"
        r" 0.56 \frac{\sum_i E|X_i - E X_i|^3}{\mathrm{sd}^3}",
        assumptions=(
            _NOISE,
            _ORTHOGONAL,
            r"$y \tilde f$ is a sum of terms $X_i$, which orthogonal tokens make independent; sd is that of the sum",
            r"each is a multiple of a $\mathrm{ReLU}(a + \sigma z)$ with $\sigma > 0$, of finite third moment",
        ),
        origin="ours",
        derivation="theory.derivations.upper",
        exhibits=("figure-bounds", "figure-tolerance"),
    ),
    Claim(
        id="P",
        statement="Exact mean and variance of every expert's output and a normal approximation predict the tolerance",
        latex=r"P(y\tilde f > 0) \approx \Phi\bigl(E[y\tilde f]/\mathrm{sd}\bigr)",
        assumptions=(
            _NOISE,
            _ORTHOGONAL,
            "many neurons of similar size, for the normal approximation, which U bounds the error of",
            r"independent terms; sd is the standard deviation of $y \tilde f$",
        ),
        origin="reconstruction",
        derivation="theory.derivations.upper",
        exhibits=("figure-tolerance",),
    ),
    Claim(
        id="H",
        statement="The bounds for measured hardware: noise that depends on the weight, and converters",
        latex=r"\mu \to \mu' - \sum_{s \in A} \tfrac1m \sum_r \Delta_{\mathrm{out},r}/2,\quad"
        r" c M_s \to \max_w \sigma(|w|),\quad g_s^2 \to \sum_{j, k} G_j G_k \max(x'_j \cdot x'_k, 0)",
        assumptions=(
            "the tokens of one input are orthogonal before the DAC; after it they need not be",
            _GATES,
            r"programming noise of `theory/hardware.py`, of standard deviation $\sigma(|w|)$",
            r"$x'_j$ is what the DAC makes of a token, which is known",
            r"$\mu'$ is the margin with $x'_j$ at analog experts, and with weights in a dead zone written as 0",
            r"$\Delta_{out,r}$ is a step of the ADC of neuron $r$",
            "where an ADC may clip, the bias sum runs over all of $A$: experts of the label's sign lose as much",
        ),
        origin="ours",
        derivation="theory.derivations.hardware",
        exhibits=("figure-bounds",),
    ),
    Claim(
        id="C",
        statement="Subtracting the known bias b(a) of every analog expert digitally removes the mean shift that limits"
        " plain MaxNN on small budgets; as many analog experts of either sign do so where their biases are equal, and"
        " need not otherwise",
        latex=r"E[y(\tilde f - \hat b)] = y f,\qquad"
        r" \hat b = \sum_{s \in A} a_s \sum_j G_j \tfrac1m \sum_r b(w_r\cdot x_j)",
        assumptions=(
            _NOISE,
            _ORTHOGONAL,
            _GATES,
            "the noise magnitude and the clean weights are known; $b$ is the bias of M1",
            r"that correction cannot harm: inputs of either label with one margin $\mu$, one $L$ and the same biases",
            r"balancing the signs: all analog experts have one bias $\sum_j G_j (1/m) \sum_r b(w_r \cdot x_j)$",
        ),
        origin="ours",
        derivation="theory.derivations.correction",
        exhibits=("figure-placement",),
    ),
    Claim(
        id="D",
        statement="What an expert's programming noise costs follows in closed form from its weights and from what it"
        " computes on a batch: noise, through w_max, times use, times the sensitivity of the loss",
        latex=r"D_s = \sum_{x \to s} g_s(x)^2 \sum_j \Bigl(A_j \mathrm{Var} \zeta_j + B_j (z_j^2 +"
        r" \mathrm{Var} \zeta_j)\Bigr),\quad (A_j, B_j) = \sum_i (W_{ij}^2, \sigma_{ij}^2) \text{ or }"
        r" \tfrac12\bigl((G^\top W)_j^2, \textstyle\sum_i G_i^2\sigma_{ij}^2\bigr)",
        assumptions=(
            "programming noise independent of weight to weight, of mean 0; no converters, no dead zone",
            "first order in what noise does to gate and up",
            "experts do not change each other's inputs",
            "the second form, with the gradient: the second derivative of the loss is $G G^T$",
            r"here $g_s(x)$ is the routing weight of token $x$, and $G$ the gradient of the loss at the output",
            r"$W$ is the down projection, $\sigma$ the noise on it, $z_j$ an input of it, $\zeta_j$ the noise of $z_j$",
        ),
        origin="ours",
        derivation="theory.derivations.damage",
        exhibits=(
            "figure-better-score",
            "figure-better-score-deepseek",
            "figure-better-score-smol-moe",
            "figure-rivals",
            "figure-rivals-deepseek",
            "figure-rivals-smol-moe",
            "figure-scale",
        ),
    ),
    Claim(
        id="D-dense",
        statement="What the programming noise of a dense linear layer costs follows in closed form, too: the sum over"
        " its weights of the noise's variance times the squares of the input and of the loss's sensitivity",
        latex=r"D = \tfrac12 \sum_x \sum_{i, j} G_i(x)^2 \sigma_{ij}^2 x_j^2",
        assumptions=(
            "programming noise independent of weight to weight, of mean 0; no converters, no dead zone",
            "the second derivative of the loss is $G G^T$ at every token $x$, and 0 between tokens",
            r"$G$ is the gradient of the loss at the layer's output, $\sigma_{ij}$ the noise on its weights",
        ),
        origin="ours",
        derivation="theory.derivations.damage",
        exhibits=(),
        by_tests_alone=True,
    ),
    Claim(
        id="D-sum",
        statement="Damages of modules add up while they are small: exactly in a quadratic loss, up to the fourth"
        " power of the noise in any smooth one",
        latex=r"\Delta_{AB} = \Delta_A + \Delta_B + \tfrac{c^4}{4} E\bigl[\mathrm{d}^4 L[A, A, B, B]\bigr] + O(c^5),"
        r"\quad \Delta_A = E[L(w + c A)] - L(w)",
        assumptions=(
            "noise of mean 0, independent from module to module; within a module, too, for the sum over weights",
            "$L$ has four derivatives by the weights: routing does not change",
            "$A$ and $B$ are the noises of two modules, or of two groups of them, at $c = 1$",
            "no sign of the fourth derivative: modules may cost more or less together than alone",
        ),
        origin="ours",
        derivation="theory.derivations.damage",
        exhibits=(),
        by_tests_alone=True,
    ),
    Claim(
        id="E",
        statement="From end to end: with probability 1 - p over routers, initial weights and batches, after t steps"
        " MaxNNScore ranks every frequent specialist above every rare one, and the tolerance with the frequent"
        " specialists digital is at least kappa rho times that of all analog",
        latex=r"P\Bigl(\min_F \lVert w \rVert > \max_R \lVert w \rVert \text{ and }"
        r" \frac{c_R}{c_{FR}} \ge \kappa \rho\Bigr) \ge 1 - p,\qquad p = 8\delta + 2 N_F 2^{-m}",
        assumptions=(
            _SETTING,
            "routers specialised from the start and frozen; tokens along the axes; more tokens than an expert takes",
            "SGD with fresh batches; normal initial weights",
            _NOISE,
            (
                "$c_R$ ($c_{FR}$): the noise up to which both kinds of inputs keep an accuracy of .95, in expectation"
                " over inputs and noise, with rare (all) experts analog; norms are those of largest neurons"
            ),
            (
                r"$p$ follows from $\delta$, $m$ and $N_F$, and $\kappa$ from these, $d, n, l, N_R, \alpha, \eta$, $t$,"
                r" batch, initial size and the routers' scores, by `theory/end_to_end.py`; $\delta$ is what each"
                r" of eight events is granted"
            ),
            r"$t$ is large enough for $\kappa > 0$, and so small that no margin can reach 1",
            r"reference instance (29 steps, $p < .05$): the ranking alone is proved, $\kappa = 0$",
            r"$\kappa\rho > 1$ is proved for larger experts: $m = 128$, $N_F, N_R = 3, 1$, $\rho = 19$ or 49",
        ),
        origin="ours",
        derivation="theory.derivations.end_to_end",
        exhibits=("figure-end-to-end",),
    ),
)
