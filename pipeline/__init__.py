"""The command line around the stages: recipes, weights, runs and reports."""
