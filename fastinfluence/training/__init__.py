"""Training: a deterministic program, and the Trajectory it leaves behind."""

from fastinfluence.training.graph_program import GraphProgram, GraphState
from fastinfluence.training.graph_recipe import GraphRecipe
from fastinfluence.training.program import Program
from fastinfluence.training.recipe import Recipe
from fastinfluence.training.schedule import Schedule
from fastinfluence.training.state import State
from fastinfluence.training.trainer import train
from fastinfluence.training.trajectory import Trajectory

__all__ = [
    "GraphProgram",
    "GraphRecipe",
    "GraphState",
    "Program",
    "Recipe",
    "Schedule",
    "State",
    "Trajectory",
    "train",
]
