"""The command line."""

from fmeta.cli._app import main
from fmeta.cli._recipes import RECIPES, Experiment, Omniglot, Recipe, Sinusoid

__all__ = ["RECIPES", "Experiment", "Omniglot", "Recipe", "Sinusoid", "main"]
