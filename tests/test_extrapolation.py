"""Anderson's extrapolation of a fixed-point iteration."""

import numpy as np
import pytest

from glmvae.extrapolation import Memory

D = 4
EPS = np.finfo(np.float64).eps

pytestmark = pytest.mark.any_precision


def linear(seed=0):
    """A map that creeps, x -> A x + b, and its fixed point by a dense solution."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(D, D)))[0]
    a, b = turn @ np.diag([0.99, 0.9, 0.5, -0.3]) @ turn.T, rng.normal(size=D)
    return (lambda x: a @ x + b), np.linalg.solve(np.eye(D) - a, b)


@pytest.mark.parametrize("metric", [1.0, np.array([1.0, 3.0, 0.2, 1.0])])
def test_a_linear_map_is_at_its_fixed_point_after_as_many_steps_as_it_has_directions(metric):
    f, fixed = linear()
    past, x, plain = Memory(EPS), np.zeros(D), np.zeros(D)
    for _ in range(D + 1):
        step = f(x) - x
        proposal = past.extrapolated(x, step, metric) if past else x + step
        past.remember(x, step)
        x, plain = proposal, f(plain)
    np.testing.assert_allclose(x, fixed, atol=1e-4 * np.linalg.norm(fixed))  # of the ridge
    assert np.linalg.norm(plain - fixed) > 0.5 * np.linalg.norm(fixed)


def test_the_metric_is_broadcast_and_says_which_steps_count():
    """A column that obeys another map takes no part in the choice where its distances count for nothing."""
    f, fixed = linear()
    rng = np.random.default_rng(1)

    def end(metric):
        past, x = Memory(EPS), np.zeros((D, 2))
        for _ in range(D + 1):
            step = np.column_stack([f(x[:, 0]) - x[:, 0], rng.normal(size=D)])
            proposal = past.extrapolated(x, step, metric) if past else x + step
            past.remember(x, step)
            x = proposal
        return x[:, 0]

    np.testing.assert_allclose(end(np.array([1.0, 0.0])), fixed, atol=1e-4 * np.linalg.norm(fixed))
    assert np.linalg.norm(end(np.array([1.0, 1.0])) - fixed) > 0.1 * np.linalg.norm(fixed)


def test_steps_that_do_not_change_tell_nothing():
    past, x, step = Memory(EPS), np.arange(3.0), np.ones(3)
    past.remember(x - step, step)
    np.testing.assert_allclose(past.extrapolated(x, step), x + step)
    past.remember(x, 0.5 * step)
    assert len(past) == 2
    assert np.linalg.norm(past.extrapolated(x + step, 0.25 * step) - (x + 1.25 * step)) > 0.1  # control: these do
    past.forget()
    assert not past
