"""Temperatures against a grid and against what made the data; calibration errors against cases worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adasearch.calibration import (
    COLDEST,
    HOTTEST,
    calibrate,
    expected_calibration_error,
    fit_temperature,
    load_calibration,
    negative_log_likelihood,
    probabilities,
)
from adasearch.errors import ConfigError, ModelError


def drawn(rng: np.random.Generator, count: int, classes: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from what they say at that temperature."""
    logits_NC = rng.normal(size=(count, classes)) * 3
    shares_NC = torch.from_numpy(logits_NC / temperature).softmax(-1)
    return logits_NC.astype(np.float32), torch.multinomial(shares_NC, 1).numpy()[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    logits_NC, labels_N = drawn(np.random.default_rng(1), 20_000, 4, temperature)
    assert fit_temperature(logits_NC, labels_N) == pytest.approx(temperature, rel=0.05)  # 20,000 examples: sd about 1%


def test_no_other_temperature_is_likelier() -> None:
    logits_NC, labels_N = drawn(np.random.default_rng(2), 300, 3, 2.0)
    found = fit_temperature(logits_NC, labels_N)
    grid = np.exp(np.linspace(np.log(COLDEST), np.log(HOTTEST), 2001))
    losses = [F.cross_entropy(torch.from_numpy(logits_NC / t), torch.from_numpy(labels_N)).item() for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=0.004)  # the grid's step is 0.3%
    assert negative_log_likelihood(logits_NC, labels_N, found) == pytest.approx(min(losses), abs=1e-5)


def test_multi_label_is_fitted_by_binary_cross_entropy() -> None:
    rng = np.random.default_rng(3)
    logits_NC = rng.normal(size=(8000, 3)) * 3
    labels_NC = (rng.random((8000, 3)) < 1 / (1 + np.exp(-logits_NC / 2.5))).astype(np.float32)
    found = fit_temperature(logits_NC, labels_NC)
    assert found == pytest.approx(2.5, rel=0.05)

    def loss(temperature: float) -> float:
        return F.binary_cross_entropy_with_logits(torch.tensor(logits_NC / temperature), torch.tensor(labels_NC).double()).item()

    assert negative_log_likelihood(logits_NC, labels_NC, found) == pytest.approx(loss(found), abs=1e-9)
    assert loss(found) < min(loss(found * 0.99), loss(found * 1.01))


def test_what_has_no_finite_best_temperature_stops_at_the_ends() -> None:
    right_NC = np.eye(2)[[0, 1] * 20] * 3
    labels_N = np.array([0, 1] * 20)
    assert fit_temperature(right_NC, labels_N) == COLDEST
    assert fit_temperature(right_NC, 1 - labels_N) == HOTTEST


def test_unknown_labels_are_left_out() -> None:
    logits_NC, labels_N = drawn(np.random.default_rng(4), 400, 3, 2.0)
    hidden_N = labels_N.copy()
    hidden_N[200:] = -100
    assert fit_temperature(logits_NC, hidden_N) == fit_temperature(logits_NC[:200], labels_N[:200])


def test_a_temperature_moves_no_decision() -> None:
    logits_NC = np.random.default_rng(5).normal(size=(500, 4)).astype(np.float32) * 4
    for temperature in (0.1, 1.0, 7.0):
        shares_NC = probabilities(logits_NC, temperature=temperature)
        np.testing.assert_allclose(shares_NC.sum(axis=1), 1, atol=1e-5)
        assert (shares_NC.argmax(axis=1) == logits_NC.argmax(axis=1)).all()
        both_NC = probabilities(logits_NC, is_multi_label=True, temperature=temperature)
        assert ((both_NC > 0.5) == (logits_NC > 0)).all()
    np.testing.assert_allclose(probabilities(logits_NC), torch.from_numpy(logits_NC).softmax(-1), atol=1e-6)


def test_calibration_error_of_a_case_worked_by_hand() -> None:
    # bins of a half: confidences 0.6, 0.7, 0.8, 1.0 of which three are right: |(0.6+0.7+0.8+1.0) - 3| / 4
    shares_NC = np.array([[0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [1.0, 0.0]])
    assert expected_calibration_error(shares_NC, np.array([0, 1, 0, 0]), bins=2) == pytest.approx(0.1 / 4)
    # bins of a tenth keep each of them apart: 0.4 + 0.3 + 0.8 + 0
    assert expected_calibration_error(shares_NC, np.array([0, 1, 0, 0]), bins=10) == pytest.approx(1.5 / 4)
    # two classes of one text are two decisions: 0.9 for, right; 0.8 against, wrong
    assert expected_calibration_error(np.array([[0.9, 0.2]]), np.array([[1.0, 1.0]]), bins=10) == pytest.approx((0.1 + 0.8) / 2)


def test_calibrating_lowers_both_errors_and_is_read_back(tmp_path: Path) -> None:
    logits_NC, labels_N = drawn(np.random.default_rng(6), 3000, 3, 3.0)
    found = calibrate(logits_NC, labels_N, "validation")
    assert found.nll_after < found.nll_before and found.ece_after < 0.03 < 0.15 < found.ece_before
    assert (found.examples, found.fitted_on, found.temperature) == (3000, "validation", fit_temperature(logits_NC, labels_N))
    assert load_calibration(tmp_path) is None
    found.save(tmp_path)
    assert load_calibration(tmp_path) == found


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (np.zeros((30, 1)), np.zeros(30), "only probabilities can be calibrated"),
        (np.zeros((30, 2)), np.zeros(30), "only probabilities can be calibrated"),
        (np.zeros((30, 2)), np.zeros((30, 3)), "only probabilities can be calibrated"),
        (np.zeros((30, 2)), np.array([1] * 19 + [-100] * 11), "19 labelled examples; at least 20"),
        (np.full((30, 2), np.nan), np.zeros(30, dtype=int), "not finite"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(logits: np.ndarray, labels: np.ndarray, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        fit_temperature(logits, labels)


@pytest.mark.parametrize("content", ["{", '{"temperature": 1.0}', "[]"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(ModelError, match="calibration.json: no calibration can be read"):
        load_calibration(tmp_path)


def test_a_temperature_out_of_range_is_refused(tmp_path: Path) -> None:
    logits_NC, labels_N = drawn(np.random.default_rng(7), 100, 3, 3.0)
    path = calibrate(logits_NC, labels_N, "validation").save(tmp_path)
    path.write_text(path.read_text().replace('"temperature": ', '"temperature": -'))
    with pytest.raises(ModelError, match="temperature: -.* is out of range"):
        load_calibration(tmp_path)


def test_a_single_tag_is_calibrated_as_several_are() -> None:
    rng = np.random.default_rng(0)
    logits_N1 = rng.normal(size=(400, 1)) * 3
    labels = (rng.random((400, 1)) < 1 / (1 + np.exp(-logits_N1 / 2))).astype(np.float32)  # the model is twice too sure
    found = calibrate(logits_N1, labels, fitted_on="validation")
    twice = calibrate(np.repeat(logits_N1, 2, 1), np.repeat(labels, 2, 1), fitted_on="validation")
    assert found.temperature == pytest.approx(twice.temperature, rel=1e-3) and 1.5 < found.temperature < 2.7
    with pytest.raises(ConfigError, match="two classes or more"):
        calibrate(logits_N1, np.zeros(400, np.int64), fitted_on="validation")
