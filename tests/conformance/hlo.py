"""Collectives in compiled programs, counted in the text of XLA."""

import re
from collections import Counter
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
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{\s*$")
_BRANCHES = re.compile(
    r"(?:true_computation|false_computation)=%?([\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
_CALLED = re.compile(
    r"(?:to_apply|calls|body|condition|true_computation|false_computation)"
    r"=%?([\w.\-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}"
)


class Collectives(NamedTuple):
    """Numbers of collectives by kind.

    Attributes:
        always: Those that every run executes.
        in_branches: Those in a branch of a conditional, which one may never take.
    """

    always: Counter[str]
    in_branches: Counter[str]


def count_collectives(text: str) -> Collectives:
    """Counts instructions of the text that a compiled function gives.

    Args:
        text: What `jax.jit(f).lower(...).compile().as_text()` returns.
    """
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[1]
        elif name:
            bodies.setdefault(name, []).append(line)
    in_branch = set()
    waiting = [
        branch for lines in bodies.values() for branch in _named(_BRANCHES, lines)
    ]
    while waiting:
        branch = waiting.pop()
        if branch not in in_branch:
            in_branch.add(branch)
            waiting += _named(_CALLED, bodies.get(branch, []))
    always: Counter[str] = Counter()
    in_branches: Counter[str] = Counter()
    for name, lines in bodies.items():
        found = [match[1] for match in map(_COLLECTIVE.search, lines) if match]
        (in_branches if name in in_branch else always).update(found)
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


def _named(pattern: re.Pattern[str], lines: list[str]) -> list[str]:
    names = []
    for line in lines:
        for one, several in pattern.findall(line):
            listed = several.split(",") if several else [one]
            names += [listed_name.strip().lstrip("%") for listed_name in listed]
    return names
