"""Benchmarks: this package's losses beside dense PyTorch, in one process, interleaved."""
