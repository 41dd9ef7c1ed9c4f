"""Samples that stand in two sets."""

from collections.abc import Mapping

import numpy as np

from ..errors import UnlearningError
from .arrow import Values
from .source import Source

# Pairs of sets that may share no sample: what was to go would stay or be called unseen, what is called unseen would have been
# trained on, and what judges would have steered.
APART = (
    *(("forget", "retain"), ("forget", "unseen"), ("forget", "test")),
    *(("unseen", "retain"), ("test", "retain"), ("test", "unseen")),
)


def check_overlaps(sources: Mapping[str, Source]) -> None:
    """Refuse samples whose stored bytes stand in two of the sets, by the sets' names. A stream is not looked at.

    All sets but the retained one are read whole, and broken pictures found. Of a retained set in Arrow only the lengths are
    read, of samples as long as one of another set also a few bytes, and whole are read those that are alike in these too.
    """
    sets = {name: source for name, source in sources.items() if not source.is_stream}
    for name, source in sets.items():
        if name != "retain":
            source.digests()
    for one, other in APART:
        if one in sets and other in sets and len(shared := shared_samples(sets[one], sets[other])):
            rows = ", ".join(map(str, shared[:10])) + (", ..." if len(shared) > 10 else "")
            raise UnlearningError(
                f"{len(shared)} of the {len(sets[one])} {one} samples stand in {other} too (rows {rows} of {one}); "
                f'remove them from one of the two, or pass overlap="allow" if you mean it.'
            )


def shared_samples(one: Source, other: Source) -> np.ndarray:
    """The rows of a set that stand in the other one too."""
    return np.flatnonzero(np.isin(one.digests(), other.digests_of(_alike(one, other))))


def copies(one: Source, other: Source) -> np.ndarray:
    """The rows of the other set that stand in this one too."""
    rows = _alike(one, other)
    return rows[np.isin(other.digests_of(rows), one.digests())]


def _alike(one: Source, other: Source) -> np.ndarray:
    """The rows of the other set that may be one of this set, by lengths and then by a few bytes, of which the others are
    not read."""
    rows = np.arange(len(other))
    mine, theirs = one.columns or [], other.columns or []
    if not theirs or [column.kind for column in mine] != [column.kind for column in theirs]:
        return rows
    own = np.arange(len(one))
    for found in (lambda values, rows: values.lengths[rows].astype(np.uint64), Values.probes):
        keys, wanted = (
            sum(found(values, of) * np.uint64(2 * i + 1) for i, values in enumerate(columns))
            for columns, of in ((theirs, rows), (mine, own))
        )
        rows = rows[np.isin(keys, np.unique(wanted))]
    return rows
