"""Hydra: multi-head latent Mamba for sequential recommendation (Yuan 2025, arXiv 2504.07398).

The model, top to bottom. d is ``hidden_size``, v ``num_heads``, d_c ``head_dim``, n the length::

    item model          H0 = E[items], or W LLM(text, [ITEM]), or their sum     n x d
                        H = RMSNorm(Dropout(H0))

    Hydra layer,        Ht = RMSNorm(H)
    num_layers times    X = Split(SiLU(W_X Ht)) = [X_1 .. X_v]                  history branch
                        Z = RoPE(SiLU(W_Z Ht))                                  item branch
                        Y = Concat(Mamba_1(X_1) .. Mamba_v(X_v))                n x (v d_c)
                        H = H + Dropout(W_O (norm(Y) * Z) + W_Y norm(Y))
                        H = H + Dropout(FFN(RMSNorm(H)))

    prediction          scores = Dropout(RMSNorm(H))_last H0_all^T + repeat bias

What the paper writes is above, but for W_Y and the places of dropout. What it leaves open is ours,
a config key each: the norms on Y (``y_norm``) and before prediction (``output_norm``), the form and
width of the FFN (``ffn_type``, ``ffn_size``), Mamba's expansion inside a head (``expand``), whether
prediction shares the item embeddings (``tie_embeddings``), the base of RoPE (``rope_base``), where
dropout is (``dropout_places``), how weights begin (``initializer_range`` for items,
``linear_initializer_range``, ``mamba_start`` inside the heads). benchmarks/ablation.py measures
them, one at a time.

Ours is W_Y (``history_path``): the history also goes on by itself, so that what it says of the next
item need not be learned anew for every last item. Ours is the repeat bias (``repeat_bias``):
through the residuals the last item's vector reaches the state that is compared with all items, so
that this item ranks first, on most data wrongly; a learned number on the scores of items in the
history, and another for each item, say how often it is right. They are learned beside the scores,
whose loss does not know of them: what the user has had stays what the model must tell the next item
apart from, hardest of all. A long history would be most of that; it counts as one item, in that
each of its h items has log h less in the softmax of the loss (``history_as_one``). Ours is also the
sum of both item models, in which E starts at zero: an item is what its text says, and what its
users add to that (as in collaborative topic regression, Wang and Blei 2011); one without users is
its text alone.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from recbole_hydra.checks import boolean, one_of, positive_int, positive_number, probability
from recbole_hydra.errors import ConfigError
from recbole_hydra.layers import (
    Dropout,
    ItemLLM,
    MultiHeadMamba,
    RepeatBias,
    RMSNorm,
    RotaryPositions,
    TextItems,
    find_llm,
    frozen_states,
    hash_llm,
    kept,
)
from recbole_hydra.model.sequential_recommender.base import StateSpaceRecommender, per_layer

#: Where dropout may be: on the item vectors that are read, on the two residual branches of a layer,
#: and on the state that is compared with the items.
DROPOUT_PLACES = ("item", "mamba", "ffn", "output")


class Hydra(StateSpaceRecommender):
    """Multi-head latent Mamba (Yuan 2025, arXiv 2504.07398); equations in the module's docstring.

    Config keys: hidden_size, num_layers, num_heads, head_dim, d_state, d_conv, expand,
    dropout_prob, dropout_places, ffn_type, ffn_size, y_norm, history_path, output_norm,
    rope_base, tie_embeddings, repeat_bias, history_as_one, initializer_range,
    linear_initializer_range, norm_eps, loss_type, scan_backend, user_model, item_encoder and, for
    text, the item_* and llm_* and lora_* keys. Defaults and meanings:
    ``properties/model/Hydra.yaml``.

    With text the dataset has the texts of its items, ``item_text`` (n_items,), and the catalogue
    may have items without interactions; the loss tells targets apart from items of training only.
    With several domains the dataset has ``domains``, see :mod:`recbole_hydra.data.domains`.

    Raises:
        ConfigError: a key that is missing or out of range, such as an odd ``head_dim``.
    """

    def __init__(self, config, dataset):
        has_text = "text" in str(config["item_encoder"])
        super().__init__(config, dataset, trained_only=has_text)
        d = positive_int("hidden_size", self.setting("hidden_size"))
        num_layers = positive_int("num_layers", self.setting("num_layers"))
        std, linear_std = (
            positive_number(key, self.setting(key))
            for key in ("initializer_range", "linear_initializer_range")
        )
        eps = positive_number("norm_eps", self.setting("norm_eps"))
        tied = boolean("tie_embeddings", self.setting("tie_embeddings"))
        places = self._dropout_places()
        encoder = one_of("item_encoder", self.setting("item_encoder"), ("id", "text", "id+text"))
        if has_text and not tied:
            raise ConfigError(
                "tie_embeddings: False gives the scores a table of ids; item_encoder "
                f"{encoder} needs True"
            )

        self.item_embedding = None
        if "id" in encoder:
            self.item_embedding = nn.Embedding(self.n_items, d, padding_idx=0)
        self.item_norm = RMSNorm(d, eps)
        self.dropout = Dropout(places["item"])
        stacks = [
            nn.ModuleList(
                HydraLayer(
                    d,
                    self.setting("num_heads"),
                    self.setting("head_dim"),
                    mamba={
                        **{
                            key: self.setting(key)
                            for key in ("d_state", "d_conv", "expand", "scan_backend")
                        },
                        "start": self.setting("mamba_start"),
                    },
                    rope_base=self.setting("rope_base"),
                    y_norm=self.setting("y_norm"),
                    history_path=self.setting("history_path"),
                    ffn_type=self.setting("ffn_type"),
                    ffn_size=self.setting("ffn_size"),
                    dropout={place: places[place] for place in ("mamba", "ffn")},
                    eps=eps,
                )
                for _ in range(num_layers)
            )
            for _ in range(self._number_of_stacks(dataset))
        ]
        #: With ``user_model: per_domain`` the layers of each domain, otherwise those of all.
        self.layers = nn.ModuleList(stacks) if self.domain_start is not None else stacks[0]
        normed = boolean("output_norm", self.setting("output_norm"))
        self.output_norm = RMSNorm(d, eps) if normed else nn.Identity()
        self.output_dropout = Dropout(places["output"])
        self.output_embedding = None if tied else nn.Embedding(self.n_items, d, padding_idx=0)
        form = self._repeat_bias_form(encoder)
        self.repeat_bias = None if form == "none" else RepeatBias(form, self.n_items)
        self.history_as_one = self._history_as_one()

        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=linear_std)
        self.item_text = None
        if has_text:
            self.item_text = self._text_items(config, dataset, d, std)
            if self.item_embedding is not None:
                nn.init.zeros_(self.item_embedding.weight)
        self.show_progress = bool(config["show_progress"])
        self._step_table = self._step_negatives = None  # within step()
        self._frozen_table = None  # while evaluating
        del self._config

    def _dropout_places(self) -> dict:
        """The probability of dropout at each place that has one."""
        p = probability("dropout_prob", self.setting("dropout_prob"))
        places = self.setting("dropout_places")
        if not isinstance(places, (list, tuple)):
            raise ConfigError(f"dropout_places must be a list, got {places!r}")
        for place in places:
            one_of("dropout_places", place, DROPOUT_PLACES)
        return {place: p if place in places else 0.0 for place in DROPOUT_PLACES}

    def _repeat_bias_form(self, encoder) -> str:
        """What the repeat bias depends on: by default the item, where there is more of it than its
        text."""
        form = self.setting("repeat_bias")
        if form is None:
            return "item" if "id" in encoder else "shared"
        one_of("repeat_bias", form, ("none", *RepeatBias.FORMS))
        if form == "item" and "id" not in encoder:
            raise ConfigError(
                "repeat_bias: item learns a number by item id, but with item_encoder text an item "
                "is its text alone; use shared or distance"
            )
        return form

    def _history_as_one(self) -> bool:
        """Whether the history counts as one item in the loss: by default where that is a softmax,
        and where a repeat bias keeps the history from ranking first."""
        choice = self.setting("history_as_one")
        is_softmax = self.loss_type in self.SOFTMAXES
        if choice is None:
            return is_softmax and self.repeat_bias is not None
        if boolean("history_as_one", choice) and not is_softmax:
            raise ConfigError(
                f"history_as_one: True is for loss_type {' and '.join(self.SOFTMAXES)}, in which "
                f"items share a probability, not for {self.loss_type}"
            )
        if choice and self.repeat_bias is None:
            raise ConfigError(
                "history_as_one: True leaves it to the repeat bias that the history does not rank "
                "first, but repeat_bias is none; use another"
            )
        return choice

    def _number_of_stacks(self, dataset) -> int:
        """How often there are layers; sets ``domain_start``, where each domain's items begin."""
        choice = one_of("user_model", self.setting("user_model"), ("shared", "per_domain"))
        domains = getattr(dataset, "domains", None)
        per_domain = choice == "per_domain" and domains is not None
        start = torch.tensor([first for first, _ in domains.ranges()]) if per_domain else None
        self.register_buffer("domain_start", start, persistent=False)
        return len(start) if per_domain else 1

    def _text_items(self, config, dataset, d, std):
        """The module that makes vectors of the items' texts."""
        if not hasattr(dataset, "item_text"):
            raise ConfigError(
                "item_encoder: the dataset has no texts; make it with create_dataset of "
                "recbole_hydra.data, or with run_recbole_hydra"
            )
        name, length = self.setting("item_llm"), self.setting("item_text_length")
        training = one_of("llm_training", self.setting("llm_training"), ("frozen", "lora", "full"))
        kept = self.setting("adapt_from") and "lora" not in (self.setting("adapt") or [])
        if training != "frozen" and not kept and self.loss_type == "CE":
            raise ConfigError(
                f"loss_type: CE ranks all items, so that with llm_training {training} every step "
                "would send the whole catalogue through the LLM; use SampledCE or gBCE"
            )
        folder, device, progress = find_llm(name), config["device"], bool(config["show_progress"])
        identity = {"name": str(name), "hash": hash_llm(folder)}
        states = llm = None
        if training == "frozen" or not getattr(dataset, "is_from_checkpoint", False):
            cache = self.setting("item_llm_cache")
            domains = getattr(dataset, "domains", None)
            parts = [(1, self.n_items)] if domains is None else domains.ranges()
            parts = [
                frozen_states(folder, dataset.item_text[a:b], length, device, cache, progress)
                for a, b in parts  # by domain, so that a file of the cache serves it alone, too
            ]
            states = torch.cat([parts[0].new_zeros(1, parts[0].shape[1]), *parts])
        if training != "frozen":
            lora = {
                key: self.setting(f"lora_{key}")
                for key in ("rank", "alpha", "dropout", "target_modules")
            }
            checkpointing = self.setting("llm_gradient_checkpointing")
            llm = ItemLLM(folder, length, training, lora, checkpointing, device)
            llm.tokenise(dataset.item_text, progress)
        return TextItems(states, llm, identity, d, std)

    # -- items -----------------------------------------------------------------------------------

    @property
    def item_table(self):
        """The vectors that states are compared with, (n_items, hidden_size).

        Those of texts are computed once per training step, see :meth:`step`, and once per
        evaluation.
        """
        if self.item_text is None:
            return (self.output_embedding or self.item_embedding).weight
        if self._step_table is not None:
            return self._step_table
        if self.training or torch.is_grad_enabled():
            return self._table()
        if self._frozen_table is None:
            self._frozen_table = self._table(show_progress=self.show_progress)
        return self._frozen_table

    def _table(self, ids=None, show_progress=False):
        """The item table, (n_items, hidden_size), zero in rows other than ``ids``, by default all
        but the padding's."""
        if ids is None:
            ids = torch.arange(1, self.n_items, device=self.item_norm.weight.device)
            vectors = self.item_text.catalogue(show_progress)[1:]
        else:
            vectors = self.item_text(ids)
        if self.item_embedding is not None:
            vectors = vectors + self.item_embedding(ids)
        return vectors.new_zeros(self.n_items, vectors.shape[1]).index_copy(0, ids, vectors)

    @contextmanager
    def step(self, item_seq, targets, negatives=None):
        """Compute the items of a batch, once: for CE all, otherwise inputs, targets, negatives."""
        if self.item_text is None:
            yield
            return
        ids = None
        if self.loss_type != "CE":
            self._step_negatives = self._drawn_negatives(targets.device)
            parts = [item_seq, targets] + ([] if negatives is None else [negatives])
            parts += [items for items, _ in self._step_negatives if items is not None]
            ids = torch.cat([part.flatten() for part in parts]).unique()
            ids = ids[ids > 0]
        self._step_table = self._table(ids)
        try:
            yield
        finally:
            self._step_table = self._step_negatives = None

    def _drawn_negatives(self, device):
        return self._step_negatives or super()._drawn_negatives(device)

    def _apply(self, fn, *args, **kwargs):
        self._frozen_table = None  # of another device or dtype now
        return super()._apply(fn, *args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        """torch's; what was computed for an evaluation is computed anew."""
        self._frozen_table = None
        return super().load_state_dict(*args, **kwargs)

    def train(self, mode=True):
        """Set the mode, as torch's; what was computed for an evaluation is computed anew."""
        self._frozen_table = None
        super().train(mode)
        if self.item_text is not None and self.item_text.llm is not None:
            # What is not trained draws no dropout either.
            self.item_text.llm.train(mode and self.item_text.is_trained)
            if not mode:
                self.item_text.forget_states()
        return self

    # -- users -----------------------------------------------------------------------------------

    def initial_state(self, batch):
        """The state before the first item; see :meth:`encode`."""
        layers = self.layers if self.domain_start is None else self.layers[0]
        position = torch.zeros(batch, dtype=torch.long, device=self.item_norm.weight.device)
        return position, *(part for x in layers for part in x.mamba.initial_state(batch))

    def encode(self, item_seq, state=None, keep=None):
        """Map item ids, (batch, length), to states, (batch, length, hidden_size).

        ``state`` is the position of the first item, (batch,), then two tensors per layer; see
        :meth:`recbole_hydra.layers.Mamba.forward`. With it, returns (states, state after the last).
        With ``keep``, see :func:`recbole_hydra.layers.kept`, the states are those positions' only.
        """
        if self.item_text is None:
            H0 = self.item_embedding(item_seq)
        else:
            H0 = F.embedding(item_seq, self.item_table, padding_idx=0)
        H = self.item_norm(self.dropout(H0))
        if self.domain_start is None:
            H, state = self._run(self.layers, H, state, keep)
        else:
            H, state = self._run_by_domain(item_seq, H, state, keep)
        H = self.output_dropout(self.output_norm(H))
        return H if state is None else (H, state)

    def _run(self, layers, H, state, keep):
        """Apply ``layers``; returns (states, state after the last, None if none was given)."""
        last = len(layers) - 1
        if state is None:
            for i, layer in enumerate(layers):
                H = layer(H, keep=keep if i == last else None)
            return H, None
        position, *parts = state
        after = [position + H.shape[1]]
        for i, mamba_state in enumerate(per_layer(parts)):
            to_keep = keep if i == last else None
            H, mamba_state = layers[i](H, position, mamba_state, to_keep)
            after += mamba_state
        return H, tuple(after)

    def _run_by_domain(self, item_seq, H, state, keep):
        """As :meth:`_run`, each row with the layers of the domain its items are from."""
        length = H.shape[1]
        domain = torch.bucketize(item_seq[:, 0].contiguous(), self.domain_start, right=True) - 1
        domain = domain.clamp_min(0)  # a row of padding alone
        out, after, where = [], [], []
        for index in domain.unique().tolist():
            rows = (domain == index).nonzero().squeeze(1)
            mine, place = None, rows
            if keep is not None:
                row_of = torch.full_like(domain, -1)
                row_of[rows] = torch.arange(len(rows), device=rows.device)
                row = row_of[keep // length]
                place = (row >= 0).nonzero().squeeze(1)
                mine = row[place] * length + keep[place] % length
            own = None if state is None else tuple(part.index_select(0, rows) for part in state)
            states, own = self._run(self.layers[index], H.index_select(0, rows), own, mine)
            out.append(states)
            after.append((rows, own))
            where.append(place)
        back = torch.cat(where).argsort()
        H = torch.cat(out).index_select(0, back)
        if state is not None:
            back = torch.cat([rows for rows, _ in after]).argsort()
            parts = zip(*(own for _, own in after), strict=True)
            state = tuple(torch.cat(part).index_select(0, back) for part in parts)
        return H, state


class HydraLayer(nn.Module):
    """One Hydra layer, pre-norm and residual: multi-head latent Mamba, then a feed-forward network.

    Args:
        d: width of the model.
        num_heads, head_dim: v latent subspaces, each d_c wide (even, for RoPE).
        mamba: keyword arguments of :class:`~recbole_hydra.layers.MultiHeadMamba`.
        rope_base: base of the rotary positions; None leaves the item branch without positions.
        history_path: whether Y also reaches the output by a map of its own, not only in its product
            with Z.
        y_norm: "rms" normalises Concat(Y_1 .. Y_v), "head_rms" each Y_i, "none" neither.
        ffn_type: "gelu", W_2 GELU(W_1 x), or "swiglu", W_2 (SiLU(W_1 x) * W_3 x).
        ffn_size: inner width of the feed-forward network.
        dropout: probabilities of dropout on the residual branches, "mamba" and "ffn".
        eps: of the RMS norms.
    """

    def __init__(
        self,
        d,
        num_heads,
        head_dim,
        mamba,
        rope_base,
        y_norm,
        history_path,
        ffn_type,
        ffn_size,
        dropout,
        eps,
    ):
        super().__init__()
        self.heads = (num_heads, head_dim)
        self.mamba = MultiHeadMamba(num_heads, head_dim, **mamba)  # checks both sizes
        width = num_heads * head_dim
        self.input_norm = RMSNorm(d, eps)
        self.W_X = nn.Linear(d, width, bias=False)
        self.W_Z = nn.Linear(d, width, bias=False)
        # RotaryPositions refuses an odd head_dim, also where the positions are switched off, so
        # that switching them on later needs no other model.
        rope = RotaryPositions(head_dim, 10_000.0 if rope_base is None else rope_base)
        self.rope = None if rope_base is None else rope
        self.y_norm = {
            "rms": nn.Sequential(nn.Flatten(-2), RMSNorm(width, eps)),
            "head_rms": nn.Sequential(RMSNorm(head_dim, eps), nn.Flatten(-2)),
            "none": nn.Flatten(-2),
        }[one_of("y_norm", y_norm, ("rms", "head_rms", "none"))]
        self.W_O = nn.Linear(width, d, bias=False)
        has_path = boolean("history_path", history_path)
        self.W_Y = nn.Linear(width, d, bias=False) if has_path else None
        self.ffn_norm = RMSNorm(d, eps)
        self.ffn = FeedForward(d, ffn_type, ffn_size)
        self.mamba_dropout = Dropout(dropout["mamba"])
        self.ffn_dropout = Dropout(dropout["ffn"])

    def forward(self, H, position=0, state=None, keep=None):
        """(batch, length, d) to the same; position t sees positions up to t.

        With ``state``, that of the Mambas before position ``position``, (batch,), returns the pair
        (output, state after the last position); ``keep`` restricts the output to some positions.
        """
        Ht = self.input_norm(H)
        X = F.silu(self.W_X(Ht)).unflatten(-1, self.heads)  # (batch, length, v, d_c)
        Z = F.silu(self.W_Z(kept(Ht, keep))).unflatten(-1, self.heads)
        if self.rope is not None:
            Z = self._rotate(Z, position, keep, H.shape[1])
        Y = self.mamba(X, state, keep)
        if state is not None:
            Y, state = Y
        Y = self.y_norm(Y)
        out = self.W_O(Y * Z.flatten(-2))
        if self.W_Y is not None:
            out = out + self.W_Y(Y)
        H = kept(H, keep) + self.mamba_dropout(out)
        H = H + self.ffn_dropout(self.ffn(self.ffn_norm(H)))
        return H if state is None else (H, state)

    def _rotate(self, Z, position, keep, length):
        """Apply RoPE to Z, (batch, length, v, d_c), or to the positions kept of it."""
        if keep is None:
            return self.rope(Z, position)
        if isinstance(position, torch.Tensor):
            position = position.index_select(0, keep // length)
        # Every kept position is a sequence of one, with its own offset.
        return self.rope(Z.unsqueeze(1), position + keep % length).squeeze(1)


class FeedForward(nn.Module):
    """Position-wise feed-forward network, without biases; see :class:`HydraLayer`."""

    def __init__(self, d, ffn_type, ffn_size):
        super().__init__()
        one_of("ffn_type", ffn_type, ("gelu", "swiglu"))
        positive_int("ffn_size", ffn_size)
        self.w_1 = nn.Linear(d, ffn_size, bias=False)
        self.w_3 = nn.Linear(d, ffn_size, bias=False) if ffn_type == "swiglu" else None
        self.w_2 = nn.Linear(ffn_size, d, bias=False)

    def forward(self, x):
        """(batch, length, d) to the same."""
        if self.w_3 is None:
            return self.w_2(F.gelu(self.w_1(x)))
        return self.w_2(F.silu(self.w_1(x)) * self.w_3(x))
