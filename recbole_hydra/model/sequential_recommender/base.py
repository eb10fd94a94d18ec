"""What Hydra and Mamba4Rec share: losses, scoring and checks around a causal encoder."""

from abc import ABC, abstractmethod

from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.loss import BPRLoss
from torch import nn

from recbole_hydra.checks import one_of
from recbole_hydra.errors import ConfigError, DatasetError


class StateSpaceRecommender(SequentialRecommender, ABC):
    """A causal encoder over the item sequence, scored by inner products with the items.

    Sequences are padded on the right with item 0, as RecBole pads them. A subclass defines
    :meth:`encode`, which must be causal, and ``self.item_embedding``; it reads its config through
    :meth:`setting`.

    Raises:
        ConfigError: an unknown ``loss_type``, or a config key that the model needs and nobody set.
    """

    #: Values of ``loss_type``: cross-entropy over all items, or BPR against sampled negatives.
    LOSS_TYPES = ("CE", "BPR")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self._config = config  # read by setting() while the model is built, then dropped
        self.loss_type = one_of("loss_type", self.setting("loss_type"), self.LOSS_TYPES)
        self.loss_fct = nn.CrossEntropyLoss() if self.loss_type == "CE" else BPRLoss()

    def setting(self, key):
        """Return config[key]; a key that is missing is an error, never a silent default."""
        if key not in self._config:
            name = type(self).__name__
            raise ConfigError(
                f"{name} needs the config key {key!r}: with RecBole's plain Config, put "
                f"recbole_hydra.default_config({name!r}) first in config_file_list"
            )
        return self._config[key]

    @abstractmethod
    def encode(self, item_seq):
        """Map item ids, (batch, length), to one state per position, (batch, length, width).

        The state at position t depends on the items up to t only.
        """

    @property
    def item_table(self):
        """The vectors that states are compared with, (n_items, width); row 0 is padding."""
        return self.item_embedding.weight

    def forward(self, item_seq, item_seq_len):
        """Return the state at the last item of each sequence, (batch, width)."""
        return self.gather_indexes(self.encode(item_seq), item_seq_len - 1)

    def calculate_loss(self, interaction):
        """Mean loss of the batch's targets.

        CE is the cross-entropy over all ``n_items`` rows of the item table (row 0 included, as in
        RecBole's models); BPR is Rendle et al. 2009 against the negatives RecBole sampled.
        """
        state = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        target = interaction[self.POS_ITEM_ID]
        if self.loss_type == "CE":
            return self.loss_fct(state @ self.item_table.T, target)
        positive = (state * self.item_table[target]).sum(-1)
        negative = (state * self.item_table[interaction[self.NEG_ITEM_ID]]).sum(-1)
        return self.loss_fct(positive, negative)

    def predict(self, interaction):
        """Score of each row's one candidate, (batch,)."""
        item = interaction[self.ITEM_ID]
        self._check_ids(self.ITEM_ID, item)
        return (self._last_state(interaction) * self.item_table[item]).sum(-1)

    def full_sort_predict(self, interaction):
        """Scores of all items for each row, (batch, n_items)."""
        return self._last_state(interaction) @ self.item_table.T

    def _last_state(self, interaction):
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        self._check_ids(self.ITEM_SEQ, item_seq)
        if int(length.min()) < 1 or int(length.max()) > item_seq.shape[1]:
            raise DatasetError(
                f"{self.ITEM_SEQ_LEN}: every sequence needs 1 to {item_seq.shape[1]} items, got "
                f"lengths from {int(length.min())} to {int(length.max())}"
            )
        return self.forward(item_seq, length)

    def _check_ids(self, field, ids):
        """Refuse ids outside the item table: on a GPU they would end the process."""
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.n_items:
            raise DatasetError(
                f"{field}: item ids must be in 0 .. {self.n_items - 1}, got "
                f"{low if low < 0 else high}; were they mapped with another dataset's vocabulary?"
            )
