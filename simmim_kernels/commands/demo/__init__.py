"""What `simmim-kernels demo` shows: each demo is a module with Settings and run(settings)."""
