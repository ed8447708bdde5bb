from typing import Final

from coordatt_deploy.api import Bundle, DeployError, UsageError, export, open_bundle

__all__ = ["Bundle", "DeployError", "UsageError", "__version__", "export", "open_bundle"]

__version__: Final[str]
