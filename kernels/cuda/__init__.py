"""CUDA twins of the CPU kernels, written with numba-cuda."""
