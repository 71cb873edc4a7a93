"""Where NVIDIA's packages keep the shared libraries that the core opens once a GPU is used."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def library_folders() -> list[str]:
    """Find the folders of `nvidia-cublas`, `nvidia-cudnn-cu13` and `nvidia-nccl-cu13`.

    They are looked for as Python would, since they need not lie beside llmcore: it may be an
    editable installation, or theirs be another site directory. Nothing is imported.

    Returns:
        Those there are, in the order of `sys.path`.
    """
    try:
        spec = importlib.util.find_spec("nvidia")
    except ValueError:  # something else has put a module of that name into sys.modules
        spec = None
    roots = (spec.submodule_search_locations if spec else None) or ()
    folders = [Path(root, part, "lib") for root in roots for part in ("cu13", "cudnn", "nccl")]
    return [str(folder) for folder in folders if folder.is_dir()]
