"""Classes and functions of a user, by names such as `package.module:Class`.

Such a name runs the code of its module, as `import` does.
"""

import importlib
import os
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from bn_jax.errors import UserError

# Folders of Python's own modules and of installed packages.
_LIBRARIES = tuple(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_object_name(name: str) -> bool:
    """Returns True if a name has the form `package.module:object`.

    A version of tensorflow-datasets, which follows a colon too, starts with a digit.

    >>> is_object_name("my.models:ResNet"), is_object_name("imagenet2012:5.1.0")
    (True, False)
    """
    return _NAME.fullmatch(name) is not None


def load_object(name: str, *, module_dir: str | None, setting: str) -> Any:
    """Imports a module, and returns an object that it defines.

    Python looks for the module in the current folder, then on `sys.path`, then in
    `module_dir`.

    Args:
        name: `package.module:object`.
        module_dir: Another folder to look in, such as that of the configuration file.
        setting: Setting that holds the name, for errors.

    Raises:
        UserError: If the name has another form, or the module is not found, raises an
            error when it is imported, or does not define the object.
    """
    if not is_object_name(name):
        raise UserError(
            f"{setting} must have the form 'package.module:name', but is {name!r}."
        )
    module_name, _, attribute = name.partition(":")
    search_in(module_dir)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Importing runs the user's own code, which may raise errors of any class.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            searched = dict.fromkeys(f for f in (os.getcwd(), module_dir) if f)
            folders = " nor in ".join(searched)
            raise UserError(
                f"{setting}={name}: there is no module {missing} in {folders} nor on "
                "Python's path. Start in the folder of the module, or install it."
            ) from error
        raise UserError(
            f"{setting}={name}: importing {module_name} failed; {describe_error(error)}"
        ) from error
    _check_unique(module, module_dir, setting=setting)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise UserError(
            f"{setting}={name}: {module.__file__} defines no {attribute}. Correct the "
            "name behind the colon."
        ) from error


def folder_of_code(*names: str) -> str | None:
    """Returns the folder from which the first of some objects was imported.

    Installed packages are left out, because Python finds them in any case.

    Args:
        *names: Names in the configuration. Only those of loaded objects count.
    """
    for name in names:
        module_name = name.partition(":")[0]
        file = getattr(sys.modules.get(module_name), "__file__", None)
        if is_object_name(name) and file and not file.startswith(_LIBRARIES):
            path = Path(file).resolve()
            inner = module_name.count(".") + (path.name == "__init__.py")
            return str(path.parents[inner])
    return None


def describe_error(error: BaseException, *, in_file: str | None = None) -> str:
    """Returns type, message, file and line of an error in a user's code, in one line.

    Args:
        error: The error, as it was caught.
        in_file: File whose line is named, if the error passed through it. By default,
            the line is the one that raised the error.
    """
    message = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    # The user's line says more than one in a library that it calls.
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    frames = own or frames
    # The message of a SyntaxError names its place; its traceback ends in the importer.
    if isinstance(error, SyntaxError) or not frames:
        return message
    frame = [frames[-1], *(one for one in frames if one.filename == in_file)][-1]
    return f"{message} ({frame.filename}, line {frame.lineno})"


def _check_unique(module: ModuleType, module_dir: str | None, *, setting: str) -> None:
    """Checks that `module_dir` has no other module of the name of the imported one."""
    if module_dir is None:
        return
    stem = Path(module_dir).expanduser().resolve().joinpath(*module.__name__.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file() and not path.samefile(module.__file__ or path):
            raise UserError(
                f"{setting}: there are two modules {module.__name__}, {module.__file__}"
                f" and {path}. Rename one of them."
            )


def search_in(module_dir: str | None) -> None:
    """Makes Python find the modules in the current folder, and in another one.

    Args:
        module_dir: The other folder, which is searched last; None for none.
    """
    # A module that was written since Python last looked into its folder is found too.
    importlib.invalidate_caches()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if module_dir is not None:
        folder = str(Path(module_dir).expanduser().resolve())
        if folder not in sys.path:
            sys.path.append(folder)
