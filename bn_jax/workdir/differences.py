"""Differences between two configurations, in words."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def differences(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    *,
    places: tuple[str, str],
    may_differ: Sequence[str] = (),
) -> list[str]:
    """Returns one phrase for each setting in which two configurations differ.

    A setting that only one of them has is 'missing' in the other.

    Args:
        first: The first configuration, JSON-ready.
        second: The second configuration, JSON-ready.
        places: Where the first and the second configuration come from, in words.
        may_differ: Settings, or groups of settings, to leave out.

    >>> differences({"seed": 0}, {"seed": 1}, places=("in a.json", "in b.json"))
    ['seed is 0 in a.json and 1 in b.json']
    """
    # A round trip through JSON turns tuples into lists, which then compare as equal.
    old, new = (_flatten(json.loads(json.dumps(values))) for values in (first, second))
    return [
        f"{key} is {old.get(key, 'missing')!r} {places[0]} and "
        f"{new.get(key, 'missing')!r} {places[1]}"
        for key in sorted(old.keys() | new.keys())
        if not _is_listed(key, may_differ)
        and old.get(key, "missing") != new.get(key, "missing")
    ]


def _is_listed(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
