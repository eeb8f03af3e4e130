import importlib.util
import os
from pathlib import Path

import pytest
import torch

# The tests run in deterministic mode, in which cuBLAS wants its workspace fixed.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if not torch.cuda.is_available():
    # Before Triton is imported: its kernels then run on CPU tensors, under the interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread a worker: the problems are small, and threads of several workers get in each other's way.
    torch.set_num_threads(1)


# Whose tests compile for a minute and more: begun last, one of them would run on when all other workers are done.
LONGEST = ("test_triton_compile.py", "test_gpu_command.py", "test_native_tiles.py", "test_cuda.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; none here"))


@pytest.fixture(autouse=True)
def _nan_in_fresh_memory():
    """Deterministic mode fills torch.empty with NaN, so that an element which no one wrote is seen."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _nothing_is_held(monkeypatch):
    """Small problems go to a backend too: theirs is the code under test."""
    monkeypatch.setattr("simmim_kernels.operator.held.HELD_SCORES", 0)


@pytest.fixture(autouse=True)
def _every_thread_has_work(monkeypatch):
    """Small problems run on as many threads as the tests set, too."""
    from simmim_kernels.backends import native

    monkeypatch.setattr(native, "WORK_OF_A_THREAD", 1)


@pytest.fixture
def setup_py():
    """What builds the native library, as a module."""
    spec = importlib.util.spec_from_file_location("setup_of_simmim_kernels", Path(__file__).parents[1] / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pytest_generate_tests(metafunc):
    """`instruction_set` goes through those of the native library that this machine runs."""
    if "instruction_set" in metafunc.fixturenames:
        from simmim_kernels.backends.native.library import instruction_sets

        metafunc.parametrize("instruction_set", instruction_sets() or ("portable",), indirect=True)


@pytest.fixture
def instruction_set(request):
    from simmim_kernels.backends.native.library import loaded

    assert loaded().simmim_choose(request.param.encode()) == 0
    yield request.param
    loaded().simmim_choose(None)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of a few pairs, so that small problems have seams in both directions."""
    from simmim_kernels.backends.tiled import tiles

    monkeypatch.setattr(tiles, "_TILE_ROWS", 16)
    monkeypatch.setattr(tiles, "_TILE_COLUMNS", 24)
    monkeypatch.setattr(tiles, "_MLP_TILE_BYTES", 2**14)
    small_blocks(monkeypatch)


def small_blocks(monkeypatch):
    """Blocks of a few tiles for the Triton kernels, which under the interpreter have tiles of 16 x 32."""
    from simmim_kernels.backends.triton import configurations

    for name, size in {"BLOCK": 48, "STRIP_WIDTH": 40, "STRIP_HEIGHT": 30}.items():
        monkeypatch.setattr(configurations, name, size)
    monkeypatch.setattr(configurations, "programs_wanted", lambda device: 6)


@pytest.fixture
def hold(monkeypatch):
    """Lets plain autograd hold small matrices, as it does outside tests, where no backend is asked for: None."""
    return lambda: monkeypatch.setattr("simmim_kernels.operator.held.HELD_SCORES", 2**16)
