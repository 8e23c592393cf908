"""Which network is noise added to? Its weights and tokens, and the noise of its analog experts.

f(X) = sum_s a_s sum_t G_st (1/m) sum_r ReLU(w_sr . x_t), and every weight of an analog expert gets independent noise
N(0, c^2 sigma^2). In float64.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from theory.errors import InputError, require
from theory.functions import exp, sqrt
from theory.growth import own_gate
from theory.hardware import PROGRAMMING_NOISE, Hardware, largest_weights, programming_sigma, quantise_input
from theory.setting import Setting

WMax = Literal["layer", "column"]
Gates = Float[Tensor, "inputs experts tokens"]

OWN_SCORE = 6.0  # score that a specialised router gives its own token; other tokens have the score 0
ORTHOGONAL = 1e-9  # largest |cosine| of two noise vectors that count as orthogonal


@dataclass(frozen=True)
class Network:
    """One layer of experts with fixed output signs, some of them on analog hardware.

    weights: (k, m, d), of k experts with m neurons.
    tokens: (T, d), the distinct tokens.
    signs: (k,), +1 or -1.
    analog: (k,), True for an analog expert.
    w_max: the weights over which the largest |w| is taken that noise is relative to: the expert's "layer" (M_s) or
        the "column" of a neuron (M_sr).
    programming: name of a model in theory.hardware.PROGRAMMING_NOISE; the theory's is "constant".
    analog_tokens: (T, d), what the DAC makes of the tokens; None for no DAC.
    adc_step: (k, m), the distance of two levels of a neuron's ADC; rounding changes an output by at most half of it.
        None for no ADC.
    adc_bound: (k, m), an output is clipped to +-adc_bound before it is rounded; None for no ADC.
    """

    weights: Float[Tensor, "experts neurons inputs"]
    tokens: Float[Tensor, "tokens inputs"]
    signs: Float[Tensor, " experts"]
    analog: Bool[Tensor, " experts"]
    w_max: WMax = "layer"
    programming: str = "constant"
    analog_tokens: Float[Tensor, "tokens inputs"] | None = None
    adc_step: Float[Tensor, "experts neurons"] | None = None
    adc_bound: Float[Tensor, "experts neurons"] | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "tokens", "signs", "analog_tokens", "adc_step", "adc_bound"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, torch.as_tensor(value, dtype=torch.float64))
        object.__setattr__(self, "analog", torch.as_tensor(self.analog, device=self.weights.device))
        if self.weights.ndim != 3 or not self.weights.numel() or not self.weights.isfinite().all():
            raise InputError("network.weights: give finite numbers of shape (experts, neurons, inputs)")
        k, m, d = self.weights.shape
        shapes = {
            "tokens": (*self.tokens.shape[:1], d),
            "signs": (k,),
            "analog": (k,),
            "analog_tokens": self.tokens.shape,
            "adc_step": (k, m),
            "adc_bound": (k, m),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != tuple(shape):
                raise InputError(f"network.{name} of shape {tuple(value.shape)}: give {tuple(shape)}")
        if (self.signs.abs() != 1).any():
            raise InputError("network.signs: give +1 or -1 for each expert")
        if self.analog.dtype != torch.bool:
            raise InputError("network.analog: give True or False for each expert")
        choices = {"w_max": get_args(WMax), "programming": tuple(PROGRAMMING_NOISE)}
        checks = {
            name: (getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
            for name, allowed in choices.items()
        }
        require(self, "network", checks)
        if (self.adc_step is None) != (self.adc_bound is None):
            raise InputError("network.adc_step and network.adc_bound: give both or neither")

    def with_converters(
        self, *, dac_bits: int | None, adc_bits: int | None, input_bound: float, lam: float
    ) -> "Network":
        """This network with converters: DAC bound `input_bound`, ADC bound lam * input_bound * w_max."""
        hardware = replace(self._hardware, dac_bits=dac_bits, adc_bits=adc_bits)
        bound = lam * input_bound * largest_weights(self.weights, hardware).squeeze(-1)
        return replace(
            self,
            analog_tokens=quantise_input(self.tokens, input_bound, dac_bits),
            adc_bound=None if adc_bits is None else bound,
            adc_step=None if adc_bits is None else bound / (2 ** (adc_bits - 1) - 1),
        )

    @cached_property
    def correlated(self) -> Bool[Tensor, "tokens tokens"]:
        """True for pairs of different tokens for which some analog neuron has dependent noises w~ . x."""
        scaled = self.noise[:, :, None, :] * self._inputs[:, None]
        size = sqrt((scaled**2).sum(-1))
        product = torch.einsum("kmtd,kmud->kmtu", scaled, scaled).abs()
        exceeds = product > ORTHOGONAL * size[..., None] * size[:, :, None]
        return exceeds.flatten(0, 1).any(0).fill_diagonal_(False)

    @property
    def _hardware(self) -> Hardware:
        return Hardware(self.programming, w_max=self.w_max, tile_size=max(self.weights.shape))

    @cached_property
    def noise(self) -> Float[Tensor, "experts neurons inputs"]:
        """Standard deviation of every weight at c = 1, in units of the weights; 0 in digital experts."""
        return programming_sigma(self.weights, self._hardware) * self.analog[:, None, None]

    @cached_property
    def _inputs(self) -> Float[Tensor, "experts tokens inputs"]:
        analog = self.tokens if self.analog_tokens is None else self.analog_tokens
        return torch.where(self.analog[:, None, None], analog, self.tokens)

    @cached_property
    def preactivations(self) -> Float[Tensor, "experts neurons tokens"]:
        """w . x without noise.

        Weights are the programmed targets (0 in a dead zone), tokens are what the DAC gives.
        """
        written = (self.noise > 0) | ~self.analog[:, None, None]
        return torch.einsum("kmd,ktd->kmt", self.weights * written, self._inputs)

    @cached_property
    def token_noise(self) -> Float[Tensor, "experts neurons tokens"]:
        """Standard deviation of w~ . x at c = 1. Constant noise makes it M_sr |x|."""
        return sqrt(torch.einsum("kmd,ktd->kmt", self.noise**2, self._inputs**2))

    @cached_property
    def lipschitz_squared(self) -> Float[Tensor, "experts tokens tokens"]:
        """P with G' P G the squared Lipschitz constant, at c = 1, of sum_t G_t (1/m) sum_r ReLU(w~_r . x_t)   [B].

        P is (1/m^2) times the sum over r of the positive parts of Cov(w~_r . x_t, w~_r . x_u). Any set of ReLUs may
        be active, and leaving out negative covariances exceeds all sets. For orthonormal tokens and constant noise P
        is diagonal, with M_s^2/m or sum_r M_sr^2/m^2. H bounds P with the largest sigma.
        """
        scaled = self.noise[:, :, None, :] * self._inputs[:, None]
        covariance = torch.einsum("kmtd,kmud->kmtu", scaled, scaled)
        return covariance.clamp(min=0).sum(1) / self.weights.shape[1] ** 2


def idealised(
    setting: Setting, w_max: WMax = "layer", active: int | None = None
) -> tuple[Network, Float[Tensor, "4 experts tokens"], Float[Tensor, " 4"], Tensor]:
    """The network that G tends to, all analog: network, gates, labels and kinds of four inputs.

    active: number of a specialist's neurons that are not 0; half of them if not given, rounded up, which is the mean
        at random initialisation. They equal the specialist's own token, times rho for frequent specialists.

    A specialist that does not find its token takes l other tokens, with equal gates. The inputs are a frequent one
    (kind 0) and a rare one (kind 1) of either label.
    """
    active = (setting.m + 1) // 2 if active is None else active
    if not 1 <= active <= setting.m:
        raise InputError(f"active is {active!r}: give 1 to {setting.m}, the number of neurons")
    if setting.d - 2 < setting.l:
        raise InputError(f"setting.l is {setting.l}: there are only d - 2 = {setting.d - 2} other tokens")
    basis = torch.eye(setting.d, dtype=torch.float64)
    tokens = torch.stack([basis[0], -basis[0], basis[1], -basis[1], *basis[2:]])
    kind = torch.tensor([0] * setting.N_F + [1] * setting.N_R).repeat(2)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(setting.N_F + setting.N_R)
    own = 2 * kind + (signs < 0)
    size = torch.where(kind == 0, setting.rho, 1.0)
    weights = torch.zeros(setting.experts, setting.m, setting.d, dtype=torch.float64)
    weights[:, :active] = (size[:, None] * tokens[own])[:, None]
    gates = torch.zeros(4, setting.experts, setting.tokens, dtype=torch.float64)
    gates[..., 4 : 4 + setting.l] = 1 / setting.l
    others = setting.l - 1  # of score 0
    for token in range(4):
        found = own == token
        gates[token, found] = 0
        gates[token, found, 4 : 4 + setting.l - 1] = float(own_gate(0.0, exp(OWN_SCORE) + others - 1))
        gates[token, found, token] = float(own_gate(OWN_SCORE, others))
    analog = torch.ones(setting.experts, dtype=torch.bool)
    labels = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    return Network(weights, tokens, signs, analog, w_max), gates, labels, torch.tensor([0, 0, 1, 1])
