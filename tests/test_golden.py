"""Golden files: logits of fixed weights for ten configs, and a loss curve of 100 steps; a refactor changes no digit.

`python tests/test_golden.py` makes them anew, for a change that is meant to change numbers.
"""

import json
from pathlib import Path

import pytest
import torch

from byteloom.models.config import ModelConfig, StageConfig
from byteloom.models.multiscale import Multiscale
from byteloom.train.optim import OptimConfig, Optimizers

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"dim": 16, "num_layers": 1, "num_heads": 2}


def two(coarse: dict | None = None, fine: dict | None = None, **fields) -> ModelConfig:
    stages = (StageConfig(**{**SMALL, "patch_size": 4, **(coarse or {})}), StageConfig(**{**SMALL, **(fine or {})}))
    return ModelConfig(**{"stages": stages, "context": 32, **fields})


LEARNED = {"position": "learned", "max_positions": 9}
CONFIGS = {
    "one_stage": ModelConfig(stages=(StageConfig(**SMALL),), context=32),
    "two_stages": two(),
    "three_stages": ModelConfig(
        stages=(StageConfig(**SMALL, patch_size=3), StageConfig(**SMALL, patch_size=2), StageConfig(**SMALL)),
        context=32,
    ),
    "paper": two(
        {**LEARNED, "norm": "layer", "mlp": "relu", "expand": "slice", "qk_norm": False, "embed_dim": 4},
        {"position": "learned", "norm": "layer", "mlp": "relu", "qk_norm": False},
    ),
    "window": two(fine={"window": 6, "token_shift": True}),
    "cross_patch": two(fine={"cross_patch": 2}),
    "convolutions": two({"conv_kernels": (3, 5, 7), "patch_norm": "rms"}),
    "alibi_grouped": two({"position": "alibi", "num_kv_heads": 1}, {"position": "alibi"}, logit_cap=10.0),
    "swiglu_scalars": two({"mlp": "swiglu", "residual_scalars": True}, tied_head=False, head_bias=True),
    "late_parent": two({"patch_norm": "layer", "token_shift": True}, late_parent=True),
}


def weights_by_rule(model: Multiscale) -> Multiscale:
    """Weights from a formula, so that no random generator has to stay as it is."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            index = torch.arange(parameter.numel(), dtype=torch.float64)
            values = 0.3 * torch.sin(1.7 * index + number) + 0.1 * torch.cos(0.31 * index * (number + 1))
            parameter.copy_(values.view(parameter.shape) + (1.0 if parameter.ndim < 2 else 0.0))
    return model.eval()


def logits_of(name: str) -> list[float]:
    model = weights_by_rule(Multiscale(CONFIGS[name]))
    ids = ((torch.arange(22) * 37 + 11) % 256).unsqueeze(0)
    with torch.no_grad():
        logits = model(ids)[0]
    return [round(float(value), 5) for value in logits[[0, 1, 4, 13, 21]][:, ::40].flatten()]


def loss_curve() -> list[float]:
    model = weights_by_rule(Multiscale(CONFIGS["window"])).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2 if parameter.ndim > 1 else 1.0)
    model.double()  # rounding must not grow over the steps
    optimizers = Optimizers(model, OptimConfig(optimizer="adamw", learning_rate=0.02))
    text = torch.tensor(list(b"the quick brown fox jumps over the lazy dog. " * 8))
    curve = []
    for step in range(100):
        ids = text[step : step + 128].view(4, 32)
        loss = model.loss(ids)
        (loss.nats / loss.count).backward()
        optimizers.step(step / 100)
        curve.append(round(float((loss.nats / loss.count).detach()), 4))
    return curve


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_the_golden_ones(name: str) -> None:
    expected = json.loads((GOLDEN / "logits.json").read_text())[name]
    scale = max(1.0, *map(abs, expected))
    assert [x / scale for x in logits_of(name)] == pytest.approx([x / scale for x in expected], abs=2e-5)


def test_the_loss_curve_is_the_golden_one() -> None:
    curve = loss_curve()
    assert curve == pytest.approx(json.loads((GOLDEN / "loss_curve.json").read_text()), abs=1e-3)
    assert curve[-1] < 2.0 < 5.0 < curve[0]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "logits.json").write_text(json.dumps({name: logits_of(name) for name in CONFIGS}, indent=1) + "\n")
    (GOLDEN / "loss_curve.json").write_text(json.dumps(loss_curve()) + "\n")
