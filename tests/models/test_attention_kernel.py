"""Attention in C beside torch's, and what happens where it cannot be built."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mllm_tailor.models.patches import attention_kernel
from mllm_tailor.models.patches.layer_attention import Kind, attention, attention_backward

WIDTH = 32


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[attention_kernel.Kernel]:
    """The kernel on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = attention_kernel.kernel()
    if found is None:
        pytest.skip("this CPU has not AVX2 as its widest vectors, or there is no C compiler")
    yield found
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "groups", "causal"),
    [
        pytest.param(65, 65, 3, 1, False, id="vision: the last block is not full"),
        pytest.param(130, 130, 2, 1, True, id="causal"),
        pytest.param(17, 121, 4, 2, True, id="last positions, shared keys"),
        pytest.param(1, 7, 1, 1, True, id="a single query"),
    ],
)
def test_output_and_gradients_are_those_of_torch(
    kernel: attention_kernel.Kernel, queries: int, keys: int, heads: int, groups: int, causal: bool
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(tokens: int, count: int) -> Tensor:
        """A view into a wider tensor, as of joined projections; large numbers, so that shares differ."""
        return 3 * torch.randn(tokens, 3, count, WIDTH, generator=generator)[:, 1]

    sides = draw(queries, heads), draw(keys, heads // groups), draw(keys, heads // groups)
    gradient, kind = draw(queries, heads), Kind(0.2, causal)
    output, sums = attention(*sides, kind)
    assert sums.ndim == 2, "the kernel was not used"
    found = attention_backward(gradient, sides, output, sums, kind)
    exact = [side.double().requires_grad_() for side in sides]
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) if causal else None
    query, key, value = (side.transpose(0, 1)[None] for side in exact)
    repeated = (side.repeat_interleave(groups, 1) for side in (key, value))
    expected = scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=kind.scale)[0].transpose(0, 1)
    expected.backward(gradient.double())
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-4)
    for mine, side in zip(found, exact, strict=True):
        assert side.grad is not None
        assert (mine - side.grad).norm() <= 3e-6 * side.grad.norm()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("tokens", "columns", "groups"), [((5, 16), 1, 1), ((37, 64), 9, 2)])
def test_a_decoding_step_attends_to_prompts_and_own_columns(
    kernel: attention_kernel.Kernel, tokens: tuple[int, int], columns: int, groups: int, masked: bool
) -> None:
    """Three rows share the first prompt, two the second, of which some are shorter than a panel of sixteen tokens."""
    generator = torch.Generator().manual_seed(0)
    spans, heads = (slice(0, 3), slice(3, 5)), 4
    query = 3 * torch.randn(5, heads, WIDTH, generator=generator)
    own = [3 * torch.randn(5, heads // groups, 2 * columns, WIDTH, generator=generator)[:, :, :columns] for _ in "kv"]
    visible = torch.rand(5, columns, generator=generator) < 0.5 if masked else None
    shapes = [((heads // groups, WIDTH, count), (heads // groups, count, WIDTH)) for count in tokens]
    prompts = [
        (span, *(3 * torch.randn(shape, generator=generator) for shape in pair))
        for span, pair in zip(spans, shapes, strict=True)
    ]
    output = kernel.step(prompts, query, (own[0], own[1]), 0.2, visible)
    for span, keys, values in prompts:
        for row in range(span.start, span.stop):
            seen = torch.ones(columns, dtype=torch.bool) if visible is None else visible[row]
            key, value = (
                torch.cat([shared, mine[row][:, seen]], 1).double().repeat_interleave(groups, 0)
                for shared, mine in ((keys.mT, own[0]), (values, own[1]))
            )
            expected = scaled_dot_product_attention(query[row].double()[:, None], key, value, scale=0.2)[:, 0]
            torch.testing.assert_close(output[row].double(), expected, rtol=1e-4, atol=1e-4)


def test_torch_stands_in(kernel: attention_kernel.Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler, for other formats and widths, and on several threads."""
    side = torch.zeros(3, 1, WIDTH)
    assert attention_kernel.kernel_for(side) is kernel
    assert attention_kernel.kernel_for(side.double()) is None
    assert attention_kernel.kernel_for(side[..., :24]) is None
    torch.set_num_threads(2)
    assert attention_kernel.kernel_for(side) is None
    for compiler in ("false", "no-such-compiler"):
        monkeypatch.setenv("CC", compiler)
        attention_kernel.kernel.cache_clear()
        assert attention_kernel.kernel() is None
    attention_kernel.kernel.cache_clear()
