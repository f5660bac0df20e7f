"""The commands of the README and of the pages name flags and files that exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from bn_jax.cli.main import make_parser

pytestmark = pytest.mark.docs

_ROOT = Path(__file__).parents[2]
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))]
_MAKEFILE = (_ROOT / "Makefile").read_text()
_EXTRAS = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
# Values that a page leaves to the reader.
_PLACEHOLDERS = re.compile(r"\.\.\.|[A-Z_]{3,}")


def _commands(page: Path) -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [command for command in words if command]


_COMMANDS = {
    f"{page.name}: {shlex.join(command)}": command
    for page in _PAGES
    for command in _commands(page)
}


def _check_program(command: list[str]) -> None:
    program, *words = command
    if program == "python":
        assert (_ROOT / words[0]).is_file()
    if program == "make":
        targets = [word for word in words if "=" not in word]
        assert all(re.search(rf"^{t}:", _MAKEFILE, re.M) for t in targets)
    if program == "pip":
        named = ",".join(re.findall(r"\[(.*)\]", " ".join(words)))
        of_jax = {"k8s", "tpu", "cuda13"}
        assert {name for name in named.split(",") if name} <= {*_EXTRAS, *of_jax}


def _check_flags(words: list[str], known: str) -> None:
    for word in words:
        flag = re.match(r"--([\w.]+)", word)
        if flag and not flag[1].startswith(("config.", "dataset.")):
            assert f'"{flag[1]}"' in known or f'"--{flag[1]}"' in known


def _check_config_file(words: list[str]) -> None:
    for word in words:
        file = re.match(r"--config=(?:configs/(\w+)\.py|(\w+))(?::|$)", word)
        if file:
            assert (_ROOT / "configs" / f"{file[1] or file[2]}.py").is_file()


@pytest.mark.parametrize("command", _COMMANDS.values(), ids=_COMMANDS)
def test_each_command_names_programs_flags_and_files_that_exist(
    command: list[str],
) -> None:
    _check_program(command)
    _check_config_file(command)
    of_training = (_ROOT / "bn_jax" / "training" / "main.py").read_text()
    of_verbs = (_ROOT / "bn_jax" / "cli" / "main.py").read_text()
    if command[:2] == ["python", "train.py"]:
        _check_flags(command[2:], of_training)
    if command[0] == "bn-jax":
        verb = command[1]
        parser = make_parser()
        assert (
            _PLACEHOLDERS.fullmatch(verb)
            or f"'{verb}'" in parser.format_usage()
            or (verb in parser.format_help())
        )
        _check_flags(command[2:], of_verbs + of_training)
