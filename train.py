"""Trains from a configuration, in one process or as one of several.

Usage:
    python train.py --config=configs/mnist_mlp.py:bn --workdir=runs/bn

Any setting can be changed: `--config.num_steps=2000`.

Exit codes: 0 the run is complete; 1 an error that the user can fix, in one line; 3 one
of several processes failed or ended; 143 and 130 stopped by SIGTERM and SIGINT, with
the state saved.
"""

import signal
import sys

# Ctrl-C ends the program at once, without a traceback of the imports.
signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    from bn_jax.training.main import main
except ModuleNotFoundError as error:
    sys.exit(f"train.py: {error}")

if __name__ == "__main__":
    main()
