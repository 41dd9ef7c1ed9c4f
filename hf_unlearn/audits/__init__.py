"""What an unlearned model has become, looked at from several sides."""

from .locality import Locality, compare_locally, locality

__all__ = ["Locality", "compare_locally", "locality"]
