"""What the README and the docs tell people to type works, and what they name exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from byteloom import cli, recipes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()


def test_the_python_example_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "untrained" / "model.safetensors").exists()


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -c constraints.txt -e ".[dev]" && pytest\n' in README
    assert '-c constraints.txt -e ".[dev]"' in script
    assert script.rstrip().endswith("run pytest")


def commands() -> list[str]:
    """Every `byteloom ...` in code on a page."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        found |= set(re.findall(r"`(byteloom [a-z][^`\n]*)`", text))
        for block in re.findall(r"```(?:sh|console)?\n(.*?)```", text, re.DOTALL):
            found |= set(re.findall(r"^(?:\$ )?(byteloom [a-z].*)$", block, re.MULTILINE))
    return sorted(found)


@pytest.mark.parametrize("line", commands())
def test_every_command_that_is_shown_has_the_options_that_are_shown(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    words = shlex.split(line.split("|")[0].split("#")[0].split("&&")[0])[1:]
    assert words[0] in cli.command_names() or words[0].isupper()
    if words[0].isupper():
        return
    arguments = [words[0]] + ([words[1]] if words[0] == "train" and len(words) > 1 else []) + ["--help"]
    if words[0] == "train" and len(words) > 1 and not words[1].isupper():
        assert words[1] in recipes.NAMES
    else:
        arguments = [words[0], "--help"]
    with pytest.raises(SystemExit):
        cli.main(arguments)
    shown = capsys.readouterr().out
    for word in words:
        if word.startswith("--") and word != "--help":
            assert re.search(rf"{re.escape(word)}\b", shown), word


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_test_that_the_docs_name_exists() -> None:
    defined = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`(test_[a-z]\w+)`", page.read_text())}
    assert len(named) > 30
    assert named <= defined, named - defined
