"""The pictures of a quantised model: what they show, counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_language import save_tiny, tiny_model
from transformers import PreTrainedTokenizerFast

from adasearch.errors import ConfigError
from adasearch.quantgpt_plots import mean_similarity, place_of, scales_figure, short_name, similarity_figure, token_similarity, weights_figure


@pytest.mark.parametrize(
    ("name", "place", "short"),
    [
        ("transformer.h.3.attn.c_attn.weight", ("", 3, "attn.c_attn"), "3 attn.c_attn"),
        ("transformer.wte.weight", ("", None, "token embedding"), "token embedding"),
        ("model.shared.weight", ("", None, "token embedding"), "token embedding"),
        ("model.encoder.layers.10.fc1.weight", ("encoder", 10, "fc1"), "encoder 10 fc1"),
        ("model.decoder.layers.0.encoder_attn.q_proj.weight", ("decoder", 0, "encoder_attn.q_proj"), "decoder 0 encoder_attn.q_proj"),
    ],
)
def test_a_weight_is_placed_by_its_name(name: str, place: tuple[str, int | None, str], short: str) -> None:
    assert place_of(name) == place and short_name(name) == short


def test_a_panel_shows_the_share_of_each_level() -> None:
    before = {"h.0.c_fc.weight": torch.randn(100, 10), "h.1.c_fc.weight": torch.randn(100, 10)}
    levels = torch.tensor([-0.5, 0.0, 0.5]).repeat_interleave(torch.tensor([200, 700, 100])).view(100, 10)
    figure = weights_figure(before, {"h.0.c_fc.weight": levels}, "title")
    (panel,) = figure.axes  # the weight that was not quantised has none
    heads = panel.lines[0]
    np.testing.assert_allclose(heads.get_xdata(), [-0.5, 0, 0.5])
    np.testing.assert_allclose(heads.get_ydata(), [0.2, 0.7, 0.1])
    with pytest.raises(ConfigError, match="none is quantised"):
        weights_figure(before, {}, "title")


def test_scales_have_a_line_for_each_kind_and_a_panel_for_each_stack() -> None:
    scales = {f"model.{side}.layers.{n}.fc1.weight": 1.0 + n for side in ("encoder", "decoder") for n in range(3)}
    figure = scales_figure({**scales, "model.shared.weight": 0.7}, "title", "γ", dict.fromkeys(scales, 1.0))
    assert [ax.get_title("left") for ax in figure.axes] == ["decoder", "encoder"]
    now = next(line for line in figure.axes[0].lines if line.get_label() == "fc1")
    assert list(now.get_xdata()) == [0, 1, 2] and list(now.get_ydata()) == [1.0, 2.0, 3.0]


def test_similarity_is_the_mean_cosine_of_different_tokens() -> None:
    cosines_LL = np.array([[1.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.0]])
    assert mean_similarity(cosines_LL) == pytest.approx(0.3)
    model = tiny_model("gpt2").train()
    ids_L = torch.tensor([3, 9, 4, 20])
    found_LL = token_similarity(model, ids_L, "embeddings")
    table_LD = model.transformer.wte.weight[ids_L]
    assert found_LL[1, 3] == pytest.approx(torch.cosine_similarity(table_LD[1], table_LD[3], dim=0).item(), abs=1e-6)
    assert model.training
    model.eval()
    states_LD = model(ids_L[None], output_hidden_states=True).hidden_states[-1][0]
    expected = torch.cosine_similarity(states_LD[0], states_LD[2], dim=0).item()
    assert token_similarity(model, ids_L)[0, 2] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_models_stand_side_by_side_with_their_means(tmp_path: Path, kind: str) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(save_tiny(kind, tmp_path))
    models = {"one": tiny_model(kind, 0), "other": tiny_model(kind, 1)}
    figure = similarity_figure(models, tokenizer, "w1 w2 w1 w3")
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == 4 and panels[0].images[0].get_array().shape == (3, 3)  # w1 counts once
    shown = panels[3].images[0].get_array()
    assert panels[3].get_title("left") == f"other: last states\nmean {mean_similarity(np.asarray(shown)):.2f}"
    with pytest.raises(ConfigError, match="1 different tokens"):
        similarity_figure(models, tokenizer, "w1 w1")
