"""What [ITEM] starts as: how much of a text its state says, before any training.

    pip install '.[llm,demo,test]'
    python benchmarks/item_token.py --data_path=FOLDER [--dataset=amazon-office]

For every interaction but a user's first, the item before it ranks all others by the cosine of their
states, centered; the hit rate is of the item that came next. No model is trained.
"""

import argparse
import os
from pathlib import Path

import pandas as pd
import report
import torch
from torch.nn.utils.rnn import pad_sequence

os.environ["HF_HUB_OFFLINE"] = "1"

from item_text import minilm

from recbole_hydra.layers import ItemLLM


def neighbours(states, before, after) -> list[str]:
    """HR@10 and NDCG@10 of the next item."""
    states = torch.nn.functional.normalize(states - states.mean(0), dim=1)
    ranks = []
    for one, two in zip(before.split(2048), after.split(2048), strict=True):
        scores = states[one] @ states.T
        scores.scatter_(1, one[:, None], -2.0)
        ranks.append((scores > scores.gather(1, two[:, None])).sum(1) + 1)
    ranks = torch.cat(ranks)
    hit = ranks <= 10
    return [f"{hit.float().mean():.4f}", f"{(hit / torch.log2(ranks + 1.0)).mean():.4f}"]


@torch.no_grad()
def mean_over_positions(llm, together=64) -> torch.Tensor:
    """The mean of the last layer over a text, which sentence encoders are trained for."""
    states = []
    for begin in range(0, len(llm.tokens), together):
        texts = [torch.from_numpy(tokens).long() for tokens in llm.tokens[begin : begin + together]]
        mask = pad_sequence([torch.ones(len(text)) for text in texts], batch_first=True)
        tokens = pad_sequence(texts, batch_first=True)
        hidden = llm.llm(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        states.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(states)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--dataset", default="amazon-office")
    options = parser.parse_args()
    folder = options.data_path / options.dataset
    reading = {"sep": "\t", "dtype": str, "keep_default_na": False, "quoting": 3}
    items = pd.read_csv(folder / f"{options.dataset}.item", **reading)
    users = pd.read_csv(folder / f"{options.dataset}.inter", **reading)
    row = {name: index for index, name in enumerate(items["item_id:token"])}
    users["item"] = users["item_id:token"].map(row)
    users["next"] = users.groupby("user_id:token")["item"].shift(-1)
    pairs = users.dropna(subset=["next"])
    pairs = pairs[pairs["item"] != pairs["next"]]
    pair = [torch.tensor(pairs[name].to_numpy(dtype="int64")) for name in ("item", "next")]

    rows = []
    for prompt in ("", "Item: ", "Compress the following item into one embedding: "):
        text = zip(items["title:token_seq"], items["brand:token"], strict=True)
        llm = ItemLLM(minilm(), 64)
        llm.tokenise([f"{prompt}title: {title}, brand: {brand}" for title, brand in text])
        table = llm.llm.get_input_embeddings().weight
        tokens = {
            "[CLS]": table[llm.tokenizer.cls_token_id],
            "[SEP]": table[llm.tokenizer.sep_token_id],
            "[MASK]": table[llm.tokenizer.mask_token_id],
            "mean of all tokens": table.mean(0),
        }
        for name, vector in tokens.items():
            llm.item_token.data.copy_(vector)
            with torch.no_grad():
                states = llm(torch.arange(len(items)))
            rows.append([repr(prompt), name, *neighbours(states, *pair)])
        rows.append([repr(prompt), "no [ITEM]: mean over positions",
                     *neighbours(mean_over_positions(llm), *pair)])  # fmt: skip
    report.write(
        "item-token",
        "What [ITEM] starts as",
        f"`python benchmarks/item_token.py --data_path=FOLDER --dataset={options.dataset}`: "
        f"all-MiniLM-L6-v2, nothing trained; the next item among the {len(items):,} by the nearest "
        f"text, {len(pairs):,} pairs.",
        report.table(["prompt", "[ITEM] is a copy of", "HR@10", "NDCG@10"], rows),
    )


if __name__ == "__main__":
    main()
