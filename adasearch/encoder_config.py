"""Settings that all compressions of a transformer on a task share.

A method adds its settings in a dataclass of its own on top of ``EncoderRunConfig``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from adasearch.bench_config import BenchConfig
from adasearch.config import check_shared
from adasearch.errors import ConfigError
from adasearch.fit_config import FinetuneConfig
from adasearch.question_config import QuestionConfig, check_questions
from adasearch.settings import check_optional, check_range
from adasearch.task_config import PROBLEM_TYPES, QUESTION_ANSWERING, TaskConfig, TransferConfig, check_transfer


@dataclass
class EncoderRunConfig(TaskConfig):
    """A task, a pre-trained transformer that is made smaller on it, and its dense self.

    Args:
        model: name or path of the pre-trained checkpoint that is pruned, or that was: BERT, DistilBERT, RoBERTa, MiniLM; ``demo``
            is the packaged MiniLM. What is left is told as a share of it.
        teacher: folder or name of the dense model, fine-tuned on this task: teacher of those methods that have one, and the
            table's baseline. When absent ``model`` is fine-tuned here. Runs share one by ``--teacher runs/<name>/teacher``.
        output_dir: folder of the run; ``runs/<method>-<task>`` when absent.
        seed: of everything that comes before the method: held-out examples, the teacher's fine-tuning.
        seeds: every model is trained once per seed; ``[seed]`` when absent.
        max_steps: caps the steps of every stage of training (for a quick look).
        mixed_precision: no, bf16, fp16, or auto: bf16 where the processor computes in it and it was measured faster. Dense and
            pruned models train in the same.
        threads: threads of training; all cores when absent.
        cpu: stay on the processor even where an accelerator is present.
        checkpoint_seconds: time between checkpoints.
        evaluate: score on the validation examples so many times in each stage; what that takes is not counted as training time.
        report_to: where the curves go as well: none, or any of tensorboard, trackio, wandb; in ``tracking/`` of the run's folder.
        report_examples: held-out texts shown in the report where pruned model and teacher disagree; 0 keeps texts out of it.
        quiet: plain log lines instead of progress bars.
        finetune: the dense fine-tuning.
        bench: how speed is measured.
        question: question answering: windows over the context (``max_seq_length`` above is for other tasks), and the answers.
    """

    model: str = "demo"
    teacher: str | None = None
    output_dir: str | None = None
    seed: int = 42
    seeds: list[int] | None = None
    max_steps: int | None = None
    mixed_precision: str = "auto"
    threads: int | None = None
    cpu: bool = False
    checkpoint_seconds: float = 60.0
    evaluate: int = 4
    report_to: str | list[str] = "none"
    report_examples: int = 50
    quiet: bool = False
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    question: QuestionConfig = field(default_factory=QuestionConfig)

    @property
    def all_seeds(self) -> list[int]:
        """The seeds of every model."""
        return self.seeds or [self.seed]

    def check(self) -> None:
        """Raise ``ConfigError`` for whatever is wrong without looking at model or data. Methods check theirs on top."""
        if self.soft_label_columns:
            raise ConfigError(
                "soft_label_columns: these methods learn from labels and from a teacher model; choices: leave it out, or adasearch run"
            )
        check_shared(self, (*PROBLEM_TYPES, QUESTION_ANSWERING))
        check_range("evaluate", self.evaluate, 0, 1e6)
        check_optional("threads", self.threads, 1, 1024)
        check_questions(self.question, "question.")


@dataclass
class TaughtRunConfig(EncoderRunConfig):
    """The same for methods in which the dense model teaches the smaller one, which it can on texts without labels, too.

    Args:
        transfer: texts beyond the labelled ones on which it teaches: made from the training texts (``size``) and the user's own
            (``unlabeled_size``). None of either as published.
    """

    transfer: TransferConfig = field(default_factory=lambda: TransferConfig(size=0, unlabeled_size=0))

    @property
    def is_taught(self) -> bool:
        """Whether a term of the loss is the dense model's."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ``ConfigError`` for whatever is wrong without looking at model or data."""
        super().check()
        check_transfer(self.transfer, self.unlabeled_file)
        if self.transfer.size + self.transfer.unlabeled_size and not self.is_taught:
            raise ConfigError(
                "transfer: gold labels alone are learned from, which its texts have not; choices: a weight for what the teacher says,"
                " or transfer.size 0 and transfer.unlabeled_size 0"
            )
