"""The command line: every command does its work, speaks JSON with the documented keys, and ends with the documented exit code."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune import zoo
from fxprune.cli import main
from fxprune.cli import slim as slim_command

COMMANDS = ("inspect", "slim", "train", "sensitivity", "bench", "diff", "export")

NETS = """
import torch
from torch import nn

def build(width=8):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 1),
    )
    for m in net:
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight)
    return net

ready = build()
number = 3

def wrong():
    return 3

def broken():
    raise RuntimeError("from the factory")
"""


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "nets_of_a_user.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")

    def said(*arguments: str) -> Said:
        sys.modules.pop("nets_of_a_user", None)
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        seen = capsys.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else int(code is not None), seen.out, seen.err)

    return said


@pytest.fixture
def slimmed(run: Run) -> Run:
    assert run("slim", "nets_of_a_user:build", "--ratio", "0.4", "-o", "slim.safetensors", "--input", "2x3x8x8").code == 0
    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_examples(run: Run, command: str) -> None:
    said = run(command, "--help")
    assert said.code == 0
    assert "Examples" in said.out
    assert len(re.findall(rf"fxprune {command} ", said.out)) >= 2
    assert "--json" in said.out


def test_what_it_says_about_itself(run: Run) -> None:
    said = run("--help")
    assert all(command in said.out for command in COMMANDS)
    assert "Exit codes" in said.out
    assert run("--version").out.strip() == f"fxprune {fxprune.__version__}"
    assert run("nonsense").code == 2


def test_inspect(run: Run) -> None:
    assert "can go" in run("inspect", "zoo:tiny_vgg").out
    found = run("inspect", "zoo:tiny_vgg", "--json").data
    assert found["command"] == "inspect"
    assert (found["prunable"], found["channels"]) == (192, 202)
    assert found["layers"][0]["name"] == "feature.0"
    told = run("inspect", "zoo:tiny_vgg", "--explain", "feature.0", "--json").data["explain"]
    assert "can go" in told["feature.0"]


def test_inspect_what_became_of_a_model(slimmed: Run, tmp_path: Path) -> None:
    said = slimmed("inspect", "nets_of_a_user:build", "slim.safetensors", "--report", "report.html", "--json")
    assert said.data["slim"] is True
    assert said.data["asked"] == 0.4
    assert "channels removed" in (tmp_path / "report.html").read_text()


def test_inspect_counts_for_the_inputs_that_a_model_was_slimmed_with(slimmed: Run) -> None:
    of_slim = slimmed("slim", "nets_of_a_user:build", "--ratio", "0.4", "--input", "2x3x8x8", "--json").data["after"]["macs"]
    assert slimmed("inspect", "nets_of_a_user:build", "slim.safetensors", "--json").data["macs"] == of_slim


def test_help_says_defaults_and_no_markup(run: Run) -> None:
    assert "as slimmed" in run("bench", "--help").out
    said = run("train", "--help").out
    assert "``" not in said
    assert "clause" not in said


def test_diff_reads_a_slim_model_of_any_name(slimmed: Run, tmp_path: Path) -> None:
    (tmp_path / "slim.bin").write_bytes((tmp_path / "slim.safetensors").read_bytes())
    assert slimmed("diff", "slim.bin", "slim.safetensors", "--json").data["same"] is True


def test_diff_refuses_slim_models_of_different_architectures(slimmed: Run) -> None:
    wide = ("slim", "nets_of_a_user:build", "--arg", "width=40", "--ratio", "0.4", "--input", "2x3x8x8", "-o", "wide.safetensors")
    assert slimmed(*wide).code == 0
    said = slimmed("diff", "slim.safetensors", "wide.safetensors")
    assert said.code == 1
    assert "different architectures" in said.err


def test_slim_writes_what_load_reads(run: Run, tmp_path: Path) -> None:
    model = zoo.tiny_vgg().eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "w.pt")
    said = run(
        "slim", "zoo:tiny_vgg", "--ratio", "0.5", "-w", "w.pt", "-o", "slim.safetensors", "--plan", "plan.json", "--report", "r.html",
        "--score", "magnitude", "--keep", "feature.0", "--json",
    )  # fmt: skip
    assert said.code == 0
    found = said.data
    assert found["files"] == {"slim": "slim.safetensors", "plan": "plan.json", "report": "r.html"}
    slim = fxprune.load(zoo.tiny_vgg().eval(), tmp_path / "slim.safetensors")
    expected = fxprune.slim(model, 0.5, score="magnitude", keep=["feature.0"])
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(slim(x), expected(x))
    assert found["after"]["parameters"] == sum(p.numel() for p in slim.parameters())
    assert found["before"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["evidence"]["outputs_compared"] == 1
    assert fxprune.Plan.from_json((tmp_path / "plan.json").read_text()) == fxprune.plan_of(slim)
    assert set(found) >= {"model", "capture", "asked", "achieved", "score", "before", "after", "layers", "notes", "seconds"}


def test_slim_in_rounds_and_safetensors_weights(run: Run, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(zoo.tiny_vgg().state_dict(), tmp_path / "w.safetensors")
    first = ("slim", "zoo:tiny_vgg", "-w", "w.safetensors", "--ratio", "0.3", "-o", "a.safetensors", "--no-verify", "--json")
    assert run(*first).data["evidence"] is None
    again = run("slim", "zoo:tiny_vgg", "--from", "a.safetensors", "--ratio", "0.3", "-o", "b.safetensors", "--json").data
    assert again["after"]["parameters"] < run(*first).data["after"]["parameters"]
    difference = run("diff", "a.safetensors", "b.safetensors", "--json").data
    assert difference["same"] is False
    assert difference["axes"]
    assert run("diff", "a.safetensors", "a.safetensors", "--json").data["same"] is True
    assert "keep" in run("diff", "a.safetensors", "b.safetensors").out


def test_people_see_tables(slimmed: Run) -> None:
    said = slimmed("slim", "nets_of_a_user:build", "--ratio", "0.4", "--input", "2x3x8x8")
    assert said.code == 0
    assert "verified: 1 output" in said.out
    assert "parameters" in said.out
    assert "nothing was written" in said.err


def test_bench_and_export(slimmed: Run, tmp_path: Path) -> None:
    found = slimmed(
        "bench", "nets_of_a_user:build", "slim.safetensors", "--batch", "1", "--batch", "3", "--rounds", "3", "--json"
    ).data
    assert [row["batch"] for row in found["measured"]] == [1, 3]
    assert found["measured"][0]["slim"]["speedup"] > 0
    assert found["measured"][0]["original"]["cpu"] > 0
    said = slimmed("export", "nets_of_a_user:build", "slim.safetensors", "-o", "slim.pt", "--json").data
    assert (said["format"], said["dynamic"]) == ("TorchScript", True)
    model = torch.jit.load(str(tmp_path / "slim.pt"))
    slim = fxprune.load(_user_net(tmp_path), tmp_path / "slim.safetensors", torch.randn(2, 3, 8, 8)).eval()
    x = torch.randn(5, 3, 8, 8)
    assert torch.allclose(model(x), slim(x), atol=1e-6)


@pytest.mark.parametrize(("suffix", "format_"), [pytest.param(".onnx", "ONNX", marks=pytest.mark.slow), (".pt2", "torch.export")])
def test_exports_are_checked(slimmed: Run, suffix: str, format_: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    found = slimmed("export", "nets_of_a_user:build", "slim.safetensors", "-o", f"slim{suffix}", "--json").data
    assert (found["format"], found["dynamic"]) == (format_, True)
    assert found["error"] <= 1e-4


def _user_net(folder: Path) -> nn.Module:
    namespace: dict[str, Any] = {}
    exec((folder / "nets_of_a_user.py").read_text(), namespace)  # noqa: S102 - the file is above
    made: nn.Module = namespace["build"]()
    return made.eval()


def test_sensitivity(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    arguments = (
        "sensitivity", "zoo:tiny_vgg", "--data", "digits", "--subset", "64", "-d", "0.5", "-d", "0.1", "--layer", "feature.0",
        "--points", "points.json", "--plot", "curve.svg",
    )  # fmt: skip
    found = run(*arguments, "--json").data
    assert [layer["name"] for layer in found["layers"]] == ["feature.0"]
    assert [d for d, _ in found["layers"][0]["accuracy"]] == [0.5, 0.1]
    assert found["images"] == 64
    assert (tmp_path / "curve.svg").exists()
    assert "feature.0" in run(*arguments).out


def test_train(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("lightning_fabric")
    arguments = (
        "train", "--out", "run", "--network", "mlp-16-16", "--subset", "128", "--epochs", "1", "--tune-epochs", "1", "--ratio", "0.3",
        "--strength", "0.02", "--accelerator", "cpu", "--no-augment",
    )  # fmt: skip
    try:
        found = run(*arguments, "--json").data
    finally:
        torch.use_deterministic_algorithms(mode=False)
    assert [stage["stage"] for stage in found["stages"]] == ["trained", "slim", "tuned"]
    assert (tmp_path / "run" / "results.json").exists()
    loaded = fxprune.load(zoo.mlp(64, 16, 16, 10), found["files"]["slim"])
    assert sum(p.numel() for p in loaded.parameters()) == found["stages"][-1]["parameters"]
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["model"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    refused = run(*arguments, "--seed", "3", "--json")
    torch.use_deterministic_algorithms(mode=False)
    assert refused.code == 1
    assert "other settings" in refused.data["error"]["message"]


def test_train_offers_every_setting(run: Run) -> None:
    from dataclasses import fields

    from fxprune.train.recipe.settings import Settings

    said = run("train", "--help").out
    assert all(f"--{field.name.replace('_', '-')}" in said for field in fields(Settings))
    assert run("train", "--out", "x", "--method", "magic").code == 2
    assert run("train", "--out", "x", "--ratio", "3").code == 2


@pytest.fixture
def any_algorithm() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.mark.usefixtures("any_algorithm")
@pytest.mark.parametrize(
    ("missing", "words"), [("lightning", "fxprune[train]"), ("sklearn", "fxprune[demo]"), ("board", "tensorboardX")]
)
def test_train_says_which_package_it_lacks(run: Run, monkeypatch: pytest.MonkeyPatch, missing: str, words: str) -> None:
    pytest.importorskip("lightning_fabric")
    from fxprune.train.recipe import launch

    if missing == "lightning":
        monkeypatch.setattr(launch, "NAMES", ("no_such_fabric",))
    for name in ("sklearn.datasets",) if missing == "sklearn" else ("tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    if missing == "board":
        pytest.importorskip("sklearn")
    found = run("train", "--out", "run", "--network", "mlp-8", "--accelerator", "cpu", "--tensorboard", "--json")
    assert found.code == 1
    assert words in found.data["error"]["message"]
    assert "Traceback" not in found.err


@pytest.mark.usefixtures("any_algorithm")
def test_train_says_that_images_are_missing(run: Run) -> None:
    pytest.importorskip("lightning_fabric")
    found = run("train", "--out", "run", "--data", "mnist", "--root", "nowhere", "--accelerator", "cpu")
    assert found.code == 1
    assert "--download" in found.err
    assert "Traceback" not in found.err


def test_of_several_processes_the_first_one_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        for arguments, code in ((("inspect", "zoo:tiny_vgg"), 0), (("inspect", "zoo:tiny_vgg", "--input", "1x1"), 1)):
            found = run(*arguments, "--json")
            assert (found.code, bool(found.out)) == (code, rank == 0), found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("slim", "zoo:tiny_vgg", "--ratio", "40"), "Did you mean 0.40"),
        (("slim", "zoo:tiny_vgg", "--ratio", "0.5", "--keep", "nothing.*"), "matches no module"),
        (("inspect", "zoo:tiny_vgg", "--explain", "nothing"), "no module or parameter"),
        (("inspect", "zoo:tiny_vgg", "-w", "pickled.pt"), "weights_only=True"),
        (("inspect", "zoo:tiny_vgg", "-w", "other.pt"), "does not hold this VGG's weights"),
        (("inspect", "zoo:tiny_vgg", "-w", "numbers.pt"), "no state dict"),
        (("inspect", "zoo:tiny_vgg", "slim.safetensors"), "another architecture"),
        (("inspect", "zoo:tiny_vgg", "-w", "empty.pt"), "it is empty"),
        (("inspect", "zoo:tiny_vgg", "-w", "notes.json"), "is no file of weights"),
        (("inspect", "zoo:tiny_vgg", "-w", "numbers.pt"), "a dict of 'epoch'"),
        (("diff", "slim.safetensors", "notes.json"), "plan format"),
        (("diff", "slim.safetensors", "empty.pt"), "empty.pt holds no plan"),
        (("diff", "slim.safetensors", "pickled.pt"), "it is no text"),
        (("bench", "nets_of_a_user:build", "cut.safetensors"), "truncated"),
    ],
)
def test_refusals_have_no_traceback(slimmed: Run, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    torch.save(zoo.tiny_vgg(), tmp_path / "pickled.pt")
    torch.save(zoo.lenet5().state_dict(), tmp_path / "other.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    (tmp_path / "notes.json").write_text("[1]")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "slim.safetensors").read_bytes()[:-5])
    said = slimmed(*arguments)
    assert said.code == 1
    assert words in said.err
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err
    as_json = slimmed(*arguments, "--json")
    assert as_json.code == 1
    assert words in as_json.data["error"]["message"]
    assert as_json.data["error"]["type"].endswith("Error")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspect", "resnet50"), "is no model"),
        (("inspect", "torchvision:resnet5"), "Did you mean"),
        (("inspect", "zoo:vgg"), "no model"),
        (("inspect", "no_such_module:build"), "there is no module"),
        (("inspect", "nets_of_a_user:buil"), "Did you mean build"),
        (("inspect", "nets_of_a_user:wrong"), "gave 3;"),
        (("inspect", "nets_of_a_user:number"), "it has to be a function"),
        (("inspect", "nets_of_a_user:build", "--arg", "depth=3"), "cannot be built"),
        (("inspect", "nets_of_a_user:build", "--arg", "width"), "NAME=VALUE"),
        (("inspect", "zoo:tiny_vgg", "--input", "2xx8"), "takes a shape"),
        (("inspect", "zoo:tiny_vgg", "-w", "missing.pt"), "does not exist"),
        (("slim", "zoo:tiny_vgg"), "--ratio, --params, --macs, --activation-bytes, --latency"),
        (("slim", "zoo:tiny_vgg", "--ratio", "0.5", "-o", "no/slim.safetensors"), "there is no folder 'no'"),
        (("slim", "zoo:tiny_vgg", "--ratio", "0.5", "-o", "."), "is a folder"),
        (("slim", "zoo:tiny_vgg", "--ratio", "0.5", "--plan", "no/plan.json"), "there is no folder 'no'"),
        (("slim", "zoo:tiny_vgg", "--ratio", "0.5", "--report", "no/report.html"), "there is no folder 'no'"),
        (("inspect", "zoo:tiny_vgg", "--report", "no/report.html"), "there is no folder 'no'"),
        (("export", "nets_of_a_user:build", "slim.safetensors", "-o", "no/slim.onnx"), "there is no folder 'no'"),
        (("sensitivity", "zoo:tiny_vgg", "--plot", "no/plot.svg"), "there is no folder 'no'"),
        (("sensitivity", "zoo:tiny_vgg", "--points", "no/points.json"), "there is no folder 'no'"),
        (("slim", "zoo:tiny_vgg", "--ratio", "half"), "valid number"),
        (("export", "nets_of_a_user:build", "slim.safetensors", "-o", "slim.tflite"), "must end in"),
        (("sensitivity", "zoo:tiny_vgg", "--data", "nothing"), "digits"),
    ],
)
def test_command_lines_that_make_no_sense(slimmed: Run, arguments: tuple[str, ...], words: str) -> None:
    said = slimmed(*arguments)
    assert said.code == 2
    assert words in " ".join(said.err.replace("│", " ").split())
    assert "Traceback" not in said.err


def test_a_defect_has_a_traceback_and_its_own_code(run: Run) -> None:
    said = run("inspect", "nets_of_a_user:broken")
    assert said.code == 3
    assert "from the factory" in said.err
    assert "Traceback" in said.err


def test_models_by_all_their_names(run: Run) -> None:
    pytest.importorskip("timm")
    assert run("inspect", "nets_of_a_user:ready", "--input", "1x3x8x8", "--json").data["model"] == "Sequential"
    wide = run("inspect", "nets_of_a_user:build", "--arg", "width=12", "--input", "1x3x8x8", "--json").data
    assert wide["layers"][0]["after"] == 12
    small = run("inspect", "torchvision:squeezenet1_1", "--arg", "num_classes=7", "--input", "1x3x64x64", "--json").data
    assert small["layers"][-1]["after"] == 7
    assert run("inspect", "timm:resnet10t", "--input", "1x3x64x64", "--json").data["model"] == "ResNet"


def test_bounds_are_offered_when_there_is_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect
    from dataclasses import dataclass as made

    @made(frozen=True)
    class Budget:
        macs: Any = None
        params: Any = None

    monkeypatch.setattr(fxprune, "Budget", Budget, raising=False)
    assert {"macs", "params"} <= set(inspect.signature(slim_command.made()).parameters)
    assert "latency" not in inspect.signature(slim_command.made()).parameters
    asked = []

    def slim(*_: Any, **options: Any) -> nn.Module:
        asked.append(options["budget"])
        raise fxprune.BudgetError("enough")

    monkeypatch.setattr(fxprune, "slim", slim)
    with pytest.raises(Exception, match="1"):
        slim_command.made()(model="zoo:tiny_vgg", macs="0.5", params="20000", as_json=True)
    assert asked == [Budget(0.5, 20000)]
