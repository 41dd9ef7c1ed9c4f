"""What an unlearned model has become, looked at from several sides."""

from .audit import audit
from .locality import Locality, compare_locally, locality
from .report import AuditReport

__all__ = ["AuditReport", "Locality", "audit", "compare_locally", "locality"]
