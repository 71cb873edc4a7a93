"""What a file is that is not what its name promises: a git-lfs pointer, an HTML page, a pickle."""

from __future__ import annotations

from pathlib import Path


def what_it_is(path: Path, head: bytes, size: int) -> str:
    """Say in a sentence what a file is that cannot be read as what it should be.

    Args:
        path: the file; ".json" promises text, any other ending safetensors.
        head: its first bytes, some hundred of them.
        size: its length.

    Example:
        >>> what_it_is(Path("model.safetensors"), b"<!DOCTYPE html>", 15)
        'an HTML page, not the file itself; check the address it was downloaded from'
    """
    return _known(head, size) or _guess(path, head)


def is_recognised(head: bytes, path: Path) -> bool:
    """Whether `what_it_is` would be sure, so that nothing more need be said about the file.

    Example:
        >>> is_recognised(b"", Path("config.json")), is_recognised(b"{}", Path("config.json"))
        (True, False)
    """
    if _known(head, len(head)):
        return True
    return path.suffix == ".safetensors" and _is_text(head)


def _known(head: bytes, size: int) -> str:
    text = head.lstrip().lower()
    if size == 0:
        return "an empty file; copy or download it again"
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself; run `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page, not the file itself; check the address it was downloaded from"
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        return "a Python pickle, not safetensors; convert it with transformers' save_pretrained"
    if not any(head):
        return "filled with zero bytes; copy or download it again"
    return ""


def _guess(path: Path, head: bytes) -> str:
    if _is_text(head):
        return f"a text file, not {'JSON' if path.suffix == '.json' else 'safetensors'}"
    if path.suffix == ".json":
        return "not a text file; copy or download it again"
    return "truncated, or not a safetensors file; copy or download it again"


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r" for byte in head)
