"""Every setting that is wrong on its own is refused in one line naming place, value and choices."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from adasearch.cofi_config import CofiConfig
from adasearch.config import BenchConfig, FitConfig, RunConfig, SearchConfig, TransferConfig, to_dict, validate
from adasearch.encoder_config import EncoderRunConfig
from adasearch.errors import ConfigError
from adasearch.objectives import DISTILLATION_LOSSES
from adasearch.settings import check_choice, check_range, check_threads, cores_here, part_of


def config_with(changes: dict[str, Any]) -> RunConfig:
    """The defaults with settings, named by their full path, changed."""
    config = RunConfig()
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = config
        for parent in parents:
            place = getattr(place, parent)
        assert hasattr(place, name), path
        setattr(place, name, value)
    return config


def test_the_defaults_are_right() -> None:
    validate(RunConfig())


@pytest.mark.parametrize("name", list(DISTILLATION_LOSSES))
def test_every_registered_loss_may_be_asked_for(name: str) -> None:
    validate(config_with({"distill.loss": name}))


@pytest.mark.parametrize(
    ("path", "choices"),
    [
        ("problem_type", ["single_label", "multi_label", "regression"]),
        ("finetune.when", ["auto", "always", "never"]),
        ("search.mode", ["joint", "bilevel"]),
        ("search.efficiency", ["penalty", "constraint"]),
        ("search.derive", ["evaluated", "argmax"]),
        ("search.latency_runtime", ["auto", "onnxruntime", "openvino", "torch"]),
        ("distill.loss", ["kl", "mse"]),
        ("mixed_precision", ["auto", "no", "bf16", "fp16"]),
        ("bench.runtime", ["auto", "torch", "onnxruntime"]),
        ("controls", ["student_no_kd", "random_architecture", "bag_of_embeddings", "tfidf"]),
    ],
)
def test_an_unknown_choice_is_named_with_the_known_ones(path: str, choices: list[str]) -> None:
    for value in choices:
        config = config_with({path: [value] if path == "controls" else value, "search.target_macs": 1e6})
        validate(config)
    with pytest.raises(ConfigError) as error:
        validate(config_with({path: [choices[0], "quick"] if path == "controls" else "quick"}))
    message = str(error.value)
    assert message.startswith(f"{path}: 'quick'") and "\n" not in message
    assert all(choice in message.split("choices: ")[1] for choice in choices)


@pytest.mark.parametrize(
    ("path", "good", "bad", "low"),
    [
        ("distill.gamma", [0, 1], [-0.1, 1.1], "0"),
        ("distill.probe_weight", [0, 1], [-0.1, 1.1], "0"),
        ("distill.temperature", [0.001, 1000], [0, -1, 1001], "0.001"),
        ("search.beta", [0, 1e9], [-1e-9], "0"),
        ("search.target_macs", [1, 1e9], [0, -1], "1"),
        ("search.target_params", [1, 1e9], [0, 0.5], "1"),
        ("search.arch_warmup", [0, 1], [-0.1, 1.1], "0"),
        ("search.valid_share", [0.01, 0.5], [0.0, 0.6], "0.01"),
        ("search.temperature_end", [0.001, 1.0], [0.0, 1.1], "0.001"),  # no higher than where it starts
        ("transfer.size", [0, 10**9], [-1], "0"),
        ("transfer.replace_probability", [0, 1], [-0.1, 1.1], "0"),
        ("max_seq_length", [4, 4096], [3, 0], "4"),
        ("search.steps", [1], [0, -5], "1"),
        ("search.candidates", [1, 1000], [0], "1"),
        ("search.latency_target_ms", [1e-3, 5000], [0, -1], "1e-06"),
        ("search.latency_threads", [1, 64], [0], "1"),
        ("search.latency_batch_size", [1, 64], [0], "1"),
        ("retrain.steps", [1], [0, -5], "1"),
        ("bench.threads", [1, 64], [0, 5000], "1"),
        ("bench.repeats", [1], [0], "1"),
        ("max_steps", [1, 50], [0, -5], "1"),  # 0 would train a teacher as long as ever and a student not at all
        ("max_train_examples", [1, 5000], [0, -5], "1"),
        ("evaluate", [0, 4], [-1], "0"),
        ("checkpoint_seconds", [0.0, 1e9], [-1.0, math.nan], "0"),
        ("seed", [0, 2**32 - 1], [-1, 2**32], "0"),
        ("data_seed", [0], [-1], "0"),
        ("transfer.unlabeled_size", [0, 10**6], [-1], "0"),
        ("search.arch_learning_rate", [0, 1], [-1], "0"),
        ("search.arch_weight_decay", [0, 1], [-1e-3], "0"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_range(
    path: str, good: list[float], bad: list[float], low: str
) -> None:
    for value in good:
        validate(config_with({path: value}))
    for value in [*bad, math.nan]:
        with pytest.raises(ConfigError) as error:
            validate(config_with({path: value}))
        assert str(error.value).startswith(f"{path}: {value!r} is out of range; choices: {low} to ")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("target", ["target_macs", "target_params", "latency_target_ms"])
def test_a_target_is_a_constraint_by_itself(target: str) -> None:
    assert SearchConfig(**{target: 1e6}).is_constrained and not SearchConfig().is_constrained


@pytest.mark.parametrize(
    ("changes", "cure", "words"),
    [
        (
            {"search.efficiency": "constraint"},
            {"search.target_macs": 1e6},
            ["search.efficiency", "'constraint'", "search.target_params"],
        ),
        ({"search.efficiency": "constraint"}, {"search.target_params": 1e5}, ["search.target_macs"]),
        ({"search.efficiency": "constraint"}, {"search.latency_target_ms": 2.0}, ["search.latency_target_ms"]),
        ({"tokenizer": "another"}, {"teacher": "none", "soft_label_columns": ["p"]}, ["tokenizer", "'another'", "--teacher none"]),
        ({"vocabulary.min_count": 3}, {"vocabulary.kind": "pruned"}, ["vocabulary.min_count", "3", "pruned"]),
        ({"controls": ["tfidf", "tfidf"]}, {"controls": ["tfidf"]}, ["controls", "'tfidf'", "twice"]),
        ({"search.latency_lengths": []}, {"search.latency_lengths": [4, 128]}, ["search.latency_lengths", "empty"]),
        ({"search.latency_lengths": [8, 129]}, {"max_seq_length": 129}, ["search.latency_lengths[1]: 129", "1 to 128"]),
        (
            {"transfer.masked_lm": 0.2},
            {"transfer.masked_lm_model": "some/model"},
            ["transfer.masked_lm", "transfer.masked_lm_model"],
        ),
        ({"teacher": "none"}, {"soft_label_columns": ["p_good", "p_bad"]}, ["teacher", "'none'", "soft_label_columns"]),
        (
            {"teacher": "none", "soft_label_columns": ["p_good", "p_bad"], "unlabeled_file": "more.txt"}, {"unlabeled_file": None},
            ["unlabeled_file: more.txt", "'none'"],
        ),
        ({"seeds": [1, 2, 1]}, {"seeds": [1, 2, 3]}, ["seeds: [1, 2, 1]", "named twice"]),
    ],
)
def test_a_setting_that_needs_another_says_which(
    changes: dict[str, Any], cure: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        validate(config_with(changes))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
    validate(config_with({**changes, **cure}))


def test_checks_name_place_value_and_choices() -> None:
    check_choice("here", "a", ("a", "b"))
    check_range("here", 1, 1, 1)
    with pytest.raises(ConfigError, match="^here: None is not known; choices: a, b$"):
        check_choice("here", None, ("a", "b"))
    with pytest.raises(ConfigError, match="^here: 3 is out of range; choices: 1 to 2$"):
        check_range("here", 3, 1, 2)


def test_what_nothing_would_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="transfer.masked_lm_model: 'bert' has no effect where transfer.masked_lm is 0"):
        validate(RunConfig(transfer=TransferConfig(masked_lm_model="bert")))
    with pytest.raises(ConfigError, match="unlabeled_file: more.txt would not be read, transfer.unlabeled_size is 0"):
        validate(RunConfig(unlabeled_file="more.txt", transfer=TransferConfig(unlabeled_size=0)))
    with pytest.raises(ConfigError, match="bench.references: minilm6: not timed, bench.reference is false"):
        validate(RunConfig(bench=BenchConfig(reference=False, references=["minilm6"])))


def test_threads_are_at_most_the_cores_and_every_seed_is_one() -> None:
    cores = cores_here()
    check_threads(None), check_threads(cores)
    with pytest.raises(ConfigError, match=rf"threads: {cores + 1} on {cores} cores?; choices: 1 to {cores}, or leave it out"):
        check_threads(cores + 1)
    with pytest.raises(ConfigError, match="threads: 0 on "):
        check_threads(0)
    EncoderRunConfig().check()
    with pytest.raises(ConfigError, match="seed: -1 is out of range; choices: 0 to "):
        EncoderRunConfig(seed=-1).check()


def test_a_part_of_settings_has_what_both_have_the_changes_and_else_its_own_defaults() -> None:
    settings = config_with({"retrain.steps": 7, "retrain.inherited_rate": 0.5}).retrain
    expected = FitConfig(steps=7, inherited_rate=0.5, batch_size=3)
    assert part_of(FitConfig, settings, batch_size=3) == part_of(FitConfig, to_dict(settings), batch_size=3) == expected
    cofi = CofiConfig(batch_size=9)  # its ``steps`` is no setting but a method
    assert part_of(FitConfig, cofi) == FitConfig(
        batch_size=9, learning_rate=cofi.learning_rate, warmup=cofi.warmup, weight_decay=cofi.weight_decay, clip_norm=cofi.clip_norm
    )


def test_plain_data_holds_every_setting_and_nothing_is_shared() -> None:
    data = to_dict(RunConfig())
    assert set(data) == {field.name for field in dataclasses.fields(RunConfig)}
    assert (
        json.loads(json.dumps(data)) == data and data["search"]["beta"] == 4.0 and data["distill"]["gamma"] == 0.8
    )  # the paper's
    one, other = RunConfig(), RunConfig()
    one.search.steps, one.bench.batch_sizes[0] = 7, 9
    one.controls.clear()
    assert to_dict(other) == data
