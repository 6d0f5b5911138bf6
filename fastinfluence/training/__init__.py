"""Training: a deterministic program, and the Trajectory it leaves behind."""

from fastinfluence.training.program import Program, State
from fastinfluence.training.recipe import Recipe
from fastinfluence.training.schedule import Schedule
from fastinfluence.training.trainer import train
from fastinfluence.training.trajectory import Trajectory

__all__ = ["Program", "Recipe", "Schedule", "State", "Trajectory", "train"]
