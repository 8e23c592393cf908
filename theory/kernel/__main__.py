"""Compiles and checks every theorem: `python -m theory.kernel`."""

import sys
import time

from theory.derivations import NotRunError
from theory.kernel import STEPS, coq, formulas


def main() -> int:
    """0 if every theorem is proved, else 1."""
    started = time.monotonic()
    try:
        checked = coq.check(formulas())
    except NotRunError as error:
        print(f"not run: {error}", file=sys.stderr)
        return 1
    steps = dict.fromkeys(step for own in STEPS.values() for step in own)
    failures = {step: step.failure() for step in steps}
    for step, failure in failures.items():
        print(f"{step.reference}\n    {step.equation}{f': FAILS, {failure}' if failure else ''}")
    proved = sum(failure is None for failure in failures.values())
    print(f"{proved} of {len(steps)} theorems in {time.monotonic() - started:.0f} s, on the axioms", end=" ")
    print(", ".join(sorted(checked.axioms)))
    return int(proved < len(steps))


if __name__ == "__main__":
    sys.exit(main())
