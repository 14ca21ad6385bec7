"""Named runs."""

import pytest

from byteloom import recipes
from byteloom.sizing import build


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_builds_on_the_meta_device_and_says_what_it_is(name: str) -> None:
    config = recipes.by_name(name)
    assert next(build(config.model).parameters()).device.type == "meta"
    assert (recipes.NAMES[name].__doc__ or "").strip()
    assert name == recipes.NAMES[name].__name__.replace("_", "-")


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean text-small"):
        recipes.by_name("text_smal")
    with pytest.raises(ValueError, match="known: "):
        recipes.by_name("qqqq")
