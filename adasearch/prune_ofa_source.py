"""The model that Prune Once for All begins with on a task: where it lies, whether it fits, its zeros."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from adasearch.encoder_problem import EncoderProblem, resolve
from adasearch.encoder_training import is_whole
from adasearch.errors import ConfigError, ModelError, one_line
from adasearch.files import read_json
from adasearch.prune_ofa_task_config import PruneOfaTaskConfig
from adasearch.quantize_aware import refuse_quantised, stacked_layers
from adasearch.run_files import model_in
from adasearch.runtimes import load_classifier
from adasearch.sparse_model import attach_masks, bake_masks, mean_sparsity, prune_to

STUDENT = "adasearch"  # model type of a searched student


@dataclass(frozen=True)
class Source:
    """A folder or name, the run's settings and task; ``sparsity`` is the share of zeros it begins with."""

    config: PruneOfaTaskConfig
    problem: EncoderProblem
    path: str
    sparsity: float = 0.0

    @property
    def is_student(self) -> bool:
        """Whether it is a searched student instead of an encoder."""
        return AutoConfig.from_pretrained(self.path).model_type == STUDENT

    def start(self, seed: int) -> tuple[PreTrainedModel, list[str]]:
        """The model with its zeros, one-shot ones included where asked for, and the names of the layers that have them.

        Raises ``ModelError`` for a model that is quantised already, ``ConfigError`` for one without zeros.
        """
        config, problem = self.config, dataclasses.replace(self.problem, checkpoint=self.path)
        model = load_classifier(Path(self.path)) if self.is_student else problem.pretrained(seed)
        refuse_quantised(model)
        names = stacked_layers(model)
        if config.sparsity:
            attach_masks(model, config.pattern, names)
            prune_to(model, config.sparsity, config.scope)
            bake_masks(model)
        if not mean_sparsity(model, names) > 0:
            raise ConfigError(
                f"sparse_model: {config.sparse_model} has no zeros in its {len(names)} layers; choices: a sparse model, or --sparsity 0.85"
            )
        return model.requires_grad_(True), names

    @property
    def pretraining_seconds(self) -> float | None:
        """What making the sparse model took, where its folder still says so: the teacher's preparation and the pruning."""
        for folder in (Path(self.path), Path(self.path).parent):
            if (folder / "run.json").is_file():
                stages = read_json(folder / "run.json").get("stages", {})
                known = [stages.get(name, {}).get("seconds") for name in ("teacher", "sparse")]
                return None if None in known else float(sum(known))
        return None


def open_source(config: PruneOfaTaskConfig, problem: EncoderProblem) -> Source:
    """Find the model and raise what is wrong with it before anything is trained: ``ConfigError`` or ``ModelError``."""
    source = Source(config, problem, model_in(resolve(config.sparse_model, config, problem.cache)))
    try:
        theirs = AutoTokenizer.from_pretrained(source.path).get_vocab()
    except (OSError, ValueError) as error:
        raise ModelError(f"sparse_model: {config.sparse_model} has no tokenizer that can be loaded ({one_line(error)[:300]})") from error
    if theirs != problem.tokenizer.get_vocab():
        sizes = f"{len(theirs):,} against {len(problem.tokenizer.get_vocab()):,} pieces"
        raise ConfigError(
            f"sparse_model: {config.sparse_model} has another vocabulary than the teacher ({sizes}); choices: models of one vocabulary"
        )
    if source.is_student and problem.is_asked:
        raise ConfigError(f"sparse_model: {config.sparse_model} is a searched student, which answers no questions; choices: an encoder")
    model, names = source.start(config.seed)
    if config.direct and (source.is_student or not is_whole(problem, model)):
        raise ConfigError(
            f"direct: {config.sparse_model} is smaller than {config.model} before any weight is 0, so pruning that one to the same"
            " sparsity compares nothing; choices: false, or a sparse model with all heads and neurons"
        )
    if config.teach.layer_weight and (source.is_student or _shape(model) != _shape(problem.dense())):
        raise ConfigError(
            f"teach.layer_weight: {config.sparse_model} has other layers than the dense model, so that they cannot be taught one by one;"
            " choices: 0, or a model as deep and as wide"
        )
    return dataclasses.replace(source, sparsity=mean_sparsity(model, names))


def _shape(model: PreTrainedModel) -> tuple[int, int]:
    """Layers and hidden size."""
    return model.config.num_hidden_layers, model.config.hidden_size
