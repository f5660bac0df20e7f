"""Seconds from a fault to the end of the processes that it stops.

    python benchmarks/faults.py

Runs the tests of `tests/faults`, which kill, signal and break real runs, and prints the
table of `make test-faults`. Writes `results/faults.json`.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from bn_jax.machine import describe_machine

_ROOT = Path(__file__).parent.parent


def main() -> None:
    """Runs the tests, prints their table and writes the results."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Only this format of the report has the numbers that tests record.
        form = ["-o", "junit_family=xunit1", f"--junitxml={report}"]
        tests = [sys.executable, "-m", "pytest", "-m", "faults", "tests/faults"]
        completed = subprocess.run([*tests, *form], cwd=_ROOT)
        if completed.returncode:
            sys.exit(completed.returncode)
        suite = ElementTree.parse(report).getroot()
    seconds: dict[str, dict[str, float]] = {}
    for case in suite.iter("testcase"):
        for entry in case.iter("property"):
            name, value = entry.attrib["name"], float(entry.attrib["value"])
            if name.startswith("from "):
                seconds.setdefault(name, {})[case.attrib["name"]] = round(value, 2)
    result = {
        "command": "python benchmarks/faults.py",
        "machine": describe_machine(),
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
        "tests": len(list(suite.iter("testcase"))),
        "seconds": seconds,
    }
    path = _ROOT / "results" / "faults.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
