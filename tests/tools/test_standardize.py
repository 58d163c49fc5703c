"""Standardize: one pass over data of any kind, exact for any split, and part of the network."""

import copy
import io
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import batchnorm as bn
from batchnorm.tools import streams


def exactly(layer: bn.Standardize, x: Tensor) -> None:
    """`layer` holds the moments of the rows of `x: (N, C)`, NaN left out, to float64 rounding."""
    columns = [c[~c.isnan()] for c in x.double().unbind(1)]
    torch.testing.assert_close(layer.count, torch.tensor([float(len(c)) for c in columns]).double())
    near = [c - c[0] for c in columns]  # exact, or nearly: the truth must not cancel
    mean = torch.stack([c[0] + d.mean() for c, d in zip(columns, near, strict=True)])
    torch.testing.assert_close(layer.mean, mean, rtol=1e-14, atol=1e-14)
    # a mean in float64 is known to eps·|mean|: what lies between two means is known to that much of σ
    var = torch.stack([d.var(correction=0) for d in near])
    budget = 1e-12 + 8 * torch.finfo(var.dtype).eps * mean.abs() / var.sqrt()
    error = (layer.moments.variance / var - 1).abs()
    assert (error <= budget).all(), (error, budget)


def drifting(rows: int, offset: float = 1e4) -> Tensor:
    x = torch.randn(rows, 3) * torch.tensor([1.0, 50.0, 0.01])
    return x + offset + torch.linspace(0, 5, rows).unsqueeze(1)


def test_mean_0_sd_1_order_and_distances() -> None:
    x = drifting(2000)
    y = bn.Standardize(3).fit(x)(x)
    torch.testing.assert_close(y.double().mean(0), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(y.double().std(0, correction=0), torch.ones(3).double(), atol=1e-6, rtol=0)
    assert (y[x.argsort(0)[:, 1], 1].diff() >= 0).all()
    gaps = (y - y[0]).double() * bn.Standardize(3).fit(x).scale
    torch.testing.assert_close(gaps, (x - x[0]).double(), rtol=1e-5, atol=1e-4)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.sampled_from([0.0, 1e6]), st.booleans())
def test_any_split(sizes: list[int], offset: float, missing: bool) -> None:
    x = drifting(sum(sizes) + 2, offset).double()
    if missing:
        x[torch.rand(x.shape) < 0.3] = torch.nan
        x[-2:] = torch.rand(2, 3).double() + offset
    layer = bn.Standardize(3).fit(x.split([*sizes, 2]))
    exactly(layer, x)
    shards = [bn.Standardize(3).partial_fit(part) for part in x.split([*sizes, 2])]
    exactly(bn.Standardize(3).merge(*shards), x)


def test_more_than_a_piece_and_every_axis() -> None:
    x = torch.randn(5000, 3, 2, 7) + 100
    flat = x.movedim(1, -1).reshape(-1, 3)
    exactly(bn.Standardize(3).fit(x), flat)
    for axis in (0, 2, 3, -1):
        exactly(bn.Standardize(3, axis=axis).fit(x.movedim(1, axis)), flat)
        exactly(bn.Standardize(3, axis=axis).fit(x.movedim(1, axis).contiguous()), flat)
    exactly(bn.Standardize(3).fit(x.contiguous(memory_format=torch.channels_last)), flat)


def test_fit_starts_anew_and_merge_goes_on() -> None:
    a, b, c = drifting(60).split([10, 20, 30])
    exactly(bn.Standardize(3).fit(a).fit(b), b)
    exactly(bn.Standardize(3).fit(a).partial_fit(b).merge(bn.Standardize(3).fit(c).moments), torch.cat([a, b, c]))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_forward_and_inverse_along_an_axis(axis: int) -> None:
    x = drifting(6 * 4).reshape(6, 4, 3).movedim(-1, axis).contiguous()
    layer = bn.Standardize(3, axis=axis).fit(x)
    y = layer(x).movedim(axis, -1).reshape(-1, 3).double()
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.inverse(layer(x)), x)


def test_integers_become_the_default_dtype() -> None:
    x = torch.arange(12).reshape(4, 3)
    layer = bn.Standardize(3).fit(x)
    assert layer(x).dtype is torch.float32
    torch.testing.assert_close(layer(x), layer(x.float()))


def test_inverse_gives_the_input_back() -> None:
    x = drifting(500, 1e6)
    layer = bn.Standardize(3).fit(x)
    for dtype, rtol in ((torch.float64, 1e-15), (torch.float32, 2e-7)):
        torch.testing.assert_close(layer.inverse(layer(x.to(dtype))), x.to(dtype), rtol=rtol, atol=0)


def test_accuracy_at_large_offsets_is_scikit_learns_or_better() -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing", reason="scikit-learn is the peer")
    x = torch.randn(20_000, 4) + torch.tensor([0.0, 1e3, 1e6, 1e7])
    offset = x[0].double()
    exact = x.double() - offset  # without error: the truth does not cancel
    mean, sd = offset + exact.mean(0), exact.std(0, correction=0)
    scaler, layer = preprocessing.StandardScaler(), bn.Standardize(4)
    for part in x.split(1500):
        scaler.partial_fit(part.numpy())
        layer.partial_fit(part)
    for ours, theirs, truth in ((layer.mean, scaler.mean_, mean), (layer.scale, scaler.scale_, sd)):
        error, other = (ours - truth).abs(), torch.from_numpy(theirs - truth.numpy()).abs()
        # batches meet through means in float64, known to 1e-9 at 1e7, in either library: below that it is chance
        assert (error <= other.maximum(1e-11 * sd + 3e-16 * truth.abs())).all(), (error, other)
    truth = (exact - exact.mean(0)) / sd
    error = (layer(x) - truth).abs().max().item()
    assert error <= np.abs(scaler.transform(x.numpy()) - truth.numpy()).max()


def test_masks_and_missing_values_take_no_part() -> None:
    x, mask = drifting(100), torch.rand(100, 3) > 0.4
    expected = torch.where(mask, x, torch.nan)
    exactly(bn.Standardize(3).partial_fit(torch.where(mask, x, 1e30), mask), expected)
    many = np.zeros((streams.ROWS + 5, 3), bool)
    many[-2:] = True
    many.flags.writeable = False  # comes in pieces
    x_many = drifting(len(many))
    exactly(bn.Standardize(3).partial_fit(x_many, many), x_many[-2:])
    precise = x.double() + 1e9
    exactly(bn.Standardize(3).partial_fit(precise.numpy(), mask.numpy()), torch.where(mask, precise, torch.nan))
    layer = bn.Standardize(3).fit(expected)
    exactly(layer, expected)
    assert torch.equal(layer(expected).isnan(), expected.isnan())


def test_constant_features_are_named() -> None:
    pandas = pytest.importorskip("pandas", reason="names come from a data frame")
    table = pandas.DataFrame({"a": [1.0, 2.0, 3.0], "b": [0.1, 0.1, 0.1], "c": [np.nan] * 3})
    with pytest.warns(UserWarning, match=r"\['b', 'c'\] are constant"):
        layer = bn.Standardize(3).fit(table)
    assert layer.constant == ["b", "c"]
    assert layer.scale[1:].tolist() == [1.0, 1.0]
    assert layer(torch.tensor([[2.0, 0.1, 5.0]])).abs()[0, :2].max() < 1e-6


def test_infinite_values_are_an_error_and_change_nothing() -> None:
    layer = bn.Standardize(3).fit(drifting(10))
    before = copy.deepcopy(layer.state_dict())
    for bad in (torch.inf, -torch.inf):
        x = drifting(10)
        x[3, 1], x[4, 1] = bad, torch.nan
        with pytest.raises(ValueError, match=r"features \[1\] hold infinite"):
            layer.partial_fit(x)
        x = drifting(30_000)  # several pieces, one of them with both
        x[3, 1], x[4, 1] = bad, torch.nan
        with pytest.raises(ValueError, match=r"features \[1\] hold infinite"):
            layer.fit(x)
    assert all(torch.equal(v, layer.state_dict()[k]) for k, v in before.items())


def test_an_interrupted_fit_leaves_the_layer_as_it_was() -> None:
    layer = bn.Standardize(3).fit(drifting(10))
    before = copy.deepcopy(layer.state_dict())

    def batches():
        yield drifting(10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layer.fit(batches())
    assert all(torch.equal(v, layer.state_dict()[k]) for k, v in before.items())


def test_files_memory_maps_loaders_and_frames(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="writes the files")
    pytest.importorskip("pyarrow", reason="reads the files")
    x = drifting(70_000)
    table = pandas.DataFrame(x.numpy(), columns=["a", "b", "c"])
    table["text"] = "x"
    table.to_parquet(tmp_path / "t.parquet")
    table.iloc[:3000].astype({"a": float, "b": float, "c": float}).to_csv(tmp_path / "t.csv", index=False)
    np.save(tmp_path / "t.npy", x.numpy())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(len(x))), 30_000)
    names = ["a", "b", "c"]
    exactly(bn.Standardize(3).fit(tmp_path / "t.parquet", columns=names), x)
    exactly(bn.Standardize(3).fit(tmp_path / "t.npy"), x)
    exactly(bn.Standardize(3).fit(str(tmp_path / "t.csv"), columns=names), x[:3000].double())
    exactly(bn.Standardize(3).fit(loader), x)
    exactly(bn.Standardize(3).fit(table, columns=names), x)
    for source, rows in ((table, x), (tmp_path / "t.parquet", x), (tmp_path / "t.csv", x[:3000])):
        layer = bn.Standardize(2).fit(source, columns=["c", "a"])
        exactly(layer, rows[:, [2, 0]])
        assert layer.names == ["c", "a"]
    exactly(bn.Standardize(3).fit([tmp_path / "t.npy", x.numpy()]), x.repeat(2, 1))
    with pytest.raises(TypeError, match="'text'"):
        bn.Standardize(4).fit(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"\.csv or \.npy"):
        bn.Standardize(4).fit("t.txt")


def test_large_files_come_in_pieces_and_run_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((streams.ROWS + 5, 2), np.float32))
    assert [len(piece) for piece in streams.tensors(tmp_path / "x.npy")] == [streams.ROWS, 5]
    assert len(list(streams.tensors(np.zeros(streams.ROWS + 5, np.uint16)))) == 1  # one sample: features, not rows
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        bn.Standardize(1).fit(tmp_path / "objects.npy")
    for strange in (np.zeros((3, 1), complex), np.array([["a"]]), np.zeros((3, 1), np.longdouble)):
        with pytest.raises(TypeError, match="expected numbers of at most 64 bits"):
            bn.Standardize(1).fit(strange)


def test_parquet_nulls_are_missing_values(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="reads the files")
    from pyarrow import parquet

    columns = {"a": [1, None, 3], "b": [True, False, None], "c": [0.5, None, None]}
    columns |= {"d": [Decimal("0.5"), Decimal("1.5"), None], "e": [None, None, None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.warns(UserWarning, match=r"\['c', 'e'\]"):
        layer = bn.Standardize(5).fit(tmp_path / "t.parquet")
    assert layer.count.tolist() == [2, 2, 1, 2, 0]
    assert layer.mean.tolist() == [2, 0.5, 0.5, 1, 0]


def test_csv_whose_first_block_says_nothing_of_the_rest(tmp_path: Path) -> None:
    """Integers come first, fractions later; a column is empty at first; and names are quoted."""
    pytest.importorskip("pyarrow", reason="reads the files")
    rows = 60_000  # the first block of 1 MB holds integers alone
    text = '"one, two",b\n' + "12345678,\n" * rows * 2 + "0.5,3\n" * rows
    (tmp_path / "t.csv").write_text("\ufeff" + text)
    with pytest.warns(UserWarning, match=r"\['b'\]"):
        layer = bn.Standardize(2).fit(tmp_path / "t.csv")
    assert layer.names == ["one, two", "b"]
    assert layer.count.tolist() == [3 * rows, rows]
    torch.testing.assert_close(layer.mean, torch.tensor([(2 * 12345678 + 0.5) / 3, 3]).double())


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float16, ">f8"])
def test_arrays_of_any_number(dtype: str) -> None:
    x = np.arange(30).reshape(10, 3).astype(dtype)
    exactly(bn.Standardize(3).fit(x), torch.arange(30).reshape(10, 3))
    exactly(bn.Standardize(3).fit(x[::-1]), torch.arange(30).reshape(10, 3))
    exactly(bn.Standardize(3).partial_fit(x, np.arange(10).reshape(10, 1) < 7), torch.arange(21).reshape(7, 3))


def test_it_ships_with_the_network() -> None:
    x = drifting(64, 1e6)
    model = nn.Sequential(bn.Standardize(3).fit(x), nn.Linear(3, 2)).train()
    before = copy.deepcopy(model[0].state_dict())
    expected = model(x)
    assert all(torch.equal(v, model[0].state_dict()[k]) for k, v in before.items())  # frozen in training
    fresh = nn.Sequential(bn.Standardize(3), nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match="has not seen any data"):
        fresh(x)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), expected)
    half = copy.deepcopy(model).half()
    assert half[0].mean.dtype is torch.float64
    assert torch.equal(half[0].mean, model[0].mean)
    exported = torch.export.export(model.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), expected, rtol=1e-5, atol=1e-6)


def test_an_exported_inverse_is_not_off_by_the_rounding_of_the_mean() -> None:
    class Back(nn.Module):
        def __init__(self, layer: bn.Standardize) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, y: Tensor) -> Tensor:
            return self.layer.inverse(y)

    x = torch.randn(4000, 1).double()
    x += 1e6 + 0.02 - x.mean()  # in float32, the mean would be 1e6
    layer = bn.Standardize(1).fit(x)
    y = layer(x).float()
    back = torch.export.export(Back(layer), (y,)).module()(y)
    assert abs((back.double() - x).mean().item()) < 0.005
    torch.testing.assert_close(back, layer.inverse(y), rtol=1.2e-7, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx() -> None:
    runtime = pytest.importorskip("onnxruntime", reason="runs the exported file")
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    x = drifting(64, 1e6)
    layer = bn.Standardize(3).fit(x).eval()
    file = io.BytesIO()
    torch.onnx.export(layer, (x,), dynamo=True, verbose=False).save(file)
    session = runtime.InferenceSession(file.getvalue())
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, layer(x).numpy(), rtol=1e-5, atol=1e-6)


def test_running_clipped_then_frozen() -> None:
    layer = bn.Standardize(3, running=True, clip=2.0)
    x = drifting(100)
    for part in x.split(10):
        y = layer(part)
        assert y.abs().max() <= 2.0
    exactly(layer, x)
    layer.eval()(drifting(10))
    layer.train().freeze()(drifting(10))
    exactly(layer, x)
    plain = bn.Standardize(3).fit(x)(x)
    assert plain.min() < -2
    assert plain.max() > 2
    torch.testing.assert_close(layer(x), plain.clamp(-2, 2))
    assert "clip=2.0" in repr(layer)


def test_gradients_pass() -> None:
    x = drifting(20).requires_grad_()
    layer = bn.Standardize(3).fit(x.detach())
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, (1 / layer.scale).float().expand(20, 3))


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="expected 3 features in dimension 1"):
        bn.Standardize(3).fit(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="not a single value"):
        bn.Standardize(3).fit([])
    with pytest.raises(TypeError, match="got int"):
        bn.Standardize(3).fit(3)
    with pytest.raises(ValueError, match="clip must be positive"):
        bn.Standardize(3, clip=0)
    with pytest.raises(ValueError, match="expected 3 features, got 2"):
        bn.Standardize(3).merge(bn.Standardize(2))


def test_numpy_arrays_go_in_and_come_out() -> None:
    x = drifting(500).numpy()
    layer = bn.Standardize(3).fit(x)
    y = layer(x)
    assert isinstance(y, np.ndarray)
    assert y.dtype == np.float32
    assert np.array_equal(y, layer(torch.from_numpy(x)).numpy())
    assert np.allclose(layer.inverse(y), x, rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [lambda x: x[::-2], lambda x: x.astype(">f8"), lambda x: np.asfortranarray(x), lambda x: x.astype("uint16")],
    ids=["strides", "byte order", "columns", "unsigned"],
)
def test_numpy_arrays_of_any_layout(change) -> None:
    x = change(np.abs(drifting(100).numpy()))
    layer = bn.Standardize(3).fit(x.astype("float64"))
    before = x.copy()
    assert np.allclose(layer(x), layer(x.astype("float64")), atol=1e-4)
    assert np.array_equal(x, before)


def test_an_empty_array_and_one_of_another_width() -> None:
    layer = bn.Standardize(3).fit(drifting(50))
    assert layer(np.zeros((0, 3), dtype=np.float32)).shape == (0, 3)
    with pytest.raises(ValueError, match="expected 3 features in dimension 1"):
        layer(np.zeros((4, 2)))


def test_the_width_is_taken_from_the_first_batch() -> None:
    x = drifting(200)
    layer = bn.Standardize()
    with pytest.raises(RuntimeError, match="has not seen any data"):
        layer(x)
    with pytest.raises(ValueError, match="expected features in dimension 1"):
        layer.fit(torch.zeros(4))
    assert layer.num_features is None
    layer.fit(x.split(50))
    assert layer.num_features == 3
    assert torch.equal(layer(x), bn.Standardize(3).fit(x.split(50))(x))
    assert torch.equal(bn.Standardize().partial_fit(x).mean, bn.Standardize(3).partial_fit(x).mean)
    assert torch.equal(bn.Standardize().merge(layer).mean, layer.mean)
    with pytest.raises(ValueError, match="expected 3 features"):
        layer.fit(torch.zeros(5, 2))


def test_batches_of_different_widths_are_refused() -> None:
    layer = bn.Standardize()
    with pytest.raises(ValueError, match="expected 3 features, as in the batches before, got 2"):
        layer.fit([torch.randn(4, 3), torch.randn(4, 2)])
    assert layer.num_features is None


def test_a_state_dict_gives_the_width() -> None:
    layer = bn.Standardize().fit(drifting(60))
    other = bn.Standardize()
    other.load_state_dict(layer.state_dict())
    x = drifting(10)
    assert torch.equal(other(x), layer(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        bn.Standardize(2).load_state_dict(layer.state_dict())
