"""The exported step against the model's own, also after it went through a file."""

import dataclasses
import io

import configs
import pytest
import torch
from test_multiscale import BY_STAGES, TWO

from byteloom.exporting import begin_stage, export_step
from byteloom.layers.modalities import EmbedderConfig
from byteloom.layers.prediction import PredictorConfig
from byteloom.models.config import ModelConfig

TAGGED = dataclasses.replace(
    TWO, modalities=configs.MODALITIES, vocab_size=330, embedder=EmbedderConfig(kind="universal", positions=7)
)
SOUND, PICTURE = PredictorConfig(guess="mulaw", channels=1, told=True), PredictorConfig(guess="picture", width=2)
GUESSED = dataclasses.replace(
    TAGGED,
    modalities=(
        dataclasses.replace(configs.MODALITIES[0], predictor=SOUND),
        dataclasses.replace(configs.MODALITIES[1], predictor=PICTURE),
    ),
)
SHIFTED = dataclasses.replace(
    TWO, stages=(TWO.stages[0], dataclasses.replace(TWO.stages[1], token_shift=True, window=5, position="alibi"))
)


@pytest.mark.parametrize(
    ("config", "batch"), [(BY_STAGES[1], 1), (BY_STAGES[2], 2), (TAGGED, 1), (GUESSED, 2), (SHIFTED, 2)]
)
def test_programs_step_as_the_model_does(config: ModelConfig, batch: int) -> None:
    model = configs.build(config)
    programs = export_step(model, batch, 20)
    assert len(programs) == len(config.stages)
    if config is BY_STAGES[2]:
        saved = []
        for program in programs:
            file = io.BytesIO()
            torch.export.save(program, file)
            file.seek(0)
            saved.append(torch.export.load(file))
        programs = saved
    steps = [program.module() for program in programs]
    torch.manual_seed(1)
    ids = torch.randint(0, 256, (batch, 18))
    ids[:, 5] = 260
    with torch.no_grad():
        twin, started = model.start(batch, 20), model.start(batch, 20)
        model.prefill(ids[:, :3], [3] * batch, twin)
        model.prefill(ids[:, :3], [3] * batch, started)
        tensors = started.tensors()
        for position in range(3, 18):
            step = steps[begin_stage(model, position + 1)]
            logits, tensors = step(ids[:, position], torch.tensor(position), tensors)
            wanted = model.step(ids[:, position], twin)
            assert (logits - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_late_parents_are_refused() -> None:
    config = dataclasses.replace(BY_STAGES[2], late_parent=True)
    with pytest.raises(ValueError, match="late parents"):
        export_step(configs.build(config))
