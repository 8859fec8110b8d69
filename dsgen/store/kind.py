"""Tell a store from a corpus."""

from pathlib import Path

from dsgen.io.filesystem import is_url
from dsgen.io.places import CORPORA, STORES, not_a_corpus_or_store, recognise


def is_store(place: Path | str) -> bool:
    """Return whether a folder or URL holds a store, True, or a corpus, False, whether or not it is finished.

    A URL is always taken for a store. Raises `NotFoundError`, which says what is there, where there is neither.
    """
    if is_url(place):
        return True
    kind = recognise(place)
    if kind not in (*CORPORA, *STORES):
        raise not_a_corpus_or_store(place)
    return kind in STORES
