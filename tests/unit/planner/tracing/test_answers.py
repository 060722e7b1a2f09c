"""Answers to forwards that ask for data, and the stand-ins for fused operations."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from planner.tracing.flops import flops_of
from planner.tracing.forwards import ForwardTracer
from planner.tracing.fused_ops import ATTENTION


class Asking(nn.Module):
    """Runs `question` as its forward."""

    def __init__(self, question: object) -> None:
        super().__init__()
        self.question = question

    def forward(self, tensor: torch.Tensor) -> object:
        return self.question(tensor)  # type: ignore[operator]


def ask(question: object, tensor: torch.Tensor) -> object:
    return ForwardTracer(Asking(question), {}).run({"tensor": tensor})


MASK = torch.ones(2, 3, dtype=torch.bool, device="meta")


@pytest.mark.parametrize(
    "question, answer",
    [
        (lambda mask: bool(mask.all()), True),
        (lambda mask: bool((~mask).any()), False),
        (lambda mask: bool(~mask.all()), False),
        (lambda mask: bool(torch.all(mask == 1)), True),
        (lambda mask: mask.sum().item(), 1),
        (lambda mask: mask.sum(0).tolist(), [1, 1, 1]),
        (lambda mask: mask.float().mean().item(), 0.0),
        (lambda mask: tuple(mask.nonzero().shape), (6, 2)),
        (lambda mask: tuple(torch.zeros(2, 3, 5, device="meta")[mask].shape), (6, 5)),
        (lambda mask: [len(t) for t in torch.zeros(10, device="meta").split([1, 1, 1])], [4, 3, 3]),
    ],
)
def test_masks_are_all_true_and_selections_take_everything(question: object, answer: object) -> None:
    assert ask(question, MASK) == answer


def test_real_data_is_read_and_not_answered() -> None:
    assert ask(lambda _: torch.tensor(3.5).item(), MASK) == 3.5
    assert ask(lambda _: bool(torch.tensor([True, False]).all()), MASK) is False


def test_attention_materialises_no_scores() -> None:
    query = torch.empty(2, 4, 100, 16, device="meta")
    key = value = torch.empty(2, 4, 300, 16, device="meta")
    seen: list[object] = []

    class Recorder(ForwardTracer):
        def on_op(self, func, args, kwargs):  # type: ignore[no-untyped-def]
            out = func(*args, **kwargs)
            seen.append(
                (func._overloadpacket, out.numel(), flops_of(func._overloadpacket, args, kwargs, out))
            )
            return out

    def attend(tensor: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(tensor, key, value)

    out = Recorder(Asking(attend), {}).run({"tensor": query})
    assert out.shape == query.shape
    assert out.transpose(1, 2).is_contiguous()
    # Two products, each 2 · (2·4·100 rows) · 300 · 16.
    attention = [entry for entry in seen if entry[0] is ATTENTION]  # type: ignore[index]
    assert attention == [(ATTENTION, query.numel(), 2 * 2 * 800 * 300 * 16)]
