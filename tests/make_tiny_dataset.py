"""Write ``dataset/tiny``: a generated dataset, small enough for tests, with something to learn.

    python tests/make_tiny_dataset.py

Items form a ring of 60; a user mostly steps from an item to the next one, sometimes jumps. There
are users with 1, 2 and 3 interactions, ties in time, and repeated items.
"""

import random
from pathlib import Path

USERS, ITEMS = 90, 60


def rows(seed=0):
    """Yield (user, item, timestamp) of every interaction."""
    rng = random.Random(seed)
    for user in range(1, USERS + 1):
        item, time = rng.randrange(ITEMS), 1_000_000_000 + rng.randrange(10_000_000)
        for _ in range(user if user <= 3 else rng.randint(4, 25)):
            yield f"u{user}", f"i{item + 1}", time
            item = rng.randrange(ITEMS) if rng.random() < 0.15 else (item + 1) % ITEMS
            time += rng.choice([0, 3_600, 86_400])


def main():
    path = Path(__file__).parents[1] / "dataset" / "tiny" / "tiny.inter"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for row in rows():
            file.write("\t".join(map(str, row)) + "\n")


if __name__ == "__main__":
    main()
