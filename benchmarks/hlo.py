"""Collectives, loops and costs of compiled programs, in the text of XLA."""

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
_BODY = re.compile(r"body=%?([\w.\-]+)")
_LOOP = re.compile(r"^\s+(%?[\w.\-]+) = .* while\((%?[\w.\-]+)\)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


class Collectives(NamedTuple):
    """Numbers of collectives by kind.

    Attributes:
        always: Those that every run executes, whichever branches it takes and however
            often its loops go round.
        if_needed: Those beyond them in the branches of conditionals, and in loops that
            may end before their first round.
    """

    always: Counter[str]
    if_needed: Counter[str]


def count_collectives(text: str) -> Collectives:
    """Counts instructions of the text that a compiled function gives.

    Args:
        text: What `jax.jit(f).lower(...).compile().as_text()` returns.
    """
    entry, bodies = _computations(text)
    return _count_in(entry, bodies)


def without_loops(text: str) -> tuple[str, int]:
    """The program without the loops that may end before their first round.

    Args:
        text: As for `count_collectives`.

    Returns:
        The text, in which what a loop is given stands for what it gives, and how many
        loops were left out.

    Raises:
        ValueError: If a loop is all that a computation gives, or is written otherwise.
    """
    lines: list[str] = []
    given: dict[str, str] = {}
    for line in text.splitlines(keepends=True):
        if not _may_end_at_once(line):
            lines.append(line)
            continue
        loop = _LOOP.match(line)
        if loop is None:
            raise ValueError(
                "without_loops: expected a loop, made of one array or tuple by name, "
                f"whose results something is made of, and found {line.strip()[:200]}"
            )
        given[loop[1]] = loop[2]
    text = "".join(lines)
    # What one loop gives another may be given.
    for result, operand in reversed(given.items()):
        named = rf"(?<![\w.\-]){re.escape(result)}(?![\w.\-])"
        text = re.sub(named, operand, text)
    return text, len(given)


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


def _may_end_at_once(line: str) -> bool:
    """Whether an instruction is a loop of as many rounds as its values ask for."""
    return " while(" in line and "known_trip_count" not in line


def _count_in(name: str, bodies: dict[str, list[str]]) -> Collectives:
    """Counts what a computation executes, with all that it calls."""
    always: Counter[str] = Counter()
    if_needed: Counter[str] = Counter()
    for line in bodies.get(name, []):
        if collective := _COLLECTIVE.search(line):
            always[collective[1]] += 1
        for called in _named(_CALLED, line):
            found = _count_in(called, bodies)
            # Whether a loop goes on is asked at least once.
            if _may_end_at_once(line) and called in _named(_BODY, line):
                if_needed += found.always
            else:
                always += found.always
            if_needed += found.if_needed
        if branches := [_count_in(name, bodies) for name in _named(_BRANCHES, line)]:
            common = reduce(and_, (branch.always for branch in branches))
            always += common
            for branch in branches:
                if_needed += branch.always - common + branch.if_needed
    return Collectives(always, if_needed)


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
