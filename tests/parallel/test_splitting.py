"""Parts of about the same work."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from precision_probe.parallel.splitting import split

WORK = st.lists(st.integers(1, 1000), min_size=1, max_size=30)


@given(WORK, st.integers(1, 12))
def test_parts_follow_one_another_and_have_all_structures_once(work, n_parts):
    parts = split(work, n_parts, [1] * len(work))
    assert len(parts) == min(n_parts, len(work))  # so that as many asked for anew are the same ones
    assert [part.number for part, _ in parts] == list(range(len(parts)))
    assert {part.n_parts for part, _ in parts} == {len(parts)}
    assert [index for _, which in parts for index in range(len(work))[which]] == list(range(len(work)))
    assert all(part.first == which.start < which.stop for part, which in parts)


@given(WORK, st.integers(1, 12))
def test_no_part_has_more_than_its_share_and_one_structure(work, n_parts):
    largest = max(sum(work[which]) for _, which in split(work, n_parts, [1] * len(work)))
    assert largest <= sum(work) / n_parts + max(work)


@given(WORK, st.integers(2, 12), st.integers(0, 10000))
def test_what_the_first_part_has_beside_counts_as_work(work, n_parts, first_has):
    (_, first), *others = split(work, n_parts, [1] * len(work), first_has=first_has)
    share = (sum(work) + first_has) / n_parts
    assert first_has + sum(work[first]) <= max(share, first_has) + max(work)
    left = sum(work) - sum(work[first])
    assert all(sum(work[which]) <= left / (n_parts - 1) + 2 * max(work) for _, which in others)


@given(WORK, st.integers(1, 12), st.data())
def test_no_part_ends_within_a_batch(work, n_parts, data):
    ends = sorted({*data.draw(st.sets(st.integers(1, len(work)))), len(work)})
    batches = [after - before for before, after in itertools.pairwise([0, *ends])]
    assert {which.stop for _, which in split(work, n_parts, batches)} <= set(ends)
