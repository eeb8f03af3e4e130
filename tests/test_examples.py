"""The examples run as a newcomer runs them, in a shorter setting, and reach what they are there to show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simmim_kernels.version import __version__

ROOT = Path(__file__).parent.parent


def printed(name: str, *options: str) -> str:
    command = [sys.executable, ROOT / "examples" / name, *options]
    # One thread, as the tests' own workers have: theirs and the example's would wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout


def test_two_towers():
    found = re.findall(
        r"loss ([\d.]+), top-5 retrieval of 297 held-out halves ([\d.]+)%", printed("two_towers.py", "--steps", "100")
    )
    (first_loss, _), *_, (last_loss, last) = [(float(a), float(b)) for a, b in found]
    assert last_loss < first_loss
    assert last > 20  # by chance 1.7


def test_known_information():
    text = printed("known_information.py", "--rows", "1000", "--max-steps", "60")
    found = {
        (name, float(truth)): float(value)
        for name, truth, value in re.findall(r"(\w+): truth ([\d.]+) nats, InfoNCE ([-\d.]+)", text)
    }
    assert len(found) == 6
    for (_, truth), value in found.items():
        assert value == pytest.approx(truth, abs=0.3 if truth < 1 else 0.6)
    assert all(found["linear", truth] == pytest.approx(found["cubed", truth], abs=0.05) for truth in (0.0, 0.5, 2.0))


def test_two_tasks():
    found = dict(re.findall(r"(digit|even): ([\d.]+)% of 797 held-out", printed("two_tasks.py", "--steps", "100")))
    assert float(found["digit"]) > 75
    assert float(found["even"]) > 75


def test_examples_are_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) < 80, path.name


def test_the_citation_is_of_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
