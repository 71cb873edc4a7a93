"""Benchmarks: what this machine can do, and what llmcore and its peers reach on it."""

from llmcore.bench.machine import Ceilings, measure_ceilings

__all__ = ["Ceilings", "measure_ceilings"]
