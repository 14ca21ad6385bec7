"""What a saved folder carries so that `trust_remote_code=True` opens it where byteloom.hf has not been imported.

That is one file with one import; the code is that of the installed byteloom, and none of the folder's.
"""

from os import PathLike
from pathlib import Path

MODULE = "byteloom_hf"
CODE = '''"""Opens this folder with the installed byteloom: pip install "byteloom[hf]"."""

from byteloom.hf import ByteloomConfig, ByteloomForCausalLM, ByteloomProcessor, ByteloomTokenizer  # noqa: F401
'''
AUTO_MAP = {
    "AutoConfig": f"{MODULE}.ByteloomConfig",
    "AutoModelForCausalLM": f"{MODULE}.ByteloomForCausalLM",
    "AutoProcessor": f"{MODULE}.ByteloomProcessor",
    "AutoTokenizer": [f"{MODULE}.ByteloomTokenizer", None],
}
"""Class of each Auto class, as transformers looks it up; a tokenizer has no fast one beside it."""


def write_code(folder: str | PathLike[str]) -> None:
    """Writes the file into a folder, which is made if it is not there. Raises OSError."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, f"{MODULE}.py").write_text(CODE, "utf-8")
