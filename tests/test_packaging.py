"""What the repository promises of its own files: their length, and a README that can be read elsewhere."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_file_of_the_package_is_long():
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / "simmim_kernels").rglob("*.py")}
    assert lines
    assert not {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > 350}


def test_links_of_the_long_description_are_absolute(monkeypatch):
    """A package index has none of the repository's files beside it."""
    monkeypatch.chdir(ROOT)
    long_description = runpy.run_path("setup.py")["long_description"]
    here, there = (
        re.findall(r"(?:\]\(|src=\"|href=\")([^)\"\s]+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for text in ((ROOT / "README.md").read_text(), long_description())
    )
    assert [link for link in here if link.endswith(".png")]
    assert len(here) == len(there)
    for before, after in zip(here, there, strict=True):
        if (ROOT / before.partition("#")[0]).exists() and not before.startswith("#"):
            kind = "raw" if before.endswith(".png") else "blob"
            assert re.fullmatch(rf"https://\S+/{kind}/v\d+\.\d+\.\d+/{re.escape(before)}", after)
        else:
            assert after == before
            assert re.match(r"https://|#", before)
