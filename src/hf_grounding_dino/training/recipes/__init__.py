"""Recipes that come with the package, as YAML; their names are known without importing anything else."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path


class OptionError(ValueError):
    """An option that does not exist or has a value it cannot have, in one line that names it."""


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(Path(file.name).stem for file in resources.files(__name__).iterdir() if file.name.endswith(".yaml"))


def recipe_summary(name: str) -> str:
    """The first line of a recipe's comment."""
    return recipe_text(name).splitlines()[0].lstrip("# ")


def recipe_text(name: str) -> str:
    """The YAML of a file, or of a recipe of the package.

    Raises:
        OptionError: there is no such file or recipe.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        try:
            return Path(name).read_text()
        except OSError as error:
            raise OptionError(f"{name}: {error.strerror or error}") from error
    if name not in recipe_names():
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise OptionError(f"there is no recipe {name}; there are {', '.join(recipe_names())}, and YAML files{meant}")
    return (resources.files(__name__) / f"{name}.yaml").read_text()
