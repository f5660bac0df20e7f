"""A trace of the wanted steps, and of no others."""

from pathlib import Path

import jax
import pytest
from training.tiny_runs import Complete, assert_same_result

from bn_jax.errors import UserError
from bn_jax.training.logs.profile import Profile
from bn_jax.training.loop import train


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of JAX's profiler, which does not run."""
    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def go(profile: Profile, *, num_steps: int, stretch: int = 10) -> None:
    """Dispatches a stretch before the last one is complete, as the loop does."""
    for step in range(0, num_steps, stretch):
        profile.advance(step, step + stretch)
        profile.complete(step)
    profile.complete(num_steps)


def test_a_trace_is_written_and_changes_no_result(bn: Complete, tmp_path: Path) -> None:
    train(bn.config, tmp_path, show_progress=False, profile_steps=(22, 23))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert_same_result(tmp_path, bn)


def test_without_wanted_steps_there_is_no_trace(
    tmp_path: Path, calls: list[str]
) -> None:
    with Profile(tmp_path, None) as profile:
        go(profile, num_steps=50)
    assert calls == []


@pytest.mark.parametrize("steps", [(0, 10), (20, 30), (25, 45), (0, 50), (13, 14)])
def test_there_is_one_trace_that_begins_and_ends(
    tmp_path: Path, calls: list[str], steps: tuple[int, int]
) -> None:
    with Profile(tmp_path, steps) as profile:
        go(profile, num_steps=50)
    assert calls == ["start", "stop"]


def test_a_trace_that_is_cut_short_is_written(tmp_path: Path, calls: list[str]) -> None:
    with Profile(tmp_path, (10, 90)) as profile:
        go(profile, num_steps=50)
        assert calls == ["start"]
    assert calls == ["start", "stop"]


@pytest.mark.parametrize("steps", [(10, 20), (50, 60)])
def test_steps_that_are_not_taken_have_no_trace_and_that_is_said(
    tmp_path: Path,
    calls: list[str],
    caplog: pytest.LogCaptureFixture,
    steps: tuple[int, int],
) -> None:
    with Profile(tmp_path, steps) as profile:
        profile.advance(30, 40)
        profile.complete(40)
    assert calls == []
    expected = f"--profile_steps={steps[0]}:{steps[1]}: no trace is written"
    assert expected in caplog.text


def test_a_run_with_steps_that_are_none_leaves_no_folder(
    bn: Complete, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--profile_steps"):
        train(bn.config, tmp_path / "run", profile_steps=(6, 5))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("steps", [(5, 5), (6, 5), (-1, 5)])
def test_steps_that_are_none_are_refused(tmp_path: Path, steps: tuple) -> None:
    expected = f"needs 0 <= FIRST < LAST, but is {steps[0]}:{steps[1]}"
    with pytest.raises(UserError, match=expected):
        Profile(tmp_path, steps)
