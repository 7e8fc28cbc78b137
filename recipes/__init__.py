"""Recipes that come with the package; installed as `cmrn_recipes` and read through `importlib.resources`."""
