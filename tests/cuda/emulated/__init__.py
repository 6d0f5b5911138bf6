"""A GPU of numpy: what CUDA kernels are compiled to, run where there is neither GPU nor driver.

numba-cuda's simulator runs the Python of a kernel: numpy's types, a Python thread for each thread,
small blocks. Here runs what a GPU would get: the PTX that numba and NVVM make of it, in the blocks
that production launches, every address checked. ``FASTINFLUENCE_EMULATED_CUDA=1`` puts it in the
place of a GPU for ``pytest -m gpu``.

`ptx` reads a kernel and cuts it into segments, `instructions` makes numpy of them, `machine` runs
threads through them, `memory` is what they load and store, `device` stands in for numba-cuda,
`counters` counts.
"""
