"""Recipes: a file of data each, named as on the command line."""
