"""Work shown on the way: a bar on a terminal, a line now and then elsewhere."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def track(
    work: Iterable[T], total: int, console: Console, name: str, unit: str, describe: Callable[[T], str]
) -> Iterator[T]:
    """Yields what `work` yields, `total` items of it, and shows how far it is and the last item's description."""
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[latest]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=total, latest="")
        for done, item in enumerate(work, 1):
            progress.update(task, advance=1, latest=escape(describe(item)))
            if progress.disable and done % max(min(total // 10, 100), 1) == 0:
                console.print(f"{unit} {done} of {total}: {describe(item)}")
            yield item
