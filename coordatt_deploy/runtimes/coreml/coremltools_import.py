"""coremltools, imported without its noise and without the packages that it only looks for.

At import coremltools probes for every framework that it could convert from (scikit-learn, TensorFlow, torchao and more)
and warns about the version of each; where they are installed that costs ten seconds and a screen of text. This project
converts from torch alone, so the others are reported as absent for as long as the import lasts.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

PROBED: Final = (
    "executorch", "libsvm", "sklearn", "tensorflow", "torchao", "torchaudio", "torchvision", "transformers", "xgboost",
)  # fmt: skip


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Make each of the packages *names* that is not imported yet look as if it were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is what makes an import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


logging.getLogger("coremltools").setLevel(logging.ERROR)
with _hidden(PROBED):
    import coremltools
    from coremltools import proto
    from coremltools.converters.mil import mil
    from coremltools.converters.mil.frontend.milproto.load import load as load_mil
    from coremltools.converters.mil.mil import types as mil_types

__all__ = ["coremltools", "load_mil", "mil", "mil_types", "proto"]
