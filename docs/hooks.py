"""What mkdocs builds beside the pages here: the reports of the benchmarks, and the settings."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: A line such as ``num_layers: 1  # (int) Number of layers.``
LINE = re.compile(r"^([\w-]+)\s*:\s*((?:[^#'\"]|'[^']*'|\"[^\"]*\")*)#\s*(?:\(([^)]*)\)\s*)?(.*)$")

#: Files of settings, in the order in which they are read, with a heading.
PROPERTIES = {
    "Training, for every model": "training.yaml",
    "Evaluation": "overall.yaml",
    "Hydra": "model/Hydra.yaml",
    "Mamba4Rec": "model/Mamba4Rec.yaml",
    "Other causal models": "model/CausalRecommender.yaml",
}


def settings_page() -> str:
    """The settings and their defaults, from the comments of ``properties/``."""
    lines = [
        "# Settings and their defaults",
        "Beside these, every setting of RecBole: its documentation has them. Layers, each over the "
        "one before: RecBole's yaml, ours, files of yours (`--config_files`), the command line.",
    ]
    for title, name in PROPERTIES.items():
        lines += [f"## {title}", "| setting | default | type | what it is |\n|---|---|---|---|"]
        for line in (ROOT / "properties" / name).read_text(encoding="utf-8").splitlines():
            match = LINE.match(line)
            if match and not line.startswith("#"):
                cells = (cell.replace("|", "\\|").strip() for cell in match.groups(""))
                key, default, kind, words = cells
                lines[-1] += f"\n| `{key}` | `{default}` | {kind} | {words} |"
    return "\n\n".join(lines) + "\n"


def on_files(files, config):
    """Add the reports of the benchmarks."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / "benchmarks" / "results").rglob("*")):
        if path.suffix in (".md", ".png", ".csv", ".yaml"):
            name = path.relative_to(ROOT / "benchmarks").as_posix()
            files.append(
                File(name, ROOT / "benchmarks", config.site_dir, config.use_directory_urls)
            )
    return files


def on_page_markdown(markdown, page, config, files):
    """Write the settings into their page; a link that is right in a checkout is right here, too."""
    if page.file.src_uri == "reference/settings.md":
        return settings_page()
    markdown = markdown.replace("](../benchmarks/results/", "](results/")
    return markdown.replace("](../dataset/README.md", "](data.md")
