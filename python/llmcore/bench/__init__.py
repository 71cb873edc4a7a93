"""Benchmarks that come with the package: what this machine can do, and what llmcore makes of it."""

from llmcore.bench.machine import Ceilings, measure_ceilings

__all__ = ["Ceilings", "measure_ceilings"]
