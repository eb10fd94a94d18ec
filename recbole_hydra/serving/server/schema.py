"""What requests and answers look like, for the checks and for the OpenAPI page."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    WithJsonSchema,
)

from recbole_hydra.serving.stores.base import LONGEST_ID

#: Items of a request, events of a list, histories of a request, items of a history, at most.
MOST_K, MOST_EVENTS, MOST_HISTORIES, LONGEST_HISTORY = 1000, 1000, 256, 10_000

#: Tags of bodies, which no error names.
ONE, MANY = "<one>", "<many>"


def _is_id(value: str | int) -> str:
    """A raw id as text."""
    text = str(value)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("is no Unicode text") from None
    if not 0 < size <= LONGEST_ID:
        raise ValueError(f"must have 1 to {LONGEST_ID} bytes")
    return text


#: A raw id, as text or as an integer, which is its digits.
Id = Annotated[
    StrictStr | StrictInt,
    AfterValidator(_is_id),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": LONGEST_ID},
                {"type": "integer"},
            ]
        }
    ),
]

K = Annotated[StrictInt, Field(ge=1, le=MOST_K, description="number of items")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Event(_Body):
    """A user had an item."""

    user: Id
    item: Id


class EventList(_Body):
    """Events in their order; all are taken in, or none."""

    events: Annotated[list[Event], Field(min_length=1, max_length=MOST_EVENTS)]


def _by_key(key: str) -> Discriminator:
    """Tells a body about many, which has ``key``, from one about one: errors are of that one."""
    return Discriminator(lambda body: MANY if isinstance(body, dict) and key in body else ONE)


AnyEvents = Annotated[
    Annotated[Event, Tag(ONE)] | Annotated[EventList, Tag(MANY)], _by_key("events")
]


class OfHistory(_Body):
    """Items for somebody who had ``history``, oldest first."""

    history: Annotated[list[Id], Field(min_length=1, max_length=LONGEST_HISTORY)]
    k: K = 10
    exclude_history: StrictBool = False
    domain: str | None = None


class OfHistories(_Body):
    """Items for many."""

    histories: Annotated[
        list[Annotated[list[Id], Field(min_length=1, max_length=LONGEST_HISTORY)]],
        Field(min_length=1, max_length=MOST_HISTORIES),
    ]
    k: K = 10
    exclude_history: StrictBool = False
    domain: str | None = None


AnyHistories = Annotated[
    Annotated[OfHistory, Tag(ONE)] | Annotated[OfHistories, Tag(MANY)], _by_key("histories")
]


class NewModel(_Body):
    """The checkpoint that takes over, a file in the server's folder of models."""

    checkpoint: Annotated[StrictStr, Field(min_length=1, max_length=1000)]


class Stored(BaseModel):
    """How many events were stored, and the model that answers."""

    stored: int
    model: str


class Item(BaseModel):
    """An item; its name where the dataset has one."""

    item: str
    score: float
    name: str | None = None


class Items(BaseModel):
    """The best items, best first; ``fallback`` is "popular" for a user of whom nothing is known."""

    user: str | None = None
    items: list[Item]
    fallback: str | None = None
    model: str


class ManyItems(BaseModel):
    """The best items of each history."""

    results: list[Items]


class Similar(BaseModel):
    """Items like one, with cosines."""

    item: str
    items: list[Item]
    model: str


class Had(BaseModel):
    """An item of a history."""

    item: str
    name: str | None = None


class History(BaseModel):
    """The last items of a user, oldest first, and how many there are."""

    user: str
    history: list[Had]
    number: int


class Users(BaseModel):
    """Some users of the training data, and how many there are."""

    users: list[str]
    number: int


class Health(BaseModel):
    """Whether the server works."""

    status: str
    model: str | None = None


class Model(BaseModel):
    """The model that answers."""

    model: str
    checkpoint: str


class Error(BaseModel):
    """What was wrong, in one line."""

    error: str
