"""Tasks: what differs between classifiers, language models and models of several tasks."""
