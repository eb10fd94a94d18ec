"""Lists of items, of rows that may share them."""

import pytest
import torch

from recbole_hydra.ops import ItemLists


def histories(batch=4, length=12, n_items=9, seed=0):
    """Sequences with repeats, some padded on either side, and every position that has an item."""
    generator = torch.Generator().manual_seed(seed)
    item_seq = torch.randint(1, n_items, (batch, length), generator=generator)
    item_seq[1, 7:] = 0
    item_seq[2, :3] = 0
    return item_seq, (item_seq.flatten() > 0).nonzero().squeeze(1)


def written_out(item_seq, last):
    """The set of items of every history."""
    length = item_seq.shape[1]
    rows = ((item_seq[i // length], i % length) for i in last.tolist())
    return [set(sequence[: t + 1].tolist()) - {0} for sequence, t in rows]


def as_sets(lists, rows):
    row, item = lists.places()
    found = [item[row == r].tolist() for r in range(rows)]
    assert all(len(set(items)) == len(items) for items in found)
    return [set(items) for items in found]


@pytest.mark.parametrize("n_items, length", [(2, 1), (9, 12), (400, 300)])
def test_of_histories(n_items, length):
    item_seq, last = histories(length=max(length, 8), n_items=n_items)
    lists, want = ItemLists.of_histories(item_seq, last), written_out(item_seq, last)
    assert as_sets(lists, len(last)) == want
    assert len(lists.items) <= item_seq.numel()
    sizes = torch.tensor([len(items) for items in want])
    assert torch.equal(lists.count, sizes)
    torch.testing.assert_close(lists.less, sizes.float().log())
    row, item = lists.places(5, 9)
    got = [set(item[row == r].tolist()) for r in range(4)]
    assert got == want[5:9]


@pytest.mark.parametrize("chosen", [slice(None), slice(3, None, 5), slice(30, 31), slice(25, 40)])
def test_what_lists_hold(chosen):
    """Of all positions, and of some: there are users, before and after, whose items no row has."""
    item_seq, last = histories()
    last = last[chosen]
    lists, want = ItemLists.of_histories(item_seq, last), written_out(item_seq, last)
    own = torch.randint(0, 12, (len(last), 7), generator=torch.Generator().manual_seed(1))
    got = lists.holds(own)
    for row, items in enumerate(own.tolist()):
        assert got[row].tolist() == [item in want[row] for item in items]
    shared = torch.tensor([3, 11, 0, 3, 8, 1])
    got = lists.holds_shared(shared)
    for row in range(len(last)):
        assert got[row].tolist() == [item in want[row] for item in shared.tolist()]


def test_some_rows_without_some_items():
    item_seq, last = histories()
    lists, want = ItemLists.of_histories(item_seq, last), written_out(item_seq, last)
    rows, position = torch.tensor([0, 2, 9, 20, 33]), torch.full((9,), -1)
    position[[2, 5, 7]] = torch.arange(3)
    few = lists.among(rows, position)
    number = {2: 0, 5: 1, 7: 2}
    expected = [{number[i] for i in want[row] if i in number} for row in rows.tolist()]
    assert as_sets(few, len(rows)) == expected
    assert few.holds(torch.tensor([[0]] * 5)).squeeze(1).tolist() == [0 in s for s in expected]
    assert few.holds_shared(torch.tensor([1])).squeeze(1).tolist() == [1 in s for s in expected]


def test_no_items_at_all():
    lists = ItemLists.of_histories(torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 4]))
    assert not lists.count.any() and not lists.less.any()
    assert not lists.holds(torch.tensor([[1], [0]])).any()
    assert not lists.holds_shared(torch.tensor([1, 0])).any()
    assert len(lists.places()[0]) == 0
