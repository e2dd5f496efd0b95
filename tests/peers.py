"""PyTorch and diffusers for comparisons: imported where a test needs them, the test skipped where they are missing."""

import pytest


def import_torch():
    """torch on one thread: its pool and ours would fight over the processors for the tiny arrays of a test."""
    torch = pytest.importorskip("torch", reason="comparison with torch: not installed")
    torch.set_num_threads(1)
    return torch


def import_diffusers():
    """diffusers, whose models are torch's."""
    import_torch()
    return pytest.importorskip("diffusers", reason="comparison with diffusers: not installed")


def import_transformers():
    """transformers, whose text encoders are torch's."""
    import_torch()
    return pytest.importorskip("transformers", reason="comparison with transformers: not installed")
