"""The README's snippets run as they stand, in the order in which they stand."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_snippets():
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(snippets) == README.read_text().count("```python") > 0
    namespace: dict = {}
    for snippet in snippets:
        exec(compile(snippet, str(README), "exec"), namespace)
    assert namespace["bound"].dim() == 0


def test_every_name_in_the_readme_exists():
    import simmim_kernels as sk

    text = README.read_text()
    for name in set(re.findall(r"sk\.(?:bounds\.)?(\w+)", text)) - {"bounds"}:
        assert hasattr(sk, name) or hasattr(sk.bounds, name), name
