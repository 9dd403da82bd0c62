from pathlib import Path

import numpy as np
import pytest
import torch

from fastdecode.ops.huge_pages import ASKED_FROM, SYSTEM_PAGE, copied, empty


def test_tensors_lie_side_by_side_and_have_a_storage_of_their_own():
    shapes, dtypes = [(3, 5), (0, 7), (2, 2048, 2), ()], [torch.float32, torch.int8, torch.bfloat16, torch.float64]
    made = empty(shapes, dtypes)
    assert [(tuple(t.shape), t.dtype) for t in made] == list(zip(shapes, dtypes, strict=True))
    assert all(t.is_contiguous() and t.data_ptr() % SYSTEM_PAGE == 0 for t in made if t.numel())
    assert made[2].data_ptr() - made[0].data_ptr() == SYSTEM_PAGE
    assert made[3].data_ptr() - made[2].data_ptr() == 2048 * 2 * 2 * 2
    for t in made:
        assert t.untyped_storage().nbytes() == t.nbytes
    for number, t in enumerate(made):
        t.fill_(number)
    assert [set(t.flatten().tolist()) for t in made] == [{0.0}, set(), {2.0}, {3.0}]


def test_the_memory_stays_while_one_tensor_is_left():
    first, last = empty([(1 << 20,)] * 2, [torch.int64] * 2)
    last.copy_(torch.arange(1 << 20))
    del first
    others = [np.full(1 << 20, 7) for _ in range(8)]
    assert torch.equal(last, torch.arange(1 << 20))
    assert len(others) == 8


def test_more_than_there_is_raises():
    for size in (1 << 47, 1 << 62):
        with pytest.raises(MemoryError):
            empty([(size,)], [torch.float64])


def test_copies_are_equal_and_elsewhere():
    generator = torch.Generator().manual_seed(0)
    sizes = [(7,), (3000, 1000), (0,), (4096, 4096, 2), (5, 2)]
    tensors = [torch.randn(size, generator=generator) for size in sizes] + [torch.arange(12).view(3, 4).t()]
    numbered = list(copied(tensors))
    assert sorted(number for number, _ in numbered) == list(range(len(tensors)))
    for number, new in numbered:
        old = tensors[number]
        assert torch.equal(new, old)
        assert new.is_contiguous()
        assert not old.numel() or new.data_ptr() != old.data_ptr()
    assert not list(copied([]))


def test_a_large_tensor_has_memory_of_its_own():
    """It is free when the tensor is gone, whatever was copied with it."""
    tensors = [torch.ones(8), torch.ones(1 << 20, 2), torch.ones(8)]
    made = dict(copied(tensors))
    ends = {number: t.data_ptr() + t.nbytes for number, t in made.items()}
    assert made[2].data_ptr() - made[0].data_ptr() == SYSTEM_PAGE
    assert not made[0].data_ptr() <= made[1].data_ptr() < ends[2]


def huge_bytes() -> int:
    """Of this process's own memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages"))


def test_memory_lies_in_huge_pages_where_the_system_gives_them():
    size = 16 * ASKED_FROM  # so much is never taken from what was freed before
    before = huge_bytes()
    probe = np.empty(size, np.uint8)
    probe[:] = 1
    if huge_bytes() - before < size // 2:
        pytest.skip("this system gives no huge pages")
    before = huge_bytes()
    made = empty([(ASKED_FROM // 2,)] * 32, [torch.int8] * 32)  # each is too small by itself
    for t in made:
        t.fill_(1)
    assert huge_bytes() - before >= size // 2
