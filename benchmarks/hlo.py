"""Collectives and costs of compiled programs, parsed from XLA's text."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

_KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "all-to-all",
    "ragged-all-to-all",
)
_COLLECTIVE = re.compile(rf" ({'|'.join(_KINDS)})(?:-start)?\(")
_SUMMED = re.compile(r" = \(?(\w+)\[.* all-reduce(?:-start)?\(")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_BRANCHES = re.compile(
    r"(?:true_computation|false_computation)=%?([\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
_CALLED = re.compile(
    r"(?:to_apply|calls|body|condition)=%?([\w.\-]+)|called_computations=\{([^}]*)\}"
)

_EXECUTED = re.compile(r"(?:body|condition)=%?([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def count_collectives(text: str) -> Counter[str]:
    """Counts the collectives of a compiled program by kind.

    A collective in the body of a loop counts once.

    Args:
        text: The result of `jax.jit(f).lower(...).compile().as_text()`.
    """
    entry, bodies = _computations(text)

    def count_in(name: str) -> Counter[str]:
        counted: Counter[str] = Counter()
        for line in bodies.get(name, []):
            if collective := _COLLECTIVE.search(line):
                counted[collective[1]] += 1
            for called in (*_named(_CALLED, line), *_named(_BRANCHES, line)):
                counted += count_in(called)
        return counted

    return count_in(entry)


def estimated_cycles(text: str) -> int:
    """Returns the sum of the cycles that XLA estimates for a TPU program.

    The body of a loop counts once. A conditional counts as its longest branch. XLA
    gives no estimate for copies that overlap with other operations.

    Args:
        text: The result of `jax.jit(f).lower(...).compile().as_text()`.

    Raises:
        ValueError: If the text has no estimates, because its program is not for a TPU.
    """
    entry, bodies = _computations(text)
    if _CYCLES.search(text) is None:
        raise ValueError(
            "estimated_cycles: text must have estimated cycles of operations, but has "
            "none; compile the program for a TPU."
        )

    def cycles_of(name: str) -> int:
        cycles = 0
        for line in bodies[name]:
            cycles += sum(map(int, _CYCLES.findall(line)))
            cycles += sum(map(cycles_of, _named(_EXECUTED, line)))
            cycles += max(map(cycles_of, _named(_BRANCHES, line)), default=0)
        return cycles

    return cycles_of(entry)


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """Returns the name of the entry computation, and the lines of all computations."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            bodies[name] = []
            entry = name if header[1] else entry
        elif name:
            bodies[name].append(line)
    return entry, bodies


def summed_dtypes(lowered: Any, folder: Path) -> Counter[str]:
    """Counts the all-reduces of a program by dtype, after XLA has partitioned it.

    The compiled text of a CPU does not show these dtypes: XLA converts all-reduces of
    bfloat16 to float32 there.

    Args:
        lowered: The result of `jax.jit(f).lower(...)`.
        folder: Empty folder, into which XLA writes the program.
    """
    name = "spmd-partitioning"
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_pass_re": name}
    lowered.compile(compiler_options=options)
    (path,) = folder.glob(f"*.after_{name}.*")
    return Counter(_SUMMED.findall(path.read_text()))


def _named(pattern: re.Pattern[str], line: str) -> list[str]:
    """Returns the names of the computations that a line refers to by `pattern`."""
    named = [
        part for found in pattern.finditer(line) for part in found.groups() if part
    ]
    return [name.strip().lstrip("%") for part in named for name in part.split(",")]
