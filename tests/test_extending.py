"""The worked examples of docs/extending.md: every patch applies to a copy of the package, whose check then passes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(
    r"^## (.+?)\n.*?^```diff\n(.*?)^```.*?^```\{\.python \.check\}\n(.*?)^```",
    (ROOT / "docs" / "extending.md").read_text(),
    re.M | re.S,
)

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="patches are applied by git")


def test_there_is_one_of_each():
    assert [name for name, _, _ in EXAMPLES] == ["A bound", "A critic", "A statistic", "A backend"]


@pytest.mark.parametrize(
    ("patch", "check"), [example[1:] for example in EXAMPLES], ids=[name for name, _, _ in EXAMPLES]
)
def test_example(patch, check, tmp_path):
    shutil.copytree(ROOT / "simmim_kernels", tmp_path / "simmim_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    git = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    applied = subprocess.run(
        ["git", "apply", "-"], input=patch, cwd=tmp_path, env=git, capture_output=True, text=True, check=False
    )
    assert applied.returncode == 0, applied.stderr
    done = subprocess.run(
        [sys.executable, "-c", check],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
