"""Settings among the words of a command line, such as `--config.seed=1`."""

from collections.abc import Sequence


def take_settings(
    words: Sequence[str], *, group: str = "config"
) -> tuple[list[str], dict[str, str]]:
    """Returns the words that are no settings, and the settings by their keys.

    A setting without a value is not taken, so that a parser refuses it.

    Args:
        words: Words of a command line, with settings as `--GROUP.KEY=VALUE` or as
            `--GROUP.KEY VALUE`.
        group: Name that precedes the keys.

    >>> take_settings(["--workdir=run", "--config.seed", "1", "--config.a.b=x=y"])
    (['--workdir=run'], {'seed': '1', 'a.b': 'x=y'})
    """
    prefix, others, settings = f"--{group}.", [], {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        key, equals, value = word.removeprefix(prefix).partition("=")
        if word.startswith(prefix) and equals:
            settings[key] = value
        elif word.startswith(prefix) and remaining and remaining[0][:2] != "--":
            settings[key] = remaining.pop(0)
        else:
            others.append(word)
    return others, settings
