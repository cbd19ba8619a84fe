"""Settings that all tests share: offline, no display, no time limit for property tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings  # noqa: E402

settings.register_profile("default", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("default")
