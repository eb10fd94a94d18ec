"""The report of a comparison: csv, markdown, html and LaTeX."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from recbole_hydra.compare import plots, time_report
from recbole_hydra.compare.agreement import agreement_words, split_words
from recbole_hydra.compare.ranks import RANKINGS, display, mean_metric
from recbole_hydra.compare.statistics import mark
from recbole_hydra.metrics import OF_ALL_LISTS, OF_EACH_LIST, smaller_is_better

if TYPE_CHECKING:
    from recbole_hydra.compare.comparison import Comparison

#: What the marks of :func:`.statistics.mark` look like in a table; two stars are bold in markdown.
MARKS = {"*": "†", "**": "‡", "": ""}

NOTES = """\
Mean ± standard deviation over seeds, on the test set, which is read once per run, at the epoch \
that was best on validation. Without a word it is RecBole's ranking of sequential models, over all \
items; where masked, the items the user had before are left out of the same scores, the target \
excepted, as RecBole does for general models. Gain: relative to the best baseline, a model that \
is not of recbole_hydra, by {metric}. † and ‡: differs from the best baseline of that column at \
p < 0.05 and p < 0.01, paired t-test over users, corrected for all tests of this dataset \
(Benjamini-Hochberg). The best of a column is bold."""

LIST_NOTES = """\
{metrics}: of the first k items of every user's list, whatever the target is. Of \
AveragePopularity and GiniIndex the smaller is the better; popularity is in training interactions. \
The coverage, Gini index and entropy are of all lists together, which no test over users can tell \
apart."""

DOMAIN_NOTES = """\
By domain: a target is ranked among the items of its domain. The table above has the means over \
domains, each counting the same."""

COST_NOTES = """\
Seconds per epoch are training alone, seconds to the best epoch include validation. Peak memory is \
that of the run's process, data and libraries included."""

CSS = """\
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:right}
.wide{overflow-x:auto}
td{white-space:nowrap}
th:first-child,td:first-child{text-align:left}
th{border-bottom:2px solid #888}
img{max-width:100%}
.warning{background:#fff3cd;border:1px solid #e0c060;padding:.5rem 1rem}
pre{background:#f6f6f6;padding:.7rem;overflow:auto}"""


def write_report(
    comparison: Comparison, latex: bool = False, other: Comparison | None = None
) -> None:
    """Write every file of the report; see :meth:`.comparison.Comparison.write`."""
    folder = comparison.folder
    comparison.to_pandas().to_csv(folder / "results.csv", index=False)
    sections: list[Section] = [("#", "Comparison", _head(comparison))]
    for dataset in comparison.datasets:
        sections += _dataset_sections(comparison, dataset, other)
    sections += [("##", "Configurations", _configurations(comparison))]
    (folder / "report.md").write_text(_markdown(sections), encoding="utf-8")
    (folder / "report.html").write_text(_html(sections, folder), encoding="utf-8")
    if latex:
        tables = [_latex(comparison, dataset) for dataset in comparison.datasets]
        (folder / "table.tex").write_text("\n".join(filter(None, tables)), encoding="utf-8")


# A section is (level, title, blocks); a block is one of
#   ("text", str)  ("warning", [lines])  ("list", [lines])  ("table", DataFrame)
#   ("image", file, what it shows)  ("code", title, str)
Block = tuple[Any, ...]
Section = tuple[str, str, list[Block]]


def _head(comparison: Comparison) -> list[Block]:
    identity = comparison.identity
    total = len(comparison.runs)
    done = sum(run["status"] == "ok" for run in comparison.runs)
    blocks: list[Block] = [
        (
            "text",
            f"{', '.join(identity['models'])} on {', '.join(identity['datasets'])}; seeds "
            f"{', '.join(map(str, identity['seeds']))}; training mode "
            f"{identity['training_mode']}. {done} of {total} runs are finished.",
        )
    ]
    machines = {run["machine"] for run in comparison.runs if run["status"] == "ok"}
    versions = {run["version"] for run in comparison.runs if run["status"] == "ok"}
    if machines:
        blocks.append(
            (
                "text",
                f"Machine: {'; '.join(sorted(machines))}. recbole_hydra "
                f"{', '.join(sorted(versions))}.",
            )
        )
    if len(machines) > 1:
        blocks.append(("warning", ["the runs are from different machines: compare no times"]))
    return blocks


def _dataset_sections(
    comparison: Comparison, dataset: str, other: Comparison | None
) -> list[Section]:
    blocks: list[Block] = []
    runs = [run for run in comparison.runs if run["dataset"] == dataset]
    finished = comparison.finished(dataset)
    unfair = comparison.unfair(dataset)
    if unfair:
        blocks.append(("warning", ["These runs may not be compared:", *unfair]))
    failed = [
        f"{run['model']}, seed {run['seed']}: {run['status']}"
        + (f", {run['error']}" if run.get("error") else "")
        for run in runs
        if run["status"] != "ok"
    ]
    if failed:
        blocks.append(("warning", ["Runs that are not in the table:", *failed]))
    if not finished:
        return [("##", dataset, [*blocks, ("text", "No run is finished.")])]
    facts = finished[0]["fingerprint"]
    metric = display(comparison.metrics(dataset)[0])
    by_domain = domain_table(comparison, dataset)
    ranked = "all of them" if by_domain is None else "for each target those of its domain"
    split = f"Leave-one-out in the order of time; {facts['test_users']:,} test users, "
    if in_time := "cut" in facts:
        split = time_report.words(facts, comparison.identity["settings"][dataset])
    blocks.append(
        (
            "text",
            f"{split}{facts['candidates']:,} items, {ranked} ranked. "
            f"{finished[0]['repeats']:.1%} of the targets are repeats: the user's history holds "
            "them already.",
        )
    )
    blocks.append(("table", quality_table(comparison, dataset)))
    notes = NOTES.format(metric=metric)
    blocks.append(("text", f"{notes} {time_report.NOTE}" if in_time else notes))
    if in_time:
        blocks += time_report.group_blocks(comparison, dataset)
    if other is not None and dataset in other.datasets:
        lines = agreement_words(comparison, other, dataset)
        what = f"Agreement with {split_words(other, dataset)} on the order of the models:"
        blocks.append(("list", [what, *lines]))
    kinds = dict.fromkeys(display(name).partition("@")[0] for name in comparison.metrics(dataset))
    of_lists = [k for k in kinds if k.lower() in {**OF_EACH_LIST, **OF_ALL_LISTS}]
    if of_lists:
        blocks.append(("text", LIST_NOTES.format(metrics=", ".join(of_lists))))
    if by_domain is not None:
        blocks += [("table", by_domain), ("text", DOMAIN_NOTES)]
    blocks.append(("table", cost_table(comparison, dataset)))
    blocks.append(("text", COST_NOTES))
    for name, caption in plots.draw(comparison, dataset):
        blocks.append(("image", name, caption))
    return [("##", dataset, blocks)]


def quality_table(comparison: Comparison, dataset: str) -> pd.DataFrame:
    """The metrics of every model in both rankings, and the gain, as text for a report."""
    summary = comparison.summary(dataset).set_index(["model", "ranking", "metric"])
    metrics = comparison.metrics(dataset)
    models = [m for m in comparison.identity["models"] if m in summary.index.get_level_values(0)]
    rows = []
    for model in models:
        row = {"model": model}
        for name in metrics:
            for ranking, words in RANKINGS.items():
                cell = summary.loc[model, ranking, name]
                text = f"{cell['mean']:.4f}"
                if not np.isnan(cell["std"]):
                    text += f" ± {cell['std']:.4f}"
                text += MARKS[mark(cell["p"])]
                better: Callable[..., Any] = min if smaller_is_better(name) else max
                best = better(summary.loc[m, ranking, name]["mean"] for m in models)
                row[f"{display(name)}{words}"] = f"**{text}**" if cell["mean"] == best else text
        for ranking, words in RANKINGS.items():
            gain = summary.loc[model, ranking, metrics[0]]["gain"]
            row[f"gain{words}"] = "" if np.isnan(gain) else f"{gain:+.1%}"
        rows.append(row)
    return pd.DataFrame(rows)


def domain_table(comparison: Comparison, dataset: str) -> pd.DataFrame | None:
    """The chosen metric and the hit rate of every model in each domain, as text for a report; None
    where there are no domains."""
    metrics = comparison.metrics(dataset)
    shown = [metrics[0], *(name for name in metrics[1:] if name.startswith("hit"))][:2]
    rows = []
    for model in comparison.identity["models"]:
        tables = [t for (name, _), t in comparison.ranks(dataset).items() if name == model]
        if not tables:
            continue
        if "domain" not in tables[0]:
            return None
        row = {"model": model}
        for domain in tables[0]["domain"].unique():
            for name in shown:
                values = pd.Series([mean_metric(name, t, domain=domain) for t in tables])
                row[f"{domain} {display(name)}"] = _spread(values, 4)
        rows.append(row)
    return pd.DataFrame(rows)


def cost_table(comparison: Comparison, dataset: str) -> pd.DataFrame:
    """Parameters, times and memory of every model, as text for a report."""
    table = comparison.to_pandas()
    table = table[(table["dataset"] == dataset) & (table["status"] == "ok")]
    rows = []
    for model in comparison.identity["models"]:
        runs = table[table["model"] == model]
        if runs.empty:
            continue
        planned = len(comparison.identity["seeds"])
        row = {
            "model": model,
            "runs": f"{len(runs)} of {planned}",
            "item table": f"{int(runs['item_table_parameters'].iloc[0]):,}",
            "other parameters": f"{int(runs['other_parameters'].iloc[0]):,}",
            "s per epoch": _spread(runs["seconds_per_epoch"], 2),
            "best epoch": _spread(runs["best_epoch"] + 1, 0),
            "s to best": _spread(runs["seconds_to_best"], 1),
            "peak memory, MB": _spread(runs["peak_memory"] / 2**20, 0),
            "evaluation, µs per user": _spread(1e6 * runs["test_seconds_per_user"], 0),
        }
        if runs["item_memory_entries"].notna().all():
            row["item memory"] = f"{int(runs['item_memory_entries'].iloc[0]):,}"
            row["item memory, s"] = _spread(runs["item_memory_seconds"], 1)
        if runs["gpu_peak_memory"].notna().all():
            row["peak GPU memory, MB"] = _spread(runs["gpu_peak_memory"] / 2**20, 0)
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _spread(values: pd.Series, digits: int) -> str:
    text = f"{values.mean():,.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {values.std():,.{digits}f}"


def _configurations(comparison: Comparison) -> list[Block]:
    """What all runs share, and each model's own; with the seed, all that a run was told."""
    blocks: list[Block] = [
        (
            "text",
            "Every run's whole configuration is in runs/DATASET/MODEL/seed-N/settings.yaml. Below: "
            "what all models share, then what differs.",
        )
    ]
    for dataset, settings in comparison.identity["settings"].items():
        models = list(settings)
        shared = {
            key: value
            for key, value in settings[models[0]].items()
            if all(key in settings[m] and settings[m][key] == value for m in models)
        }
        blocks.append(("code", f"{dataset}, all models", _yaml(shared)))
        for model in models:
            own = {k: v for k, v in settings[model].items() if k not in shared}
            blocks.append(("code", f"{dataset}, {model}", _yaml(own)))
    return blocks


def _yaml(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=True, allow_unicode=True).rstrip() if settings else ""


# -- formats -------------------------------------------------------------------------------------


def _markdown(sections: Iterable[Section]) -> str:
    out = []
    for level, title, blocks in sections:
        out.append(f"{level} {title}")
        for kind, *content in blocks:
            if kind == "text":
                out.append(content[0])
            elif kind == "warning":
                first, *lines = content[0]
                out.append("\n".join([f"> **{first}**", *(f"> - {line}" for line in lines)]))
            elif kind == "list":
                first, *lines = content[0]
                out.append("\n".join([first, "", *(f"- {line}" for line in lines)]))
            elif kind == "table":
                out.append(markdown_table(content[0]))
            elif kind == "image":
                out.append(f"![{title}]({content[0]})\n\n*{content[1]}*")
            elif kind == "code":
                title, text = content
                out.append(
                    f"<details><summary>{title}</summary>\n\n```yaml\n{text}\n```\n\n</details>"
                )
    return "\n\n".join(out) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    """A DataFrame of text as a markdown table."""
    lines = [table.columns, [":--"] + ["--:"] * (len(table.columns) - 1), *table.to_numpy()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _html(sections: Iterable[Section], folder: Path) -> str:
    out = []
    for level, title, blocks in sections:
        tag = f"h{len(level)}"
        out.append(f"<{tag}>{html.escape(title)}</{tag}>")
        for kind, *content in blocks:
            if kind == "text":
                out.append(f"<p>{html.escape(content[0])}</p>")
            elif kind == "warning":
                first, *lines = map(html.escape, content[0])
                items = "".join(f"<li>{line}</li>" for line in lines)
                out.append(f'<div class="warning"><strong>{first}</strong><ul>{items}</ul></div>')
            elif kind == "list":
                first, *lines = map(html.escape, content[0])
                items = "".join(f"<li>{line}</li>" for line in lines)
                out.append(f"<p>{first}</p><ul>{items}</ul>")
            elif kind == "table":
                out.append(_html_table(content[0]))
            elif kind == "image":
                data = base64.b64encode((folder / content[0]).read_bytes()).decode()
                caption = html.escape(content[1])
                out.append(
                    f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
                    f"<figcaption>{caption}</figcaption></figure>"
                )
            elif kind == "code":
                title, text = map(html.escape, content)
                out.append(f"<details><summary>{title}</summary><pre>{text}</pre></details>")
    body = "\n".join(out)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Comparison</title>'
        f"<style>\n{CSS}\n</style></head><body>\n{body}\n</body></html>\n"
    )


def _html_table(table: pd.DataFrame) -> str:
    def cell(tag: str, value: object) -> str:
        text = html.escape(str(value))
        if text.startswith("**"):
            text = f"<strong>{text.strip('*')}</strong>"
        return f"<{tag}>{text}</{tag}>"

    rows = ["".join(cell("th", name) for name in table.columns)]
    rows += ["".join(cell("td", value) for value in row) for row in table.to_numpy()]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table>{body}</table></div>'


#: What LaTeX spells otherwise.
_LATEX = {"±": "$\\pm$", "†": "$^\\dagger$", "‡": "$^\\ddagger$", "%": "\\%", "_": "\\_",
          "&": "\\&", "#": "\\#", "µ": "$\\mu$"}  # fmt: skip


def _latex(comparison: Comparison, dataset: str) -> str:
    """The table of a dataset, for a document that uses booktabs; None where no run is finished."""
    if not comparison.finished(dataset):
        return ""

    def cell(value: object) -> str:
        text = str(value)
        bold = text.startswith("**")
        text = "".join(_LATEX.get(letter, letter) for letter in text.strip("*"))
        return f"\\textbf{{{text}}}" if bold else text

    table = quality_table(comparison, dataset)
    lines = [" & ".join(map(cell, row)) + r" \\" for row in [table.columns, *table.to_numpy()]]
    return "\n".join(
        [
            f"% {dataset}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
