"""FirstOrder: a table of which item came right after which, counted on the training histories.

The score of an item is how often it followed the last item, among all that did (a first-order
Markov chain, as FPMC has it without factors: Rendle et al. 2010). Items that never did are ranked
by how often they were had. What a model of histories has to be better than.
"""

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_hydra.data.item_map import training_histories

#: How much popularity does not outweigh a single transition.
TIE = 1e-6


class FirstOrder(SequentialRecommender):
    """Counted when it is made; nothing is trained, so that one epoch is enough
    (``FirstOrder.yaml``)."""

    input_type = InputType.POINTWISE
    nothing_trained = True

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.no_gradient = torch.nn.Parameter(torch.zeros(1))
        shape = (self.n_items, self.n_items)
        self.register_buffer("begins", torch.zeros(self.n_items + 1, dtype=torch.int64))
        self.register_buffer("after", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("share", torch.zeros(0))
        self.register_buffer("popularity", torch.zeros(self.n_items))
        items, begins = training_histories(dataset)
        inside = torch.ones(len(items), dtype=torch.bool)
        inside[begins[:-1]] = False  # an item that begins a history follows none
        items = torch.from_numpy(items)
        pairs = torch.stack([items[:-1], items[1:]])[:, inside[1:]]
        table = torch.sparse_coo_tensor(pairs, torch.ones(pairs.shape[1]), shape).coalesce()
        table = table.to_sparse_csr()
        self.begins, self.after = table.crow_indices(), table.col_indices()
        totals = self.begins.diff()
        sums = torch.zeros(self.n_items).index_add(
            0, torch.arange(self.n_items).repeat_interleave(totals), table.values()
        )
        self.share = table.values() / sums.repeat_interleave(totals)
        self.popularity = torch.bincount(items, minlength=self.n_items).float()
        self.popularity /= self.popularity.max().clamp_min(1)

    def calculate_loss(self, interaction):
        """Zero."""
        return self.no_gradient.sum() * 0.0

    def full_sort_predict(self, interaction):
        """Scores of all items, (batch, n_items)."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        last = item_seq[torch.arange(len(length)), length - 1]
        count = self.begins[last + 1] - self.begins[last]
        row = torch.repeat_interleave(count)
        entry = torch.arange(len(row)) + (self.begins[last] - (count.cumsum(0) - count))[row]
        scores = (TIE * self.popularity).expand(len(last), -1)
        return scores.index_put((row, self.after[entry]), self.share[entry], accumulate=True)

    def predict(self, interaction):
        """Score of each row's one candidate, (batch,)."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID][:, None]).squeeze(1)
