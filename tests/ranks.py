"""A pool of processes that are ranks of torch.distributed on Gloo, started once and given one job after another."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

RANKS = 4
# Of torch's own collectives: what hangs is an error after that.
TIMEOUT = 40


class Ranks:
    """Processes that run a function of a module on `world` of them, each with its group; and what they returned."""

    def __init__(self, count: int = RANKS):
        self._count = count

    def __enter__(self) -> "Ranks":
        self._folder = tempfile.TemporaryDirectory()
        # Forked from a process that imported the package once and has no threads yet.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["simmim_kernels"])
        ends = [context.Pipe() for _ in range(self._count)]
        store = str(Path(self._folder.name) / "store")
        self._pipes = [mine for mine, _ in ends]
        self._processes = [
            context.Process(target=_serve, args=(rank, self._count, store, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(ends)
        ]
        for process, (_, theirs) in zip(self._processes, ends, strict=True):
            process.start()
            theirs.close()  # so that the end of a rank is seen
        return self

    def __exit__(self, *_) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                pipe.send_bytes(pickle.dumps(None))
        for process in self._processes:
            process.join(20)
            process.kill()
        self._folder.cleanup()

    def run(self, world: int, function, *arguments) -> list:
        """function(group, *arguments) on the first `world` ranks; raises what one of them raised."""
        found = self.outcomes(world, function, *arguments)
        failed = [result.text for result in found if isinstance(result, Failed)]
        # What is no error of a collective is what the others then waited for.
        assert not failed, min(failed, key=lambda text: "gloo" in text)
        return found

    def outcomes(self, world: int, function, *arguments) -> list:
        """As `run`, with a Failed in the place of what a rank that raised would have returned."""
        for pipe in self._pipes[:world]:
            pipe.send_bytes(pickle.dumps((world, function, arguments)))
        found = []
        for rank, pipe in enumerate(self._pipes[:world]):
            assert pipe.poll(2 * TIMEOUT), f"rank {rank} of {world} hangs"
            try:
                found.append(pickle.loads(pipe.recv_bytes()))
            except EOFError:
                found.append(None)  # of a rank that died
        return found


class Failed:
    def __init__(self, error: BaseException):
        self.type, self.message = type(error).__name__, str(error)
        self.text = "".join(traceback.format_exception(error))


def _serve(rank: int, count: int, store: str, pipe) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    from simmim_kernels.operator import held

    torch.set_num_threads(1)
    held.HELD_SCORES = 0  # small problems go to a backend too, as in the tests of one process
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timeout)
    groups = {world: dist.new_group(list(range(world)), timeout=timeout) for world in range(1, count + 1)}
    while (job := pickle.loads(pipe.recv_bytes())) is not None:
        world, function, arguments = job
        torch.manual_seed(0)
        try:
            result = function(groups[world], *arguments)
        except Exception as error:
            result = Failed(error)
        pipe.send_bytes(pickle.dumps(result))
    os._exit(0)  # what a process group takes for its end, no test waits for
