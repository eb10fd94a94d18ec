"""The order of interactions in time, exact to the last digit of the file.

RecBole keeps times as float32, whose steps at Unix seconds are 128 s: interactions closer than that
come in the order of the file (RecBole's issues 653, 768, 1653 and 2204). Here the time column is
read as text and kept as int64, or as float64 where it has fractions, until a batch is made; equal
times keep the order of the file. ``time_order: recbole`` is RecBole's order.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import recbole.data.dataset as recbole_datasets
import torch
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType
from torch import Tensor

from recbole_hydra.compat.loading import atomic_files
from recbole_hydra.data.parts import are_put_in_order
from recbole_hydra.errors import ConfigError, DatasetError

#: From here on float64 does not hold every whole number.
_EXACT_FLOATS = 2.0**53

#: A time of day that says how far it is from UTC.
_HAS_ZONE = re.compile(r"\d{4}-?\d\d-?\d\d[T ].*(?:Z|[+-]\d\d(?::?\d\d)?)", re.IGNORECASE)

_REMEDY = (
    "times are numbers that grow with time, such as Unix seconds, or ISO 8601 dates, such as "
    "2024-02-29T23:59:59Z"
)


# -- reading -------------------------------------------------------------------------------------


def parse_times(
    texts: Sequence[str] | np.ndarray | pd.Series,
    where: str,
    line_of: Callable[[int], int] | None = None,
    may_be_missing: bool = False,
) -> tuple[np.ndarray, str]:
    """Times as numbers of full precision.

    Args:
        texts: the time column as it stands in the file, strings, (interactions,).
        where: names the column and the file in messages.
        line_of: the line of an entry of ``texts`` in the file; by default entry i is in line i + 2.
        may_be_missing: empty entries become NaN.

    Returns:
        ``(times, kind)``: (interactions,) int64 where all are whole numbers, else float64; kind is
        ``"numbers"``, or ``"dates"``, whose times are nanoseconds since 1970 in UTC. Dates without
        a time zone are taken as UTC.

    Raises:
        DatasetError: an entry is no number and no date, some are numbers and others dates, some
            dates have a time zone and others none, or two numbers differ by less than float64
            holds. The message names the line.
    """
    line_of = line_of or (lambda index: index + 2)
    column = pd.Series(np.asarray(texts, dtype=object)).fillna("").str.strip()
    missing = (column == "").to_numpy()
    if missing.any() and may_be_missing:
        present, kind = parse_times(
            column[~missing], where, lambda i: line_of(int(np.flatnonzero(~missing)[i]))
        )
        times = np.full(len(column), np.nan)
        times[~missing] = present
        return times, kind
    values = column.to_numpy()
    numbers = _whole_numbers(values)
    if numbers is None:
        numbers = _numbers(values)
    if numbers is not None:
        if numbers.dtype == np.float64:
            _check_distinct(values, numbers, where, line_of)
        return numbers, "numbers"
    dates = _dates(column)
    if dates.notna().all():
        _check_zones(column, where, line_of)
        return dates.dt.tz_localize(None).to_numpy("datetime64[ns]").astype(np.int64), "dates"
    raise DatasetError(_explain(column, dates, where, line_of))


def _whole_numbers(values: np.ndarray) -> np.ndarray | None:
    try:
        return None if _has_underscores(values) else values.astype(np.int64)
    except (ValueError, OverflowError):
        return None


def _numbers(values: np.ndarray) -> np.ndarray | None:
    """Numbers with a point or an exponent: int64 where all are whole all the same."""
    try:
        numbers = values.astype(np.float64)
    except ValueError:
        return None
    if _has_underscores(values) or not np.isfinite(numbers).all():
        return None
    if (numbers == np.floor(numbers)).all():
        if (np.abs(numbers) < _EXACT_FLOATS).all():
            return numbers.astype(np.int64)
        exact = [Decimal(text) for text in values]
        if all(x == x.to_integral_value() and abs(x) < 2**63 for x in exact):
            return np.array([int(x) for x in exact], dtype=np.int64)
    return numbers


def _has_underscores(values: np.ndarray) -> bool:
    """Python reads 1_000 as a number; in a file it is a mistake."""
    return any("_" in text for text in values)


def _check_distinct(
    values: np.ndarray, numbers: np.ndarray, where: str, line_of: Callable[[int], int]
) -> None:
    """Raise DatasetError where float64 makes two different times one."""
    if len(numbers) == 0 or np.abs(numbers).max() < 2**24 and max(map(len, values)) < 15:
        return
    order = np.argsort(numbers, kind="stable")
    same = np.flatnonzero(np.diff(numbers[order]) == 0)
    for one, other in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
        if values[one] != values[other] and Decimal(values[one]) != Decimal(values[other]):
            raise DatasetError(
                f"{where}: {values[one]} in line {line_of(one)} and {values[other]} in line "
                f"{line_of(other)} differ by less than numbers with fractions can hold; write the "
                "times as whole numbers of a smaller unit"
            )


def _dates(texts: pd.Series) -> pd.Series:
    """ISO 8601 dates in UTC, NaT where a text is none. 2024 is a number here, not a date."""
    is_number = pd.to_numeric(texts, errors="coerce").notna()
    texts = texts.where(~is_number, "").str.replace(",", ".", regex=False)
    return pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")


def _check_zones(texts: pd.Series, where: str, line_of: Callable[[int], int]) -> None:
    """Raise DatasetError where only some dates say how far they are from UTC."""
    with_zone = texts.str.fullmatch(_HAS_ZONE).to_numpy(dtype=bool)
    if with_zone.any() and not with_zone.all():
        index = int(np.argmax(with_zone != with_zone[0]))
        words = ("no time zone", "a time zone")
        raise DatasetError(
            f"{where}: the date {texts.iloc[index]!r} in line {line_of(index)} has "
            f"{words[int(with_zone[index])]}, those before it have {words[int(with_zone[0])]}; "
            "write all with one, or all without"
        )


def _explain(texts: pd.Series, dates: pd.Series, where: str, line_of: Callable[[int], int]) -> str:
    numbers = np.isfinite(pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64))
    numbers &= ~texts.str.contains("_", regex=False).to_numpy(dtype=bool)
    neither = ~numbers & dates.isna().to_numpy()
    if neither.any():
        index = int(neither.argmax())
        return (
            f"{where}: {int(neither.sum()):,} of {len(texts):,} interactions have no time that can "
            f"be read, the first is {texts.iloc[index]!r} in line {line_of(index)}; {_REMEDY}"
        )
    index = int(np.argmax(numbers != numbers[0]))
    words = ("a date", "a number")
    return (
        f"{where}: {texts.iloc[index]!r} in line {line_of(index)} is {words[int(numbers[index])]}, "
        f"those before it are {words[int(numbers[0])][2:]}s; {_REMEDY}, not a mixture"
    )


def line_numbers(path: str | Path, encoding: str | None) -> Callable[[int], int]:
    """The ``line_of`` of :func:`parse_times` for an atomic file, in which blank lines do not count
    as interactions."""

    def line_of(index: int) -> int:
        with open(path, encoding=encoding) as file:
            filled = (number for number, line in enumerate(file, start=1) if line.strip("\r\n"))
            return next((number for i, number in enumerate(filled) if i == index + 1), index + 2)

    return line_of


# -- datasets ------------------------------------------------------------------------------------


class ExactTimes(recbole_datasets.Dataset):
    """Keeps the times of a RecBole dataset exact. To be mixed in before one of its classes.

    The time column of ``inter_feat`` is int64 or float64 from the file on, so RecBole's own
    sorting and splitting, which are stable, are exact. A batch has it, and ``<time>_list``, as the
    float32 that RecBole's models expect, normalised where the config says so.

    Attributes:
        time_kind: of :func:`parse_times`; None where no times were read.
        time_range: the least and the greatest time, where models read normalised ones, else None.
    """

    time_kind: str | None = None
    time_range: tuple[Any, Any] | None = None

    @property
    def has_exact_times(self) -> bool:
        """Whether the config's ``time_order`` is exact. RecBole's own Config has none."""
        return self.config["time_order"] == "exact"

    def _load_feat(self, filepath: str, source: FeatureSource) -> pd.DataFrame | None:
        if source != FeatureSource.INTERACTION:
            return super()._load_feat(filepath, source)
        time, config = self.time_field, self.config
        needed = are_put_in_order(config)
        with _read_as_text(time):
            feat = super()._load_feat(filepath, source)
        if feat is None or time not in feat:
            return feat
        where = f"dataset {self.dataset_name}: {time} (TIME_FIELD) of {filepath}"
        line_of = line_numbers(filepath, config["encoding"])
        try:
            times, kind = parse_times(feat[time], where, line_of, may_be_missing=not needed)
        except DatasetError:
            if not needed and self.field2type[time] == FeatureType.TOKEN:
                return feat  # a column of words, which happens to be called so
            raise
        if self.time_kind not in (None, kind):
            raise DatasetError(f"{where}: they are {kind}, in the part before {self.time_kind}")
        self.time_kind = kind
        feat[time] = times if self.has_exact_times else times.astype(np.float64)
        self.field2type[time], self.field2bucketnum[time] = FeatureType.FLOAT, 2
        return feat

    def _normalize(self) -> None:
        # RecBole's ml-100k is normalised: in 0 .. 1, times of two domains would be in no order.
        if not (self.has_exact_times and self.time_field in self.inter_feat):
            return super()._normalize()
        times = self.inter_feat[self.time_field].copy()
        super()._normalize()
        if self.config["normalize_all"] or self.time_field in (
            self.config["normalize_field"] or []
        ):
            self.time_range = times.min(), times.max()
            self.inter_feat[self.time_field] = times

    def _discretization(self) -> None:
        if self.has_exact_times and self.time_field in (self.config["discretization"] or {}):
            raise ConfigError(
                f"discretization: {self.time_field} is TIME_FIELD, whose buckets are in no order "
                "of time; give the file a second column with the same times, and discretize that"
            )
        super()._discretization()

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Interaction:
        interaction = super()._dataframe_to_interaction(data)
        if self.has_exact_times and self.time_field in data:
            column = data[self.time_field]
            if column.dtype == object:  # of numerical_features: (time, 1) per row
                column = np.stack(column.to_list())
            interaction.interaction[self.time_field] = torch.from_numpy(np.array(column))
        return interaction

    def time_based_split(
        self, ratios: Sequence[float], group_by: str
    ) -> list[recbole_datasets.Dataset]:
        # RecBole's boundary is a percentile, which numpy computes in float64: exact for ranks.
        time = self.time_field
        if not (self.has_exact_times and time in self.inter_feat):
            return super().time_based_split(ratios, group_by)
        columns = self.inter_feat.interaction
        times = columns[time]
        values, rank = torch.unique(times, dim=0, return_inverse=True)
        columns[time] = rank
        parts = super().time_based_split(ratios, group_by)
        columns[time] = times
        for part in parts:
            if time in part.inter_feat:  # unless it is among unused_col
                part.inter_feat.interaction[time] = values[part.inter_feat[time]]
        return parts

    def join(self, df: Interaction | Tensor) -> Interaction | Tensor:
        joined = super().join(df)
        if self.has_exact_times and isinstance(joined, Interaction):  # dataset["item_id"] is none
            for name in (self.time_field, f"{self.time_field}{self.config['LIST_SUFFIX']}"):
                if name in joined and joined[name].dtype in (torch.int64, torch.float64):
                    joined.interaction[name] = self._as_models_read(name, joined)
        return joined

    def _as_models_read(self, name: str, rows: Interaction) -> Tensor:
        """A column of times, or of histories of times, as RecBole would have it: float32."""
        times = rows[name]
        if self.time_range is None:
            return times.double().float()  # as RecBole rounds
        numerical = self.time_field in self.config["numerical_features"]  # (time, 1) per row
        times, ones = (times[..., 0], times[..., 1:]) if numerical else (times, None)
        least, greatest = self.time_range
        scaled = torch.ones_like(times, dtype=torch.float64)
        if greatest > least:
            scaled = (times - least).double() / float(greatest - least)
        if name != self.time_field:  # behind a history there are zeros
            length = rows[self.item_list_length_field]
            scaled[torch.arange(times.shape[1]) >= length[:, None]] = 0.0
        if ones is not None:
            scaled = torch.cat([scaled[..., None], ones.double()], dim=-1)
        return scaled.float()


def with_exact_times(base: type[recbole_datasets.Dataset]) -> type[ExactTimes]:
    """A class of RecBole's datasets with :class:`ExactTimes`; ``base`` itself where it has them.

    It is a name of this module, so that its instances can be pickled.
    """
    if issubclass(base, ExactTimes):
        return base
    name = f"Exact{base.__name__}"
    made = globals().get(name)
    if made is None or base not in made.__mro__:
        made = type(name, (ExactTimes, base), {"__doc__": base.__doc__, "__module__": __name__})
        globals()[name] = made
    return made


def __getattr__(name: str) -> type[ExactTimes]:
    """Make the classes of RecBole's datasets anew for a process that unpickles one."""
    base = getattr(recbole_datasets, name.removeprefix("Exact"), None)
    if not name.startswith("Exact") or not isinstance(base, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return with_exact_times(base)


def times_of(dataset: recbole_datasets.Dataset) -> np.ndarray:
    """The times of a dataset that has not been split, as its ``time_order`` sorts by them:
    (interactions,) int64 or float64, or float32 for RecBole's order."""
    times = dataset.inter_feat[dataset.time_field].to_numpy()
    if times.dtype == object:  # of numerical_features: (time, 1) per row
        times = np.stack(times)[:, 0]
    return times if dataset.config["time_order"] == "exact" else times.astype(np.float32)


def join_times(named: Mapping[str, tuple[np.ndarray, str | None]]) -> pd.Series:
    """Times of several datasets in one column.

    Args:
        named: ``{name: (times, kind)}``, see :func:`parse_times`.

    Raises:
        DatasetError: some are numbers and others dates, or whole numbers too large to stand beside
            fractions.
    """
    kinds = {kind for _, kind in named.values() if kind is not None}
    if len(kinds) > 1:
        words = ", ".join(f"those of {name} {kind}" for name, (_, kind) in named.items())
        raise DatasetError(f"times: {words}; write all as numbers of one unit, or as dates")
    joined = pd.concat([pd.Series(times) for times, _ in named.values()], ignore_index=True)
    for name, (times, _) in named.items():
        if joined.dtype == np.float64 and times.dtype == np.int64:
            if len(times) and np.abs(times).max() >= _EXACT_FLOATS:
                raise DatasetError(
                    f"times: those of {name} are whole numbers above 2^53, which cannot stand "
                    "beside fractions of others; write all as whole numbers of one unit"
                )
    return joined


@contextmanager
def _read_as_text(column: str) -> Iterator[None]:
    before, atomic_files.as_text = atomic_files.as_text, column
    try:
        yield
    finally:
        atomic_files.as_text = before
