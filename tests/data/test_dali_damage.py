"""Files that can no longer be read, and DALI's own failures: the judge is the other loader on the same folder."""

import gc
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.batches import joined, labels, same, take
from data.dali_cases import assert_alike, both, make, needs_dali, plain, threads, write
from mlaan.data import DaliLoader, ViewLoader
from mlaan.errors import UserError

COUNT = 22

pytestmark = needs_dali


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("images"), COUNT)


@pytest.fixture
def files(originals, tmp_path):
    """22 images that a test may spoil."""
    root = shutil.copytree(originals.root, tmp_path / "images")
    return type(originals)(root, originals.names, originals.labels, originals.sizes)


@pytest.fixture
def no_collection():
    """Python looks for no cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def spoil(files, *numbers, fault="cut"):
    for number in numbers:
        path = Path(files.path(number))
        content = path.read_bytes()
        if fault == "missing":
            path.unlink()
        elif fault == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes({"cut": content[: len(content) // 2], "text": b"no picture " * 9, "empty": b""}[fault])


def due(loader, epoch=0):
    """The numbers of the images of each batch."""
    return [numbers.tolist() for numbers in loader.order(epoch).split(loader.batch)][: len(loader)]


def listening(loader):
    """What the loader says from now on."""
    said = []
    loader.say = said.append
    return said


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fault", ["cut", "missing", "text", "empty", "folder"])
def test_a_file_that_is_spoilt_in_mid_epoch_is_left_out_named_once_and_counted(files, fault, training):
    mine, theirs = both(files, training=training)
    said = listening(mine)
    loops = iter(mine), iter(theirs)
    assert_alike([next(loops[0])], [next(loops[1])])
    bad = due(mine)[4][1]
    spoil(files, bad, fault=fault)
    rest = list(loops[0])
    assert_alike(rest, loops[1])
    assert bad not in joined(rest)
    assert_alike(mine, theirs)
    assert mine.stats.images == theirs.stats.images
    assert mine.stats.left_out == theirs.stats.left_out
    [line] = said
    assert line.startswith(f"left out, as it cannot be read: {files.path(bad)}: ")


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_several_bad_files_in_one_batch_and_in_its_neighbours(files, training, workers):
    """DALI works on the next batches when one fails."""
    mine, theirs = both(files, training=training, workers=workers)
    batches = due(mine)
    spoil(files, *batches[0][:2], batches[1][3], *batches[2][1:3], *batches[4][:1])
    said, others = listening(mine), listening(theirs)
    for _ in range(3):
        assert_alike(mine, theirs)
    assert [line.partition(": ")[2] for line in said] == [line.partition(": ")[2] for line in others]
    assert len(said) == 6
    assert mine.stats.images == theirs.stats.images
    assert mine.state_dict() == theirs.state_dict()


def test_resuming_among_bad_files_goes_on_exactly(files):
    loader = make(DaliLoader, files)
    batches = due(loader)
    spoil(files, *batches[1][:3], *batches[2][:2], batches[4][0])
    whole = take(loader, 12)
    assert labels(whole)[0] == batches[0]
    assert labels(whole)[1] == batches[2][2:], "a single image is not trained on"
    for done in range(1, 9):
        stopped = make(DaliLoader, files, workers=2)
        take(stopped, done)
        resumed = make(DaliLoader, files, workers=3)
        resumed.load_state_dict(stopped.state_dict())
        assert same(take(resumed, 12 - done), whole[done:]), done


def test_a_file_that_is_there_again_in_the_next_epoch_is_seen_again(files):
    mine, theirs = both(files, training=False)
    spoil(files, 9, fault="missing")
    assert_alike(mine, theirs)
    write(files.root, "09.jpg", 30, 40, 9)
    assert 9 in joined(mine)


def test_a_file_of_another_size_than_the_checked_one_is_seen_as_it_is_now(files):
    mine, theirs = both(files)
    small, large = due(mine)[1][:2]
    write(files.root, f"{small:02}.jpg", 9, 7, 30)
    for other, number in enumerate(due(mine)[3]):
        write(files.root, f"{number:02}.jpg", 8 + other, 12, 31 + number)
    sizes = files.sizes.copy()
    assert_alike(mine, theirs)
    assert (files.sizes == sizes).all(), "the list of the check belongs to others, too"
    assert mine.stats.left_out == {}
    assert large != small


@pytest.mark.parametrize("training", [True, False])
def test_where_no_image_of_a_batch_can_be_read_the_run_ends_as_with_the_other_loader(files, training):
    loaders = both(files, training=training)
    batches = due(loaders[0])
    spoil(files, *batches[2], fault="missing")
    spoil(files, batches[1][0])
    given, messages = [], []
    for loader in loaders:
        loop = iter(loader)
        given.append([next(loop), next(loop)])
        with pytest.raises(UserError) as caught:
            next(loop)
        messages.append(str(caught.value))
        assert (loader.epoch, loader.position) == (0, 2), "to be gone on with when the files are back"
    assert_alike(*given)
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"none of the 4 images that are due can be read ({files.path(batches[2][0])}: ")
    assert len(loaders[0].stats.left_out) == 5


def test_a_batch_of_one_image_that_cannot_be_read_is_left_out_but_not_two_in_a_row(files):
    spoil(files, COUNT - 1)
    loader = make(DaliLoader, files, training=False, batch=7)
    assert [len(given) for given in labels(loader)] == [7, 7, 7]
    assert loader.epoch == 1
    spoil(files, 5)
    assert_alike(*both(files, training=False, batch=1))
    spoil(files, COUNT - 2)
    with pytest.raises(UserError, match="none of the 2 images that are due"):
        list(make(DaliLoader, files, training=False, batch=1))


def test_a_single_image_left_in_training_is_skipped_and_in_testing_given(files):
    mine, theirs = both(files)
    batches = due(mine)
    spoil(files, *batches[1][1:])
    loop = iter(mine)
    assert [next(loop).labels.tolist(), next(loop).labels.tolist()] == [batches[0], batches[2]]
    assert mine.position == 3
    assert_alike(loop, list(theirs)[2:])
    assert_alike(*both(files, training=False))
    assert [len(batch.labels) for batch in take(make(DaliLoader, files, batch=1), 2)] == [1, 1], "one was asked for"


def test_what_only_torchvision_can_read_ends_the_run_with_what_to_do(files, no_collection):
    """DALI knows no GIF."""
    Image.new("RGB", (60, 60), (9, 99, 200)).save(files.path(6), format="GIF")
    loader = make(DaliLoader, files, training=False)
    take(loader, 1)
    loader.position = 0
    before = threads()
    loop = iter(loader)
    assert next(loop).labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError) as caught:
        next(loop)
    told = str(caught.value)
    assert told.startswith(
        "data.backend = 'dali' failed twice at images that torchvision can read (nvImageCodec failure"
    )
    assert told.endswith("): set data.backend = 'torchvision'")
    assert len(told) < 500
    assert "\n" not in told
    assert loader.stats.left_out == {}
    assert threads() == before
    make(ViewLoader, files, training=False).load_state_dict(loader.state_dict())


class Flaky:
    """A pipeline that fails in its second batch, having worked on it."""

    def __init__(self, pipeline):
        self.pipeline, self.runs = pipeline, 0

    def run(self):
        self.runs += 1
        outputs = self.pipeline.run()
        if self.runs == 2:
            raise RuntimeError("a cable was loose")
        return outputs


def test_a_failure_that_does_not_come_again_changes_nothing(files, monkeypatch):
    whole = take(make(DaliLoader, files), 12)
    real = DaliLoader._pipeline
    monkeypatch.setattr(DaliLoader, "_pipeline", lambda *arguments: Flaky(real(*arguments)))
    loader = make(DaliLoader, files)
    assert same(take(loader, 12), whole)
    assert loader.stats.left_out == {}


def test_a_failure_without_a_known_form_is_told_whole(files, monkeypatch):
    class Broken:
        def run(self):
            raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(DaliLoader, "_pipeline", lambda *arguments: Broken())
    with pytest.raises(UserError, match=r"torchvision can read \(out of memory\): set"):
        list(make(DaliLoader, files))


def test_a_pipeline_that_failed_leaves_no_threads(files, no_collection):
    """In a cycle it would stay with its memory, until a process that is forked collects it, and waits for ever."""
    loader = make(DaliLoader, files, training=False, workers=3)
    take(loader, 2)
    before = threads()
    loop = iter(loader)
    next(loop)
    during = threads()
    spoil(files, 17, 18, 21)
    sizes = [(threads(), len(batch.labels)) for batch in loop]
    assert {count for count, _ in sizes} == {during}
    assert [size for _, size in sizes][-2:] == [2, 1]
    assert threads() == before


@pytest.mark.gpu
@pytest.mark.parametrize("training", [True, False])
def test_on_a_gpu_files_that_are_missing_are_left_out(files, training):
    mine = make(DaliLoader, files, training=training, device="cuda")
    theirs = make(ViewLoader, files, training=training)
    batches = due(mine)
    spoil(files, *batches[0][:2], batches[1][3], *batches[4][:1], fault="missing")
    for batch, other in zip(take(mine, 9), take(theirs, 9), strict=True):
        assert torch.equal(batch.labels.cpu(), other.labels)
    assert mine.stats.left_out.keys() == theirs.stats.left_out.keys()
