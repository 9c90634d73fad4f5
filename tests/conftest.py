"""Every test: one thread, the same random numbers, no network, nothing written outside its own folder."""

from __future__ import annotations

import os
import random
import tempfile

# Read by the libraries when they are first imported, hence before any of them.
_HOME = tempfile.TemporaryDirectory(prefix="adasearch-tests-")
os.environ.update(
    HF_HOME=_HOME.name, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", MPLBACKEND="Agg",
    MPLCONFIGDIR=_HOME.name, OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false",
)  # fmt: skip

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # tiny models are an order of magnitude faster on one, and their sums always in the same order


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Each test starts from the same state of every generator, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
