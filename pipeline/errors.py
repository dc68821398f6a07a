"""Errors of the recipe, apart from what parses it: the command line knows them without importing torch."""

from data_cache.errors import SurroundError


class RecipeError(SurroundError):
    """A recipe says something impossible or unknown."""
