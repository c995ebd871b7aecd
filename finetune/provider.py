"""A DSPy provider that trains and runs LoRA students in this process.

With it stock `dspy.BootstrapFinetune` and `dspy.BetterTogether` work on local models:

>>> lm = limbeck.connect("embedded", provider=LoRAProvider())  # doctest: +SKIP
>>> student.set_lm(lm)  # doctest: +SKIP
>>> dspy.BootstrapFinetune(metric=metric).compile(student, trainset=rows, teacher=teacher)  # doctest: +SKIP
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from dspy.clients.provider import Provider, TrainingJob
from dspy.clients.utils_finetune import TrainDataFormat, TrainingStatus

from limbeck.engine.loading import LoadedModel, cache_folder, load_model
from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.errors import InputError, LimbeckError, ModelError
from limbeck.finetune.loop import Progress, TrainConfig, train
from limbeck.finetune.rows import tokenize_rows
from limbeck.models.lm import LM
from limbeck.models.torch_engine import TorchBackend
from limbeck.records import stable_hash

# Between a base model's name and its adapter's folder in the name of a fine-tuned model.
_ADAPTER_MARK = "@"


def split_name(model: str) -> tuple[str, Path | None]:
    """Return the base model's name and the adapter's folder; None where there is no such folder.

    >>> split_name("hf:student@home")
    ('hf:student@home', None)
    """
    base, mark, folder = model.rpartition(_ADAPTER_MARK)
    if mark and (Path(folder) / "adapter_config.json").is_file():
        return base, Path(folder)
    return model, None


class StudentBackend:
    """Local weights with an adapter, loaded on first use; `release` frees them until the next one."""

    supports_score = True
    supports_prefix = True
    score_source = "exact"
    usd_per_token: tuple[float, float] | None = (0.0, 0.0)
    thinking_tokens = 0

    def __init__(self, name: str, adapter: Path) -> None:
        self.name, self._adapter = name, adapter
        # The folder's name is a hash of base, rows and configuration.
        self.fingerprint = f"torch/{name}/{adapter.name}"
        self._lock = threading.Lock()
        self._loaded: TorchBackend | None = None

    def load(self) -> TorchBackend:
        """Return the backend itself, its weights loaded."""
        with self._lock:
            if self._loaded is None:
                self._loaded = TorchBackend.load(self.name, adapter=self._adapter)
            return self._loaded

    def release(self) -> None:
        """Free the weights; calls that still wait get a ModelError."""
        with self._lock:
            if self._loaded is not None:
                self._loaded.engine.close()
            self._loaded = None

    def generate(self, request: GenerateRequest) -> Generation:
        """Answer one request; blocks while its batch runs."""
        return self.load().generate(request)

    def score(self, request: ScoreRequest) -> Scores:
        """Return log p of every candidate; blocks while its batch runs."""
        return self.load().score(request)


class LoRAJob(TrainingJob):
    """A training run in a thread; `cancel` and Ctrl-C end it at its next step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stop = threading.Event()

    def status(self) -> TrainingStatus:
        """Return whether the run goes on, has succeeded, failed or been cancelled."""
        if self.cancelled():
            return TrainingStatus.cancelled
        if not self.done():
            return TrainingStatus.running
        failed = isinstance(super().result(), Exception)
        return TrainingStatus.failed if failed else TrainingStatus.succeeded

    def cancel(self) -> bool:
        """Ask the run to end; True unless it is done already."""
        self._stop.set()
        super().cancel()
        return self.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the trained LM, or the exception that ended the run."""
        try:
            return super().result(timeout)
        except KeyboardInterrupt:
            self.cancel()  # or the process would live on until the thread has trained to the end
            raise

    def set_result(self, result: Any) -> None:
        """Take the copied LM and put the trained student behind it."""
        if self.cancelled():
            return
        if isinstance(result, LM):
            base, adapter = split_name(result.model)
            if adapter is not None:
                result.backend = StudentBackend(base, adapter)
        elif not isinstance(result, Exception):
            result = ModelError(
                f"{type(result).__name__} cannot run a local student",
                valid="a limbeck LM",
                hint="limbeck.connect(NAME, provider=LoRAProvider())",
            )
        super().set_result(result)

    def report(self, progress: Progress) -> None:
        """Raise once the run has been cancelled."""
        if self._stop.is_set():
            raise Cancelled(f"training was cancelled at step {progress.step} of {progress.total}")


class Cancelled(LimbeckError):
    """A training job was cancelled before its last step."""


@dataclass(frozen=True)
class _Conversation:
    """One row of DSPy's training data as `tokenize_rows` reads it."""

    messages: tuple[tuple[str, str], ...]
    completions: tuple[tuple[str, float], ...]
    weight: float = 1.0


def _conversation(number: int, row: Mapping[str, Any]) -> _Conversation:
    turns = [(str(turn["role"]), str(turn["content"])) for turn in row.get("messages", ())]
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise InputError(
            f"training row {number} does not end with an assistant's answer",
            valid='{"messages": [..., {"role": "assistant", "content": "..."}]}',
        )
    return _Conversation(tuple(turns[:-1]), ((turns[-1][1], 1.0),))


class LoRAProvider(Provider):
    """Trains LoRA adapters on this machine and serves them behind the LM that `finetune` returns.

    Adapters are written to `folder` (default: the model cache), each under a hash of base model, rows and
    configuration, so that the same training is not done twice. `config` holds the defaults; DSPy's
    `train_kwargs` set single fields of it. Trainings run one at a time.
    """

    def __init__(self, folder: Path | None = None, config: TrainConfig | None = None) -> None:
        super().__init__()
        self.finetunable = True
        self.TrainingJob = LoRAJob
        self.folder = (folder or cache_folder() / "finetuned").absolute()
        self.config = config or TrainConfig()
        self._training = threading.Lock()

    @staticmethod
    def is_provider_model(model: str) -> bool:
        """Whether the name is one of a model that runs in this process."""
        return model == "embedded" or model.startswith(("embedded@", "hf:", "gguf:"))

    @staticmethod
    def launch(lm: Any, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Load the student's weights now; without this the first call does."""
        backend = getattr(lm, "backend", None)
        if isinstance(backend, StudentBackend):
            backend.load()

    @staticmethod
    def kill(lm: Any, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Free the student's weights; a later call loads them again."""
        backend = getattr(lm, "backend", None)
        if isinstance(backend, StudentBackend):
            backend.release()

    def finetune(
        self,
        job: TrainingJob,
        model: str,
        train_data: list[dict[str, Any]],
        train_data_format: TrainDataFormat | str | None,
        train_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Train on chat rows and return the student's name, "BASE@ADAPTER FOLDER".

        A model that is fine-tuned already trains on. Raises InputError for other formats, unknown
        `train_kwargs` and rows that do not fit.
        """
        if train_data_format not in (TrainDataFormat.CHAT, None):
            raise InputError(f"cannot train on {train_data_format} rows", valid="chat messages")
        config = _config(self.config, train_kwargs or {})
        base, adapter = split_name(model)
        rows = [_conversation(number, row) for number, row in enumerate(train_data)]
        key = stable_hash([model, asdict(config), [(row.messages, row.completions) for row in rows]])
        target = self.folder / key
        with self._training:
            if not (target / "adapter_config.json").is_file():
                loaded = load_model(base, adapter=adapter)
                self._train(cast(LoRAJob, job), loaded, rows, config, target)
        return f"{base}{_ADAPTER_MARK}{target}"

    def _train(
        self,
        job: LoRAJob,
        loaded: LoadedModel,
        rows: Sequence[_Conversation],
        config: TrainConfig,
        target: Path,
    ) -> None:
        result = train(loaded, tokenize_rows(loaded.tokenizer, rows), config, progress=job.report)
        self.folder.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix="part-", dir=self.folder))
        try:
            result.save(part)
            part.rename(target)  # whole or not at all: a failed job is never taken for a model
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _config(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    known = {field.name for field in fields(TrainConfig)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise InputError(f"unknown train_kwargs: {', '.join(unknown)}", valid=", ".join(sorted(known)))
    return replace(config, **changes)
