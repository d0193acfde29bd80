"""What a loader gave, and comparisons of it."""

import torch


def take(loader, count):
    """The next `count` batches, over the ends of epochs."""
    taken = []
    while len(taken) < count:
        for batch in loader:
            taken.append(batch)
            if len(taken) == count:
                break
    return taken


def same(one, other):
    return all(
        torch.equal(mine.images, theirs.images) and torch.equal(mine.labels, theirs.labels)
        for mine, theirs in zip(one, other, strict=True)
    )


def labels(batches):
    return [batch.labels.tolist() for batch in batches]


def joined(batches):
    return torch.cat([batch.labels for batch in batches]).tolist()
