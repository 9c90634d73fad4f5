"""Reference shapes against the parameter counts of the papers and of the published checkpoints."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adasearch.bench_config import REFERENCE_SHAPES
from adasearch.config import BenchConfig, RunConfig, validate
from adasearch.errors import ConfigError
from adasearch.references import REFERENCES, make_reference, reference_label

PUBLISHED = {  # parameters of the encoder with its pooler, as counted from the published checkpoints' own shapes
    "bert_base": 109_482_240,
    "distilbert": 66_362_880,
    "tinybert4": 14_350_248,
    "minilm6": 22_713_216,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):  # shapes only: BERT-base need not be filled to be counted
        model = REFERENCES[name].build()
    assert sum(parameter.numel() for parameter in model.base_model.parameters()) == PUBLISHED[name]


def test_static_embeddings_are_a_mean_of_vectors_and_a_line() -> None:
    model = make_reference("static_embeddings").double()
    ids_BL = torch.randint(5, 30_522, (3, 7), generator=torch.Generator().manual_seed(0))
    mask_BL = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
    norm = model.trunk.embeddings.norm
    vectors = F.layer_norm(model.get_input_embeddings()(ids_BL), (256,), norm.weight, norm.bias, norm.eps)
    classifier = model.trunk.read_out.classifier
    for row, length in enumerate((7, 4, 1)):
        expected = classifier(vectors[row, :length].mean(0).tanh())
        torch.testing.assert_close(model(ids_BL, mask_BL).logits[row], expected)
    assert model.get_input_embeddings().weight.shape == (30_522, 256)
    others = sum(p.numel() for p in model.parameters()) - 30_522 * 256
    assert others < 1_100  # nothing else to speak of: normalisation, classifier


def test_weights_are_the_same_each_time_and_the_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, second = (make_reference("tinybert4") for _ in range(2))
    assert torch.equal(state, torch.get_rng_state()) and not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_labels_say_that_the_weights_are_random_and_names_are_checked() -> None:
    assert all("random weights, time only" in reference_label(name) for name in REFERENCES)
    assert tuple(REFERENCES) == REFERENCE_SHAPES  # what the settings allow
    validate(RunConfig(bench=BenchConfig(references=[*REFERENCES])))
    for names, message in (
        (["bert_base", "bert"], r"bench.references\[1\]: 'bert' is not known; choices: bert_base, distilbert"),
        (["minilm6", "minilm6"], r"bench.references\[1\]: 'minilm6' is there already"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(RunConfig(bench=BenchConfig(references=names)))
    with pytest.raises(ConfigError, match="reference: 'bert' is not known"):
        make_reference("bert")


def test_a_run_refuses_lists_that_only_bench_reads() -> None:
    for changes in ({"runtimes": ["torch"]}, {"precisions": ["bf16"]}):
        with pytest.raises(ConfigError, match="a run times its systems in one runtime at fp32; choices: bench.runtime"):
            validate(RunConfig(bench=BenchConfig(**changes)))
