"""Export, prove and measure vision backbones with coordinate attention.

The names below are the Python interface (``coordatt_deploy.api``); they are loaded when they are used, so that
importing the package alone needs nothing.
"""

from importlib import import_module
from typing import Final

__version__: Final = "0.1.0"
__all__ = ["Bundle", "DeployError", "UsageError", "__version__", "export", "open_bundle"]  # typed in __init__.pyi


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("coordatt_deploy.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
