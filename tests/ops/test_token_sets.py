"""TokenSets and the bit set of penalised tokens."""

import pytest
import torch

from fastdecode.ops import GrammarTables, TokenSets, seen_bits, set_seen_


def test_ranges_are_sorted_merged_and_dropped_when_empty():
    sets = TokenSets([[(5, 9), (0, 2), (2, 3), (7, 12), (4, 4)], [], [(1, 2)]], 12)
    assert list(sets) == [((0, 3), (5, 12)), (), ((1, 2),)]
    assert sets.ranges.tolist() == [[0, 3], [5, 12], [1, 2]]
    assert sets.offsets.tolist() == [0, 2, 2, 3]
    assert (sets.ranges.dtype, sets.offsets.dtype) == (torch.int32, torch.int32)
    assert (len(sets), sets.stop, sets.count(0), sets.count(1)) == (3, 12, 10, 0)
    assert sets == TokenSets([[(0, 3), (5, 12)], [], [(1, 2)]])


def test_mask_and_ids():
    sets = TokenSets.from_ids([[3, 1, 2, 3], [0]], 5)
    assert list(sets) == [((1, 4),), ((0, 1),)]
    assert sets.mask(5).int().tolist() == [[0, 1, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert TokenSets([[]]).mask(3).any().item() is False


def test_to_moves_the_tables():
    sets = TokenSets([[(0, 2)]])
    assert sets.to("cpu") is sets
    moved = sets.to("meta")
    assert moved.ranges.device.type == moved.offsets.device.type == "meta"
    assert moved == sets


def test_bounded_sets_are_the_same_but_for_what_kernels_are_ready_for():
    sets = TokenSets([[(0, 50)], [(3, 7)]])
    assert (sets.largest, sets.bounded(4).largest) == (50, 4)
    assert sets.bounded(4) == sets
    assert sets.bounded(4).ranges is sets.ranges
    tables = GrammarTables(sets, [1, 0], [-1, -1], [[0], [1]], vocab=60)
    assert (tables.bounded(4).sets.largest, tables.sets.largest) == (4, 50)
    assert tables.bounded(4).host == tables.host


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], r"allowed = \[\]"),
        ([[(0, 1)], [(0, 1), (5, 4)]], r"allowed\[1\]\[1\] = \(5, 4\)"),
        ([[(-1, 4)]], r"allowed\[0\]\[0\] = \(-1, 4\)"),
        ([[(0, 2**31)]], r"allowed\[0\]\[0\]"),
        ([[(0, 1, 2)]], r"allowed\[0\]\[0\] = \(0, 1, 2\)"),
        ([[(0, 1), (0, 11)]], r"allowed\[0\]\[0\] = \(0, 11\): leaves the vocabulary of 10"),
    ],
)
def test_wrong_ranges(sets, message):
    with pytest.raises(ValueError, match=message):
        TokenSets(sets, 10)


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 100])
def test_seen_bits(vocab):
    ids = [[0, vocab - 1, vocab // 2, 0], [], [vocab - 1]]
    bits = seen_bits(ids, vocab)
    assert (bits.shape, bits.dtype) == ((3, (vocab + 31) // 32), torch.int32)
    for group, members in enumerate(ids):
        for t in range(vocab):
            assert (int(bits[group, t >> 5]) >> (t & 31)) & 1 == (t in members)
    padded = torch.tensor([[0, -1, vocab - 1, vocab // 2], [-1] * 4, [vocab - 1, -7, -1, -1]])
    assert torch.equal(seen_bits(padded, vocab), bits)


def test_set_seen_in_place():
    bits = seen_bits([[0], [5], []], 64)
    assert set_seen_(bits, torch.tensor([63, -1, 31])) is bits
    assert torch.equal(bits, seen_bits([[0, 63], [5], [31]], 64))
    set_seen_(bits, torch.tensor([63, 5, 31]))
    assert torch.equal(bits, seen_bits([[0, 63], [5], [31]], 64))


def test_wrong_ids():
    with pytest.raises(ValueError, match=r"ids\[1, 1\] = 10: must be below 10"):
        seen_bits([[1], [2, 10]], 10)
    with pytest.raises(ValueError, match="ids: must be"):
        seen_bits(torch.zeros(2, 2), 10)
    with pytest.raises(ValueError, match="seen, token"):
        set_seen_(torch.zeros(2, 1, dtype=torch.int32), torch.tensor([1]))


@pytest.mark.parametrize(
    ("ids", "vocab", "message"),
    [
        ([[1.5]], 10, r"ids = \[\[1.5\]\]: must be a sequence of tokens for each group"),
        ([1], 10, r"ids = \[1\]: must be"),
        ("ab", 10, "ids = 'ab': must be"),
        ([[2**70]], 10, "ids = .*: must be"),
        ([[1]], 0, r"vocab = 0: must be in \[1, 4194304\]"),
        ([[1]], 2**40, r"vocab = 1099511627776: must be in \[1, 4194304\]"),
        ([[1]], 10.5, "vocab = 10.5: must be a whole number"),
    ],
)
def test_wrong_arguments_of_seen_bits(ids, vocab, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        seen_bits(ids, vocab)


def test_wrong_tokens_are_not_set():
    bits = torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^token\[1\] = 64: must be below 64$"):
        set_seen_(bits, torch.tensor([3, 64]))
    with pytest.raises(ValueError, match=r"^token.dtype = torch.int32: must be torch.int64$"):
        set_seen_(bits, torch.tensor([3, 4], dtype=torch.int32))
    assert not bits.any()
    with pytest.raises(ValueError, match=r"^seen.stride\(\) = \(0, 1\): its elements must not share memory"):
        set_seen_(bits[:1].expand(2, 2), torch.tensor([3, 4]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device = 'gpu': must be a device of torch"),
        ({"device": 7.5}, "device = 7.5: must be a device of torch"),
        ({"device": None}, "device = None: must be a device of torch"),
        ({"vocab": "x"}, "vocab = 'x': must be a whole number"),
        ({"vocab": 4.5}, "vocab = 4.5: must be a whole number"),
    ],
)
def test_wrong_devices_and_vocabularies(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TokenSets([[(0, 4)]], **options)
