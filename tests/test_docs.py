"""README and docs/: snippets run, commands and names exist, tables are as recorded, the reference leaves none out.

All python snippets of a page share a namespace and run in the order in which they stand. What needs another library
stands in diffs, which tests/test_swap_in.py runs where that library is.
"""

import importlib.util
import inspect
import json
import re
import shlex
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import simmim_kernels as sk
from benchmarks import report as losses_report
from benchmarks.known_mi import record, report, suite
from simmim_kernels.commands.arguments import parser

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *ROOT.glob("CONTRIBUTING.md"), *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "api").glob("*.md")))

_FENCE = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```", re.M | re.S)


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@dataclass
class Snippet:
    code: str
    line: int


def snippets_of(page: Path) -> list[Snippet]:
    text = page.read_text()
    found = [
        Snippet(inspect.cleandoc("\n" + match["code"]), text.count("\n", 0, match.start("code")) + 1)
        for match in _FENCE.finditer(text)
    ]
    assert len(found) == text.count("```python"), f"{page_id(page)} has snippets in a form that is not read here"
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if snippets_of(page)], ids=page_id)
def test_snippets(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict = {"__name__": page.stem}
    for snippet in snippets_of(page):
        # Lines as they are in the page, for tracebacks.
        exec(compile("\n" * (snippet.line - 1) + snippet.code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_names_exist(page):
    text = page.read_text()
    added = set(re.findall(r"^\+(?:def|class) (\w+)", text, re.M))  # by the page's own patches
    for name in set(re.findall(r"\bsk\.bounds\.(\w+)", text)) - added:
        assert hasattr(sk.bounds, name), name
    for name in set(re.findall(r"\bsk\.(\w+)", text)) - added:
        assert hasattr(sk, name), name


def commands_of(page: Path) -> list[list[str]]:
    """The words of every command in a block of shell, or in a line of code that begins as one."""
    text = page.read_text()
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.M | re.S)
    blocks += re.findall(r"`((?:\.venv/bin/)?(?:python3?|pip|simmim-kernels) [^`]+)`", text)
    lines = [line for block in blocks for line in re.split(r"\n|&&", block.replace("\\\n", " "))]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def check_command(words: list[str]) -> None:
    words = words[next(k for k, word in enumerate(words) if "=" not in word) :]
    program, arguments = Path(words[0]).name, words[1:]
    if program in ("python", "python3") and arguments[:1] == ["-m"]:
        assert importlib.util.find_spec(arguments[1]) is not None, arguments[1]
    elif program == "pip":
        table = (
            (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
        )
        extras = set(re.findall(r"^(\w+) = \[", table, re.M))
        wanted = re.findall(r"\[([\w,]+)\]", " ".join(arguments))
        assert extras >= {extra for several in wanted for extra in several.split(",")}, arguments
    elif program == "simmim-kernels":
        if arguments[:1] == ["estimate"] and all(word.startswith("-") for word in arguments[1:]):
            arguments = [*arguments, "X.npy", "Y.npy"]
        is_digits = arguments[:1] == ["demo"] and arguments[1:2] not in (["digits"], ["transfer"])
        parser().parse_args(["demo", "digits", *arguments[1:]] if is_digits else arguments)
    for word in arguments:
        if re.fullmatch(r"(benchmarks|tests|examples|docs|csrc)/[\w/.-]+\.(py|sh|md|cpp)|constraints\.txt", word):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands(page):
    for words in commands_of(page):
        check_command(words)


def test_a_command_that_does_not_exist_is_seen():
    for line in ("python -m benchmarks.nothing", "pip install '.[nothing]'", "python -m pytest tests/test_nothing.py"):
        with pytest.raises(AssertionError):
            check_command(shlex.split(line))
    with pytest.raises(SystemExit):
        check_command(["simmim-kernels", "demo", "--nothing"])


def test_readme_is_short_and_its_commands_stand_in_a_line_each():
    lines = README.read_text().splitlines()
    assert len(lines) <= 160
    assert len([line for line in lines if line.startswith("python3 -m venv")]) == 2


def rows_of(table: str) -> list[str]:
    return [line for line in table.splitlines() if line.startswith("|")]


def test_table_of_losses_is_the_recorded_one():
    cases = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())["cases"]
    table, page = losses_report.table(cases), (ROOT / "docs" / "benchmarks.md").read_text()
    assert table in page
    without_avx512 = json.loads((ROOT / "benchmarks" / "results" / "cpu_avx2.json").read_text())["cases"]
    assert losses_report.table(without_avx512) in page
    head, _, *body = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows_of(table))
    rows = [dict(zip(head, cells, strict=True)) for cells in body]
    short = README.read_text().partition("| loss | N |")[2].partition("\n\n")[0]
    columns = ["loss", "N", "ours", "dense", "ours / dense", "ours, extra MB", "dense, extra MB"]
    recorded = {tuple(row[name] for name in columns) for row in rows if row["d"] == "512"}
    shown = {tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows_of(short)[1:]}
    assert len(shown) == 5
    assert shown <= recorded


def test_tables_of_known_truth_are_the_recorded_ones():
    text = (ROOT / "docs" / "known-truth.md").read_text()
    optimal, trained, of_suite, peers = (
        record.load(record.RESULTS / f"{name}.json")["rows"]
        for name in ("ceiling", "known_mi", "suite", "known_mi_peers")
    )
    assert {row["case"] for row in of_suite} <= set(suite.CASES)
    for table in (
        report.optimal_table(optimal),
        report.trained_table(trained),
        report.alone_table(trained),
        *(report.suite_table(of_suite, cases) for cases in (suite.DESIGN, suite.HELD_OUT)),
        *(report.suite_summary(of_suite, cases) for cases in (suite.DESIGN, suite.HELD_OUT)),
        report.peers_table(peers),
    ):
        assert table in text


def is_own(function) -> bool:
    return inspect.isfunction(function) and function.__module__ == sk.bounds.__name__


# What the reference documents: by the name that its page gives, the object.
PUBLIC = {name: getattr(sk, name) for name in sk.__all__ if name not in ("__version__", "bounds")}
PUBLIC |= {f"bounds.{name}": f for name, f in vars(sk.bounds).items() if is_own(f) and name[0] != "_"}
OF_SCORES = {name: f for name, f in vars(sk.PairwiseScores).items() if name[0] != "_"}


def test_the_reference_leaves_no_public_name_out():
    found = re.findall(r"^::: simmim_kernels\.([\w.]+)$", REFERENCE, re.M)
    assert {name for name in PUBLIC if name not in found} == set()
    assert "`sk.__version__`" in REFERENCE


def lacks(documented, parameters: list[str], conventions: str) -> list[str]:
    """What a docstring does not say, neither itself nor by the conventions of its module."""
    own = inspect.cleandoc(documented.__doc__ or "")
    both = own + conventions
    found = [name for name in parameters if not re.search(rf"\b{name}\b", both)]
    if not own:
        found.append("a docstring")
    if not re.search(r"\((N|M|C|2N)?(, \w+)?,?\)|\b0-dim\b|\bNaN for\b", both):
        found.append("shapes")
    if not re.search(r"\brais(e|es|ed)\b", both, re.I):
        found.append("errors")
    return found


def parameters_of(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls", "backend", "dim")]


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in ("backends", "use_backend", "transfer")])
def test_docstrings_are_complete(name):
    public = PUBLIC[name]
    assert "__doc__" in vars(public) or inspect.isfunction(public)
    is_result = isinstance(public, type) and (issubclass(public, tuple) or hasattr(public, "__dataclass_fields__"))
    parameters = [] if is_result else parameters_of(public)
    conventions = inspect.getmodule(public).__doc__
    if name.endswith("Loss"):
        function = {"LinearCrossEntropyLoss": "linear_cross_entropy"}.get(name) or public.__doc__.split("`")[1]
        assert f"`{function}`" in public.__doc__
        conventions += PUBLIC[function].__doc__
    missing = lacks(public, parameters, conventions)
    if is_result:
        missing = [what for what in missing if what == "a docstring"]
    assert missing == []


def test_losses_bounds_and_estimates_say_their_unit_and_their_source():
    for name, public in PUBLIC.items():
        text = (public.__doc__ or "") + inspect.getmodule(public).__doc__
        if name.startswith("bounds.") or name.endswith("_loss") or name == "estimate":
            assert re.search(r"\bnats\b", text), name
    from_papers = [
        name for name in PUBLIC if name.endswith("_loss") or name in {f"bounds.{b}" for b in sk.models.BOUNDS}
    ]
    assert len(from_papers) == 10 + len(sk.models.BOUNDS)
    for name in from_papers:
        assert re.search(r"\b(19|20)\d\d\b|`nwj`", PUBLIC[name].__doc__), name


@pytest.mark.parametrize("name", OF_SCORES)
def test_docstrings_of_scores_are_complete(name):
    member = OF_SCORES[name]
    member = member.__func__ if isinstance(member, classmethod) else member
    parameters = [] if isinstance(member, property) else parameters_of(member)
    assert lacks(member, parameters, sk.PairwiseScores.__doc__) == []


def test_a_call_goes_through_the_four_files_of_the_picture(monkeypatch):
    """From a loss to where the native library is called."""
    from simmim_kernels.backends import native

    package, library, stacks = Path(sk.__file__).parent, native._library, []

    def watched():
        files = (Path(frame.filename) for frame in traceback.extract_stack())
        files = [file.relative_to(package).as_posix() for file in files if file.is_relative_to(package)]
        stacks.append(list(dict.fromkeys(files)))
        return library()

    if native.unavailable():
        pytest.skip(native.unavailable())
    monkeypatch.setattr(native, "_library", watched)
    x, y = (torch.randn(600, 8, requires_grad=True) for _ in range(2))
    sk.clip_loss(x, y, 1.0).backward()
    forward, _ = stacks
    picture = (ROOT / "docs" / "call.svg").read_text()
    assert forward == re.findall(r'class="file">\d  (\S+)</text>', picture)
    assert len(forward) == 4
    stacks.clear()
    sk.clip_loss(x[:300], y[:300], 1.0).backward()
    assert stacks == [[*forward[:3], "operator/with_gradients.py", forward[3]]]
