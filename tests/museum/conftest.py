"""The museum runs the engine's tiny checkpoint."""

from engine.conftest import dense, tiny

__all__ = ["dense", "tiny"]
