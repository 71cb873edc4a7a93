"""Reads what ptxas says of every kernel, and fails where one keeps in memory what registers hold.

python .ci/spills.py LOG    of a build with LLMCORE_CUDA=ON and LLMCORE_CUDA_REPORT=ON
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Kernels that may spill: a part of the name, and why that is better than what avoids it.
ALLOWED: dict[str, str] = {}

ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<chip>\w+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores,"
    r" (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def main(log: Path) -> int:
    """Print a line for each kernel and chip; 1 where one spills that may not."""
    entries = list(ENTRY.finditer(log.read_text()))
    if not entries:
        print(f"{log} tells of no kernel: was it built anew, with LLMCORE_CUDA_REPORT=ON?")
        return 1
    mangled = "\n".join(entry["kernel"] for entry in entries)
    demangled = subprocess.run(
        ["c++filt"], input=mangled, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    wrong, unused = [], set(ALLOWED)
    for entry, full in zip(entries, demangled, strict=True):
        kernel = re.sub(r"\(anonymous namespace\)::|llmcore::|cuda::", "", full).removeprefix(
            "void "
        )
        spilled = int(entry["stores"]) + int(entry["loads"])
        print(
            f"{entry['chip']:<7} {entry['registers']:>3} registers {entry['stack']:>5} B stack"
            f" {spilled:>5} B spilled  {kernel.split('(')[0]}"
        )
        if spilled:
            excuses = {part for part in ALLOWED if part in kernel}
            unused -= excuses
            if not excuses:
                wrong.append(f"{kernel} spills on {entry['chip']}")
    wrong += [f"'{part}' is allowed to spill but does not: remove it" for part in unused]
    print(*wrong, f"{len(entries)} kernels, {len(wrong)} faults", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
