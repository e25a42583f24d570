"""BatchNorm of rows that lie in several processes, against that of one process with all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from influence_cli.maths.shared_batch_norm import SharedBatchNorm

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "rows": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)), (4,)),
    "maps": (lambda: nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Tanh(), nn.Flatten(1)), (2, 6, 6)),
    "timm's": (lambda: nn.Sequential(nn.Conv2d(2, 5, 3), BatchNormAct2d(5), nn.Flatten(1)), (2, 6, 6)),
    "no weights": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.Tanh()), (4,)),
    "no running statistics": (lambda: nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh()), (4,)),
    "mean of all batches": (lambda: nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.Tanh()), (4,)),
    "two": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh()), (4,)),
}


class Sums:
    """Sums over threads."""

    def __init__(self, size: int) -> None:
        self.given, self.barrier = [torch.empty(0)] * size, threading.Barrier(size, timeout=60)

    def of(self, rank: int) -> Callable[[Tensor], None]:
        """What puts the sum in a tensor's place, for one of the threads."""

        def add_up(tensor: Tensor) -> None:
            self.given[rank] = tensor.clone()
            self.barrier.wait()
            tensor.copy_(torch.stack(self.given).sum(0))
            self.barrier.wait()

        return add_up


def trained(make: Callable[[], nn.Module], shares: list[Tensor], dtype: torch.dtype) -> list[tuple[Tensor, nn.Module]]:
    """What every share of a batch becomes, and a model with the gradient of the sum of squares of all shares."""
    size, sums, found = len(shares), Sums(len(shares)), dict[int, tuple[Tensor, nn.Module]]()
    models = list[nn.Module]()
    for _ in shares:
        torch.manual_seed(0)
        models.append(make().to(dtype).train())

    def work(rank: int) -> None:
        with SharedBatchNorm(rank, size, sums.of(rank)):
            out = models[rank](shares[rank])
        weights = torch.linspace(-1, 1, out.shape[1], dtype=out.dtype)
        (weights * out**2 + out).sum().backward()
        found[rank] = out.detach(), models[rank]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(size)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_it_is_what_one_process_comes_to(name: str, dtype: torch.dtype, near: float) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(1)
    x = (3 + 2 * torch.randn(11, *shape, dtype=torch.float64)).to(dtype)
    shares = [x[k::3].clone().requires_grad_() for k in range(3)]  # of 4, 4 and 3 rows
    many = trained(make, shares, dtype)

    torch.manual_seed(0)
    alone = make().to(dtype).train()
    whole = x.clone().requires_grad_()
    out = alone(whole)
    weights = torch.linspace(-1, 1, out.shape[1], dtype=out.dtype)
    (weights * out**2 + out).sum().backward()

    assert isinstance(whole.grad, Tensor)
    for rank, (share, (of_share, model)) in enumerate(zip(shares, many, strict=True)):
        torch.testing.assert_close(of_share, out[rank::3].detach(), rtol=near, atol=near)
        assert isinstance(share.grad, Tensor)
        torch.testing.assert_close(share.grad, whole.grad[rank::3], rtol=near, atol=10 * near)
        for (key, buffer), other in zip(model.named_buffers(), alone.buffers(), strict=True):
            torch.testing.assert_close(buffer, other, rtol=near, atol=near, msg=lambda m, key=key: f"{key}: {m}")
    every = zip(alone.named_parameters(), *(model.parameters() for _, model in many), strict=True)
    for (key, parameter), *parts in every:
        assert isinstance(parameter.grad, Tensor)
        total = torch.stack([p.grad for p in parts]).sum(0)
        torch.testing.assert_close(
            total, parameter.grad, rtol=near, atol=50 * near, msg=lambda m, key=key: f"{key}: {m}"
        )


def test_a_model_in_evaluation_mode_needs_no_other_process() -> None:
    def never(tensor: Tensor) -> None:
        raise AssertionError(tensor)

    norm = nn.BatchNorm1d(4).eval()
    x = torch.randn(3, 4)
    with SharedBatchNorm(0, 2, never):
        assert torch.equal(norm(x), x / (1 + norm.eps) ** 0.5)


def test_mixed_precision_keeps_sums_in_float32() -> None:
    torch.manual_seed(0)
    x = 100 + torch.randn(64, 4)
    norm = nn.BatchNorm1d(4)
    with SharedBatchNorm(0, 1, lambda tensor: None), torch.autocast("cpu", torch.bfloat16):
        out = norm(x.bfloat16())
    assert out.dtype == torch.bfloat16
    expected = nn.BatchNorm1d(4)(x.bfloat16().float())
    torch.testing.assert_close(out.float(), expected, rtol=0.01, atol=0.02)


def test_torch_batch_norm_by_its_own_name() -> None:
    x = torch.randn(6, 3, dtype=torch.float64)
    with SharedBatchNorm(0, 1, lambda tensor: None):
        found = torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False)
    torch.testing.assert_close(found, torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False))
