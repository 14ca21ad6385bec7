"""byteloom at home in transformers: config, model, tokenizer and processor, known to the Auto classes once imported.

`AutoModelForCausalLM.from_pretrained(FOLDER)` opens what `byteloom train` and `byteloom export` wrote. Where
byteloom.hf has not been imported, a folder made by `byteloom export --to hf` needs `trust_remote_code=True`, and
imports it.
"""

import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from byteloom.hf.cache import ByteloomCache
from byteloom.hf.configuration import ByteloomConfig
from byteloom.hf.modeling import ByteloomForCausalLM
from byteloom.hf.processing import ByteloomProcessor
from byteloom.hf.tokenization import ByteloomTokenizer

__all__ = ["ByteloomCache", "ByteloomConfig", "ByteloomForCausalLM", "ByteloomProcessor", "ByteloomTokenizer"]

AutoConfig.register("byteloom", ByteloomConfig, exist_ok=True)
AutoModelForCausalLM.register(ByteloomConfig, ByteloomForCausalLM, exist_ok=True)
AutoTokenizer.register(ByteloomConfig, ByteloomTokenizer, exist_ok=True)
AutoProcessor.register(ByteloomConfig, ByteloomProcessor, exist_ok=True)
# `transformers serve` looks up classes in transformers by name, and what they read in this table. The module is there
# twice once processors are imported, so the name goes to what both are made of.
setattr(type(transformers), ByteloomForCausalLM.__name__, ByteloomForCausalLM)
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[ByteloomConfig.model_type] = ByteloomForCausalLM.__name__
