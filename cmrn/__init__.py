"""Composable Memory Routing Networks: small language models whose experts, routing and memory can be read.

Names are loaded when first used, so that `import cmrn` costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cmrn.config import CMRNConfig, ExpertConfig, TrainingConfig
    from cmrn.model import CMRN
    from cmrn.records import CMRNOutput
    from cmrn.tokenizer import CMRNTokenizer

__all__ = ["CMRN", "CMRNConfig", "CMRNOutput", "CMRNTokenizer", "ExpertConfig", "TrainingConfig", "__version__"]

__version__: Final = "0.1.0"

_HOMES: Final = {
    "CMRN": "cmrn.model",
    "CMRNConfig": "cmrn.config",
    "CMRNOutput": "cmrn.records",
    "CMRNTokenizer": "cmrn.tokenizer",
    "ExpertConfig": "cmrn.config",
    "TrainingConfig": "cmrn.config",
}


def __getattr__(name: str) -> object:
    """Load an exported name from the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Exported names, loaded or not."""
    return sorted({*globals(), *__all__})
