"""How fast do the neurons of specialists grow? Statement G and its extensions [G to G-token, docs/theory.md].

frequency: probability of a class, 1 - alpha or alpha.
gate: mean gate weight that a specialist gives its own token.
active: fraction q of a specialist's neurons that are active on its own token.
specialists: number of specialists of a class for each sign.
weight: weight of a neuron on its specialist's own token, a_s w . o_1 or a_s w . o_2.

Arguments are scalars, symbols or tensors that broadcast. Steps are steps of SGD with rate eta on the hinge loss, and
weights are expectations over batches.

Three effects separate the ratio of *norms* from that of own-token weights: a sign with more active neurons
saturates first (`knee` falls with `active`), a rare specialist also learns the frequent token that it sometimes
selects (`leakage`), and a specialist may have no active neuron at all (`dead_probability`).
"""

from theory.functions import Value, exp, minimum, sqrt


def own_gate(score: Value, others: Value) -> Value:
    """Gate weight under expert choice: softmax over the scores of the selected tokens, of whichever number.

    others: sum of exp(score) over the other selected tokens, each being 1 for a score of 0.
    """
    return exp(score) / (exp(score) + others)


def token_choice_gate(score: Value, specialists: Value, chosen: Value) -> Value:
    """Gate weight under token choice: what a token gives each of its specialists of equal score   [G-token].

    chosen: number of experts of the token, at least `specialists`. Experts that are no specialists have the score 0.
    """
    return exp(score) / (specialists * exp(score) + chosen - specialists)


def growth_rate(frequency: Value, gate: Value, eta: Value, m: Value) -> Value:
    """Growth of an active neuron's weight in one step while no margin of the class has reached 1   [G]."""
    return eta * gate * frequency / (2 * m)


def own_token_weight(steps: Value, rate: Value, initial: Value) -> Value:
    """Weight after `steps` steps before the knee   [G].

    rate: from `growth_rate`.
    """
    return initial + rate * steps


def ratio_correction(
    steps: Value, rho: Value, rate_rare: Value, initial: Value, initial_rare: Value
) -> Value:
    """Correction, by the weights at the start, to the ratio rho of frequent to rare weights   [G]."""
    return (initial - rho * initial_rare) / own_token_weight(steps, rate_rare, initial_rare)


def class_margin(weight: Value, gate: Value, specialists: Value, active: Value) -> Value:
    """Margin y f(X) that the specialists of a class and sign give its samples, with equal active weights   [G]."""
    return specialists * active * gate * weight


def knee(frequency: Value, gate: Value, specialists: Value, active: Value, eta: Value, m: Value) -> Value:
    """Step t_F (or t_R) at which the margin of a class reaches 1 and growth ends, from weights 0   [G]."""
    return 2 * m / (eta * gate**2 * frequency * specialists * active)


def saturating_weight(steps: Value, rate: Value, knee: Value) -> Value:
    """Weight after any number of steps, from 0: it stands still from the knee on   [G]."""
    return rate * minimum(steps, knee)


def weight_ratio(steps: Value, rate_ratio: Value, knee_frequent: Value, knee_rare: Value) -> Value:
    """Frequent over rare weight, from 0: rate_ratio up to t_F, then rate_ratio t_F/t down to the late ratio   [G].

    steps: above 0.
    rate_ratio: rho, times the ratio of the gates where they differ.
    """
    frequent, rare = (saturating_weight(steps, 1, end) for end in (knee_frequent, knee_rare))
    return rate_ratio * frequent / rare


def late_ratio(
    specialists: Value, specialists_rare: Value, active: Value, active_rare: Value, gate_ratio: Value = 1
) -> Value:
    """Frequent over rare weight once both margins are 1, whatever alpha   [G].

    gate_ratio: frequent over rare gate weight.
    """
    return specialists_rare * active_rare / (specialists * active * gate_ratio)


def leakage(rho: Value, gate_leaked: Value, gate: Value) -> Value:
    """Weight of a rare specialist on the frequent token, relative to its weight on its own token   [G, effect (ii)].

    gate_leaked: mean gate weight of that specialist on the frequent token over frequent samples, 0 where not selected.
    """
    return rho * gate_leaked / gate


def norm_ratio(own_ratio: Value, leaked: Value) -> Value:
    """Ratio of norms if only a rare specialist has a second token, of relative weight `leaked`   [G, effect (ii)]."""
    return own_ratio / sqrt(1 + leaked**2)


def dead_probability(m: Value) -> Value:
    """Probability that no neuron of a specialist is active on its token at the start   [G, effect (iii)]."""
    return 1 / 2**m


def momentum_step(
    state: tuple[Value, Value], gradient: Value, eta: Value, momentum: Value, decay: Value
) -> tuple[Value, Value]:
    """Velocity and weight after one more step of SGD with momentum and L2 weight decay, as PyTorch's   [G-linear].

    gradient: minus the gradient of the loss, as everywhere here: what raises the weight is positive.
    """
    velocity, weight = state
    velocity = momentum * velocity + gradient - decay * weight
    return velocity, weight + eta * velocity


def logistic_time(weight: Value, rate: Value, slope: Value) -> Value:
    """Steps until the weight is reached from 0 under the logistic loss, in the limit of small steps   [G-logistic].

    rate: from `growth_rate`.
    slope: class margin for each unit of weight, N q G.
    """
    return (slope * weight + exp(slope * weight) - 1) / (slope * rate)


def adam_moments(
    moments: tuple[Value, Value], gradient: Value, beta_1: Value, beta_2: Value
) -> tuple[Value, Value]:
    """Adam's running means of the gradient and of its square after one more gradient   [G-adam]."""
    first, second = moments
    return beta_1 * first + (1 - beta_1) * gradient, beta_2 * second + (1 - beta_2) * gradient**2


def adam_step(
    moments: tuple[Value, Value], step: Value, eta: Value, beta_1: Value, beta_2: Value, epsilon: Value
) -> Value:
    """Bias-corrected update number `step`, from 1   [G-adam; Kingma & Ba, ICLR 2015, algorithm 1]."""
    first, second = moments
    return eta * (first / (1 - beta_1**step)) / (sqrt(second / (1 - beta_2**step)) + epsilon)


def adam_rate(gradient: Value, eta: Value, epsilon: Value) -> Value:
    """Growth of the weight in one Adam step for a constant gradient of either sign   [G-adam].

    SGD adds eta * gradient instead.
    """
    return eta * gradient / (abs(gradient) + epsilon)
