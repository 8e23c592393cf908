"""What all tests share: reproducible property tests, one thread per process, no network."""

import os
from importlib.util import find_spec

from hypothesis import settings

# Before torch and transformers are imported. One thread: several would make sums depend on the machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

# A busy machine is no reason to fail, hence no deadline. CI repeats the same examples every time; a failure
# elsewhere prints how to reproduce it.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if "CI" in os.environ else "local")

HAS_AIHWKIT = find_spec("aihwkit") is not None  # its wheels are for Linux on x86-64 only
collect_ignore = [] if HAS_AIHWKIT else ["realmodels/test_peers.py"]


def pytest_report_header() -> list[str]:
    return [] if HAS_AIHWKIT else ["aihwkit is not installed: tests/realmodels/test_peers.py is left out"]
