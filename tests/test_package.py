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
