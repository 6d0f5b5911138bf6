"""The kernels of the read-out of triples."""

from __future__ import annotations

from numba import types
from toolchain import Compiled
from typed import array, matrix, number, structure

from fastinfluence.kernels.cuda import graph_readout, graph_softmax

UNITS = array("i8", 2)


def compiled() -> list[Compiled]:
    return [entry for dtype in ("f4", "f8") for entry in (*_readout(dtype), *_softmax(dtype))]


def _graph() -> types.NamedTuple:
    return structure("Graph")


def _answers(dtype: str) -> types.NamedTuple:
    fields = matrix(dtype), matrix(dtype), array("f8", 1)
    return types.NamedTuple(fields, graph_softmax.Answers)


def _moves(dtype: str) -> types.NamedTuple:
    fields = array(dtype, 1), matrix(dtype), array("i4", 2), array("f8", 1)
    return types.NamedTuple(fields, graph_softmax.Moves)


def _readout(dtype: str) -> list[Compiled]:
    graph, rows, store = _graph(), matrix(dtype), structure("TripleRows", dtype)
    groups, out = structure("LinkGroups"), structure("Influences", dtype)
    answers, moves = _answers(dtype), _moves(dtype)
    return [
        Compiled(graph_readout._compose, (graph, rows, groups, number, rows), 256, note=dtype),
        Compiled(
            graph_readout._find_moves,
            (number, graph, rows, store, groups, UNITS, number, moves),
            256,
            note=dtype,
        ),
        Compiled(
            graph_readout._self_influence,
            (graph, rows, store, structure("Links"), number, number, array(dtype, 1)),
            256,
            note=dtype,
        ),
        Compiled(
            graph_readout._read_touched,
            (number, rows, answers, groups, UNITS, number, number, moves, out),
            graph_readout.TOGETHER,
            note=dtype,
        ),
        Compiled(
            graph_readout._read_untouched,
            (number, graph, rows, answers, store, groups, number, number, out),
            256,
            note=dtype,
        ),
    ]


def _softmax(dtype: str) -> list[Compiled]:
    flat, answers, moves = array(dtype, 1), _answers(dtype), _moves(dtype)
    units = flat, number, number, UNITS, number, number, answers, moves
    return [
        Compiled(
            graph_softmax._score, (flat, number, flat, number, matrix(dtype)), 256, note=dtype
        ),
        Compiled(
            graph_softmax._normalise,
            (matrix(dtype), number, matrix(dtype), array("f8", 1)),
            256,
            note=dtype,
        ),
        Compiled(graph_softmax._sum_tiles, units, 256, note=dtype),
        Compiled(graph_softmax._sum_slowly, units, 256, note=dtype),
    ]
