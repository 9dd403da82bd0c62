"""`attend` through its Triton kernels, which are imported, and compiled, when they are first used."""

from __future__ import annotations

from torch import Tensor

from fastdecode.ops.pages import Pages, check_page_values


def attend_triton(queries: Tensor, pages: Pages, scale: float) -> Tensor:
    """Raises ValueError for a bad page or length on the CPU; on a GPU its row is NaN."""
    from fastdecode.triton_kernels.attend import launch_attend

    if queries.device.type == "cpu":
        check_page_values(pages, -1)
    out: Tensor = launch_attend(queries, pages, scale)
    return out
