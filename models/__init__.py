"""The backbones that the toolchain ships, by name.

Names and cards (``list_models``, ``model_card``) need no torch; ``create_model`` loads it when it is first used.
"""

from typing import TYPE_CHECKING

if __name__ != "coordatt_deploy.models":
    raise ImportError(
        f"this package was imported as {__name__!r}, which would make a second copy of it;"
        " import coordatt_deploy.models instead"
    )

from coordatt_deploy.models.cards import ModelCard
from coordatt_deploy.models.registry import list_models, model_card

if TYPE_CHECKING:
    from coordatt_deploy.models.factory import create_model

__all__ = ["ModelCard", "create_model", "list_models", "model_card"]


def __getattr__(name: str) -> object:
    """Load torch only for whoever builds a network."""
    if name == "create_model":
        from coordatt_deploy.models.factory import create_model

        return create_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
