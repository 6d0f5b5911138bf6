"""Arrays in, arrays out: the parts of fastinfluence for other libraries to build in.

Nothing here needs the library's classes. Tables are the parameters of a biased matrix
factorization whose score is ``mean + b_u + b_i + p_u . q_i``:

========================= ==================== ============================
``user_factors``          (n_users, k)         float32 or float64
``item_factors``          (n_items, k)         the same dtype
``user_biases``           (n_users,)           the same dtype
``item_biases``           (n_items,)           the same dtype
========================= ==================== ============================

Users and items are codes: integers from 0. Arrays may be numpy arrays (read-only and
memory-mapped ones too, wherever they are only read) or anything with ``__array__`` or
``__dlpack__`` in CPU memory, such as torch tensors, which share their memory. Tables, and rows,
that lie on a GPU (torch tensors, or anything with ``__cuda_array_interface__``) are worked with
there. What is returned is of the kind that was given: tensors for tensors, on the same device.
"""

from __future__ import annotations

from fastinfluence.attribution.rows import RowStore
from fastinfluence.functional.influence import (
    SolvedInfluences,
    influence_mf,
    influence_rows_mf,
)
from fastinfluence.functional.reading import Influences, explain_mf, pack_mf
from fastinfluence.functional.training import new_rows, rollback_mf, sgd_mf
from fastinfluence.kernels.structures import Record

__all__ = [
    "Influences",
    "Record",
    "RowStore",
    "SolvedInfluences",
    "explain_mf",
    "influence_mf",
    "influence_rows_mf",
    "new_rows",
    "pack_mf",
    "rollback_mf",
    "sgd_mf",
]
