"""Work shown on the way: a line for each stage that is done, and on a terminal what is going on until then."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from .output import moves, say

T = TypeVar("T")

# Below this there is no room for a bar beside what it is about.
_COLUMNS_FOR_A_BAR = 80


@contextmanager
def stage(console: Console, doing: str) -> Iterator[None]:
    start = time.perf_counter()
    with console.status(doing) if moves(console) else nullcontext():
        yield
    say(console, f"{doing}: {time.perf_counter() - start:.0f} s")


@contextmanager
def progress(console: Console, narrow: Sequence[ProgressColumn], *others: ProgressColumn) -> Iterator[Progress]:
    """The narrow columns, and where there is room a bar and the others; gone when done, never where nothing moves."""
    columns = [*narrow, BarColumn(), *others] if console.width >= _COLUMNS_FOR_A_BAR else narrow
    with Progress(*columns, console=console, disable=not moves(console), transient=True) as shown:
        yield shown


def text(field: str) -> TextColumn:
    """A column of what a task has of that name."""
    return TextColumn(f"{{task.{field}}}", markup=False)


def track(
    work: Iterable[T],
    total: int,
    console: Console,
    name: str,
    unit: str,
    describe: Callable[[T], str],
    conclude: Callable[[T], str] | None = None,
) -> Iterator[T]:
    """Yields what `work` yields, `total` items of it, and shows how far it is and the last item's description."""
    start, ending = time.perf_counter(), ""
    columns = (text("description"), MofNCompleteColumn())
    with progress(console, columns, text("fields[latest]"), TimeRemainingColumn()) as shown:
        task = shown.add_task(name, total=total, latest="")
        for item in work:
            shown.update(task, advance=1, latest=describe(item))
            ending = f", {conclude(item)}" if conclude is not None else ""
            yield item
    say(console, f"{name}: {total} {unit}{ending}, {time.perf_counter() - start:.0f} s")
