"""Options of the command line that choose: scores, layouts, scopes, absorption, budgets, deployment, what sensitivity is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune import zoo
from fxprune.cli import main
from fxprune.score import NAMED


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    for name, value in (("COLUMNS", "200"), ("TERM", "dumb"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    torch.manual_seed(0)
    model = zoo.tiny_vgg()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
    torch.save(model.state_dict(), "w.pt")

    def said(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        seen = capsys.readouterr()
        return int(ended.value.code or 0), seen.out, " ".join(seen.err.replace("│", " ").split())

    return said


SLIM = ("slim", "zoo:tiny_vgg", "-w", "w.pt")


def _weighted() -> Any:
    model = zoo.tiny_vgg()
    model.load_state_dict(torch.load("w.pt"))
    return model.eval()


def _data(run: Any, *arguments: str) -> Any:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_help_names_every_score(run: Any) -> None:
    _, out, _ = run("slim", "--help")
    words = set(" ".join(out.replace("│", " ").split()).replace(",", " ").replace(";", " ").split())
    assert words >= {"auto", *NAMED}


@pytest.mark.parametrize("name", ["auto", *sorted(NAMED), "l1:mean", "gamma:l2", "lamp:size", "fpgm:standard", "magnitude:max"])
def test_every_named_score(run: Any, name: str) -> None:
    found = _data(run, *SLIM, "--ratio", "0.4", "--score", name, "--no-verify", "--plan", "plan.json")
    expected = fxprune.slim(_weighted(), 0.4, score=name, verify=False)
    assert fxprune.Plan.from_json(Path("plan.json").read_text()) == fxprune.plan_of(expected)
    assert found["score"] == ("gamma" if name == "auto" else name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--score", "taylor"), "need Python"),
        (("--score", "gama"), "Did you mean gamma?"),
        (("--score", "l1:median"), "a normalisation is one of"),
        (("--layout", "dense"), "'coupled'"),
        (("--scope", "local"), "'isomorphic'"),
        (("--absorb", "maybe"), "unexpected extra argument"),
    ],
)
def test_choices_that_are_none(run: Any, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = run(*SLIM, "--ratio", "0.4", *arguments)
    assert code == 2
    assert words.lower() in err.lower()


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        ((), "interior"),
        (("--absorb",), "interior"),
        (("--absorb", "yes"), "interior"),
        (("--absorb=exact",), "exact"),
        (("--absorb", "exact"), "exact"),
        (("--absorb", "no"), "off"),
        (("--no-absorb",), "off"),
    ],
)
def test_absorption(run: Any, arguments: tuple[str, ...], mode: str) -> None:
    found = _data(run, "slim", *arguments, *SLIM[1:], "--ratio", "0.4", "-o", "slim.safetensors")
    assert found["absorption"]["mode"] == mode
    absorb: Any = {"interior": True, "exact": "exact", "off": False}[mode]
    expected = fxprune.slim(_weighted(), 0.4, absorb=absorb)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(fxprune.load(_weighted(), "slim.safetensors")(x), expected(x))


def test_layouts(run: Any) -> None:
    found = _data(run, "slim", "zoo:preresnet", "--arg", "depth=20", "--ratio", "0.3", "--layout", "selection", "--no-verify")
    assert found["layout"] == "selection"
    assert found["absorption"]["mode"] == "interior"
    said = _data(run, "slim", "zoo:preresnet", "--arg", "depth=20", "--ratio", "0.3", "--layout", "auto", "--no-verify")
    assert said["layout"] in ("coupled", "selection")
    assert any("layout='auto'" in note for note in said["notes"])


@pytest.mark.parametrize("scope", ["global", "uniform", "isomorphic", "threshold", "below"])
def test_budgets_and_scopes(run: Any, scope: str) -> None:
    found = _data(run, *SLIM, "--macs", "50%", "--params", "30k", "--activation-bytes", "1MB", "--scope", scope)
    own = found["figures"]
    assert own["params"]["asked"] == 30_000
    assert all(figures["achieved"] <= figures["asked"] for figures in own.values() if "asked" in figures)
    assert found["after"]["parameters"] == own["params"]["achieved"] <= 30_000
    expected = fxprune.slim(_weighted(), budget=fxprune.Budget(macs="50%", params="30k", activation_bytes="1MB"), scope=scope)
    assert found["after"]["parameters"] == sum(p.numel() for p in expected.parameters())


def test_budgets_are_told_to_people(run: Any) -> None:
    code, out, _ = run(*SLIM, "--macs", "0.5")
    assert code == 0
    assert "(for a budget)" in out
    assert "macs: at most" in out
    code, out, err = run(*SLIM, "--macs", "0.001")
    assert code == 1
    assert "cannot be met" in err


def test_deployed(run: Any) -> None:
    _data(run, *SLIM, "--ratio", "0.5", "-o", "slim.safetensors")
    found = _data(run, "export", "zoo:tiny_vgg", "slim.safetensors", "-o", "slim.pt2", "--deploy")
    assert found["error"] <= 1e-4
    program = torch.export.load("slim.pt2").module()
    assert "batch_norm" not in str(program.graph)
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(program(x), fxprune.load(_weighted(), "slim.safetensors")(x), atol=1e-4)
    bench = ("bench", "zoo:tiny_vgg", "slim.safetensors", "--batch", "2", "--rounds", "3", "--deploy")
    (row,) = _data(run, *bench)["measured"]
    assert set(row["forms"]) == {"original", "slim"}
    assert row["slim"]["speedup"] > 0
    assert "forms" in run(*bench)[1]


def test_sensitivity_of_groups(run: Any) -> None:
    pytest.importorskip("sklearn")
    arguments = (
        "sensitivity", "zoo:tiny_vgg", "-w", "w.pt", "--of", "channels", "--subset", "64", "-s", "0.25", "-s", "0.5", "--score", "l1",
        "--layer", "feature.[03].weight", "--points", "points.json", "--plot", "curve.svg",
    )  # fmt: skip
    found = _data(run, *arguments)
    assert [group["name"] for group in found["groups"]] == ["feature.0.weight", "feature.3.weight"]
    assert [share for share, _ in found["groups"][0]["accuracy"]] == [0.25, 0.5]
    assert (found["score"], found["images"]) == ("l1", 64)
    assert all(0 <= group["suggestion"]["share"] <= 0.5 for group in found["groups"])
    assert Path("curve.svg").exists()
    assert "feature.3.weight" in run(*arguments)[1]


@pytest.mark.parametrize("arguments", [("--of", "channels", "-d", "0.5"), ("--share", "0.5"), ("--of", "channels", "-s", "1.5")])
def test_sensitivity_that_makes_no_sense(run: Any, arguments: tuple[str, ...]) -> None:
    pytest.importorskip("sklearn")
    assert run("sensitivity", "zoo:tiny_vgg", *arguments)[0] == 2
