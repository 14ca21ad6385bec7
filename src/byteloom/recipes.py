"""Named runs: a function each, which returns a whole config. Options on the command line only change its fields.

`NAMES` finds them; the name of a recipe is its function's with dashes for underscores.
"""

import difflib
from collections.abc import Callable

from byteloom.models.config import ModelConfig, StageConfig
from byteloom.train.loop import RunConfig, TrainConfig
from byteloom.train.optim import OptimConfig

Recipe = Callable[[], RunConfig]


def text_small() -> RunConfig:
    """Text in any script, about 10 minutes on 2 cores: 2.5M parameters, patches of 4 bytes, a local window of 32."""
    return RunConfig(
        model=ModelConfig(
            stages=(
                StageConfig(dim=256, num_layers=2, num_heads=4, patch_size=4, token_shift=True),
                StageConfig(dim=128, num_layers=4, num_heads=2, window=32, token_shift=True),
            ),
            context=1024,
        ),
        optim=OptimConfig(),
        train=TrainConfig(batch_size=4, max_seconds=600),
    )


def code_small() -> RunConfig:
    """Source code, about 10 minutes on 2 cores; the same model as text-small."""
    return text_small()


NAMES: dict[str, Recipe] = {recipe.__name__.replace("_", "-"): recipe for recipe in (text_small, code_small)}
"""Every recipe by its name."""


def by_name(name: str) -> RunConfig:
    """The run of that name. Raises ValueError, with the nearest names, where there is none."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=3)
        raise ValueError(
            f"recipe {name!r} is unknown; "
            + (f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(NAMES))}")
        )
    return NAMES[name]()
