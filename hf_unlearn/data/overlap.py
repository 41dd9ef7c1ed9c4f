"""Samples that stand in two sets."""

from collections.abc import Mapping

import numpy as np

from ..errors import UnlearningError
from .source import Source

# Pairs of sets that may share no sample: what was to go would stay or be called unseen, what is called unseen would have been
# trained on, and what judges would have steered.
APART = (
    *(("forget", "retain"), ("forget", "unseen"), ("forget", "test")),
    *(("unseen", "retain"), ("test", "retain"), ("test", "unseen")),
)


def check_overlaps(sources: Mapping[str, Source]) -> None:
    """Refuse samples whose stored bytes stand in two of the sets, by the sets' names. A stream is not looked at."""
    digests = {name: source.digests() for name, source in sources.items() if not source.is_stream}
    for one, other in APART:
        if (
            one in digests
            and other in digests
            and len(shared := np.flatnonzero(np.isin(digests[one], digests[other])))
        ):
            rows = ", ".join(map(str, shared[:10])) + (", ..." if len(shared) > 10 else "")
            raise UnlearningError(
                f"{len(shared)} of the {len(digests[one])} {one} samples stand in {other} too (rows {rows} of {one}); "
                f'remove them from one of the two, or pass overlap="allow" if you mean it.'
            )
