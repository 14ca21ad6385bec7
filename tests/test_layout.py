"""House rules that a program can check."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "byteloom").rglob("*.py"))
TESTED_TOGETHER = {
    "raw": "codecs",
    "text": "codecs",
    "config": "multiscale",
    "archives": "compression",
    "__main__": "cli",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_source_file_has_its_test(path: Path) -> None:
    name = TESTED_TOGETHER.get(path.stem, path.stem)
    if path.stem == "__init__":
        name = path.parent.name if path.parent.name in ("codecs", "hf") else "init"
    elif path.parent.name == "hf":
        name = "hf" if path.stem in ("folder", "remote") else f"hf_{path.stem}"
    if path.parent.name == "commands":
        name = "cli"
    assert (ROOT / "tests" / f"test_{name}.py").exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_file_is_one_thing_that_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 450
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef)
        if (is_function or isinstance(node, ast.ClassDef)) and not node.name.startswith("_"):
            nested = is_function and any(
                node in ast.walk(f) for f in ast.walk(tree) if f is not node and isinstance(f, ast.FunctionDef)
            )
            protocol = is_function and len(node.body) == 1 and isinstance(node.body[0], ast.Expr)
            assert nested or protocol or ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_field_of_a_config_is_explained(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            for field, following in zip(node.body, [*node.body[1:], None]):
                if isinstance(field, ast.AnnAssign):
                    explained = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                    assert explained, f"{path.name}:{field.lineno}"


def test_the_architecture_page_names_every_file() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for path in SOURCES:
        relative = path.relative_to(ROOT / "src" / "byteloom")
        listed = {"codecs", "commands"} & set(relative.parts) or relative.name == "__main__.py"
        if not listed and (relative.name != "__init__.py" or len(relative.parts) == 1):
            assert str(relative) in page, relative
    tree = page.split("```")[1]
    for name in re.findall(r"^  ([a-z_/]+\.py)", tree, re.MULTILINE):
        assert (ROOT / "src" / "byteloom" / name).exists(), name
