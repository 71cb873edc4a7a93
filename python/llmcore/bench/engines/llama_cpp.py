"""llama.cpp among the contestants, by its C interface as llama-cpp-python exposes it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore.bench.engines.generator import measure_generator
from llmcore.bench.worker import Built
from llmcore.bench.workloads import Generation
from llmcore.config import ModelConfig
from llmcore.errors import ConfigError

# Its names for number formats of matrices; vectors and positions stay float32.
_FORMATS = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
_LAYERS = {
    "self_attention.norm": "attn_norm",
    "self_attention.out": "attn_output",
    "feed_forward.norm": "ffn_norm",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}
_TABLES = {"embed.tokens": "token_embd", "embed.positions": "position_embd"}


def convert(workload: dict[str, Any], folder: str) -> None:
    """Write the model of the folder as GGUF, all its matrices in the same format."""
    import gguf

    import llmcore

    generation = Generation(**workload)
    config = generation.config
    if config.to_dict()["positions"] != "learned" or config.kind != "decoder":
        raise ConfigError("not available: only models of GPT-2's architecture are converted")
    model = llmcore.Transformer.from_pretrained(folder)
    arrays = {name: tensor.numpy() for name, tensor in model.parameters().items()}
    writer = gguf.GGUFWriter(_path(folder, generation), "gpt2")
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_block_count(config.num_decoder_layers)
    writer.add_head_count(config.num_heads)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")  # ids go in and come out
    for name, array in _renamed(arrays, config):
        matrix = array.ndim == 2 and not name.startswith("position")
        kind = gguf.GGMLQuantizationType[_FORMATS[generation.weights] if matrix else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _renamed(
    arrays: Mapping[str, NDArray[np.float32]], config: ModelConfig
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield every parameter by llama.cpp's name; it wants a bias where llmcore may have none."""
    for table, name in _TABLES.items():
        yield f"{name}.weight", arrays[f"{table}.weight"]
    places = [("decoder.norm", "output_norm")]
    for i in range(config.num_decoder_layers):
        places += [(f"decoder.layers.{i}.{ours}", f"blk.{i}.{n}") for ours, n in _LAYERS.items()]
        attention = f"decoder.layers.{i}.self_attention"
        weights = [arrays[f"{attention}.{part}.weight"] for part in "qkv"]
        yield f"blk.{i}.attn_qkv.weight", np.concatenate(weights)
        biases = [_bias(arrays, f"{attention}.{part}") for part in "qkv"]
        yield f"blk.{i}.attn_qkv.bias", np.concatenate(biases)
    for ours, name in places:
        yield f"{name}.weight", arrays[f"{ours}.weight"]
        yield f"{name}.bias", _bias(arrays, ours)


def _bias(arrays: Mapping[str, NDArray[np.float32]], layer: str) -> NDArray[np.float32]:
    bias = arrays.get(f"{layer}.bias")
    return np.zeros(len(arrays[f"{layer}.weight"]), np.float32) if bias is None else bias


def generate(workload: dict[str, Any], folder: str) -> Built:
    """Generate greedily, all sequences of a batch in one call a token."""
    generation = Generation(**workload)
    if generation.beams > 1:
        raise ConfigError("not available: no beam search")
    return measure_generator(_Generator(_path(folder, generation), generation), generation)


def _path(folder: str, generation: Generation) -> str:
    return str(Path(folder) / f"llama.cpp-{generation.weights}.gguf")


class _Generator:
    def __init__(self, path: str, generation: Generation) -> None:
        import llama_cpp

        self.version = str(llama_cpp.__version__)
        self._path, self._generation = path, generation
        self._model: Any = None
        self._context: Any = None

    def load(self) -> None:
        import llama_cpp

        llama_cpp.llama_backend_init()
        generation, threads = self._generation, int(os.environ["OMP_NUM_THREADS"])
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(self._path.encode(), parameters)
        if not self._model:
            raise RuntimeError("llama.cpp could not read the model")
        options = llama_cpp.llama_context_default_params()
        batch = max(generation.batches)
        # Cells of the cache: for all sequences of the largest batch, or the long prompt.
        cells = max(batch * (generation.prompt + generation.new), generation.prefill + 1)
        options.n_ctx = -(-cells // (256 * batch)) * 256 * batch
        options.n_batch = options.n_ubatch = max(generation.prefill, batch * generation.prompt)
        options.n_seq_max = batch
        options.kv_unified = True
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context")

    def drop(self) -> None:
        import llama_cpp

        if self._context:
            llama_cpp.llama_free(self._context)
            llama_cpp.llama_model_free(self._model)
        self._context = self._model = None

    def generate(self, prompts: list[list[int]], new: int, beams: int) -> list[list[int]]:
        import llama_cpp

        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        batch = llama_cpp.llama_batch_init(sum(map(len, prompts)), 0, 1)
        results: list[list[int]] = [[] for _ in prompts]
        try:
            latest, start = prompts, 0
            while len(results[0]) < new:
                chosen = self._step(batch, latest, start)
                for result, token in zip(results, chosen, strict=True):
                    result.append(token)
                start += len(latest[0])
                latest = [[token] for token in chosen]
        finally:
            llama_cpp.llama_batch_free(batch)
        return results

    def _step(self, batch: Any, tokens: list[list[int]], start: int) -> list[int]:
        """Feed the tokens of each sequence from position `start` on; return the likeliest next."""
        import llama_cpp

        count, ends = 0, []
        for sequence, row in enumerate(tokens):
            for offset, token in enumerate(row):
                batch.token[count] = token
                batch.pos[count] = start + offset
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = sequence
                batch.logits[count] = offset == len(row) - 1
                count += 1
            ends.append(count - 1)
        batch.n_tokens = count
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not decode the batch")
        size = self._generation.config.vocab_size
        chosen = []
        for end in ends:
            logits = llama_cpp.llama_get_logits_ith(self._context, end)
            chosen.append(int(np.ctypeslib.as_array(logits, (size,)).argmax()))
        return chosen
