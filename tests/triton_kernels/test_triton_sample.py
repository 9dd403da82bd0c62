"""The triton backend against the reference, bit by bit: sets in one program, and split over many programs."""

import numpy as np
import pytest
import torch
from cases import DTYPES, assert_same_bits, random_arguments
from devices import DEVICE, INTERPRETED
from test_sample_checks import WRONG as WRONG_ON_THE_HOST

pytest.importorskip("triton")

from fastdecode.ops import Sample, TokenSets, last_backend, sample
from fastdecode.ops.sample.checks import check_arguments
from fastdecode.triton_kernels.sample import launch_sample

MORE = 1 if INTERPRETED else 20  # a GPU takes no time for these sizes
PATHS = {"one program": {}, "many programs": {"_largest": -1, "_chunk": 128}}
NONE = dict.fromkeys(
    ("streams", "weights", "allowed", "set_index", "seen", "contrast", "noise")
) | {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "penalty": 1.0, "seed": 0, "step": 0}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet():
    """numpy, which the interpreter computes with, warns where inf and NaN are meant."""
    with np.errstate(all="ignore"):
        yield


def moved(arguments: dict) -> dict:
    return {name: value.to(DEVICE) if hasattr(value, "to") else value for name, value in arguments.items()}


def launched(path: str, **arguments) -> Sample:
    return Sample(*launch_sample(check_arguments(**(NONE | moved(arguments))), **PATHS[path]))


def assert_same(path: str, **arguments) -> Sample:
    """The result, on the CPU, of a path that must give the reference's."""
    got = Sample(*(value.cpu() for value in launched(path, **arguments)))
    assert_same_bits(got, sample(**arguments, backend="reference"))
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [1, 2, 31, 257, 1000])
def test_one_program_on_random_arguments(vocab, dtype):
    for case in range(5 * MORE):
        assert_same("one program", **random_arguments(np.random.default_rng([case, vocab, 7]), vocab, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [1, 127, 300, 600])
def test_many_programs_on_random_arguments(vocab, dtype):
    for case in range(2 * MORE):
        assert_same("many programs", **random_arguments(np.random.default_rng([case, vocab, 8]), vocab, dtype))


@pytest.mark.parametrize("top_k", [1, 50, 2000])
def test_full_size_with_ties(top_k):
    logits = (torch.randn(2, 8192, generator=torch.Generator().manual_seed(top_k)) * 3).to(torch.bfloat16)
    got = assert_same("one program", logits=logits, top_k=top_k, top_p=0.9, seed=1)
    assert (got.kept >= 1).all()


def test_large_vocabularies_are_shared_out():
    """At the shipped chunk: the public function, a gap wider than a chunk, and a range that ends inside one."""
    logits = (torch.randn(2, 11000, generator=torch.Generator().manual_seed(0)) * 4).to(torch.bfloat16)
    arguments = {
        "logits": logits,
        "allowed": TokenSets([[(3, 4000), (6600, 10999)], [(5, 6)]]),
        "set_index": torch.tensor([0, 1], dtype=torch.int32),
        "top_k": torch.tensor([2000, 0], dtype=torch.int32),
        "top_p": torch.tensor([0.9, 0.5]),
        "seed": 3,
    }
    got = sample(**moved(arguments), backend="triton")
    assert last_backend() == "triton"
    assert_same_bits(Sample(*(value.cpu() for value in got)), sample(**arguments, backend="reference"))


def test_small_sets_of_a_large_vocabulary():
    logits = torch.randn(2, 65536, generator=torch.Generator().manual_seed(0))
    arguments = {"logits": logits, "allowed": TokenSets([[(4, 4100), (65000, 65536)]]), "top_p": 0.9, "seed": 3}
    got = sample(**moved(arguments), backend="triton")
    assert last_backend() == "triton"
    assert_same_bits(Sample(*(value.cpu() for value in got)), sample(**arguments, backend="reference"))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-3, 1e4, 1e30])
def test_cuts_among_equals_and_extremes(path, scale):
    """All in one bin of the histogram: tied, closer than its width, or beyond its last edge."""
    z = torch.randint(-4, 5, (4, 300), generator=torch.Generator().manual_seed(5)) * scale
    top_k = torch.tensor([0, 7, 70, 299], dtype=torch.int32)
    assert_same(path, logits=z, top_k=top_k, top_p=torch.tensor([0.5, 1.0, 0.3, 0.999]), seed=1)


@pytest.mark.parametrize("path", PATHS)
def test_a_cut_of_top_p_among_those_that_top_k_cuts(path):
    """Ten z apart, then a hundred in one bin, of which top-k leaves fifty: what these weigh places the cut of top-p."""
    z = torch.cat((-torch.arange(10) * 0.02, -1.0 - torch.arange(100) * 1e-5, torch.full((200,), -9.0)))
    for top_p in (0.1, 0.15, 0.2, 0.5):
        assert_same(path, logits=z[None], top_k=60, top_p=top_p, seed=1)


def test_ties_among_more_chunks_than_are_read_at_a_time():
    """The first of them wins, in whichever block of 256 chunks the others are."""
    arguments = {"logits": torch.zeros(1, 16 * 257), "temperature": 0.0}
    arguments["logits"][0, :5], arguments["logits"][0, 9:16] = -1.0, -torch.inf
    got = Sample(*launch_sample(check_arguments(**(NONE | moved(arguments))), _largest=-1, _chunk=16))
    assert_same_bits(Sample(*(value.cpu() for value in got)), sample(**arguments, backend="reference"))
    assert got.token.item() == 5


@pytest.mark.parametrize("path", PATHS)
def test_top_p_counts_the_mass_of_the_many_unlikely(path):
    logits = torch.full((1, 3000), -19.0)
    logits[0, 7] = 0.0
    got = assert_same(path, logits=logits, top_p=1 - 2**-20, seed=3)
    assert got.kept.item() == 3000


@pytest.mark.parametrize("path", PATHS)
def test_many_ranges(path):
    sets = TokenSets.from_ids([range(0, 600, 2), range(1, 600, 7), []], 600)
    index = torch.tensor([0, 1, 2, 1], dtype=torch.int32)
    logits = torch.randn(4, 600, generator=torch.Generator().manual_seed(0))
    got = assert_same(path, logits=logits, allowed=sets, set_index=index, seed=torch.arange(4), top_p=0.9)
    assert got.token[2] == -1
    assert got.status.tolist() == [0, 0, 2, 0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("k", [1, 3, 50, 2**40])
def test_contrast(path, k):
    """Two streams whose difference overflows where the expert has next to nothing: such ids are not kept."""
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(k % 1000)) * 4
    logits[0, :100] = -torch.inf
    logits[2, 5], logits[3, 5] = -1e38, -3e38
    got = assert_same(
        path,
        logits=logits,
        streams=torch.arange(6, dtype=torch.int32).view(3, 2),
        weights=torch.tensor([[1.0, -1.0], [3e38, -2e38], [0.0, 1.0]]),
        allowed=TokenSets([[(3, 90), (120, 290)]]),
        contrast=(0.1, k),
        seed=1,
        top_p=0.9,
    )
    assert got.status.tolist()[0] == 0


@pytest.mark.parametrize("path", PATHS)
def test_nothing_to_draw(path):
    assert launched(path, logits=torch.zeros(0, 40)).token.shape == (0,)
    with pytest.raises(ValueError, match=r"logits.shape\[1\] = 0: must be in"):
        launched(path, logits=torch.zeros(3, 0))
    absent = torch.full((2, 3), -1, dtype=torch.int32)
    assert launched(path, logits=torch.zeros(0, 40), streams=absent).status.tolist() == [1, 1]
    assert launched(path, logits=torch.zeros(2, 40), allowed=TokenSets([[]])).status.tolist() == [2, 2]


def i32(*values):
    return torch.tensor(values, dtype=torch.int32)


def f32(*values):
    return torch.tensor(values, dtype=torch.float32)


NAN = float("nan")
WRONG = [
    {"streams": i32([0], [9], [2])},
    {"streams": i32([0], [-2], [2])},
    {"streams": i32([0], [2**31 - 1], [2])},
    {"weights": f32([1], [NAN], [1])},
    {"weights": f32([1], [torch.inf], [1])},
    {"set_index": i32(0, 2, 1), "allowed": TokenSets([[(0, 40)], [(3, 300)]])},
    {"set_index": i32(0, -1, 1), "allowed": TokenSets([[(0, 40)], [(3, 300)]])},
    {"temperature": f32(1, NAN, 0)},
    {"temperature": f32(1, -1, 0)},
    {"temperature": f32(1, torch.inf, 0)},
    {"top_p": f32(1, 1.5, 0.5)},
    {"top_p": f32(1, NAN, 0.5)},
    {"min_p": f32(0, -0.5, 0.5)},
    {"penalty": f32(1, 0, 2), "seen": torch.full((3, 10), -1, dtype=torch.int32)},
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wrong", WRONG, ids=[" ".join(w) for w in WRONG])
def test_wrong_values_on_the_device_fail_their_group_alone(wrong, path):
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(2))
    got = launched(path, logits=logits, **wrong)
    assert got.status.tolist() == [0, 1, 0]
    assert got.token.tolist()[1] == -1
    others = {name: value[[0, 2]] if isinstance(value, torch.Tensor) else value for name, value in wrong.items()}
    if "streams" not in others:
        logits = logits[[0, 2]]
    expected = sample(logits, **others, backend="reference")
    assert got.token.tolist()[::2] == expected.token.tolist()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("ranges", "offsets"),
    [
        ([[0, 40], [3, 400]], [0, 1, 2]),
        ([[0, 40], [-9, 30]], [0, 1, 2]),
        ([[0, 40], [90, 80]], [0, 1, 2]),
        ([[0, 40], [9, 80], [70, 90]], [0, 1, 3]),
        ([[0, 40], [90, 95], [70, 80]], [0, 1, 3]),
        ([[0, 40], [50, 60]], [0, 1, 2**31 - 1]),
        ([[0, 40], [50, 60]], [0, 1, 0]),
    ],
)
def test_wrong_sets_on_the_device_fail_their_group_alone(ranges, offsets, path):
    if offsets[-1] > len(ranges) or offsets != sorted(offsets):  # refused where the host can see it
        sets = TokenSets.from_tensors(i32(*ranges), torch.tensor(sorted([*offsets[:2], 2]), dtype=torch.int32), 300)
        sets.offsets = torch.tensor(offsets, dtype=torch.int32)
    else:
        sets = TokenSets.from_tensors(i32(*ranges), torch.tensor(offsets, dtype=torch.int32), 300)
    sets.ranges, sets.offsets = sets.ranges.to(DEVICE), sets.offsets.to(DEVICE)
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    arguments = NONE | {"logits": logits, "set_index": i32(0, 1).to(DEVICE)}
    checked = check_arguments(**arguments)._replace(allowed=sets)
    got = Sample(*launch_sample(checked, **PATHS[path]))
    assert got.status.tolist() == [0, 1]
    assert got.token.tolist() == [sample(logits[:1].cpu(), allowed=[[(0, 40)]], backend="reference").token.item(), -1]


@pytest.mark.skipif(not INTERPRETED, reason="the host sees values only on the CPU")
@pytest.mark.parametrize(("wrong", "message"), WRONG_ON_THE_HOST, ids=[message for _, message in WRONG_ON_THE_HOST])
def test_wrong_arguments(wrong, message):
    arguments = {"logits": torch.zeros(2, 8), **wrong}
    with pytest.raises(ValueError, match=message):
        sample(arguments.pop("logits"), backend="triton", **arguments)


def test_numbers_are_checked_on_the_host():
    with pytest.raises(ValueError, match="temperature = -1: must be finite and >= 0"):
        sample(torch.zeros(2, 8, device=DEVICE), temperature=-1.0, backend="triton")


@pytest.mark.skipif(not INTERPRETED, reason="a GPU has no memory to promise without giving it")
@pytest.mark.parametrize("path", PATHS)
def test_rows_beyond_two_billion_elements(path):
    """Row 1 begins 2^31 + 10 elements in; the memory between is never touched."""
    stride, vocab = 2**31 + 10, 64
    memory = torch.from_numpy(np.zeros(stride + vocab, dtype=np.uint16)).view(torch.bfloat16)
    logits = memory.as_strided((2, vocab), (stride, 1))
    logits[1, 17] = 5.0
    assert launched(path, logits=logits, temperature=0.0).token.tolist() == [0, 17]


@pytest.mark.parametrize("path", PATHS)
def test_given_noise_may_have_any_row_stride(path):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 330, generator=generator)[:, :300]
    assert_same(path, logits=torch.randn(4, 300, generator=generator), noise=noise)


@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="graphs need a GPU")
@pytest.mark.parametrize("vocab", [8192, 65536])
def test_a_replayed_graph_draws_anew(vocab):
    """Step, seed and weights are read from device memory at every replay."""
    logits = torch.randn(4, vocab, device=DEVICE)
    step = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    arguments = {"top_k": 50, "top_p": 0.9, "seed": 5}
    sample(logits, step=step, **arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = sample(logits, step=step, **arguments)
        step += 1
    for number in range(5):
        graph.replay()
        expected = sample(logits.cpu(), step=number, **arguments, backend="reference")
        assert_same_bits(Sample(*(value.cpu() for value in got)), expected)


@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="streams need a GPU")
def test_concurrent_streams_share_no_scratch():
    jobs = [torch.randn(4, size, device=DEVICE) for size in (100, 9000, 65536, 8192, 20000)]
    arguments = {"top_k": 40, "top_p": 0.8, "seed": 7}
    expected = [sample(logits, **arguments) for logits in jobs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in jobs]
    for _ in range(20):
        got = []
        for stream, logits in zip(streams, jobs, strict=True):
            with torch.cuda.stream(stream):
                got.append(sample(logits, **arguments))
        torch.cuda.synchronize()
        for a, b in zip(got, expected, strict=True):
            assert_same_bits(Sample(*(v.cpu() for v in a)), Sample(*(v.cpu() for v in b)))
