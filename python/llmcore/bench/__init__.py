"""Benchmarks that come with the package: what this machine can do."""

from llmcore.bench.machine import Ceilings, measure_ceilings

__all__ = ["Ceilings", "measure_ceilings"]
