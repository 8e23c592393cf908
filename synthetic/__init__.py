"""What happens in the setting in which the theory is exact? Data, small trainable models, experiments on them."""

from pathlib import Path

import theory

if Path(next(iter(theory.__path__))).resolve().parent != Path(__file__).resolve().parents[1]:
    raise ImportError(
        f"`import theory` finds {next(iter(theory.__path__))}, which is not this project's: take its folder off"
        " PYTHONPATH, or uninstall it"
    )
