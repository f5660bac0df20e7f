"""Collectives, branches and costs of compiled programs, in the text of XLA."""

import re
from collections import Counter
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any, NamedTuple

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


class Collectives(NamedTuple):
    """Numbers of collectives by kind.

    Attributes:
        always: Those that every run executes, whichever branches it takes.
        in_branches: Those beyond them in the branches of conditionals.
    """

    always: Counter[str]
    in_branches: Counter[str]


def count_collectives(text: str) -> Collectives:
    """Counts instructions of the text that a compiled function gives.

    Args:
        text: What `jax.jit(f).lower(...).compile().as_text()` returns.
    """
    entry, bodies = _computations(text)
    return _count_in(entry, bodies)


def without_loops_in_branches(text: str) -> tuple[str, int]:
    """The program with the other branch in the place of each that holds a loop.

    It is for XLA's analysis alone: the branches' arguments are left as they are, and no
    longer fit.

    Args:
        text: As for `count_collectives`.

    Returns:
        The text, and how many branches were replaced.

    Raises:
        ValueError: If no branch of a conditional is without a loop, or several are.
    """
    _, bodies = _computations(text)
    lines, number = text.splitlines(keepends=True), 0
    for place, line in enumerate(lines):
        branches = _named(_BRANCHES, line)
        loops = [name for name in branches if _has_loop(name, bodies)]
        if not loops:
            continue
        others = [name for name in branches if name not in loops]
        if len(others) != 1:
            raise ValueError(
                "without_loops_in_branches: expected one branch without a loop beside "
                f"those with one, and found {len(others)} in {line.strip()[:200]}"
            )
        for loop in loops:
            named = rf"(?<![\w.\-]){re.escape(loop)}(?![\w.\-])"
            line = re.sub(named, others[0], line)
        lines[place] = line
        number += len(loops)
    return "".join(lines), number


def estimated_cycles(text: str) -> int:
    """Cycles that XLA expects of a TPU's program, each loop's body run once.

    Of a conditional the longest branch counts. Copies that run beside other operations
    have no estimate.

    Args:
        text: As for `count_collectives`.

    Raises:
        ValueError: If it has no estimates, as those for other devices.
    """
    entry, bodies = _computations(text)
    if _CYCLES.search(text) is None:
        raise ValueError(
            "estimated_cycles: expected a text of the compiler for TPUs, which writes "
            "cycles beside operations, and found none in this one."
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
    """The entry's name, and the lines of each computation."""
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


def _has_loop(name: str, bodies: dict[str, list[str]]) -> bool:
    """Whether a computation holds a loop, or calls one that does."""
    return any(
        " while(" in line
        or any(_has_loop(called, bodies) for called in _named(_CALLED, line))
        for line in bodies.get(name, [])
    )


def _count_in(name: str, bodies: dict[str, list[str]]) -> Collectives:
    """Counts what a computation executes, with all that it calls."""
    always: Counter[str] = Counter()
    in_branches: Counter[str] = Counter()
    for line in bodies.get(name, []):
        if collective := _COLLECTIVE.search(line):
            always[collective[1]] += 1
        for called in _named(_CALLED, line):
            found = _count_in(called, bodies)
            always += found.always
            in_branches += found.in_branches
        if branches := [_count_in(name, bodies) for name in _named(_BRANCHES, line)]:
            common = reduce(and_, (branch.always for branch in branches))
            always += common
            for branch in branches:
                in_branches += branch.always - common + branch.in_branches
    return Collectives(always, in_branches)


def summed_dtypes(lowered: Any, folder: Path) -> Counter[str]:
    """Dtypes that all-reduces of a program have once XLA has divided it.

    The compiled text does not tell: a CPU sums bfloat16 in float32, and sends it so.

    Args:
        lowered: What `jax.jit(f).lower(...)` returns.
        folder: Empty; XLA writes the program there.
    """
    name = "spmd-partitioning"
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_pass_re": name}
    lowered.compile(compiler_options=options)
    (path,) = folder.glob(f"*.after_{name}.*")
    return Counter(_SUMMED.findall(path.read_text()))


def _named(pattern: re.Pattern[str], line: str) -> list[str]:
    """Names of the computations that a line names."""
    named = [
        part for found in pattern.finditer(line) for part in found.groups() if part
    ]
    return [name.strip().lstrip("%") for part in named for name in part.split(",")]
