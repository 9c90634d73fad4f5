"""A warm supernet: taught without labels, resumed exactly, taken over weight by weight, refused where it does not fit.

Dimensions: N texts, P levels, M the teacher's hidden size, B batch, D width.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from hearing import KillAt, Killed
from safetensors.torch import load_file, save_file
from tiny import batch_of, texts, tiny_config, tiny_space
from tiny_task import SPACE, tiny_run, write_teacher
from transformers import AutoModel, AutoTokenizer

from adasearch.config import FitConfig, RetrainConfig, TransferConfig
from adasearch.errors import ConfigError, DataError, ModelError, TrainingError
from adasearch.files import read_json, write_json
from adasearch.gates import gates_of
from adasearch.methods.warm import Warm, direction_loss
from adasearch.outputs import streamed_outputs
from adasearch.pipeline import check, retrain, search
from adasearch.progress import Progress
from adasearch.shrink import build_student, random_architecture, shrink
from adasearch.space import load_space
from adasearch.supernet import Supernet
from adasearch.tokens import Examples, TokenStore
from adasearch.warm_config import WarmConfig, WarmFitConfig
from adasearch.warm_run import SPARE, _open, tokenize_stream, warm
from adasearch.warm_start import FACTS, WEIGHTS, read_warm_start, warm_student, warm_supernet

KINDS, THINGS = ("good", "bad", "dull", "fine"), ("film", "plot", "cast")
LINES = [f"the {kind} {thing} was {word}" for kind in KINDS for thing in THINGS for word in ("great", "poor")]


def tiny_warm(folder: Path, **changes: Any) -> WarmConfig:
    """A warm supernet that takes a second; the files are made in ``folder``."""
    (folder / "tiny.yaml").write_text(SPACE, encoding="utf-8")
    (folder / "texts.txt").write_text("\n".join(LINES * 3) + "\n\n", encoding="utf-8")
    if not (folder / "encoder").exists():
        write_teacher(folder / "encoder")
    settings: dict[str, Any] = {
        "teacher": str(folder / "encoder"), "space": str(folder / "tiny.yaml"), "unlabeled_file": str(folder / "texts.txt"),
        "output_dir": str(folder / "warm"), "max_seq_length": 16, "cpu": True, "threads": 1, "quiet": True,
        "fit": WarmFitConfig(steps=30, batch_size=16, learning_rate=1e-2),
    }  # fmt: skip
    return WarmConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder around a finished warm supernet."""
    folder = tmp_path_factory.mktemp("warm")
    warm(tiny_warm(folder))
    return folder


def test_it_learns_and_says_what_it_is(made: Path) -> None:
    facts = read_json(made / "warm" / FACTS)
    assert facts["texts"] == 72 and facts["space_digest"] == load_space(str(made / "tiny.yaml")).digest
    assert sum(facts["loss_last"].values()) < 0.7 * sum(facts["loss_first"].values())
    history = [json.loads(line) for line in (made / "warm" / "history.jsonl").read_text().splitlines()]
    assert history[-1]["step"] == 30 and set(history[-1]["terms"]) == {"sentence", "levels"}
    assert {"command", "commit", "config", "hardware"} <= set(read_json(made / "warm" / "run.json"))
    assert not (made / "warm" / "checkpoint.pt").exists() and not list((made / "warm").rglob("*.partial"))
    before = (made / "warm" / WEIGHTS).stat().st_mtime_ns
    assert warm(tiny_warm(made)) == made / "warm" and (made / "warm" / WEIGHTS).stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="holds a run with other settings .seed was 42, is 7"):
        warm(tiny_warm(made, seed=7))


def test_settings_are_not_changed_by_their_use(made: Path, tmp_path: Path) -> None:
    config = tiny_warm(made, max_steps=4, output_dir=str(tmp_path / "short"))
    warm(config)
    assert config.fit.steps == 30 and read_json(tmp_path / "short" / FACTS)["steps"] == 4
    assert warm(config) == tmp_path / "short"


@torch.no_grad()
def test_its_states_are_the_teachers_pooled_levels(made: Path) -> None:
    """Against transformers, text by text, without padding: the mean of the tokens of levels 0, 1 and 2."""
    states_NPM = np.load(next((made / "warm" / "cache").glob("states-*.npy")))
    model, tokenizer = (kind.from_pretrained(made / "encoder") for kind in (AutoModel, AutoTokenizer))
    assert states_NPM.dtype == np.float16 and states_NPM.shape == (72, 3, 16)
    for index in (0, 5, 71):
        hidden = model.eval()(**tokenizer(LINES[index % 24], return_tensors="pt"), output_hidden_states=True).hidden_states
        expected_PM = torch.stack([level[0].mean(0) for level in hidden])
        assert np.allclose(states_NPM[index], expected_PM, atol=2e-3)  # float16 has 11 bits


def test_states_of_the_first_token_are_the_teachers_above_its_embeddings(made: Path, tmp_path: Path) -> None:
    """Of the embeddings the mean remains: their first token is the same in every text."""
    warm(tiny_warm(tmp_path, teacher=str(made / "encoder"), pooling="first", fit=WarmFitConfig(steps=1, batch_size=8)))
    states_NPM = np.load(next((tmp_path / "warm" / "cache").glob("states-*.npy")))
    model, tokenizer = (kind.from_pretrained(made / "encoder") for kind in (AutoModel, AutoTokenizer))
    for index in (0, 5, 71):
        with torch.no_grad():
            hidden = model.eval()(**tokenizer(LINES[index % 24], return_tensors="pt"), output_hidden_states=True).hidden_states
        expected_PM = torch.stack([hidden[0][0].mean(0), hidden[1][0, 0], hidden[2][0, 0]])
        assert np.allclose(states_NPM[index], expected_PM, atol=2e-3)  # float16 has 11 bits
        assert all(not np.allclose(level[0].mean(0), level[0, 0], atol=0.05) for level in hidden), "the test tells the two apart"


def test_stopped_at_any_moment_it_ends_with_the_same_weights(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adasearch.outputs.CHUNK", 20)
    for at, stage in ((40, "teacher reads 72 texts"), (10, "warm supernet")):
        with pytest.raises(Killed):
            warm(tiny_warm(tmp_path, checkpoint_seconds=0.0), KillAt(at, stage))
    assert (tmp_path / "warm" / "checkpoint.pt").exists() and not (tmp_path / "warm" / FACTS).exists()
    warm(tiny_warm(tmp_path))
    ours, whole = (load_file(folder / "warm" / WEIGHTS) for folder in (tmp_path, made))
    assert ours.keys() == whole.keys() and all(torch.equal(ours[name], whole[name]) for name in whole)


def test_what_a_killed_pass_has_written_is_not_asked_of_the_disk_again(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with a part of the vectors on the disk: the rest must find room, and no more."""
    monkeypatch.setattr("adasearch.outputs.CHUNK", 500)
    (tmp_path / "many.txt").write_text("\n".join(LINES * 60), encoding="utf-8")
    config = tiny_warm(tmp_path, teacher=str(made / "encoder"), unlabeled_file=str(tmp_path / "many.txt"))
    with pytest.raises(Killed):
        warm(config, KillAt(1000, "teacher reads 1,440 texts"))
    (partial,) = (tmp_path / "warm" / "cache").glob(".states-*.partial")
    need = 1440 * 3 * 16 * 2
    left = need - partial.stat().st_blocks * 512
    assert 0 < left < need / 2
    free = [int(left / SPARE) - 1]
    monkeypatch.setattr("adasearch.warm_run.shutil.disk_usage", lambda path: SimpleNamespace(free=free[0]))
    with pytest.raises(ConfigError, match="of 1,440 texts take 0.[0-9] MiB"):
        warm(config)
    free[0] += 2
    warm(config)
    assert (tmp_path / "warm" / FACTS).exists()


def test_a_supernet_and_a_student_take_the_same_weights(made: Path) -> None:
    space = load_space(str(made / "tiny.yaml"))
    start = read_warm_start(made / "warm", space)
    config = tiny_config(**start.facts["student"], num_labels=5)
    supernet = Supernet(space, config)
    fresh = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    assert warm_supernet(supernet, start) == []
    saved, taken = load_file(made / "warm" / WEIGHTS), supernet.state_dict()
    for name, tensor in taken.items():
        is_the_tasks = "classifier" in name or "gate" in name.split(".")[0]
        assert torch.equal(tensor, fresh[name] if is_the_tasks else saved[name]), name
    generator = np.random.default_rng(0)
    for depth in (1, 2, 0):
        member = random_architecture(dataclasses.replace(space, cells=(depth or 1, depth or 1)), generator)
        member = member if depth else dataclasses.replace(member, cells=())
        torch.manual_seed(0)
        student = shrink(supernet, member) if depth else None
        ours = build_student(member, config)
        warm_student(ours, start, space)
        reference = taken if student is None else student.state_dict()
        for name, tensor in ours.state_dict().items():
            if "classifier" in name or (not depth and "level_logits" in name):
                continue
            whole = reference[name]
            assert torch.equal(tensor, whole[tuple(map(slice, tensor.shape))]), name


def test_search_student_and_random_member_start_warm(made: Path, tmp_path: Path) -> None:
    """Of no steps worth mentioning (the rates are 1e-12) everything that was trained still has the warm weights."""
    config = tiny_run(made, output_dir=str(tmp_path / "run"), warm_start=str(made / "warm"), transfer=TransferConfig(size=0), seeds=[1])
    config.search = dataclasses.replace(config.search, learning_rate=1e-12, steps=2, candidates=2)
    config.retrain = RetrainConfig(steps=2, batch_size=16, learning_rate=1e-12, inherit=False)
    search(config)
    saved = load_file(made / "warm" / WEIGHTS)
    found = torch.load(tmp_path / "run" / "search" / "supernet.pt", weights_only=True)
    name = "trunk.cells.0.edges.0_to_2.conv3.convolution.weight"
    for part in (name, "trunk.embeddings.word.weight"):
        assert torch.allclose(found[part], saved[part], atol=1e-9), part
    architecture = tmp_path / "run" / "search" / "architecture.json"
    folder = retrain(dataclasses.replace(config, architecture=str(architecture), output_dir=str(tmp_path / "again")))
    student = load_file(folder / "model.safetensors")
    table = saved["trunk.embeddings.word.weight"] @ saved["trunk.embeddings.projection.weight"].T
    word = student["trunk.embeddings.word.weight"]
    assert torch.allclose(word, table[:, : word.shape[1]], atol=1e-5)  # folded


REFUSED: dict[str, tuple[str, type[Exception]]] = {
    "nothing there": ("holds no warm supernet; choices: a finished folder of `adasearch warm`", ConfigError),
    "version": ("version 9 cannot be read; known: 1", ConfigError),
    "space": (r"is of space 'tiny' \(.*\), the run's is 'tiny'", ConfigError),
    "vocabulary": ("has another vocabulary", ConfigError),
    "embeddings": ("has embeddings of 23 x 24, the run's teacher of 23 x 16", ConfigError),
    "teacher": (r"a cosine of -?0\.\d+ with that of the run's teacher", ConfigError),
    "own vocabulary": ("vocabulary.kind is 'pruned'; choices: teacher", ConfigError),
    "architecture": ("of space 'tiny' .0000000000000000., warm_start", ConfigError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_any_work(case: str, made: Path, tmp_path: Path) -> None:
    message, kind = REFUSED[case]
    copy = tmp_path / "warm"
    copy.mkdir()
    facts, state = read_json(made / "warm" / FACTS), load_file(made / "warm" / WEIGHTS)
    config = tiny_run(made, output_dir=str(tmp_path / "run"), warm_start=str(copy))
    if case == "version":
        facts["version"] = 9
    elif case == "space":
        other = tmp_path / "other.yaml"
        other.write_text(SPACE.replace("sep_conv3, ", ""), encoding="utf-8")
        config.space = str(other)
    elif case == "vocabulary":
        facts["vocabulary"] = "0" * 16
    elif case == "embeddings":
        facts["student"]["embedding_rank"] = 24
    elif case == "teacher":
        state["teacher_rows"] = torch.randn(state["teacher_rows"].shape, generator=torch.Generator().manual_seed(0))
    elif case == "own vocabulary":
        config.vocabulary.kind = "pruned"
    elif case == "architecture":
        member = random_architecture(load_space(config.space), np.random.default_rng(0))
        write_json(tmp_path / "member.json", dataclasses.replace(member, space_digest="0" * 16).to_dict())
        config.architecture = str(tmp_path / "member.json")
    if case != "nothing there":
        write_json(copy / FACTS, facts)
        save_file(state, copy / WEIGHTS)
    with pytest.raises(kind, match=message) as error:
        check(config)
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "run.json").exists()


def test_a_fine_tuned_teacher_is_kin(made: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(made / "encoder")
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.add_(0.1 * table.std() * torch.randn_like(table))
    model.save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(made / "encoder").save_pretrained(tmp_path / "tuned")
    check(tiny_run(made, output_dir=str(tmp_path / "run"), teacher=str(tmp_path / "tuned"), warm_start=str(made / "warm")))


def test_pair_operations_are_taught_by_pairs_and_start_afresh_without(made: Path, tmp_path: Path) -> None:
    space = tmp_path / "pairs.yaml"
    space.write_text(SPACE + "pair_operations: [soft_alignment]\n", encoding="utf-8")
    table = "text,second\n" + "\n".join(f"{a},{b}" for a, b in zip(LINES, LINES[1:]))
    (tmp_path / "pairs.csv").write_text(table, encoding="utf-8")
    common = {"space": str(space), "teacher": str(made / "encoder"), "fit": WarmFitConfig(steps=2, batch_size=8)}
    single = warm(tiny_warm(tmp_path, **common, output_dir=str(tmp_path / "single")))
    two = {"unlabeled_file": str(tmp_path / "pairs.csv"), "text_pair_column": "second"}
    pairs = warm(tiny_warm(tmp_path, **common, **two, output_dir=str(tmp_path / "pairs")))
    whole = load_space(str(space))
    for folder, fresh in ((single, ["soft_alignment"]), (pairs, [])):
        start = read_warm_start(folder, whole)
        config = tiny_config(**start.facts["student"])
        assert warm_supernet(Supernet(whole.for_task(is_pair=True), config), start) == fresh
        assert warm_supernet(Supernet(whole.for_task(is_pair=False), config), start) == []


def test_requests_that_cannot_be_met(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    (tmp_path / "named.csv").write_text("texts\na good film\n", encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"text": "a good film"}\n{"text": 3}\n', encoding="utf-8")
    for changes, kind, message in (
        ({"unlabeled_file": ""}, ConfigError, "unlabeled_file: no texts"),
        ({"max_steps": 0}, ConfigError, "max_steps: 0 is out of range; choices: 1 to inf"),
        ({"threads": 1 << 20}, ConfigError, "threads: 1048576 on .* choices: 1 to "),
        ({"unlabeled_file": str(tmp_path / "named.csv")}, DataError, "unlabeled_file: .*named.csv: no column 'text'; columns: texts; did you mean 'texts'"),
        ({"pooling": "max"}, ConfigError, "pooling: 'max' is not known; choices: mean, first"),
        ({"level_weight": 2.0}, ConfigError, "level_weight: 2.0 is out of range"),
        ({"unlabeled_file": str(tmp_path / "no.txt")}, (ConfigError, DataError), "unlabeled_file: .*no.txt"),
        ({"unlabeled_file": str(tmp_path / "empty.txt")}, DataError, "holds no text"),
        ({"unlabeled_file": str(tmp_path / "bad.jsonl")}, DataError, "line 2: column 'text': 3 is not a text"),
        ({"teacher": str(tmp_path)}, ModelError, "cannot be loaded"),
        ({"max_seq_length": 64}, ConfigError, "max_seq_length: 64 is too long; .* takes up to 32"),
        ({"space": "inherited"}, ConfigError, "has layers of the teacher"),
        ({"disk_gib": 1e-9}, ConfigError, r"of 72 texts take 0.[0-9] MiB; disk_gib allows 1e-09.*choices: --texts 0"),
    ):
        config = tiny_warm(tmp_path, **{"teacher": str(made / "encoder"), "output_dir": str(tmp_path / "new"), **changes})
        with pytest.raises(kind, match=message):
            warm(config)
        assert not (tmp_path / "new" / "run.json").exists(), "what is mended goes on in the same folder"


def test_the_loss_is_squared_error_and_angle() -> None:
    found_BM, wanted_BM = torch.randn(5, 7), torch.randn(5, 7)
    squared, cosine = F.mse_loss(found_BM, wanted_BM), F.cosine_similarity(found_BM, wanted_BM).mean()
    assert torch.isclose(direction_loss(found_BM, wanted_BM, 0.25), 0.75 * squared + 0.25 * (1 - cosine))
    assert float(direction_loss(wanted_BM, wanted_BM, 0.5)) == pytest.approx(0, abs=1e-6)


def test_only_weights_learn_and_members_are_drawn_uniformly() -> None:
    space = tiny_space(cells=(1, 2))
    supernet, config = Supernet(space, tiny_config()), FitConfig()
    method = Warm(config, torch.zeros(3, 6), torch.ones(3, 6))
    method.attach(supernet)
    learning = {id(p) for group in method.groups(supernet) for params in group.params for p in params["params"]}
    gates = {id(gate.logits) for gate in gates_of(supernet)}
    assert not learning & gates and learning | gates == {id(p) for p in [*supernet.parameters(), *method.parameters()]}
    supernet.depth_gate.logits.data[0, 0] = 50.0  # as sure as a gate can be
    ids_BL, mask_BL = batch_of(texts(6, 4))
    batch = {"input_ids": ids_BL, "attention_mask": mask_BL, "teacher_states": torch.randn(2, 3, 6)}
    supernet.train()
    used = []
    for step in range(20):
        method.begin_step(supernet, step, 20)
        supernet.zero_grad()
        sum(method.loss(supernet, batch).values()).backward()
        used.append(any(p.grad is not None for p in supernet.trunk.cells[1].parameters()))
        assert all(gate.logits.grad is None for gate in gates_of(supernet))
    assert 0 < sum(used) < 20


def test_streamed_outputs_are_those_of_the_whole_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adasearch.outputs.CHUNK", 4)
    examples = Examples(TokenStore.from_lists([[n, n + 1] for n in range(11)]), 0)
    calls: list[int] = []

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(len(ids))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return (ids.float() * 0.5,)

    arguments = (forward, examples, tmp_path / "x.npy", Accelerator(cpu=True), Progress(), "x")
    with pytest.raises(KeyboardInterrupt):
        streamed_outputs(*arguments)
    assert not (tmp_path / "x.npy").exists()
    found = streamed_outputs(*arguments)
    assert calls == [4, 4, 4, 3] and found.dtype == np.float16 and isinstance(found, np.memmap)
    assert np.array_equal(found, np.array([[n, n + 1] for n in range(11)]) * 0.5)
    with pytest.raises(TrainingError, match="beyond float16"):
        streamed_outputs(lambda ids, mask: (ids.float() * 1e6,), examples, tmp_path / "y.npy", *arguments[3:])


def test_texts_are_read_as_a_stream(made: Path, tmp_path: Path) -> None:
    """Only as many rows as are asked for: a bad one behind them is never seen."""
    (tmp_path / "long.jsonl").write_text('{"text": "a good film was fine"}\n' * 5 + "no json\n", encoding="utf-8")
    config = tiny_warm(tmp_path, teacher=str(made / "encoder"), unlabeled_file=str(tmp_path / "long.jsonl"), texts=5)
    assert len(tokenize_stream(_open(config, Path(config.output_dir), Progress()))) == 5
