"""Objects of a user's modules, and the one line that says why one is not found."""

import sys
from pathlib import Path

import pytest

from bn_jax.errors import UserError
from bn_jax.user_code import (
    describe_error,
    folder_of_code,
    is_object_name,
    load_object,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for modules, which Python forgets after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def load(name: str, module_dir: Path | None = None) -> object:
    folder = None if module_dir is None else str(module_dir)
    return load_object(name, module_dir=folder, setting="config.model.name")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("module:name", True),
        ("package.module:Name_2", True),
        ("mnist", False),
        ("imagenet2012:5.1.0", False),
        ("mnist:*.*.*", False),
        ("module:", False),
        (":name", False),
        ("module.py:name", True),
        ("folder/module:name", False),
        ("module:a.b", False),
    ],
)
def test_a_name_of_an_object_is_told_from_one_of_a_data_set(
    name: str, expected: bool
) -> None:
    assert is_object_name(name) == expected


def test_a_module_is_found_beside_the_configuration(folder: Path) -> None:
    (folder / "beside_config.py").write_text("answer = 42")
    assert load("beside_config:answer", folder) == 42


def test_a_module_is_found_in_the_current_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "in_cwd").mkdir()
    (folder / "in_cwd" / "inner.py").write_text("answer = 43")
    monkeypatch.chdir(folder)
    assert load("in_cwd.inner:answer") == 43


def test_the_folder_of_a_module_is_that_of_its_outermost_package(folder: Path) -> None:
    (folder / "outer" / "inner").mkdir(parents=True)
    (folder / "outer" / "inner" / "__init__.py").write_text("Net = 1")
    (folder / "outer" / "data.py").write_text("Data = 1")
    for name in ("outer.inner:Net", "outer.data:Data"):
        load(name, folder)
        assert folder_of_code("mlp", name) == str(folder)
        assert folder_of_code("json:dumps", name) == str(folder)
    assert folder_of_code("json:dumps", "mnist") is None


def test_two_modules_of_one_name_are_refused(folder: Path) -> None:
    (folder / "json.py").write_text("raise ValueError")
    with pytest.raises(UserError, match=rf"two modules json, .* and {folder}/json\.py"):
        load("json:dumps", folder)


@pytest.mark.parametrize("name", ["mlp", "module:", "a/b:c", "module:2"])
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"config\.model\.name must have the form"):
        load(name)


@pytest.mark.parametrize("name", ["no_such.module", "no_such"])
def test_a_missing_module_is_called_missing(folder: Path, name: str) -> None:
    expected = f"there is no module no_such in .* nor in {folder} nor on Python's path"
    with pytest.raises(UserError, match=expected):
        load(f"{name}:x", folder)


def test_a_missing_name_is_told_with_the_file(folder: Path) -> None:
    (folder / "without.py").write_text("")
    expected = rf"=without:Net: {folder}/without\.py defines no Net"
    with pytest.raises(UserError, match=expected):
        load("without:Net", folder)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("\n1 / 0", r"ZeroDivisionError: division by zero \(.*broken\.py, line 2\)"),
        ("def f(:", r"SyntaxError: .*\(broken\.py, line 1\)"),
        ("import no_such", r"ModuleNotFoundError: No module named 'no_such' \(.*line"),
        ("raise ValueError('a\\nb')", r"ValueError: a b \("),
    ],
)
def test_an_error_in_a_module_is_one_line_with_its_place(
    folder: Path, code: str, expected: str
) -> None:
    (folder / "broken.py").write_text(code)
    with pytest.raises(UserError, match=f"importing broken failed; {expected}") as seen:
        load("broken:x", folder)
    assert "\n" not in str(seen.value)


def test_an_error_in_a_library_names_the_line_of_the_user(folder: Path) -> None:
    (folder / "calls_json.py").write_text("import json\njson.loads('{')")
    with pytest.raises(UserError, match=r"\(.*calls_json\.py, line 2\)$"):
        load("calls_json:x", folder)


def test_an_error_without_a_place_is_described_too() -> None:
    assert describe_error(KeyError("a")) == "KeyError: 'a'"
