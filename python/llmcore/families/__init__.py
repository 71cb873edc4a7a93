"""The Hugging Face architectures we read and write, as tables of config keys and tensor names.

A `Family` is one foreign architecture, told in rows: `Key` rows map config keys, `Row` rows map
tensors. All code that walks them is general, so one more architecture of a kind the models can
express is one more `Family`.
"""

from llmcore.families import decoders, encoders, seq2seq
from llmcore.families.family import Family, Float32, OwnFamily, Row
from llmcore.families.special_ids import encode_ids

_OWN = OwnFamily("LlmcoreModel", "llmcore", {}, (), (), base_prefix="")

#: Every architecture that can be read and written; the first that fits a config is written.
FAMILIES: tuple[Family, ...] = (
    decoders.GPT2,
    decoders.LLAMA,
    decoders.MISTRAL,
    decoders.QWEN2,
    decoders.QWEN3,
    encoders.BERT_MASKED_LM,
    encoders.BERT_CLASSIFIER,
    encoders.BERT_BASE,
    encoders.ROBERTA_MASKED_LM,
    encoders.ROBERTA_CLASSIFIER,
    encoders.ROBERTA_BASE,
    seq2seq.MARIAN,
    seq2seq.BART,
    seq2seq.MBART,
    seq2seq.T5,
    _OWN,
)

__all__ = ["FAMILIES", "Family", "Float32", "Row", "encode_ids"]
