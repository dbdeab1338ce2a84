"""`report.html`: one file with its pictures inside, opened offline. `README.md`: the model card."""

import base64
import json
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from visiontune.callbacks.metrics import read_metrics
from visiontune.callbacks.progress import clock
from visiontune.data.broken import count_causes, read_broken
from visiontune.errors import UserError, counted, readable
from visiontune.recipe.yaml_lines import read_yaml
from visiontune.report import detection, figures, measured
from visiontune.report.measured import picture, text_table
from visiontune.report.numbers import NAMES, best_score, headlines, result_rows, score_rows, standard_error
from visiontune.run import Run, environment

PAGE = (Path(__file__).parent / "page.html").read_text()

PAINTED = (
    "The same eight training pictures and masks at every report. Where patches are normalised (norm_pixels), what is painted is given the "
    "true patch's own mean and contrast: shapes are the network's merit, colours are not."
)
# What each metric tells, where it was drawn.
TOLD = {
    "train/baseline": "train/baseline is the loss of one that predicts the mean: a loss that stays there has learned nothing yet.",
    "train/spread": "train/spread is that of what the loss compares: near 0 all pictures look alike to the network, it has collapsed.",
    "embedding/rank": (
        "embedding/rank (RankMe) counts the directions that the embeddings of some clean training pictures use; embedding/spread is 1 "
        "where they point everywhere and 0 where all pictures look alike. Their level depends on the backbone, and the rank of random "
        "weights may well fall at first: compare runs of one backbone; a fall to a few directions, or to no spread, is collapse."
    ),
    "train/teacher_entropy": (
        "train/teacher_entropy near 1 is a teacher that gives every picture to all prototypes alike; train/teacher_marginal near 0 is one "
        "that gives all pictures to one prototype: both are collapse, and a healthy run lies between."
    ),
}  # fmt: skip
NEIGHBOURS = (
    "In the first column eight training pictures; beside each the five nearest of a few hundred by cosine similarity of the embedding, "
    "which stands above. Ask what neighbours share: objects and textures are what one hopes for, colour and brightness alone are what "
    "random weights give already. The same few pictures beside every one, or cosines all near 1: the embedding tells little apart."
)
MAP = (
    "The same pictures where their embeddings lie on a plane. Look for regions that have a theme, and for what changes along a direction; "
    "islands of near-duplicates, scans or blank pictures are worth removing from the data. Distances across the plane are distorted: trust "
    "neighbours. UMAP is used where umap-learn is installed."
)


def write_report(run: Run, notes: list[str], machine: dict[str, Any], *, steps_per_epoch: int) -> None:
    """The page and the card of one run (or stage)."""
    result = run.result
    rows = read_metrics(run.metrics_file)
    drawn = figures.curves(rows, run.pictures / "curves.png", steps_per_epoch=steps_per_epoch)
    shown: list[dict[str, Any]] = []
    if drawn:
        told = " ".join(["From metrics.csv.", *(text for metric, text in TOLD.items() if metric in drawn)])
        shown.append(picture(run.pictures / "curves.png", "Curves", told))
    shown += _judged(run.folder, result)
    painted = sorted(run.pictures.glob("epoch_*.png"))
    for path in painted[:: max(1, len(painted) - 1)] if len(painted) > 1 else painted:
        epoch = int(path.stem.partition("_")[2])
        shown.append(picture(path, f"Pictures after epoch {epoch}", PAINTED))
    for name, title, caption in (
        ("neighbours", "What lies next to what", NEIGHBOURS),
        ("map", "A map of the embedding", MAP),
        ("views", "What the network sees", "Training pictures, whole and as they were augmented."),
    ):
        if (path := run.pictures / f"{name}.png").exists():
            shown.append(picture(path, title, caption))
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    text = page.render(
        title=f"{run.folder.name}: {result['task']}",
        lead=f"{result['what']}. {counted(result['images_seen'], 'picture', ',')} seen in {clock(result['seconds'])}.",
        headline="; ".join(headlines(result)),
        warnings=result.get("warnings", []),
        table={"title": "Result", "columns": ["", "value"], "rows": result_rows(result), "texts": 1},
        sections=shown,
        **_broken(read_broken(run.broken_file)),
        notes=notes,
        recipe=run.recipe_file.read_text(),
        machine=_machine_rows(machine),
    )
    run.report_file.write_text(readable(text))
    run.card_file.write_text(card(run, result, notes))


def write_evaluation(
    folder: Path, result: dict[str, Any], broken: list[tuple[str, str]], notes: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """`result.json` and `report.html` of an evaluation, from it and the tables and pictures in its folder.

    Returns:
        result and notes, with what is said of pictures that could not be read.
    """
    if broken:
        notes = [*notes, f"pictures that could not be read, left out: {len(broken)} ({count_causes(cause for _, cause in broken)})"]
        result = result | {"broken_pictures": len(broken)}
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    text = page.render(
        title=f"{Path(result['model']).name} on {result['data']}",
        lead=f"{result['what']}: {counted(result['pictures'], 'picture', ',')}.",
        headline="; ".join(headlines(result)),
        table={"title": "Result", "columns": ["", "value"], "rows": score_rows(result), "texts": 1},
        sections=_judged(folder, result),
        **_broken(broken),
        notes=notes,
        machine=_machine_rows(environment()),
    )
    (folder / "report.html").write_text(readable(text))
    return result, notes


def _judged(folder: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured of a classifier or a detector."""
    return (detection if "map" in result else measured).sections(folder, result)


def _broken(causes: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "broken": causes[:100],
        "more_broken": max(0, len(causes) - 100),
        "broken_summary": f"{len(causes)}: {count_causes(cause for _, cause in causes)}",
    }


def write_staged_report(run: Run, results: dict[str, dict[str, Any]], headline: str, machine: dict[str, Any]) -> None:
    """The page over all stages: one row each, with links to theirs."""
    rows = []
    for name, result in results.items():
        score = best_score(result)
        rows.append(
            [
                {"href": f"{name}/report.html", "text": name},
                result["what"],
                f"{NAMES.get(score[0], score[0])} {100 * score[1]:.1f} %" if score else "",
                clock(result["seconds"]),
                f"{result['images_seen']:,}",
                f"{result['images_per_second']:.0f}",
            ]
        )
    shown = []
    scores = {n: 100 * r["top1"] for n, r in results.items() if "top1" in r}
    if len(scores) > 1:
        counts = [r["val_pictures"] for r in results.values() if "val_pictures" in r]
        figures.bars(
            scores,
            run.pictures / "stages.png",
            label="top-1 accuracy, %",
            error=100 * standard_error(max(scores.values()) / 100, min(counts)),
        )
        caption = "Top-1 accuracy on the validation pictures; bars of error are one standard error of that many pictures."
        shown.append(picture(run.pictures / "stages.png", "Side by side", caption))
    for name in results:
        last = sorted((run.folder / name / "pictures").glob("epoch_*.png"))[-1:]
        shown += [picture(path, f"{name}: pictures at the end", "The same eight training pictures at every report.") for path in last]
    text = jinja2.Environment(autoescape=True).from_string(PAGE)
    columns = ["stage", "what", "result", "time", "pictures seen", "pictures/s"]
    page = text.render(
        title=run.folder.name,
        lead="Several stages, one after another.",
        headline=headline,
        warnings=[f"{name}: {w}" for name, r in results.items() for w in r.get("warnings", [])],
        table={"title": "Stages", "columns": columns, "rows": rows, "texts": 3},
        sections=shown,
        recipe=run.recipe_file.read_text(),
        machine=_machine_rows(machine),
    )
    run.report_file.write_text(page)


def card(run: Run, result: dict[str, Any], notes: list[str]) -> str:
    """The model card: what it is, how to load it, how good it was, how it was made."""
    raw, _ = read_yaml(run.recipe_file.read_text(), "recipe.yaml")
    task = result["task"]
    folder = "backbone" if task == "pretrain" else "model"
    scores = "\n".join(f"| {name} | {value} |" for name, value in result_rows(result))
    place = f"{run.folder.name}/weights/{folder}"
    use = f'import timm\n\nmodel = timm.create_model("local-dir:{place}", pretrained=True)'
    if (stem := raw["backbone"].get("stem", "timm")) != "timm":
        use = f'import visiontune\n\nmodel = visiontune.load("{place}").network  # its stem is {stem}, which plain timm cannot build'
    trained = raw["data"]["train"]
    if task == "detect":
        loop = 'for picture in model.predict("photos/"):\n    print(picture.path, picture.boxes)'
        use = f'import visiontune\n\nmodel = visiontune.load("{place}")\n{loop}'
        trained = trained["boxes"]
    lines = "\n".join(f"- {n}" for n in notes)
    return f"""# {run.folder.name}

{result["what"]}.

```python
{use}
```

Pictures go in as the folder's `config.json` says (size, mean, std){"; class names are its `label_names`" if folder == "model" else ""}.
To start from these weights: `backbone.weights={run.folder.name}` in a visiontune recipe.

| | |
|---|---|
{scores}

Trained on `{trained}`. The recipe is `recipe.yaml`, the machine `environment.json`, every number `metrics.csv`.
The weights belong to whoever made this run; mind the licences of the pictures, of the weights that it started from, and of a teacher's.

## How it was made
{lines}
"""


def write_in_style(file: Path, template: str, *, plot: Path | None, machine: dict[str, Any], **content: Any) -> None:
    """A page of another kind in the style of a run's, one file that is opened offline.

    Args:
        file: the page; it is called as its folder is.
        template: takes `title`, `style`, `plot` (base64 of the PNG, or empty), `machine`, and what else there is.
        plot: a PNG; None where nothing was measured.
        machine: where.
        content: the rest.
    """
    style = markupsafe.Markup(PAGE.partition("<style>")[2].partition("</style>")[0])
    drawn = base64.b64encode(plot.read_bytes()).decode() if plot else ""
    page = jinja2.Environment(autoescape=True).from_string(template)
    file.write_text(page.render(title=file.parent.name, style=style, plot=drawn, machine=_machine_rows(machine), **content))


def _machine_rows(machine: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(k, str(v)) for k, v in machine.items() if k != "versions" and v]
    return [*rows, ("versions", ", ".join(f"{k} {v}" for k, v in machine.get("versions", {}).items()))]


def summary(result: dict[str, Any]) -> str:
    """One line for the end of a run."""
    scores = headlines(result, digits=2)
    if "loss_baseline" in result:
        scores.append(f"loss {result['loss']:.4f}, where predicting the mean has {result['loss_baseline']:.4f}")
    return (
        f"{result['what']}: {'; '.join(scores) or 'done'}; {clock(result['seconds'])} on {counted(result['images_seen'], 'picture', ',')}"
    )


def compare_stages(results: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """What the stages brought: one sentence, and a table in plain text.

    The sentence compares the fine-tuned stages with the one from random weights, with the standard error of the difference of two
    shares counted on the same number of pictures (taken as independent, so it is on the wide side).
    """
    rows = [["stage", "result", "time", "pictures seen", "pictures/s"]]
    for name, r in results.items():
        score = best_score(r)
        told = f"{NAMES[score[0]]} {100 * score[1]:.1f} %" if score else ""
        rows.append([name, told, clock(r["seconds"]), f"{r['images_seen']:,}", f"{r['images_per_second']:.0f}"])
    table = text_table(rows, texts=2)
    tuned = {n: r for n, r in results.items() if r.get("top1") is not None}
    scratch = [n for n, r in tuned.items() if "random weights" in r["what"]]
    sentences = []
    for name, r in tuned.items():
        if not scratch or name == scratch[0]:
            continue
        base = tuned[scratch[0]]
        n = min(r["val_pictures"], base["val_pictures"])
        error = (standard_error(r["top1"], n) ** 2 + standard_error(base["top1"], n) ** 2) ** 0.5
        gain = 100 * (r["top1"] - base["top1"])
        sentences.append(
            f"{name} {100 * r['top1']:.1f} %, {scratch[0]} {100 * base['top1']:.1f} %: {gain:+.1f} points "
            f"(standard error {100 * error:.1f}, {counted(n, 'picture')}, one run each)"
        )
    return "; ".join(sentences), table


def rewrite_report(folder: str | Path) -> Path:
    """Make the page and the card of a finished run, or of all its stages, from what its folder holds.

    Raises:
        UserError: if the run is not finished.
    """
    run = Run.open(folder)
    if not run.finished:
        raise UserError(f"report: {run.folder} is not finished; go on with it by: python -m visiontune.fit --resume {folder}")
    if stages := run.stage_runs():
        for stage in stages.values():
            _rewrite(stage)
        results = run.result["stages"]
        write_staged_report(
            run, results, compare_stages(results)[0], json.loads((next(iter(stages.values())).folder / "environment.json").read_text())
        )
    else:
        _rewrite(run)
    return run.report_file


def _rewrite(run: Run) -> None:
    notes = [line[2:] for line in run.recipe_file.read_text().splitlines() if line.startswith("# ")]
    machine = json.loads((run.folder / "environment.json").read_text())
    seen, batch, epochs = run.result["images_seen"], run.recipe().data.batch_size, run.recipe().epochs
    write_report(run, notes, machine, steps_per_epoch=max(1, seen // (batch * epochs)))
