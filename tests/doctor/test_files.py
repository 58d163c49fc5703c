"""Checkpoints in every format give the same report; a bad file gives one line and status 2, and is never executed."""

import json
import os
import pickle
import sys
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from batchnorm import cli
from batchnorm.doctor import diagnose_states, files
from batchnorm.doctor.files import BadFileError, read
from tests.support.patients import network, trained


def save_onnx(state, path, external=False):
    """The batch norms of a state dict as a graph of their own."""
    onnx = pytest.importorskip("onnx")
    stored, nodes, x = [], [], "x"
    for name in sorted({key.rpartition(".")[0] for key in state if key.endswith("running_mean")}):
        keys = [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        stored += [onnx.numpy_helper.from_array(state[key].numpy(), key) for key in keys]
        nodes.append(onnx.helper.make_node("BatchNormalization", [x, *keys], [f"y{name}"], epsilon=1e-3, momentum=0.9))
        x = f"y{name}"
    values = [onnx.helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, None) for v in ("x", x)]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "norms", values[:1], values[1:], stored))
    where = {"save_as_external_data": True, "location": "elsewhere", "size_threshold": 0} if external else {}
    onnx.save(model, path, **where)


SAVE = {
    "safetensors": save_file,
    "pt": torch.save,
    "old.pt": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "nested.pt": lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path),
    "onnx": save_onnx,
}
formats = pytest.mark.parametrize("kind", SAVE)


@formats
def test_every_format_says_the_same(tmp_path, kind):
    model = trained(False)
    with torch.no_grad():
        model[4].weight[3] = 0
        model[8].running_var[0] = -1
    path = tmp_path / f"model.{kind}"
    SAVE[kind](model.state_dict(), path)
    report = diagnose_states(read(path))
    assert list(report.layers) == ["1", "4", "8"]
    found = [(f.rule, f.layers) for f in report.findings if f.rule != "foreign-eps"]
    assert found == [("negative-variance", ("8",)), ("dead-gamma", ("4",))]


def test_settings_of_onnx_are_translated(tmp_path):
    save_onnx(trained(False).state_dict(), tmp_path / "model.onnx")
    (state, *_) = read(tmp_path / "model.onnx")
    assert state.eps == 1e-3
    assert state.momentum == pytest.approx(0.1)


def test_onnx_tensors_in_other_files_are_not_opened(tmp_path):
    save_onnx(trained(False).state_dict(), tmp_path / "model.onnx", external=True)
    with pytest.raises(BadFileError, match="lies in another file"):
        read(tmp_path / "model.onnx")


class Hostile:
    def __init__(self, target):
        self.command = f"touch {target}"

    def __reduce__(self):
        return os.system, (self.command,)


def evil(kind, path, target):
    """A pickle that would run a command, bare, in torch's zip, or hidden beside honest tensors."""
    if kind == "bare":
        path.write_bytes(pickle.dumps(Hostile(target)))
    elif kind == "zip":
        torch.save(Hostile(target), path)
    else:
        torch.save({**trained(False).state_dict(), "extra": Hostile(target)}, path)


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["batchnorm", "doctor", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return exited.value.code or 0


def assert_one_line(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("batchnorm: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert len(err) < 500


@pytest.mark.parametrize("kind", ["bare", "zip", "beside"])
def test_hostile_pickles_are_not_executed(tmp_path, monkeypatch, capsys, kind):
    path, target = tmp_path / "evil.pt", tmp_path / "executed"
    evil(kind, path, target)
    assert call(monkeypatch, path) == 2
    assert_one_line(capsys)
    assert not target.exists()
    torch.load(path, weights_only=False) if kind != "bare" else pickle.loads(path.read_bytes())
    assert target.exists(), "it would have been"


@formats
def test_truncated_files(tmp_path, kind):
    path = tmp_path / f"model.{kind}"
    SAVE[kind](trained(False).state_dict(), path)
    data = path.read_bytes()
    for cut in (1, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(BadFileError) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("originals"), {}
    state = {k: v for k, v in network(False).state_dict().items() if k.startswith("1.")}
    for kind, save in SAVE.items():
        save(state, folder / f"model.{kind}")
        found[kind] = (folder / f"model.{kind}").read_bytes()
    return folder, found


def outcome(path):
    """The report in a line, or the line that says why there is none."""
    try:
        report = diagnose_states(read(path))
    except BadFileError as error:
        return str(error)
    return json.dumps(json.loads(report.to_json()))


@formats
@settings(max_examples=150)
@given(data=st.data())
def test_mutated_bytes_give_a_report_or_one_line(originals, kind, data):
    folder, found = originals
    content = bytearray(found[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        start = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(st.binary(min_size=1, max_size=8))
        content[start : start + data.draw(st.sampled_from([0, len(new)]))] = new
    path = folder / f"mutated.{kind}"
    path.write_bytes(content)
    assert outcome(path).isprintable()


@given(content=st.binary(max_size=200), kind=st.sampled_from(["pt", "safetensors", "onnx"]))
def test_any_bytes(tmp_path_factory, content, kind):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_bytes(content)
    assert outcome(path).isprintable()


def test_huge_files_are_not_opened(tmp_path, monkeypatch, capsys):
    path = tmp_path / "huge.pt"
    path.touch()
    os.truncate(path, files.LIMIT + 1)  # takes no room on the disk
    assert call(monkeypatch, path) == 2
    assert "larger than 8 GiB" in capsys.readouterr().err


def test_archives_that_unpack_to_something_huge_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIMIT", 2**20)
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(2**21))
    assert path.stat().st_size < 2**13
    with pytest.raises(BadFileError, match="larger than"):
        read(path)


def test_claimed_shapes_are_not_believed(tmp_path):
    """A stored number that claims to be a trillion: a copy of it would fill the memory."""
    state = {f"1.{name}": torch.zeros(1).expand(2**40) for name in ("running_mean", "running_var")}
    torch.save(state, tmp_path / "wide.pt")
    with pytest.raises(BadFileError, match="channels"):
        read(tmp_path / "wide.pt")


@pytest.mark.parametrize("value", [torch.zeros(0), torch.zeros(2, 2), torch.zeros(3, dtype=torch.complex64)])
def test_impossible_statistics(tmp_path, value):
    torch.save({"running_mean": value, "running_var": value}, tmp_path / "odd.pt")
    with pytest.raises(BadFileError):
        read(tmp_path / "odd.pt")


def test_names_cannot_drive_the_terminal(tmp_path, monkeypatch, capsys):
    state = {f"\x1b[2Jnorm\n.{k}": torch.full((3,), float("nan")) for k in ("running_mean", "running_var")}
    torch.save(state, tmp_path / "names.pt")
    assert call(monkeypatch, tmp_path / "names.pt") == 0
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out
    assert "\\x1b[2Jnorm\\n" in out


def test_every_state_dict_of_a_file_is_read(tmp_path):
    """A healthy network beside an average of it that is sick, and an optimizer's state."""
    model, average = trained(False), trained(False)
    with torch.no_grad():
        average[8].running_var[2] = torch.nan
        average[1].num_batches_tracked.add_(5)
        average[4].num_batches_tracked.add_(5)
        average[8].num_batches_tracked.add_(5)
    optimizer = torch.optim.Adam(model.parameters())
    content = {"state_dict": model.state_dict(), "callbacks": [{"ema": average.state_dict()}], "epoch": 3}
    torch.save(content | {"optimizer": optimizer.state_dict()}, tmp_path / "all.pt")
    report = diagnose_states(read(tmp_path / "all.pt"))
    places = ("state_dict", "callbacks/0/ema")
    assert list(report.layers) == [f"{place}/{name}" for place in places for name in (1, 4, 8)]
    assert [(f.rule, f.layers) for f in report.findings] == [("not-finite", ("callbacks/0/ema/8",))]
    (evidence,) = report.findings[0].evidence.values()
    channels = len(average[8].running_var)
    assert evidence == {"values": 1, "running_var": f"channel 2 of {channels} is NaN"}


def test_a_mapping_inside_itself_ends(tmp_path):
    state = {"1.running_mean": torch.zeros(2), "1.running_var": torch.ones(2)}
    state["self"] = state
    torch.save(state, tmp_path / "loop.pt")
    assert 1 <= len(read(tmp_path / "loop.pt")) < 10


@formats
def test_it_says_what_a_file_cannot_tell(tmp_path, kind):
    path = tmp_path / f"model.{kind}"
    SAVE[kind](trained(False).state_dict(), path)
    assert any("neither momentum nor eps" in note for note in diagnose_states(read(path)).notes) == (kind != "onnx")


def test_exit_status(tmp_path, monkeypatch, capsys):
    model = trained(False)
    with torch.no_grad():
        model[4].weight[3] = 0
    torch.save(model.state_dict(), tmp_path / "warning.pt")
    model[8].running_mean[0] = torch.nan
    torch.save(model.state_dict(), tmp_path / "error.pt")
    assert call(monkeypatch, tmp_path / "error.pt") == 0
    assert "1 error, 1 warning" in capsys.readouterr().out
    assert call(monkeypatch, tmp_path / "error.pt", "--fail-on", "error") == 1
    assert call(monkeypatch, tmp_path / "warning.pt", "--fail-on", "error") == 0
    assert call(monkeypatch, tmp_path / "warning.pt", "--fail-on", "warning") == 1


def test_json_and_page(tmp_path, monkeypatch, capsys):
    torch.save(trained(False).state_dict(), tmp_path / "model.pt")
    assert call(monkeypatch, tmp_path / "model.pt", "--json", "--output", tmp_path / "doctor.html") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["worst"] is None
    assert err == f"{tmp_path / 'doctor.html'}\n"
    assert "batchnorm doctor" in (tmp_path / "doctor.html").read_text(encoding="utf-8")


FACTORY = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99))

def wrong():
    return 7
"""


def test_module_and_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "doctored.py").write_text(FACTORY)
    assert call(monkeypatch, "doctored:make", "--json") == 0
    rules = [f["rule"] for f in json.loads(capsys.readouterr().out)["findings"]]
    assert rules == ["never-updated", "foreign-momentum"]
    state = {"0.weight": torch.ones(8, 4), "0.bias": torch.ones(8)}
    state |= {f"1.{k}": torch.full((8,), 2.0) for k in ("weight", "bias", "running_mean", "running_var")}
    save_file(state | {"1.num_batches_tracked": torch.tensor(5)}, "model.safetensors")
    assert call(monkeypatch, "doctored:make", "--checkpoint", "model.safetensors", "--json") == 0
    assert [f["rule"] for f in json.loads(capsys.readouterr().out)["findings"]] == ["foreign-momentum"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pt"], "there is no such file"),
        (["."], "it is a folder"),
        (["notes.txt"], "it is none of the files that can be read"),
        (["hello.txt"], "it is none of the files that can be read"),  # the unpickler raises a KeyError
        (["table.csv"], "it is none of the files that can be read"),  # an IndexError
        (["nothing.pt"], "it is damaged, incomplete, or not a file of torch.save"),  # an EOFError
        (["half.pt"], "it is damaged, incomplete, or not a file of torch.save"),
        (["random.pt"], "it is damaged, incomplete, or not a file of torch.save"),
        (["module.pt"], "torch.save(model.state_dict(), path) saves the numbers alone"),
        (["empty.pt"], "no batch norm"),
        (["doctored:make", "--checkpoint", "empty.pt"], "for Sequential: Missing key(s) in state_dict"),
        (["doctored:wrong"], "gave int, expected a torch.nn.Module"),
        (["doctored:nothing"], "no attribute 'nothing'"),
        (["nowhere:make"], "No module named 'nowhere'"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "doctored.py").write_text(FACTORY)
    torch.save({}, "empty.pt")
    torch.save(torch.nn.BatchNorm1d(3), "module.pt")
    (tmp_path / "notes.txt").write_text("Words, and no numbers.")
    (tmp_path / "hello.txt").write_text("hello")
    (tmp_path / "table.csv").write_text("size,price")
    (tmp_path / "nothing.pt").write_bytes(b"")
    (tmp_path / "half.pt").write_bytes((tmp_path / "module.pt").read_bytes()[:1000])
    (tmp_path / "random.pt").write_bytes(bytes(range(130, 256)) * 20)
    assert call(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
    call(monkeypatch, *arguments)
    assert_one_line(capsys)
