"""DALI's loader: images, labels and places as of the other loaders, what it asks of a GPU, what it leaves behind."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from data.batches import joined, labels, same, take
from data.dali_cases import PLAN, STD, assert_alike, both, make, needs_dali, opened, plain, threads, write
from mlaan.data import DaliLoader, ViewLoader, dali
from mlaan.data.files import ImageFiles
from mlaan.data.views import ViewPlan
from mlaan.errors import UserError

COUNT = 22
ON_ITS_SIDE = Image.Exif()
ON_ITS_SIDE[0x0112] = 6

ODD = {
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "rotated": {"exif": ON_ITS_SIDE},
    "progressive": {"progressive": True},
    "full colour": {"subsampling": 0},
    "half colour": {"subsampling": 1},
    "png": {"format": "PNG"},
    "transparent": {"format": "PNG", "mode": "RGBA"},
    "palette": {"format": "PNG", "mode": "P"},
    "webp": {"format": "WEBP"},
}
SHAPES = [(1, 500), (500, 1), (3, 700), (2, 3), (1, 1), (1500, 1200), (16, 16), (18, 18), (48, 70), (52, 52), (41, 33)]

pytestmark = needs_dali


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """22 images of many sizes."""
    return plain(tmp_path_factory.mktemp("images"), COUNT)


@pytest.fixture(scope="module")
def whole(files):
    """More than two epochs, of five batches each, by one thread."""
    return take(make(DaliLoader, files), 12)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Files of every kind and shape."""
    root = tmp_path_factory.mktemp("odd")
    for number, (name, how) in enumerate(ODD.items()):
        write(root, name, 40 + number, 57 - number, number, **how)
    for number, (height, width) in enumerate(SHAPES):
        write(root, f"{height} {width}.JPEG", height, width, number)
    return opened(root, [*ODD, *(f"{height} {width}.JPEG" for height, width in SHAPES)])


@pytest.mark.parametrize("plan", [PLAN, ViewPlan(48, 52), ViewPlan(48, 48)], ids=lambda plan: plan.resize)
@pytest.mark.parametrize("training", [True, False])
def test_images_of_every_kind_and_shape_are_those_of_the_other_loaders(odd, plan, training):
    mine, theirs = both(odd, plan, training=training, batch=5)
    for _ in range(3 if training else 1):
        assert_alike(mine, theirs)


@pytest.mark.parametrize("training", [True, False])
def test_a_file_of_16_bits_and_names_of_any_bytes(tmp_path, training):
    deep = np.add.outer(np.arange(40), np.arange(50)) * 700
    names = ["n", "Käse und Brot " + "x" * 90, "caf\udce9.jpg", "a'b\"c\n.jpg"]
    Image.fromarray(deep.astype(np.uint16)).save(tmp_path / names[0], format="PNG")
    for number, name in enumerate(names[1:]):
        write(tmp_path, name, 40, 50, number)
    mine, theirs = both(opened(tmp_path, names), training=training)
    assert_alike(mine, theirs, most=2)


def test_testing_gives_every_image_once_in_order_and_a_smaller_last_batch(files):
    loader = make(DaliLoader, files, training=False)
    batches = list(loader)
    assert labels(batches) == [[*range(first, min(first + 4, COUNT))] for first in range(0, COUNT, 4)]
    assert loader.stats.images == loader.images_per_epoch == COUNT
    image = batches[0].images
    assert (image.dtype, image.shape, batches[-1].images.shape[0]) == (torch.float32, (4, 3, 16, 16), 2)


def test_an_epoch_of_training_gives_full_batches_in_a_new_order(files, whole):
    assert [len(given) for given in labels(whole)] == [4] * 12
    first, second = joined(whole[:5]), joined(whole[5:10])
    assert len({*first}) == len({*second}) == 20
    assert first != second


@pytest.mark.parametrize("workers", [0, 3])
def test_the_number_of_threads_changes_nothing(files, whole, workers):
    assert same(take(make(DaliLoader, files, workers=workers), 12), whole)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (3, 3), (1, 3)])
def test_resuming_goes_on_exactly_from_every_batch_and_over_the_epochs_end(files, whole, before, after):
    for done in range(1, 11):
        stopped = make(DaliLoader, files, workers=before)
        take(stopped, done)
        file = io.BytesIO()
        torch.save(stopped.state_dict(), file)
        file.seek(0)
        resumed = make(DaliLoader, files, workers=after)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        assert same(take(resumed, 12 - done), whole[done:]), done


@pytest.mark.parametrize(("first", "second"), [(DaliLoader, ViewLoader), (ViewLoader, DaliLoader)])
def test_a_run_goes_on_with_the_other_loader(files, whole, first, second):
    for done in (3, 5, 7):
        stopped = make(first, files)
        take(stopped, done)
        resumed = make(second, files)
        resumed.load_state_dict(stopped.state_dict())
        assert resumed.state_dict() == stopped.state_dict()
        assert_alike(take(resumed, 12 - done), whole[done:])


def test_a_state_of_other_files_is_refused(files):
    other = ImageFiles(files.root, files.names, files.labels.flip(0), files.sizes)
    with pytest.raises(UserError, match=r"^data\.root and data\.backend give other images"):
        make(DaliLoader, other).load_state_dict(make(ViewLoader, files).state_dict())


def test_images_grow_with_the_epochs_also_after_a_resume(files):
    plan = ViewPlan(48, 52, start_size=16, grow_epochs=4)
    mine, theirs = (take(loader, 30) for loader in both(files, plan))
    assert_alike(mine, theirs)
    sizes = [tuple(batch.images.shape[2:]) for batch in mine]
    assert sizes == [(size, size) for size in (16, 24, 32, 40, 48, 48) for _ in range(5)]
    for done in (10, 12):  # between two epochs, and within one whose size is new
        stopped, resumed = make(DaliLoader, files, plan), make(DaliLoader, files, plan)
        take(stopped, done)
        resumed.load_state_dict(stopped.state_dict())
        assert same(take(resumed, 5), mine[done : done + 5]), done
    assert {tuple(batch.images.shape[2:]) for batch in make(DaliLoader, files, plan, training=False)} == {(48, 48)}


def test_the_runs_own_random_numbers_stay(files):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    take(make(DaliLoader, files), 6)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loop_that_is_left_ends_dalis_threads(files):
    loader = make(DaliLoader, files, workers=3)
    take(loader, 6)  # what stays in a process starts
    before = threads()
    for _ in range(5):
        loader.position = 0
        for _ in loader:
            assert threads() >= before + 3
            break
        else:
            pytest.fail("no batch")
        assert threads() == before
    loop = iter(loader)
    next(loop)
    assert same([next(iter(make(DaliLoader, files)))], [next(iter(make(DaliLoader, files)))]), "two at once"
    del loop
    assert threads() == before


def test_without_dali_a_line_says_what_to_install(files, monkeypatch):
    monkeypatch.setattr(dali.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        make(DaliLoader, files)
    assert str(caught.value) == (
        "data.backend = 'dali', but NVIDIA DALI is not installed: pip install 'mlaan[dali]', "
        "or set data.backend = 'torchvision'"
    )


def test_files_without_sizes_are_refused(files):
    with pytest.raises(ValueError, match="files without sizes"):
        make(DaliLoader, ImageFiles(files.root, files.names, files.labels))


@pytest.fixture
def asked(monkeypatch):
    """What pipelines and decoders are asked for; they are made for a CPU all the same."""
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    found = {}

    def recorded(holder, name):
        real = getattr(holder, name)

        def call(*inputs, **arguments):
            found[name] = arguments
            of_gpus = ("device", "device_id", "hw_decoder_load", "jpeg_fancy_upsampling")
            return real(*inputs, **{key: value for key, value in arguments.items() if key not in of_gpus})

        monkeypatch.setattr(holder, name, call)

    recorded(Pipeline, "__init__")
    for name in "image", "image_slice":
        recorded(fn.decoders, name)
    recorded(fn.io.file, "read")
    return found


@pytest.mark.parametrize("training", [True, False])
def test_a_gpu_decodes_with_all_its_decoders_and_in_training_nothing_but_the_box(files, asked, monkeypatch, training):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    loader = make(DaliLoader, files, training=training, workers=5)
    for device, number in (torch.device("cuda", 3), 3), (torch.device("cuda", 0), 0), (torch.device("cuda"), 2):
        asked.clear()
        loader.device = device
        loader._pipeline(16, iter(()))
        pipeline = {key: asked["__init__"][key] for key in ("batch_size", "num_threads", "device_id")}
        assert pipeline == {"batch_size": 4, "num_threads": 5, "device_id": number}
        decoder = {"device": "mixed", "hw_decoder_load": 0.65, "jpeg_fancy_upsampling": True}
        name, other = ("image_slice", "image") if training else ("image", "image_slice")
        assert decoder.items() <= asked[name].items()
        assert asked[name]["adjust_orientation"] is False
        assert other not in asked


def test_a_cpu_is_asked_for_no_gpu_and_a_file_is_not_mapped(files, asked):
    """Whoever reads mapped memory is killed when the file is cut."""
    next(iter(make(DaliLoader, files)))
    assert asked["__init__"]["device_id"] is None
    assert not {"device", "hw_decoder_load"} & asked["image_slice"].keys()
    assert asked["read"] == {"dont_use_mmap": True}


@pytest.mark.gpu
@pytest.mark.parametrize("training", [True, False])
def test_batches_on_a_gpu_are_nearly_those_of_the_cpu_also_when_steps_are_slow(files, training):
    """The step writes into what it was given long after DALI was asked for the next batches."""
    mine = make(DaliLoader, files, training=training, device="cuda", workers=2)
    theirs = make(ViewLoader, files, training=training)
    for batch, other in zip(take(mine, 12), take(theirs, 12), strict=True):
        torch.cuda._sleep(20_000_000)
        images = batch.images.clone()
        batch.images.zero_()
        assert torch.equal(batch.labels.cpu(), other.labels)
        levels = (images.cpu() - other.images).abs() * torch.tensor(STD)[:, None, None] * 255
        assert levels.flatten(1).mean(1).max() < 4
        assert levels.mean() < 0.5
        assert images.is_contiguous(memory_format=torch.channels_last)
