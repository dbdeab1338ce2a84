"""What importing and asking for help may cost, counted in modules, not in time."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, run_command

HEAVY = ("torch", "timm", "lightning", "albumentations", "torchvision", "pydantic", "numpy", "cv2")


@pytest.mark.parametrize(
    "code",
    [
        "import visiontune",
        "import visiontune.fit",
        "import visiontune.fit\ntry:\n    visiontune.fit.main(['--help'])\nexcept SystemExit:\n    pass",
        "import visiontune.__main__\nvisiontune.__main__.main(['--help'])",
    ],
)
def test_no_heavy_module_is_imported_for(code):
    tail = f"\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", ["list", "show simclr", "schema", "show pretrain/mae"])
def test_a_verb_that_only_reads_needs_no_torch(verb):
    code = f"import visiontune.__main__ as m, sys\nm.main({verb.split()})\nprint([x for x in ('torch', 'timm') if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_public_names_are_there():
    import visiontune

    for name in visiontune.__all__:
        assert getattr(visiontune, name).__module__.startswith("visiontune.")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = visiontune.nonsense


def test_the_package_list_names_every_package():
    import configparser

    from setuptools import find_packages

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    assert listed == set(find_packages(str(ROOT), include=["visiontune*"])) | {"visiontune.recipes"}


def test_an_unknown_verb_is_named_with_what_is_near():
    done = run_command("visiontune", "lst")
    assert done.returncode == 2
    assert "no verb 'lst'; did you mean 'list'" in done.stderr


def test_the_wheel_holds_recipes_and_works_away_from_the_checkout(tmp_path):
    import os
    import shutil
    import zipfile

    source = tmp_path / "source"
    keep = ("visiontune", "recipes", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
    source.mkdir()
    for name in keep:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    words = ["pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([sys.executable, "-m", *words], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(tmp_path / "site")}
    for verb in (["list"], ["show", "quickstart"], ["check", "quickstart"]):
        done = subprocess.run([sys.executable, "-m", "visiontune", *verb], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/visiontune/report/page.html").is_file()
    assert (tmp_path / "site/visiontune/recipes/pretrain/mae.yaml").is_file()
