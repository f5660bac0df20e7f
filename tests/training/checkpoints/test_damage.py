"""Checkpoints that are damaged, or not of this model: named, and never restored."""

import ast
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training.tiny_runs import plain

import bn_jax
from bn_jax.errors import UserError
from bn_jax.models import make_model, make_norm
from bn_jax.training.checkpoints import checkpoint
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.checkpoints.manifest import damaged_files, write_manifest
from bn_jax.training.checkpoints.saved import FORMAT_VERSION
from bn_jax.training.step.state import TrainState, init_state

CONFIG = {"seed": 3, "norm": {"name": "batch_norm", "momentum": 0.9}}


def make_state(seed: int, *, features: int = 5, tx: Any = None) -> TrainState:
    norm = make_norm("batch_norm")
    model = make_model("mlp", num_classes=3, norm=norm, hidden_features=(features,))
    example, key = jnp.zeros((1, 4)), jax.random.key(seed)
    state = init_state(model, tx or optax.adam(0.1), key=key, example=example)
    return state._replace(step=jnp.int32(seed))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1, 2 and 3; to be copied."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    with Checkpoints(folder, keep=3, config=CONFIG) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step), step=step)
    return folder


@pytest.fixture
def folder(three: Path, tmp_path: Path) -> Path:
    return shutil.copytree(three, tmp_path / "run" / "checkpoints")


def payload(folder: Path) -> Path:
    """The largest file of a checkpoint."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped": (flip, "{} has changed"),
    "truncated": (cut, r"{} has \d+ bytes instead of \d+"),
    "missing": (Path.unlink, "{} is missing"),
}


def restore(folder: Path, **fields: Any) -> TrainState | None:
    with Checkpoints(folder, keep=3, **{"config": CONFIG, **fields}) as checkpoints:
        return checkpoints.restore_latest(make_state(0))


def edit_run(step: Path, **changes: Any) -> None:
    """Changes what a checkpoint says of its run, and its manifest with it."""
    path = step / "run" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    write_manifest(step)


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    damage, expected = DAMAGES[name]
    (tmp_path / "deep").mkdir()
    for file in ("a", "deep/b"):
        (tmp_path / file).write_text("0123456789")
    write_manifest(tmp_path)
    assert damaged_files(tmp_path) == []
    damage(tmp_path / "deep" / "b")
    (found,) = damaged_files(tmp_path)
    assert found == expected.replace(r"\d+", "{}").format("deep/b", 7, 10)


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {"a": {}}}'])
def test_a_manifest_that_cannot_be_read_is_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    (found,) = damaged_files(tmp_path)
    assert found.startswith("manifest.json cannot be read (")


@pytest.mark.parametrize("name", DAMAGES)
def test_the_newest_intact_checkpoint_is_restored(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    damage, expected = DAMAGES[name]
    bad = payload(folder / "3")
    damage(bad)
    restored = restore(folder)
    chex.assert_trees_all_equal(plain(restored), plain(make_state(2)))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    file = expected.split()[1:]
    assert f"checkpoint 3 is damaged: {bad.relative_to(folder / '3')} " in warnings[0]
    assert file[0] in warnings[0]


def test_a_checkpoint_without_a_manifest_is_damaged(folder: Path) -> None:
    (folder / "3" / "manifest.json").unlink()
    chex.assert_trees_all_equal(plain(restore(folder)), plain(make_state(2)))


def test_damaged_checkpoints_are_moved_aside(folder: Path) -> None:
    flip(payload(folder / "2"))
    cut(payload(folder / "3"))
    before = {path.name for path in (folder / "3").rglob("*")}
    chex.assert_trees_all_equal(plain(restore(folder)), plain(make_state(1)))
    aside = folder.with_name("damaged")
    assert sorted(path.name for path in folder.iterdir()) == ["1"]
    assert sorted(path.name for path in aside.iterdir()) == ["2", "3"]
    assert {path.name for path in (aside / "3").rglob("*")} == before


def test_what_was_moved_aside_before_stays(folder: Path) -> None:
    (folder.with_name("damaged") / "3").mkdir(parents=True)
    flip(payload(folder / "3"))
    restore(folder)
    aside = folder.with_name("damaged")
    assert sorted(path.name for path in aside.iterdir()) == ["3", "3-2"]


def test_a_step_can_be_saved_again_after_it_was_moved_aside(folder: Path) -> None:
    flip(payload(folder / "3"))
    with Checkpoints(folder, keep=3, config=CONFIG) as checkpoints:
        checkpoints.restore_latest(make_state(0))
        checkpoints.save(make_state(3), step=3)
    chex.assert_trees_all_equal(plain(restore(folder)), plain(make_state(3)))


def test_what_is_only_read_is_not_changed(folder: Path) -> None:
    flip(payload(folder / "3"))
    before = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    restored = restore(folder, config=None)
    chex.assert_trees_all_equal(plain(restored), plain(make_state(2)))
    after = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    assert after == before


def test_without_an_intact_checkpoint_nothing_is_restored_nor_moved(
    folder: Path,
) -> None:
    for step in ("1", "2", "3"):
        flip(payload(folder / step))
    name = payload(folder / "3").name
    expected = rf"all checkpoints are damaged \(\[1, 2, 3\]\); the newest one: .*{name}"
    with pytest.raises(UserError, match=f"{expected} has changed"):
        restore(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def in_bfloat16(state: TrainState) -> TrainState:
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
    return state._replace(params=params)


@pytest.mark.parametrize(
    ("make_like", "expected"),
    [
        (
            lambda: make_state(0, features=6),
            r"mean is float32\[5\] in the checkpoint and float32\[6\] in this conf",
        ),
        (
            lambda: in_bfloat16(make_state(0)),
            r"kernel is float32\[4, 5\] in the checkpoint and bfloat16\[4, 5\] in this",
        ),
        (
            lambda: make_state(0, tx=optax.sgd(0.1)),
            r"opt_state/0/.* in the checkpoint and missing in this configuration",
        ),
        (
            lambda: make_state(0)._replace(batch_stats={}),
            r"norm0/mean is float32\[5\] in the checkpoint and missing in this config",
        ),
    ],
    ids=["shape", "dtype", "optimizer", "statistics"],
)
def test_another_model_is_refused_with_the_path_of_the_leaf(
    three: Path, make_like: Callable[[], TrainState], expected: str
) -> None:
    with (
        Checkpoints(three, keep=3) as checkpoints,
        pytest.raises(UserError, match=f"checkpoint 3 holds another .*{expected}"),
    ):
        checkpoints.restore_latest(make_like())


def test_a_newer_format_is_refused(folder: Path) -> None:
    edit_run(folder / "3", format_version=FORMAT_VERSION + 1)
    expected = f"checkpoint 3 has format {FORMAT_VERSION + 1}, .* Install a newer v"
    with pytest.raises(UserError, match=expected):
        restore(folder)


def test_a_checkpoint_holds_the_step_and_the_configuration(three: Path) -> None:
    path = three / "2" / "run" / "metadata"
    assert json.loads(path.read_text()) == {
        "format_version": FORMAT_VERSION,
        "step": 2,
        "config": CONFIG,
        "num_classes": None,
    }


def test_a_state_may_be_given_away_while_it_is_written(tmp_path: Path) -> None:
    overwrite = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0
    )
    state = make_state(1)._replace(params={"large": jnp.arange(4_000_000.0)})
    expected = plain(jax.tree.map(lambda leaf: leaf.copy(), state))
    with Checkpoints(tmp_path, keep=1, config=CONFIG) as checkpoints:
        checkpoints.save(state, step=1)
        overwritten = overwrite(state.params)
        assert state.params["large"].is_deleted()
        assert float(overwritten["large"][5]) == -1
    like = jax.tree.map(jnp.zeros_like, expected)._replace(key=jax.random.key(0))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        restored = checkpoints.restore_latest(like)
    chex.assert_trees_all_equal(plain(restored), expected)


def test_a_checkpoint_that_cannot_be_written_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    def save() -> None:
        with Checkpoints(tmp_path, keep=1, config=CONFIG) as checkpoints:
            checkpoints.save(make_state(1), step=1)
            checkpoints.wait()

    monkeypatch.setattr(checkpoint, "write_manifest", fail)
    with pytest.raises(UserError, match=r"could not be written .*No space left"):
        save()


def test_nothing_that_is_read_can_run_code() -> None:
    for path in Path(bn_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names}
                names.add(getattr(node, "module", None) or "")
                roots = {name.split(".")[0] for name in names}
                assert not roots & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
            if isinstance(node, ast.Call):
                # The default of NumPy's functions is False.
                assert "allow_pickle" not in {word.arg for word in node.keywords}


def test_numpy_reads_no_pickle_unless_it_is_asked_to(tmp_path: Path) -> None:
    # The test above relies on this.
    path = tmp_path / "objects.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        np.load(path)
