"""Checksums of a checkpoint's files: written with it, verified before restoring it."""

import hashlib
import json
from pathlib import Path

_NAME = "manifest.json"
# Orbax writes the time into the second file after all others are complete; nothing
# reads it.
_NOT_COVERED = {_NAME, "_CHECKPOINT_METADATA"}


def write_manifest(folder: Path) -> None:
    """Writes the manifest of a folder: SHA-256 and size of each of its files.

    Args:
        folder: Folder with all its files, before it gets its final name.
    """
    files = {
        str(path.relative_to(folder)): {
            "sha256": _sha256(path),
            "bytes": path.stat().st_size,
        }
        for path in _covered(folder)
    }
    text = json.dumps({"files": files}, indent=1) + "\n"
    (folder / _NAME).write_text(text)


def damaged_files(folder: Path) -> list[str]:
    """Returns a description of each damaged file; an empty list if all are intact.

    Args:
        folder: Folder with a manifest. A manifest that is missing or cannot be read
            counts as damaged.
    """
    try:
        files = json.loads((folder / _NAME).read_text())["files"]
        recorded = {
            name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{_NAME} cannot be read ({type(error).__name__}: {error})"]
    found = {str(path.relative_to(folder)): path for path in _covered(folder)}
    damage = []
    for name, (size, sha256) in sorted(recorded.items()):
        if name not in found:
            damage.append(f"{name} is missing")
        elif (found_size := found[name].stat().st_size) != size:
            damage.append(f"{name} has {found_size} bytes instead of {size}")
        elif _sha256(found[name]) != sha256:
            damage.append(f"{name} has changed")
    return damage


def _covered(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and str(path.relative_to(folder)) not in _NOT_COVERED
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
