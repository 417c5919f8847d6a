"""Muon for matrices, AdamW for the rest, one schedule for both.

Muon (Jordan et al. 2024) makes the momentum of each matrix nearly orthogonal by a few Newton-Schulz steps, so that no
direction of it is learned slowly. The embedding and the gains take AdamW.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration: steepest at zero among those that stay near 1 (Jordan et al. 2024)."""
NEWTON_SCHULZ_STEPS = 3
MOMENTUM = 0.95


@dataclass(frozen=True)
class Schedule:
    """Factor of the peak learning rate: a linear warm-up, a plateau, a linear fall to zero."""

    steps: int
    warmup: int
    decay: float
    """Share of the steps that the fall takes."""

    def factor(self, step: int) -> float:
        """The factor at `step` (0-based)."""
        done = step / self.steps
        fall = 1.0 if done < 1 - self.decay else (1 - done) / self.decay
        return min(1.0, (step + 1) / self.warmup) * fall


def orthogonalised(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, rows, columns] with all singular values brought near 1, computed in `dtype`."""
    a, b, c = COEFFICIENTS
    x = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    result: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return result


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal. Takes matrices only; equal shapes are computed together."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, dtype: torch.dtype) -> None:
        super().__init__(parameters, {"lr": lr})
        self.compute_dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            by_shape: defaultdict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                ahead = parameter.grad.lerp(state["momentum"], MOMENTUM)  # Nesterov
                by_shape[tuple(parameter.shape)].append((parameter, ahead))
            for (rows, columns), entries in by_shape.items():
                updates = orthogonalised(torch.stack([update for _, update in entries]), self.compute_dtype)
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (parameter, _), update in zip(entries, updates, strict=True):
                    parameter.add_(update, alpha=-scale)


class Optimizers:
    """One or two optimisers that share a schedule."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer], schedule: Schedule) -> None:
        self.parts = list(parts)
        self.schedule = schedule
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, step: int) -> None:
        """Update with the rate of `step`, and forget the gradients."""
        factor = self.schedule.factor(step)
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """All state as named tensors."""
        tensors = {}
        for p, part in enumerate(self.parts):
            for index, values in part.state_dict()["state"].items():
                for name, value in values.items():
                    tensors[f"{p}.{index}.{name}"] = torch.as_tensor(value).detach().clone()
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for p, part in enumerate(self.parts):
            state: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
            for key, value in tensors.items():
                number, index, name = key.split(".", 2)
                if int(number) == p:
                    state[int(index)][name] = value
            part.load_state_dict({"state": dict(state), "param_groups": part.state_dict()["param_groups"]})


def for_all_weights(model: nn.Module, lr: float, schedule: Schedule, dtype: torch.dtype) -> Optimizers:
    """Muon at `lr` for matrices; AdamW at 0.3 times as much for the embedding and the gains."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, lr=0.3 * lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return Optimizers([Muon(matrices, lr, dtype), adam], schedule)


def for_adapters(model: nn.Module, lr: float, schedule: Schedule) -> Optimizers:
    """AdamW for the low-rank matrices alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return Optimizers([torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)], schedule)
