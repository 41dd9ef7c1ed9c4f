"""The one exception that this library raises on purpose."""


class UnlearningError(ValueError):
    """Something the user can mend: one sentence with what was given, what was expected and what to do."""
