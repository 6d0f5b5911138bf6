"""CUDA twins of the CPU kernels. Empty for now: they come with the GPU backend."""
