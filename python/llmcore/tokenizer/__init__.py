"""Text to token ids and back: the tokenizer, training one, streaming text, characters."""

from llmcore.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
