"""`import byteloom` is lazy, and the core does without every optional extra."""

import subprocess
import sys

import byteloom

BLOCK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""
EXTRAS = {"grain", "matplotlib", "PIL", "soundfile", "av", "transformers", "constriction"}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_loads_nothing() -> None:
    out = python("import sys, byteloom; dir(byteloom); print({'torch', 'numpy', 'rich'} & set(sys.modules))")
    assert out.strip() == "set()"


def test_every_public_name_is_there() -> None:
    for name in byteloom.__all__:
        assert getattr(byteloom, name).__doc__
    assert set(byteloom.__all__) <= set(dir(byteloom))
    assert byteloom.__version__
    assert not hasattr(byteloom, "nonsense")


def test_model_generation_and_evaluation_need_no_extra() -> None:
    code = (
        BLOCK % EXTRAS
        + """
import byteloom
from byteloom import ModelConfig, Multiscale, StageConfig
stages = (StageConfig(dim=16, num_layers=1, num_heads=2, patch_size=4), StageConfig(dim=16, num_layers=1, num_heads=2))
model = Multiscale(ModelConfig(stages=stages, context=64))
byteloom.generate(model, "a", max_bytes=5)
print(byteloom.evaluate(model, b"some text").bytes)
"""
    )
    assert python(code).strip() == "9"
