"""Compiled kernels: arrays in, arrays out. They know nothing of models, data or files.

``cpu`` holds the Numba kernels; ``cuda`` and ``torch`` hold twins of them under the same names.
Importing this package imports none of them.
"""
