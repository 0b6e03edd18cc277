"""What the tests of training share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small networks train fastest on one thread, above all beside other tests."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
