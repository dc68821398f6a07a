"""The error of a recipe, in a module of its own: the command line imports it without importing torch."""

from data_cache.errors import SurroundError


class RecipeError(SurroundError):
    """A recipe holds something impossible or unknown."""
