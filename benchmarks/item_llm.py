"""Time to read the texts of items, and to train on them with LoRA, on a CPU.

    pip install '.[llm,demo,test]'
    python benchmarks/item_llm.py --data_path=FOLDER [--dataset=amazon-office] [--rounds=5]

The variants differ in the number of tokens that go through the language model together, in what it
computes in, and in the kernel of the attention; the last one is what ItemLLM does on this machine.
"""

import argparse
import os
import time
from pathlib import Path

import pandas as pd
import report
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

from item_text import LORA, minilm

from recbole_hydra.layers import item_llm

#: name -> (tokens together, bfloat16, most tokens of a text whose attention is plain)
VARIANTS = {
    "float32, 8,192 tokens together": (2**13, False, 0),
    "float32, 2,048 tokens": (2**11, False, 0),
    "bfloat16, 2,048 tokens": (2**11, True, 0),
    "bfloat16, 2,048 tokens, plain attention": (2**11, True, item_llm.PLAIN_ATTENTION),
}


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--dataset", default="amazon-office")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    path = options.data_path / options.dataset / f"{options.dataset}.item"
    items = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=3)
    text = zip(items["title:token_seq"], items["brand:token"], strict=True)
    text = [f"Item: title: {title}, brand: {brand}" for title, brand in text][::5]
    lora = {"rank": 8, "alpha": 16, "dropout": 0.0, "target_modules": LORA["lora_target_modules"]}

    llms = {}
    own = item_llm.ItemLLM(minilm(), 40, "lora", lora, False)
    for low in (False, True):
        item_llm._has_bfloat16 = lambda device, low=low: low
        llms[low] = item_llm.ItemLLM(minilm(), 40, "lora", lora, False)
        llms[low].tokenise(text)
    ids = torch.arange(len(text))
    times = {name: ([], []) for name in VARIANTS}
    for _ in range(options.rounds):
        for name, (tokens, low, plain) in VARIANTS.items():
            item_llm.CHUNK_TOKENS["cpu"], item_llm.PLAIN_ATTENTION = tokens, plain
            llm = llms[low]
            with torch.no_grad():
                times[name][0].append(seconds(lambda llm=llm: llm(ids)))
            times[name][1].append(seconds(lambda llm=llm: llm(ids).square().sum().backward()))
    base = sorted(times[next(iter(VARIANTS))][1])[options.rounds // 2]
    rows = []
    for name, both in times.items():
        per_item = [[1e3 * value / len(ids) for value in values] for values in both]
        ratio = base / sorted(both[1])[options.rounds // 2]
        rows.append([name, *(report.spread(values, 1) for values in per_item), f"{ratio:.1f}x"])
    mean = sum(len(tokens) for tokens in llms[False].tokens) / len(ids)
    report.write(
        "item-llm",
        "Reading texts with an item LLM",
        f"`python benchmarks/item_llm.py --data_path=FOLDER --dataset={options.dataset}`: "
        f"all-MiniLM-L6-v2, {len(ids):,} texts of {mean:.0f} tokens in the mean, LoRA of rank 8. "
        f"Medians of {options.rounds} rounds, alternating. On this machine ItemLLM trains in "
        f"{'bfloat16' if own.low else 'float32'}.",
        report.table(["variant", "read, ms per item", "train, ms per item", "train"], rows),
    )


if __name__ == "__main__":
    main()
