"""All settings of a configuration side by side, to be compared with another's."""

from typing import Any

from ml_collections import ConfigDict


def flat_settings(config: ConfigDict) -> dict[str, Any]:
    """All settings, by their names with dots."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            nested = flat_settings(value).items()
            flat.update({f"{key}.{name}": leaf for name, leaf in nested})
        else:
            flat[key] = value
    return flat
