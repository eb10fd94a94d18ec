"""One compiled call from items to a user's vector, against the modules that were trained."""

import numpy as np
import pytest
import torch
from conftest import small

from recbole_hydra import Config, Hydra, Mamba4Rec
from recbole_hydra.serving.compiled import CompiledEncoder
from recbole_hydra.serving.states import ragged

N_ITEMS = 60

#: Every choice of form, and sizes that fill vectors of sixteen numbers and that do not.
CHOICES = [
    ("Hydra", {}),
    ("Hydra", {"num_layers": 3}),
    ("Hydra", {"ffn_type": "swiglu", "ffn_size": 80, "history_path": False}),
    ("Hydra", {"y_norm": "head_rms", "rope_base": None, "num_layers": 2}),
    ("Hydra", {"y_norm": "none", "output_norm": False, "tie_embeddings": False}),
    ("Hydra", {"mamba_start": "mamba", "expand": 2, "d_conv": 1}),
    ("Hydra", {"hidden_size": 20, "num_heads": 3, "head_dim": 6, "d_state": 5, "ffn_size": 7}),
    ("Hydra", {"d_state": 24, "d_conv": 2, "head_dim": 40, "num_heads": 1, "hidden_size": 72}),
    ("Mamba4Rec", {}),
    ("Mamba4Rec", {"num_layers": 3, "keep_mamba_init": True}),
    ("Mamba4Rec", {"hidden_size": 20, "d_state": 5, "expand": 1, "d_conv": 2}),
]


class Catalogue:
    """What a model asks its dataset for."""

    is_from_checkpoint = True

    def num(self, field):
        return N_ITEMS


def make(name, changes, seed=0):
    torch.manual_seed(seed)
    config = Config(name, "tiny", config_dict=small(name, **changes))
    model = {"Hydra": Hydra, "Mamba4Rec": Mamba4Rec}[name](config, Catalogue())
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases are not what they start as, either
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def histories(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(1, N_ITEMS, size=length) for length in lengths]


def by_modules(model, rows):
    with torch.no_grad():
        return torch.stack([model.encode(torch.tensor(row)[None])[0, -1] for row in rows]).numpy()


@pytest.mark.parametrize("name, changes", CHOICES, ids=str)
def test_whole_histories(name, changes):
    model = make(name, changes)
    rows = histories(1, 2, 3, 50, 120)
    vectors = CompiledEncoder(model)(*ragged(rows))
    np.testing.assert_allclose(vectors, by_modules(model, rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name, changes", CHOICES, ids=str)
def test_item_by_item_is_the_same_as_at_once(name, changes):
    model = make(name, changes)
    encoder = CompiledEncoder(model)
    rows = histories(30, 30, 30)
    states = np.zeros((3, encoder.state_size), np.float32)
    for t in range(30):
        items, start = ragged([row[t : t + 1] for row in rows])
        vectors = encoder(items, start, states, np.full(3, t))
        if t in (0, 1, 10, 29):
            expected = by_modules(model, [row[: t + 1] for row in rows])
            np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["Hydra", "Mamba4Rec"])
def test_in_parts_of_any_length(name):
    model = make(name, {"num_layers": 2})
    encoder = CompiledEncoder(model)
    row = histories(40)[0]
    states, position = np.zeros((1, encoder.state_size), np.float32), 0
    for length in (7, 1, 12, 20):
        part = row[position : position + length]
        vectors = encoder(*ragged([part]), states, np.array([position]))
        position += length
    np.testing.assert_allclose(vectors, by_modules(model, [row]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_do_not_know_of_each_other(threads):
    model = make("Hydra", {})
    encoder = CompiledEncoder(model)
    rows = histories(*range(1, 41))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = encoder(*ragged(rows))
    finally:
        torch.set_num_threads(before)
    alone = np.concatenate([encoder(*ragged([row])) for row in rows])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("name", ["Hydra", "Mamba4Rec"])
def test_ten_thousand_steps_stay_close(name):
    """Rounding does not add up: what a state forgets takes its rounding with it."""
    model = make(name, {})
    row = histories(10_000)[0]
    vectors = CompiledEncoder(model)(*ragged([row]))
    np.testing.assert_allclose(vectors, by_modules(model, [row]), rtol=0, atol=1e-4)
