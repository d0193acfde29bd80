"""Official files that are missing: downloaded, or asked for in one line."""

import hashlib
import socket
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib import request
from urllib.error import URLError

import pytest
from torchvision import datasets

from data.official_files import write_cifar10, write_stl10, write_svhn
from mlaan.data import CIFAR10, CIFAR100, STL10, SVHN
from mlaan.errors import UserError

NAMES = ", ".join(f"cifar-10-batches-py/{name}" for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"])
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"


@pytest.fixture
def no_network(monkeypatch):
    """The same on every machine."""

    def refuse(*arguments, **keywords):
        raise URLError("no network here")

    monkeypatch.setattr(request, "urlopen", refuse)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a web server for tmp_path."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as running:
        Thread(target=running.serve_forever, args=(0.05,)).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def served(tmp_path, server, monkeypatch):
    """CIFAR-10's official archive is a small one on that server."""
    write_cifar10(tmp_path / "made")
    archive = tmp_path / "served.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "made/cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server}/{archive.name}")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive


def refused(source):
    with pytest.raises(UserError) as caught:
        source.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_download_it_says_which_files_where_and_whence(tmp_path):
    assert refused(CIFAR10(root=str(tmp_path), download=False)) == (
        f"data.root = '{tmp_path}' lacks {NAMES}: set data.download = true, or get {URL} and unpack it there"
    )


def test_without_a_network_it_says_that_too(tmp_path, no_network, capsys):
    assert refused(CIFAR10(root=str(tmp_path / "new"))) == (
        f"data.root = '{tmp_path / 'new'}' lacks {NAMES}, and the download failed (<urlopen error no network here>): "
        f"get {URL} and unpack it there"
    )
    assert capsys.readouterr().err == f"downloading {URL} into {tmp_path / 'new'}\n"
    assert socket.getdefaulttimeout() is None
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("source", "lacks", "advice"),
    [
        (
            CIFAR100,
            "cifar-100-python/train, cifar-100-python/test",
            "get https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz and unpack it there",
        ),
        (
            STL10,
            "stl10_binary/train_X.bin, stl10_binary/train_y.bin, stl10_binary/test_X.bin, stl10_binary/test_y.bin",
            "get http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz and unpack it there",
        ),
        (
            SVHN,
            "train_32x32.mat, test_32x32.mat",
            "get http://ufldl.stanford.edu/housenumbers/train_32x32.mat and "
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat and put it there",
        ),
    ],
)
def test_every_set_knows_its_files(tmp_path, source, lacks, advice):
    message = refused(source(root=str(tmp_path), download=False))
    assert message == f"data.root = '{tmp_path}' lacks {lacks}: set data.download = true, or {advice}"


@pytest.mark.parametrize("write", [write_svhn, write_stl10])
def test_one_missing_file_is_named_alone(tmp_path, write):
    write(tmp_path)
    source, name = (SVHN, "test_32x32.mat") if write is write_svhn else (STL10, "stl10_binary/test_y.bin")
    (tmp_path / name).unlink()
    assert f" lacks {name}: set" in refused(source(root=str(tmp_path), download=False))


@pytest.mark.parametrize("lost", ["everything", "one file"])
def test_downloads_and_unpacks_what_is_missing(tmp_path, served, lost):
    if lost == "one file":
        write_cifar10(tmp_path / "set")
        (tmp_path / "set/cifar-10-batches-py/data_batch_5").unlink()
    assert len(CIFAR10(root=str(tmp_path / "set")).load().train_images) == 100
    served.unlink()
    assert len(CIFAR10(root=str(tmp_path / "set")).load().train_images) == 100


def test_a_plain_file_is_downloaded_too(tmp_path, server, monkeypatch):
    write_svhn(tmp_path / "made")
    parts = {}
    for part in "train", "test":
        file = tmp_path / "made" / f"{part}_32x32.mat"
        parts[part] = [f"{server}/made/{file.name}", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", parts)
    assert len(SVHN(root=str(tmp_path / "set")).load().train_images) == 30


def test_a_download_of_another_md5_is_refused(tmp_path, served, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    assert "and the download failed (File not found or corrupted.): get http:" in refused(CIFAR10(root=str(tmp_path)))
    assert not (tmp_path / "cifar-10-batches-py").exists()


def test_a_download_without_the_files_is_refused(tmp_path, served, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["other", ""]])
    assert "failed (it does not hold cifar-10-batches-py/other)" in refused(CIFAR10(root=str(tmp_path)))


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    write_svhn(tmp_path)
    path = tmp_path / "train_32x32.mat"

    def fail(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "read_bytes", fail)
    assert refused(SVHN(root=str(tmp_path))) == (
        f"cannot read {path}: Permission denied: mend data.root = '{tmp_path}'"
    )
