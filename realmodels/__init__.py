"""The bridge: mixture-of-experts models of transformers on simulated analog hardware."""

from realmodels.calibrate import calibrate
from realmodels.damage import expected_damage
from realmodels.deploy import deploy, reprogram, withdraw
from realmodels.evaluate import evaluate
from realmodels.load import load
from realmodels.scores import scores

__all__ = ["calibrate", "deploy", "evaluate", "expected_damage", "load", "reprogram", "scores", "withdraw"]
