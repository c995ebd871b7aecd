"""LoRAProvider: stock DSPy fine-tuning trains and runs a student in this process."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, cast

import dspy
import pytest
import torch
from dspy.clients.utils_finetune import TrainDataFormat, TrainingStatus

from limbeck.engine import LoadedModel
from limbeck.errors import InputError, ModelError
from limbeck.finetune.loop import Progress, TrainConfig
from limbeck.finetune.provider import Cancelled, LoRAJob, LoRAProvider, StudentBackend, split_name
from limbeck.models import LM, CompactAdapter, connect

TEXTS = {"win a free prize": "spam", "free card now": "spam", "see you at five": "ham", "yes at five": "ham"}
ROWS = [dspy.Example(text=text, label=label).with_inputs("text") for text, label in TEXTS.items()]
CHAT = [
    {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": label}]}
    for text, label in TEXTS.items()
]
QUICK = TrainConfig(lr=1e-2, max_steps=40, batch_size=4, rank=4, alpha=8)


class Sort(dspy.Signature):
    """Is the message spam?"""

    text: str = dspy.InputField()
    label: Literal["spam", "ham"] = dspy.OutputField()


def same_label(example: Any, prediction: Any, trace: Any = None) -> bool:
    return example.label == prediction.label


@pytest.fixture
def tiny_name(fresh_tiny: LoadedModel, tmp_path: Path) -> str:
    """The limbeck name of a tiny model on disk."""
    folder = tmp_path / "tiny"
    cast(Any, fresh_tiny.model).save_pretrained(folder)
    cast(Any, fresh_tiny.tokenizer).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture
def provider(tmp_path: Path) -> LoRAProvider:
    return LoRAProvider(tmp_path / "students", QUICK)


@pytest.fixture
def compact() -> Iterator[None]:
    with dspy.context(adapter=CompactAdapter()):
        yield


def finetuned(lm: LM, data: list[dict[str, Any]] = CHAT, **train_kwargs: Any) -> LM:
    result = lm.finetune(data, TrainDataFormat.CHAT, train_kwargs).result(timeout=120)
    if isinstance(result, Exception):
        raise result
    return result


@pytest.mark.usefixtures("compact", "embedded")
def test_stock_bootstrap_finetune_trains_and_runs_the_embedded_student(tmp_path: Path) -> None:
    provider = LoRAProvider(tmp_path / "students", TrainConfig(lr=1e-3, max_steps=2, batch_size=2, rank=4))
    student, teacher = dspy.Predict(Sort), dspy.Predict(Sort)
    lm = connect("embedded", provider=provider)
    student.set_lm(lm)
    teacher.set_lm(connect("embedded"))
    trained = dspy.BootstrapFinetune(num_threads=2).compile(student, trainset=ROWS, teacher=teacher)
    served = cast(LM, trained.lm)
    assert isinstance(served.backend, StudentBackend)
    assert served.model.startswith("embedded@")
    base, adapter = split_name(served.model)
    assert (base, adapter and adapter.parent) == ("embedded", tmp_path / "students")
    messages = [{"role": "user", "content": "text: free prize"}]
    before = lm.score(messages, candidates=["spam", "ham"]).probabilities
    after = served.score(messages, candidates=["spam", "ham"]).probabilities
    assert before != after
    assert trained(text="free prize now").label in ("spam", "ham")
    assert lm.backend is connect("embedded").backend


@pytest.mark.usefixtures("compact")
def test_the_student_learns_and_the_base_stays_as_it_was(tiny_name: str, provider: LoRAProvider) -> None:
    lm = connect(tiny_name, provider=provider)
    student = dspy.Predict(Sort)
    student.set_lm(lm)
    data = [
        cast(Any, dspy.settings.adapter).format_finetune_data(Sort, [], {"text": row.text}, {"label": row.label})
        for row in ROWS
    ]
    before = [student(text=text).label for text in TEXTS]
    student.set_lm(finetuned(lm, data))
    assert [student(text=text).label for text in TEXTS] == list(TEXTS.values())
    student.set_lm(lm)
    assert [student(text=text).label for text in TEXTS] == before != list(TEXTS.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_student_trains_and_answers_on_the_gpu(tiny_name: str, provider: LoRAProvider) -> None:
    lm = finetuned(connect(tiny_name, provider=provider))
    assert lm("free", max_tokens=4) is not None
    assert cast(StudentBackend, lm.backend).load().engine.loaded.device.type == "cuda"


def test_kill_frees_the_student_and_the_next_call_or_launch_loads_it(tiny_name: str, provider: LoRAProvider) -> None:
    lm = finetuned(connect(tiny_name, provider=provider))
    backend = cast(StudentBackend, lm.backend)
    first = lm("free", max_tokens=4)
    loaded = backend.load()
    lm.kill()
    assert lm("free", max_tokens=4) == first
    assert backend.load() is not loaded
    lm.kill()
    lm.launch()
    lm.launch()
    assert lm("free", max_tokens=4) == first
    lm.kill()
    # The base LM shares its weights with others: nothing to start or end.
    base = connect(tiny_name, provider=provider)
    base.launch()
    base.kill()
    assert base("free", max_tokens=2)


def test_the_same_training_is_not_done_twice(tiny_name: str, provider: LoRAProvider) -> None:
    lm = connect(tiny_name, provider=provider)
    first = finetuned(lm)
    written = (Path(first.model.partition("@")[2]) / "adapter_model.safetensors").stat().st_mtime_ns
    again, other = finetuned(lm), finetuned(lm, seed=1)
    assert again.model == first.model != other.model
    assert (Path(first.model.partition("@")[2]) / "adapter_model.safetensors").stat().st_mtime_ns == written
    assert sorted(path.name for path in provider.folder.iterdir()) == sorted(
        Path(lm.model.partition("@")[2]).name for lm in (first, other)
    )


def test_a_student_trains_on(tiny_name: str, provider: LoRAProvider) -> None:
    first = finetuned(connect(tiny_name, provider=provider))
    second = finetuned(first)
    assert split_name(second.model)[0] == tiny_name
    assert second.model != first.model
    assert cast(Any, second.backend).fingerprint != cast(Any, first.backend).fingerprint


@pytest.mark.parametrize(
    ("data", "data_format", "train_kwargs", "message"),
    [
        (CHAT, TrainDataFormat.COMPLETION, {}, "cannot train on"),
        (CHAT, TrainDataFormat.CHAT, {"learning_rate": 1e-4}, "unknown train_kwargs: learning_rate"),
        ([{"messages": CHAT[0]["messages"][:1]}], TrainDataFormat.CHAT, {}, "row 0 does not end"),
        ([], TrainDataFormat.CHAT, {}, "no training rows"),
    ],
)
def test_a_job_that_cannot_run_says_why(
    tiny_name: str, provider: LoRAProvider, data: Any, data_format: Any, train_kwargs: Any, message: str
) -> None:
    job = connect(tiny_name, provider=provider).finetune(data, data_format, train_kwargs)
    result = job.result(timeout=60)
    assert isinstance(result, InputError)
    assert message in result.message
    assert job.status() is TrainingStatus.failed
    assert not provider.folder.exists()


def test_a_cancelled_job_ends_at_its_next_step_and_leaves_no_adapter(tiny_name: str, provider: LoRAProvider) -> None:
    lm = connect(tiny_name, provider=provider)
    with provider._training:  # the job waits for its turn
        job = cast(LoRAJob, lm.finetune(CHAT, TrainDataFormat.CHAT, {"max_steps": 100_000}))
        assert job.status() is TrainingStatus.running
        assert job.cancel()
    thread = cast(threading.Thread, job.thread)
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert job.status() is TrainingStatus.cancelled
    assert not provider.folder.exists()


def test_ctrl_c_while_waiting_cancels_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any, timeout: float | None = None) -> Any:
        raise KeyboardInterrupt

    job = LoRAJob()
    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job.result()
    with pytest.raises(Cancelled, match="step 3 of 9"):
        job.report(Progress(3, 9, 0.0, 0.0, 0.0, 0.0))


def test_a_finished_job_cannot_be_cancelled(tiny_name: str, provider: LoRAProvider) -> None:
    job = connect(tiny_name, provider=provider).finetune(CHAT, TrainDataFormat.CHAT)
    job.result(timeout=120)
    assert not job.cancel()
    assert job.status() is TrainingStatus.succeeded


def test_an_lm_that_cannot_serve_the_student_is_told(tiny_name: str, provider: LoRAProvider) -> None:
    lm = dspy.LM(tiny_name, provider=provider)
    result = lm.finetune(CHAT, TrainDataFormat.CHAT).result(timeout=120)
    assert isinstance(result, ModelError)
    assert "limbeck.connect" in result.hint


@pytest.mark.parametrize(("name", "ours"), [("embedded", True), ("hf:x", True), ("openai/gpt-5-mini", False)])
def test_local_models_are_the_providers(name: str, ours: bool) -> None:
    assert LoRAProvider.is_provider_model(name) is ours
