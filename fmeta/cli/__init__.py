"""The command line."""

from fmeta.cli._app import main
from fmeta.cli._recipe import Experiment, Recipe
from fmeta.cli._recipes import RECIPES, Glyphs, Omniglot, Sinusoid

__all__ = ["RECIPES", "Experiment", "Glyphs", "Omniglot", "Recipe", "Sinusoid", "main"]
