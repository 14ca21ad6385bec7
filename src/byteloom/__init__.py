"""byteloom: multiscale models over raw bytes (MEGABYTE, arXiv 2305.07185), for any modality.

The names below are loaded when they are first used, so `import byteloom` itself costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byteloom.compression import compress, decompress
    from byteloom.documents import Document, Segment
    from byteloom.evaluation import evaluate
    from byteloom.generation import generate, generate_documents
    from byteloom.models.config import ModelConfig, StageConfig
    from byteloom.models.multiscale import Multiscale
    from byteloom.models.store import load, save
    from byteloom.quantization import quantize

__version__ = "0.1.0"

__all__ = [
    "Document",
    "ModelConfig",
    "Multiscale",
    "Segment",
    "StageConfig",
    "compress",
    "decompress",
    "evaluate",
    "generate",
    "generate_documents",
    "load",
    "quantize",
    "save",
]

_HOMES = {
    "Document": "documents",
    "Segment": "documents",
    "ModelConfig": "models.config",
    "StageConfig": "models.config",
    "Multiscale": "models.multiscale",
    "compress": "compression",
    "decompress": "compression",
    "evaluate": "evaluation",
    "generate": "generation",
    "generate_documents": "generation",
    "load": "models.store",
    "quantize": "quantization",
    "save": "models.store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
