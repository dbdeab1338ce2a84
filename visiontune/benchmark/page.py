"""What the page of a benchmark shows: the table, the plot, and how every number came about."""

from collections.abc import Sequence
from typing import Any

from visiontune.benchmark import table
from visiontune.errors import counted
from visiontune.report.benchmark import Dot, accuracy_over_speed, write_benchmark
from visiontune.run import Run, environment

CAPTION = (
    "A click on a header sorts by it. Pictures/s: median of windows of many steps each, on pictures that lie on the device already, at the "
    "batch that was fastest and smallest; training: forward, backward and AdamW over everything; compiled: the same by torch.compile on "
    "the same batch, and beside it how many times the speed that is. ms for one: a batch of one picture. GMACs of one picture forward. "
    "MiB: the most that was held; on a CPU by the whole process, torch in it. * nothing is both faster and more accurate. results.csv has "
    "more columns."
)
TRAINED = (
    " Fine-tuning and detection: the same number of pictures seen by all, judged once after the last of them; seconds are of the machine "
    "that trained, validation included."
)
BOXES = " Speeds, memory and counts are of the backbone alone, without a head, on pictures of the size in which boxes are looked for."
PLOT = "Ringed and named: nothing else here is both faster and more accurate. Bars: {}the quartiles of the speed."
ERRORS = "one standard error of the accuracy, and "


def write_page(run: Run, settings: dict[str, Any], notes: Sequence[str], rows: Sequence[dict[str, Any]], commands: Sequence[str]) -> None:
    """`accuracy_over_speed.png` and `report.html`."""
    metric, ranked, best = table.ranking(rows)
    columns = table.shown(rows)
    maps, trained = metric in table.MAPS, any(key.endswith("_seconds") for _, key, _ in columns)
    what = "mean average precision on" if maps else "accuracies counted on"
    cells = [
        [_text("*" if row["name"] in best else "", 0 if row["name"] in best else 1), _text(row["name"]), _text(row["weights"])]
        + [_number(row, key, form) for _, key, form in columns]
        for row in ranked
        if "parameters" in row
    ]
    dots = [
        Dot(
            row["name"], row["images_per_second"], row["images_per_second_q1"], row["images_per_second_q3"], 100 * row[metric],
            100 * (table.error_of(row, metric) or 0.0), row["name"] in best,
        )
        for row in ranked
        if metric and metric in row and "images_per_second" in row
    ]  # fmt: skip
    plot = run.pictures / "accuracy_over_speed.png"
    if dots:
        accuracy_over_speed(dots, plot, label=f"{table.told(metric)}{'' if maps else ', top-1 accuracy'} in %")
    seed = next((row["seed"] for row in rows if "seed" in row), 0)
    judged = next((f", {what} {counted(row['val_pictures'], 'picture', ',')}" for row in rows if row.get("val_pictures")), "")
    write_benchmark(
        run.report_file,
        lead=f"{counted(len(rows), 'backbone')} on {settings['data']}, timed on {settings['device']} in {settings['precision']}{judged}.",
        headline=table.sentences(rows),
        failures=[f"{row['name']}: {row['reason']}" for row in rows if row["status"] == table.FAILED],
        doubts=[f"{row['name']}: {row['warnings']}" for row in rows if row.get("warnings")],
        columns=["", "name", "weights", *(header for header, _, _ in columns)],
        texts=3,
        rows=cells,
        caption=CAPTION + TRAINED * trained + BOXES * maps,
        plot=plot if dots else None,
        plot_caption=PLOT.format("" if maps else ERRORS),
        settings=[(key, str(value)) for key, value in settings.items()] + [("seed", f"{seed}, of random weights and pictures set aside")],
        notes=notes,
        commands=commands,
        machine=environment(),
    )


def _text(text: str, order: int | None = None) -> dict[str, Any]:
    return {"text": text, "value": text.lower() if order is None else order}


def _number(row: dict[str, Any], key: str, form: str) -> dict[str, Any]:
    """A cell with what it is sorted by."""
    value = row.get(key, "")
    if key == "image_size" and value:
        value = int(str(value).split("x")[0])
    return {"text": table.cell(row, key, form), "value": value}
