"""Data: sets of tokens mapped into memory, examples, and the way from files to both."""

from llmcore.data.tokens import TokenDataset, shakespeare

__all__ = ["TokenDataset", "shakespeare"]
