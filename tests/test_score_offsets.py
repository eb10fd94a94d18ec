"""What is added to single scores."""

import torch

from recbole_hydra.ops import ScoreOffsets


def test_offsets_of_some_scores():
    torch.manual_seed(1)
    places = (torch.rand(6, 40) < 0.3).nonzero(as_tuple=True)
    offsets = ScoreOffsets(*places, torch.randint(0, 5, places[0].shape), torch.randn(5))
    matrix = torch.zeros(6, 40)
    for row, item, kind in zip(*(x.tolist() for x in offsets[:3]), strict=True):
        matrix[row, item] = offsets.values[kind]
    own = torch.randint(0, 40, (6, 9))
    assert torch.allclose(offsets.of(own), matrix.gather(1, own))
    shared = torch.tensor([3, 39, 3, 0, 17, 21, 22])
    assert torch.allclose(offsets.of_shared(shared, (6, 40)), matrix[:, shared])
    assert torch.allclose(offsets.added_to(torch.ones(6, 40)), 1 + matrix)
    rows, items = torch.tensor([1, 4, 5]), torch.arange(3, 40, 4)
    position = torch.full((40,), -1)
    position[items] = torch.arange(len(items))
    few = offsets.among(rows, position).added_to(torch.zeros(3, len(items)))
    assert torch.allclose(few, matrix[rows][:, items])
