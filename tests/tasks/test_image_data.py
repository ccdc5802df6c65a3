"""Sources of images: files, folders and packages; and refusals."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from image_cases import (
    NAMES,
    FakePicture,
    FakeSplit,
    cifar_pixels,
    digit_images,
    fake_package,
    python2_pickle,
    write_cifar,
    write_npz,
)

from fedlora_sim.errors import InputError
from fedlora_sim.tasks.vision import Images, load_image_data


def pixels(part: Images) -> np.ndarray:
    """Return all images of a part."""
    return np.stack(list(part.read(np.arange(len(part.labels)))))


def test_npz(tmp_path: Path) -> None:
    data = load_image_data(write_npz(tmp_path / "digits.npz"))
    x, y = digit_images(80)
    np.testing.assert_array_equal(pixels(data.train), x[:60])
    np.testing.assert_array_equal(data.test.labels, y[60:])
    assert data.train.labels.dtype == np.int64
    assert data.train.groups is None
    assert data.class_names == tuple("0123456789")


def test_npz_with_writers(tmp_path: Path) -> None:
    writers = np.arange(60) // 7
    data = load_image_data(write_npz(tmp_path / "digits.npz", groups_train=writers))
    assert data.train.groups is not None
    np.testing.assert_array_equal(data.train.groups, writers)
    assert data.test.groups is None


def test_a_separate_test_part_replaces_the_other(tmp_path: Path) -> None:
    whole = write_npz(tmp_path / "whole.npz")
    x, y = digit_images(30)
    np.savez(tmp_path / "alone.npz", x_train=x, y_train=y)
    alone = str(tmp_path / "alone.npz")
    assert len(load_image_data(whole, alone).test.labels) == 30
    assert len(load_image_data(alone, whole).test.labels) == 20
    with pytest.raises(InputError, match="test_data=None"):
        load_image_data(alone)


@pytest.mark.parametrize("python2", [True, False])
@pytest.mark.parametrize("around", [True, False])
def test_cifar_folder(tmp_path: Path, python2: bool, around: bool) -> None:
    folder = write_cifar(tmp_path / "cifar-100-python", python2=python2)
    data = load_image_data(str(tmp_path if around else folder))
    for part, number in ((data.train, 30), (data.test, 20)):
        x, y = cifar_pixels(number)
        np.testing.assert_array_equal(pixels(part), x)
        np.testing.assert_array_equal(part.labels, y)
    assert data.class_names == NAMES


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_cifar_folder_in_every_protocol_of_python3(tmp_path: Path, protocol: int) -> None:
    folder = write_cifar(tmp_path / "cifar-100-python")
    x, y = cifar_pixels(12)
    rows = x.transpose(0, 3, 1, 2).reshape(12, -1)
    content = pickle.dumps({b"data": rows, b"fine_labels": y}, protocol)
    (folder / "train").write_bytes(content)
    np.testing.assert_array_equal(pixels(load_image_data(str(folder)).train), x)


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.mkdir, "mkdir"), (eval, "eval"), (np.load, "load")],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_anything_is_refused(
    tmp_path: Path, function: object, name: str, protocol: int
) -> None:
    folder, trace = write_cifar(tmp_path / "cifar-100-python"), tmp_path / "trace"
    argument = f"__import__('os').mkdir({str(trace)!r})" if function is eval else str(trace)
    bad = {"data": Call(function, argument), "fine_labels": []}
    (folder / "train").write_bytes(pickle.dumps(bad, protocol))
    with pytest.raises(InputError, match=rf"data=.*train'.*it asks for \w+\.{name}"):
        load_image_data(str(folder))
    assert not trace.exists()


def test_a_name_that_only_looks_like_numpy_is_refused(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path / "cifar-100-python")
    (folder / "meta").write_bytes(b"\x80\x02cnumpyish\ndtype\n.")
    with pytest.raises(InputError, match="data="):
        load_image_data(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train", b"", "a file of CIFAR-100's python version with data, fine_labels"),
        ("train", python2_pickle([1, 2]), "data, fine_labels"),
        ("test", python2_pickle({"data": [], "coarse_labels": []}), "fine_labels"),
        ("test", python2_pickle({"data": [1], "fine_labels": [1]}), r"data of shape \(n, 3072\)"),
        ("meta", b"\x80\x02K\x01K", "fine_label_names"),
        ("meta", python2_pickle({"fine_label_names": ["cat"]}), "labels below 1"),
    ],
)
def test_a_damaged_cifar_folder_names_the_file(
    tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    folder = write_cifar(tmp_path / "cifar-100-python")
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_image_data(str(folder))


def test_cifar_by_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    class CIFAR100:
        classes = NAMES

        def __init__(self, root: Path, *, train: bool, download: bool) -> None:
            assert download
            self.data, self.targets = cifar_pixels(30 if train else 20)

    datasets = fake_package("torchvision.datasets", CIFAR100=CIFAR100)
    monkeypatch.setitem(sys.modules, "torchvision", fake_package("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    data = load_image_data("CIFAR100")
    np.testing.assert_array_equal(pixels(data.train), cifar_pixels(30)[0])
    assert len(data.test.labels) == 20
    assert data.class_names == NAMES


def test_a_failed_download_is_a_separate_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    datasets = fake_package("torchvision.datasets", CIFAR100=fail)
    monkeypatch.setitem(sys.modules, "torchvision", fake_package("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    with pytest.raises(InputError, match="data='cifar100'"):
        load_image_data("cifar100")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Provide the data sets of a stand-in for the package datasets, by name."""
    sets: dict[str, object] = {}

    def load(name: str, trust_remote_code: bool = False) -> object:
        assert trust_remote_code is False
        if name not in sets:
            raise FileNotFoundError(f"nothing called {name}")
        return sets[name]

    package = fake_package(
        "datasets",
        load_dataset=load,
        load_from_disk=load,
        are_progress_bars_disabled=lambda: True,
        disable_progress_bars=lambda: None,
        exceptions=fake_package("exceptions", DatasetsError=OSError),
    )
    monkeypatch.setitem(sys.modules, "datasets", package)
    return sets


def split(number: int, names: tuple[str, ...] | None = NAMES, **more: list) -> FakeSplit:
    x, y = digit_images(number)
    columns = {"img": [FakePicture(image) for image in x], "fine_label": y.tolist()}
    return FakeSplit({**columns, **more}, names)


def test_hugging_face(hub: dict[str, object], tmp_path: Path) -> None:
    writers = ["ada", "bob", "ada"] * 20
    hub["someone/digits"] = {"train": split(60, writer_id=writers), "validation": split(20)}
    data = load_image_data("someone/digits")
    x, y = digit_images(60)
    assert pixels(data.train).shape == (60, 8, 8, 3)
    np.testing.assert_array_equal(pixels(data.train)[..., 2], x)
    np.testing.assert_array_equal(data.train.labels, y)
    np.testing.assert_array_equal(data.train.groups, [0, 1, 0] * 20)
    assert len(data.test.labels) == 20
    assert data.class_names == NAMES
    (tmp_path / "state.json").touch()
    hub[str(tmp_path)] = split(40, names=None)
    saved = load_image_data(str(tmp_path), "someone/digits")
    assert (len(saved.train.labels), len(saved.test.labels)) == (40, 20)


def test_only_requested_images_are_decoded(hub: dict[str, object]) -> None:
    hub["digits"] = {"train": split(60), "test": split(20)}
    few = load_image_data("digits").train.read(np.array([3, 5]))
    np.testing.assert_array_equal(np.stack(list(few))[..., 0], digit_images(60)[0][[3, 5]])


def test_hugging_face_refusals(hub: dict[str, object]) -> None:
    with pytest.raises(InputError, match="data='digitz'"):
        load_image_data("digitz")
    hub["texts"] = {"train": FakeSplit({"text": ["a"], "label": [0]}, None)}
    message = r"a column image or img or pixel_values, not \['text', 'label'\]"
    with pytest.raises(InputError, match=message):
        load_image_data("texts")
    hub["secret"] = {"train": split(60), "test": FakeSplit({"img": [0], "label": [-1]}, None)}
    with pytest.raises(InputError, match="integers of at least 0"):
        load_image_data("secret")
    hub["digits"] = {"train": split(60), "test": split(20)}
    hub["others"] = {"train": split(60, NAMES[::-1])}
    with pytest.raises(InputError, match="test_data='others'"):
        load_image_data("digits", "others")


@pytest.mark.parametrize(
    ("data", "package", "message"),
    [
        ("cifar100", "torchvision.datasets", "data='cifar100'"),
        ("org/name", "datasets", "data='org/name'"),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, data: str, package: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=message):
        load_image_data(data)


@pytest.mark.parametrize("data", [None, ""])
def test_no_data(data: str | None) -> None:
    with pytest.raises(InputError, match="data="):
        load_image_data(data)


X, Y = digit_images(10)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X, "y": Y}, r"x_train, y_train .* not \['x', 'y'\]"),
        ({"x_train": X}, r"not \['x_train'\]"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "y_train"),
        ({"x_train": X / 255, "y_train": Y}, "uint8 images .* not float64"),
        ({"x_train": X[:, None], "y_train": Y}, r"not uint8 of shape \(10, 1, 8, 8\)"),
        ({"x_train": X, "y_train": Y[:9]}, r"not int64 of shape \(9,\) for 10 images"),
        ({"x_train": X, "y_train": Y - 1}, "integers of at least 0"),
        ({"x_train": X, "y_train": Y / 2}, "integers of at least 0, not float64"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "for 0 images"),
        ({"x_train": X, "y_train": Y, "groups_train": Y[:3]}, "data="),
        ({"x_train": np.array([{}]), "y_train": Y}, "data="),
    ],
)
def test_a_bad_npz_is_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_image_data(str(tmp_path / "bad.npz"))


def test_an_invalid_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.npz", tmp_path / "text.npz"):
        if path.name == "text.npz":
            path.write_text("no archive")
        with pytest.raises(InputError, match="data="):
            load_image_data(str(path))
