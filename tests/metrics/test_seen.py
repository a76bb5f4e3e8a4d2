"""The set of images counted, against Python's own."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsod.metrics import seen
from wsod.metrics.seen import Seen

names = st.lists(st.text(max_size=3), max_size=40)


@given(ours=names, theirs=names, recent=st.integers(1, 8))
def test_it_is_a_set(ours: list[str], theirs: list[str], recent: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen, "RECENT", recent)
        made = []
        for several in (ours, theirs):
            known, found = set(), Seen()
            for name in several:
                assert (name in found) == (name in known)
                if name not in found:
                    found.add(name)
                known.add(name)
            made.append(pickle.loads(pickle.dumps(found)))
        a, b = made
        assert a.shared(b) == len(set(ours) & set(theirs))
        if not a.shared(b):
            a.update(b)
            for name in (*ours, *theirs):
                assert name in a
            assert "another" not in a
