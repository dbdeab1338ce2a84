"""What `--backbones` means."""

import pytest
import timm

from visiontune.benchmark.names import Candidate, find_candidates, told_apart
from visiontune.errors import UserError


def test_names_wildcards_folders_and_files_each_once_in_their_order(networks):
    words = ["resnet18", str(networks / "one"), "convnext_att*", str(networks / "two.safetensors"), "resnet18", "convnext_atto"]
    rows = find_candidates(words)
    assert [r.name for r in rows][:4] == ["resnet18", "one", "convnext_atto", "convnext_atto_ols"]
    assert rows[-1].name == "two"
    assert all(timm.is_model_pretrained(r.backbone) for r in rows if r.weights == "timm")
    assert not [r for r in rows if r.problem]
    assert (rows[1].weights, rows[1].words) == ("own", {"backbone": str(networks / "one"), "weights": None})
    assert rows[1].stamp


def test_wildcards_match_what_has_weights_unless_random_is_asked_for():
    pretrained = {r.backbone for r in find_candidates(["convnext_*o*"])}
    every = find_candidates(["convnext_*o*"], "random")
    without = {r.backbone for r in every} - pretrained
    assert pretrained < {r.backbone for r in every}
    assert all(not timm.is_model_pretrained(name) for name in without)
    assert {r.words["weights"] for r in every} == {"random"}
    assert find_candidates(["resnet18"], "random")[0].folder != find_candidates(["resnet18"])[0].folder  # both may be in one table


def test_a_wildcard_with_a_tag_matches_the_weights_of_an_architecture():
    rows = find_candidates(["resnet18.a?_in1k"])
    assert [r.backbone for r in rows] == ["resnet18.a1_in1k", "resnet18.a2_in1k", "resnet18.a3_in1k"]


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("resnet19", "knows no backbone of this name; did you mean 'resnet1"),
        ("resnet_no*", "has no weights of any backbone that matches it"),
        ("convnext_zepto", "timm has no weights of it; --weights random measures it without"),
        ("runs/mae", "no file or folder of this name"),
        ("ROOT/one/model.safetensor", "no file or folder of this name; did you mean 'model.safetensors'?"),
        ("ROOT/torn.safetensors", "a file that does not tell its network"),
        ("ROOT", "no run with weights, and no folder with config.json"),
    ],
)
def test_what_cannot_be_measured_is_a_row_with_its_reason_or_an_error_if_nothing_else_is_left(
    networks, monkeypatch, tmp_path, word, problem
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timm, "is_model_pretrained", lambda name: name != "convnext_zepto")
    word = word.replace("ROOT", str(networks))
    if word == "convnext_zepto":
        monkeypatch.setattr("visiontune.backbones.check_name", lambda name: None)
    bad, good = find_candidates([word, str(networks / "one")])
    assert problem in bad.problem
    assert not good.problem
    with pytest.raises(UserError, match="--backbones: nothing is left to measure: ") as error:
        find_candidates([word])
    assert problem in str(error.value)


def test_a_run_without_weights_says_how_to_finish_it(tmp_path, networks):
    (tmp_path / "recipe.yaml").write_text("task: pretrain\n")
    bad, _ = find_candidates([str(tmp_path), str(networks / "one")])
    assert "has no weights/backbone yet; finish it first" in bad.problem


def test_weights_are_timms_or_random(networks):
    with pytest.raises(UserError, match=r"--weights: got 'randm'; allowed: timm, random; did you mean 'random'\?"):
        find_candidates(["resnet18"], "randm")
    with pytest.raises(UserError, match="a run, an exported folder or file among --backbones brings its own"):
        find_candidates(["resnet18"], str(networks / "one"))


def test_a_folder_called_as_a_network_of_timms_goes_by_its_path():
    rows = told_apart([Candidate("resnet18", "resnet18", "timm"), Candidate("resnet18", "/runs/resnet18", "own")])
    assert [r.name for r in rows] == ["resnet18", "/runs/resnet18"]
    assert rows[0].folder != rows[1].folder
