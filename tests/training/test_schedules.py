"""The learning rate over the steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_grounding_dino.training.schedules import ScheduleSettings, build_schedule, learning_rate_factor


@pytest.mark.parametrize("kind", ["cosine", "step", "constant"])
def test_a_warm_up_rises_in_a_line(kind: Any) -> None:
    """From 0.1 in 4 steps: each adds (1 - 0.1) / 4 = 0.225; the fifth step has the full rate."""
    factors = [learning_rate_factor(kind, step, 100, 4, milestones=[50]) for step in range(5)]
    assert factors == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0])


def test_a_cosine_is_half_way_down_in_the_middle_and_0_at_the_end() -> None:
    """104 steps with 4 of warm-up: the middle of what is left is step 54; a quarter has (1 + cos 45 deg) / 2."""
    factors = [learning_rate_factor("cosine", step, 104, 4) for step in (4, 29, 54, 104, 500)]
    assert factors == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, 0, 0])


def test_steps_fall_at_their_milestones() -> None:
    """Epochs of 10 steps with falls after 8 and 11: step 79, the 80th, is the last at the full rate."""
    factors = [learning_rate_factor("step", step, 120, 0, milestones=(80, 110)) for step in (0, 79, 80, 109, 110, 119)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate_factor("step", 80, 120, 0, milestones=(80,), gamma=0.5) == 0.5


def test_constant_is_constant() -> None:
    assert {learning_rate_factor("constant", step, 10, 0) for step in range(12)} == {1.0}


def optimizer_of_two() -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in (1e-3, 1e-4)]
    return torch.optim.SGD(groups)


def test_groups_keep_their_ratio_and_a_schedule_goes_on_where_it_stopped() -> None:
    settings = ScheduleSettings(max_steps=10, warmup_steps=2)

    def rates(optimizer: torch.optim.Optimizer, schedule: Any, steps: int) -> list[list[float]]:
        seen = []
        for _ in range(steps):
            seen.append(schedule.get_last_lr())
            optimizer.step()
            schedule.step()
        return seen

    first = optimizer_of_two()
    schedule = build_schedule(first, settings)
    seen = rates(first, schedule, 4)
    second = optimizer_of_two()
    resumed = build_schedule(second, settings)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    seen += rates(second, resumed, 6)
    expected = [learning_rate_factor("cosine", step, 10, 2) for step in range(10)]
    assert [high for high, _ in seen] == pytest.approx([1e-3 * factor for factor in expected])
    assert [low for _, low in seen] == pytest.approx([1e-4 * factor for factor in expected])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "linear"}, "no schedule 'linear': choose from cosine, step, constant"),
        ({"max_steps": 0}, "max_steps"),
        ({"warmup_steps": 10}, "`warmup_steps` is 10, out of 0 to 9"),
        ({"warmup_start": 1.5}, "warmup_start"),
        ({"gamma": -0.1}, "gamma"),
        ({"kind": "step"}, "milestones"),
        ({"milestones": (5,)}, "they go with 'step'"),
        ({"kind": "step", "milestones": (8, 5)}, "must rise between 0 and 10"),
        ({"kind": "step", "milestones": (5, 10)}, "must rise between 0 and 10"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleSettings(**{"max_steps": 10, **changes})
