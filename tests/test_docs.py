"""What the README and the docs tell people to type."""

import csv
import re
import statistics
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT, run_command
from visiontune.build.detecting import box_view
from visiontune.callbacks.embedding import SIGNS
from visiontune.data.detection.views import BOX_PIPELINES
from visiontune.data.user_transforms import compose
from visiontune.data.views import Views
from visiontune.heads.detect import head_names
from visiontune.metrics import classification_metrics
from visiontune.recipe import parse_recipe, shipped_recipes
from visiontune.recipe.options import named_views


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL)


def test_the_modules_page_runs_as_it_stands(tmp_path):
    code = "\n".join(blocks("docs/modules.md", "python"))
    assert "load_from_checkpoint" in code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["torch.Size([2, 64])", "torch.Size([2, 4])", "(1, 2, 4, 8)"]


def test_the_data_page_runs_as_it_stands_and_its_yaml_is_sound(tmp_path):
    (code,) = blocks("docs/data.md", "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "(100, 3, 32, 32) 100\n", done.stderr
    table, recipe, augment = (yaml.safe_load(text) for text in blocks("docs/data.md", "yaml"))
    parse_recipe({"task": "classify", "backbone": {"name": "resnet18"}} | table)
    parse_recipe(recipe | {"method": "simclr", "data": recipe["data"] | augment})
    keys = augment["augment"]
    views = Views.of(named_views()[keys.pop("pipeline")], keys)
    assert [v.solarize for v in views.each] == [0.0, 0.1]
    compose(views.albumentations)


def test_the_watching_page_runs_as_it_stands_and_names_what_is_logged(tmp_path):
    (code,) = blocks("docs/watching.md", "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "tensor(True) tensor(True)\n", done.stderr
    text = (ROOT / "docs/watching.md").read_text()
    assert all(f"`{sign.metric}`" in text for sign in SIGNS)


def test_the_measuring_page_runs_as_it_stands_and_names_what_a_result_holds(tmp_path):
    (code,) = blocks("docs/measuring.md", "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "0.833 0.131 -> 0.0\n[Confusion(truth=0, label=1, pictures=1, share=0.5)]\n", done.stderr
    text = (ROOT / "docs/measuring.md").read_text()
    scores = [name for kind in ("single", "multi") for name in classification_metrics(6, kind)]
    assert all(f"`{name}`" in text for name in scores)


def test_the_masked_page_runs_as_it_stands_and_its_table_is_that_of_the_csv(tmp_path):
    code = "\n".join(blocks("docs/masked.md", "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "ResNet (2, 512)\ntensor([79, 79])\n", done.stderr
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from masked_families import MARKS, read_rows, table

    text = (ROOT / "docs/masked.md").read_text()
    assert text.partition(MARKS[0])[2].partition(MARKS[1])[0].strip() == table(read_rows())


def test_the_page_on_using_runs_as_it_stands(tmp_path):
    code = "\n".join(blocks("docs/use.md", "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert lines[0] == "('daisy', 'rose', 'tulip') (160, 160)", done.stderr
    assert [line.partition(" ")[0] for line in lines[1:7]] == [f"photos/{i}.jpg" for i in range(6)]
    assert "web page" in lines[6]
    assert lines[7:] == ["True", "True"]


def test_the_verbs_of_the_page_on_using_have_the_options_that_it_names():
    from visiontune.__main__ import VERBS

    text = (ROOT / "docs/use.md").read_text()
    for line in "\n".join(blocks("docs/use.md", "bash")).splitlines():
        verb = re.search(r"python -m visiontune (\w+)", line)
        assert verb is not None, line
        assert verb[1] in VERBS, line
    source = "".join(path.read_text() for path in (ROOT / "visiontune/verbs").glob("*.py"))
    for option in set(re.findall(r"`?(--[a-z][a-z0-9-]+)", text)):
        assert f'"{option}"' in source, option


def test_the_accuracies_of_the_masked_page_are_those_of_the_csv():
    text = (ROOT / "docs/masked.md").read_text()
    with (ROOT / "benchmarks/masked_cifar.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for recipe in {r["recipe"] for r in rows}:
        own = [r for r in rows if r["recipe"] == recipe]
        assert len(own) == 3
        cells = []
        for column in ("probe_start", "probe", "tuned_scratch", "tuned"):
            values = [float(r[column]) for r in own]
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
        assert f"| {' | '.join(cells)} |" in text, (recipe, cells)


def test_the_joint_page_runs_as_it_stands_and_its_table_is_that_of_the_csv(tmp_path):
    (code,) = blocks("docs/joint.md", "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "torch.Size([4, 192])\n", done.stderr
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from joint_cifar import read_rows, table

    assert table(read_rows(ROOT / "benchmarks/joint_cifar.csv")) in (ROOT / "docs/joint.md").read_text()


def test_the_tuning_of_the_classify_page_runs_as_it_stands_and_its_keys_are_a_recipes(tmp_path):
    code = next(block for block in blocks("docs/classify.md", "python") if "Classifier(" in block)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    monitors = ["auroc", "exact", "loss", "macro_ap", "macro_f1", "micro_f1"]
    assert done.stdout == f"VisionTransformer (2, 4)\n{monitors}\n", done.stderr
    page = (ROOT / "docs/classify.md").read_text()
    recipe = yaml.safe_load(blocks("docs/classify.md", "yaml")[0])
    head = parse_recipe(recipe).single.head
    for key in set(re.findall(r"`head\.(\w+)", page)):
        assert key in type(head).model_fields, key
    ways = re.findall(r"^\| `([\w:]+)` \|", page.partition("| `tune` |")[2].partition("\n\n")[0], re.MULTILINE)
    assert len(ways) == 5
    for name in ways:
        parse_recipe(recipe | {"tune": name.replace("N", "2")})


def test_the_detect_page_runs_as_it_stands_and_its_yaml_is_sound(tmp_path):
    (code,) = blocks("docs/detect.md", "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "2\n", done.stderr
    recipe, augment = (yaml.safe_load(text) for text in blocks("docs/detect.md", "yaml"))
    found = parse_recipe(recipe | {"data": recipe["data"] | augment["data"]}).single
    view = box_view(found)
    assert (view.mosaic, view.sizes) == (0.5, (0.75, 1.25))
    page = (ROOT / "docs/detect.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == {*BOX_PIPELINES, *head_names()}
    commands = re.findall(r"^python -m visiontune (\w+) (.*?)(?:#.*)?$", page, re.MULTILINE)
    for verb, words in commands:
        options = run_command("visiontune", verb, "--help").stdout
        assert all(option in options for option in re.findall(r"--\w+", words)), (verb, words)


def test_the_compare_page_runs_as_it_stands_and_its_commands_are_understood(tmp_path):
    (code,) = blocks("docs/compare.md", "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "tensor(True) True True\n+0.037 (+0.022 to +0.051), p 0.008\n", done.stderr
    commands = "\n".join(blocks("docs/compare.md", "bash")).replace("\\\n", " ").splitlines()
    options = {verb: run_command("visiontune", verb, "--help").stdout for verb in ("probe", "compare")}
    for line in filter(None, commands):
        verb, *words = line.partition("#")[0].split()[3:]
        assert all(word in options[verb] for word in words if word.startswith("--")), line
        assert verb != "compare" or words[0] in shipped_recipes()


def test_the_benchmark_page_names_options_that_there_are_and_its_yaml_is_sound():
    page = (ROOT / "docs/benchmark.md").read_text()
    (text,) = blocks("docs/benchmark.md", "yaml")
    assert parse_recipe(yaml.safe_load(text)).benchmark is not None
    options = set(re.findall(r"(--[a-z][a-z-]+)", run_command("visiontune", "benchmark", "--help").stdout))
    assert {"--backbones", "--fresh"} <= options
    for option in set(re.findall(r"(--[a-z][a-z-]+)", page)):
        assert option in options, option


def test_commands_in_the_pages_name_recipes_that_exist():
    for page in ("docs/masked.md", "docs/data.md"):
        for name in re.findall(r"visiontune\.fit ([\w/]+)", "\n".join(blocks(page, "bash"))):
            assert name in shipped_recipes(), name


def test_the_yaml_of_the_readme_is_a_sound_recipe():
    (text,) = blocks("README.md", "yaml")
    assert list(parse_recipe(yaml.safe_load(text)).stages) == ["pretrain", "finetune", "scratch"]


def test_commands_in_the_readme_name_things_that_exist():
    text = "\n".join(blocks("README.md", "bash"))
    for name in re.findall(r"visiontune\.fit ([\w/]+)", text):
        assert name in shipped_recipes(), name


def test_the_tree_in_the_readme_names_every_file_at_the_top_of_the_package():
    text = (ROOT / "README.md").read_text()
    for path in (ROOT / "visiontune").iterdir():
        if path.name.startswith("__pycache__") or path.name in ("__init__.py", "py.typed", "ranges.py"):
            continue
        assert path.name in text, path.name


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / "README.md").read_text()))
def test_links_of_the_readme_lead_somewhere(link):
    assert (ROOT / link).exists()
