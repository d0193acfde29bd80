"""Slow judges of the augmentation."""

import torch

from data.test_augment import slow_padding


def pixels(images, dataset):
    """The uint8 images that normalised ones were made of."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (dataset.mean, dataset.std))
    return ((images * std + mean) * 255).round().to(torch.uint8)


def starts(padded, corner, pad):
    """(image, top, left) of every window that begins with the pixel `corner`."""
    places = padded[:, :, : 2 * pad + 1, : 2 * pad + 1]
    return (places == corner[:, None, None]).all(1).nonzero().tolist()


def assert_windows(dataset, train, *, pad, edge, flip):
    """Each image of the first batch is one window of its padded original, mirrored or not.

    The widest shifts occur, in a large batch all of them. Originals are told by their labels and pixels: no two of them
    share a window.
    """
    batch = next(iter(train))
    height, width = dataset.image_shape[1:]
    padded = slow_padding(train.images, pad, edge)
    tops, lefts, mirrored = set(), set(), 0
    for image, label in zip(pixels(batch.images, dataset), batch.labels, strict=True):
        candidates = padded[train.labels == label]
        found = [
            (top, left, turned)
            for turned, seen in enumerate((image, image.flip(2)))
            for original, top, left in starts(candidates, seen[:, 0, 0], pad)
            if torch.equal(candidates[original, :, top : top + height, left : left + width], seen)
        ]
        assert len(found) == 1
        [(top, left, turned)] = found
        tops.add(top)
        lefts.add(left)
        mirrored += turned
    assert {0, 2 * pad} <= tops & lefts
    if len(batch.labels) >= 100:
        assert tops == lefts == set(range(2 * pad + 1))
    share = mirrored / len(batch.labels)
    assert 0.2 < share < 0.8 if flip else share == 0
