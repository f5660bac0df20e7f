"""The help of `bn-jax train`, and Ctrl-C while the trainer is imported."""

import re
import signal
import subprocess
import sys

import pytest

from bn_jax import extras
from bn_jax.cli import main
from bn_jax.train_flags import FLAGS


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_train_explains_its_flags(
    capsys: pytest.CaptureFixture[str], word: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "--config=mnist_mlp:bn", word])
    shown = capsys.readouterr().out
    assert end.value.code is None
    assert re.findall(r"^  --(\w+)", shown, re.M) == list(FLAGS)
    assert "bn-jax train --config=mnist_cnn:bn --workdir=runs/cnn" in shown
    assert "pip install" not in shown


def test_without_the_extra_the_help_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "_TRAIN", ("absent",))
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "pip install 'bn-jax[train]'" in capsys.readouterr().out.splitlines()[-1]


# Sends SIGINT to itself when the trainer is imported.
INTERRUPTED_IMPORT = """
import os, sys
from bn_jax.cli import main
class Interrupt:
    def find_spec(self, name, *_):
        return os.kill(os.getpid(), 2) if name == "bn_jax.training" else None
sys.meta_path.insert(0, Interrupt())
main(["train"])
"""


def test_ctrl_c_during_the_imports_of_train_ends_silently() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, check=False
    )
    # A shell shows this as exit code 130.
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")
