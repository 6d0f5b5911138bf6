"""The models that ``train`` knows, and their hyper-parameters as options of one command."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import click

from fastinfluence.models import ComplEx, DistMult, KnowledgeGraphModel, MatrixFactorization, Model
from fastinfluence.training.graph_recipe import (
    DECAYS,
    GRAPH_LOSSES,
    GRAPH_OPTIMIZERS,
    INITS,
    SIDES,
)
from fastinfluence.training.recipe import DTYPES, LOSSES, OPTIMIZERS

__all__ = ["MODELS", "OF_PAIRS", "OF_TRIPLES", "chosen", "hyperparameters", "refuse_foreign"]

MODELS: dict[str, type[Model]] = {
    "mf": MatrixFactorization,
    "distmult": DistMult,
    "complex": ComplEx,
}
OF_TRIPLES = tuple(n for n, model in MODELS.items() if issubclass(model, KnowledgeGraphModel))
OF_PAIRS = tuple(name for name in MODELS if name not in OF_TRIPLES)

_CHOICES_OF_PAIRS = {"loss": LOSSES, "optimizer": OPTIMIZERS, "dtype": DTYPES}
_CHOICES_OF_TRIPLES = {
    "loss": GRAPH_LOSSES,
    "sides": SIDES,
    "learning_rate_decay": DECAYS,
    "optimizer": GRAPH_OPTIMIZERS,
    "init": INITS,
    "dtype": DTYPES,
}

Command = TypeVar("Command", bound=Any)


class _CountOrAll(click.ParamType):  # type: ignore[type-arg]  # generic in some versions
    """A number, or the word for all there are."""

    name = "integer or 'all'"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        if value == "all":
            return "all"
        count: int = click.INT.convert(value, param, ctx)
        return count


def hyperparameters(command: Command) -> Command:
    """Make every hyper-parameter of every model an option; None where it is not given.

    What it may be depends on the model: `chosen` looks at that.
    """
    names = dict.fromkeys(name for model in MODELS for name in _signature(model))
    for name in reversed(names):
        owners = [model for model in MODELS if name in _signature(model)]
        types = {model: _type(model, name) for model in owners}
        option = f"--{_dashed(name)}"
        if any(kind is click.BOOL for kind in types.values()):
            option += f"/--no-{_dashed(name)}"
            command = click.option(option, default=None, help=_help(name, owners))(command)
        else:
            words = dict.fromkeys(word for kind in types.values() for word in _words(kind))
            command = click.option(option, metavar="|".join(words), help=_help(name, owners))(
                command
            )
    return command


def chosen(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that were given, as the model takes them.

    Raises
    ------
    click.UsageError
        One belongs to other models, or is not of its type.
    """
    found = {}
    for name, value in given.items():
        if value is None:
            continue
        owners = [other for other in MODELS if name in _signature(other)]
        refuse_foreign(model, f"--{_dashed(name)}", owners)
        try:
            found[name] = _type(model, name).convert(value, None, None)
        except click.BadParameter as error:
            error.param_hint = f"'--{_dashed(name)}'"
            raise
    return found


def refuse_foreign(model: str, option: str, owners: Any) -> None:
    """Raise click.UsageError where an option was given that is not the model's."""
    if model not in owners:
        raise click.UsageError(f"{option} belongs to --model {' and '.join(owners)}, not {model}")


def _signature(model: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(MODELS[model]).parameters


def _type(model: str, name: str) -> click.ParamType[Any]:
    choices = _CHOICES_OF_TRIPLES if model in OF_TRIPLES else _CHOICES_OF_PAIRS
    if name in choices:
        return click.Choice(choices[name])
    parameter = _signature(model)[name]
    if parameter.annotation == "int | str":
        return _CountOrAll()
    # None stands for a count or a seed
    kind = int if parameter.default is None else type(parameter.default)
    return click.types.convert_type(kind)


def _words(kind: click.ParamType[Any]) -> list[str]:
    """What help calls the values of a type."""
    if isinstance(kind, click.Choice):
        return [str(choice) for choice in kind.choices]
    return ["INTEGER", "all"] if isinstance(kind, _CountOrAll) else [kind.name.upper()]


def _help(name: str, owners: list[str]) -> str:
    """What the option is, and its default: once where all models agree."""
    told: dict[str, list[str]] = {}
    for model in owners:
        default = _signature(model)[name].default
        text = _descriptions(MODELS[model]).get(name, "")
        text += "" if default is None else f"  [default: {default}]"
        told.setdefault(text.strip(), []).append(model)
    if len(told) == 1:
        (text,) = told
        return text if len(owners) == len(MODELS) else f"({', '.join(owners)}) {text}"
    return " ".join(f"({', '.join(models)}) {text}" for text, models in told.items())


def _descriptions(model: type) -> dict[str, str]:
    """Read the Parameters section of a numpydoc docstring."""
    of = DistMult if model is ComplEx else model  # which has the same and says so
    section = (inspect.getdoc(of) or "").partition("Parameters\n----------\n")[2]
    described: dict[str, str] = {}
    name = ""
    for line in section.partition("\n\n")[0].splitlines():
        if line.startswith(" "):
            described[name] = f"{described[name]} {line.strip()}".strip().replace("`", "")
        else:
            name = line.partition(" :")[0]
            described[name] = ""
    return described


def _dashed(name: str) -> str:
    return name.replace("_", "-")
