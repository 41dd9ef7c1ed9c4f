"""The command line, recipes, and what they run."""
