"""BootstrapFinetune: bad answers, thresholds, the student's own prompt, predictors called twice."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import dspy
import pytest

from limbeck.engine import GenerateRequest, Generation, LoadedModel, ScoreRequest, Scores
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.finetune.bootstrap import BootstrapFinetune
from limbeck.finetune.loop import TrainConfig
from limbeck.finetune.provider import LoRAProvider, StudentBackend
from limbeck.models import LM, CompactAdapter, connect

TEXTS = {"win a free prize": "spam", "free card now": "spam", "see you at five": "ham", "yes at five": "ham"}
ROWS = [dspy.Example(text=text, label=label).with_inputs("text") for text, label in TEXTS.items()]


class Sort(dspy.Signature):
    """Is the message spam?"""

    text: str = dspy.InputField()
    label: Literal["spam", "ham"] = dspy.OutputField()


class Scripted:
    """A teacher that answers by the last line of its prompt, or raises what it finds there."""

    name = fingerprint = "scripted"
    supports_score = supports_prefix = False
    score_source = "exact"
    usd_per_token: tuple[float, float] | None = (0.0, 0.0)
    thinking_tokens = 0

    def __init__(self, answers: Mapping[str, str | Exception]) -> None:
        self.answers = answers

    def generate(self, request: GenerateRequest) -> Generation:
        answer = self.answers[request.messages[-1][1].splitlines()[-1].partition(": ")[2]]
        if isinstance(answer, Exception):
            raise answer
        return Generation(answer, 1, 1, "stop", 0)

    def score(self, request: ScoreRequest) -> Scores:
        raise AssertionError("a scripted teacher is never scored")


class Recorder(LoRAProvider):
    """Keeps the rows of every job instead of training on them."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[list[dict[str, Any]]] = []

    def finetune(self, job: Any, model: str, train_data: Any, *args: Any, **kwargs: Any) -> str:
        self.jobs.append(train_data)
        return model


def same_label(example: Any, prediction: Any, trace: Any = None) -> bool:
    return example.label == prediction.label


@pytest.fixture(autouse=True)
def compact() -> Iterator[None]:
    with dspy.context(adapter=CompactAdapter()):
        yield


def programs(answers: Mapping[str, str | Exception] = TEXTS, kind: Any = dspy.Predict) -> tuple[Any, Any, Recorder]:
    recorder = Recorder()
    student, teacher = kind(Sort), kind(Sort)
    student.set_lm(LM("student", Scripted({}), provider=recorder))
    teacher.set_lm(LM("teacher", Scripted(answers)))
    return student, teacher, recorder


def turns(row: dict[str, Any]) -> list[str]:
    return [turn["content"] for turn in row["messages"]]


def test_an_unparsable_answer_costs_its_row_only() -> None:
    student, teacher, recorder = programs({**TEXTS, "yes at five": "no idea at all"})
    finetune = BootstrapFinetune(same_label)
    finetune.compile(student, trainset=ROWS, teacher=teacher)
    (job,) = recorder.jobs
    assert sorted(turns(row)[-1] for row in job) == ["ham", "spam", "spam"]
    assert [a.failure.partition(":")[0] for a in finetune.attempts] == ["", "", "", "AdapterParseError"]


def test_a_teacher_that_cannot_be_reached_for_one_row_costs_that_row_only() -> None:
    student, teacher, recorder = programs({**TEXTS, "yes at five": InputError("no such row")})
    BootstrapFinetune().compile(student, trainset=ROWS, teacher=teacher)
    assert len(recorder.jobs[0]) == 3


def test_a_spent_budget_ends_it() -> None:
    student, teacher, recorder = programs({**TEXTS, "yes at five": BudgetExceeded("--max-usd is spent")})
    with pytest.raises(BudgetExceeded):
        BootstrapFinetune(num_threads=2).compile(student, trainset=ROWS, teacher=teacher)
    assert recorder.jobs == []


def test_answers_below_the_threshold_are_left_out() -> None:
    def partly(example: Any, prediction: Any, trace: Any = None) -> float:
        return {"win a free prize": 1.0, "free card now": 0.6, "see you at five": 0.1}.get(example.text, 0.0)

    kept = {0.5: 2, 1.0: 1, 0.05: 3}
    for min_score, count in kept.items():
        student, teacher, recorder = programs()
        BootstrapFinetune(partly, min_score=min_score).compile(student, trainset=ROWS, teacher=teacher)
        assert len(recorder.jobs[0]) == count


def test_no_row_is_a_clear_error_before_any_job() -> None:
    student, teacher, recorder = programs(dict.fromkeys(TEXTS, "ham") | {"yes at five": "what?"})
    with pytest.raises(StageEmpty, match=r"of 3 answers 2 scored below 0\.5; 1 failed: AdapterParseError"):
        BootstrapFinetune(same_label).compile(student, trainset=[*ROWS[:2], ROWS[3]], teacher=teacher)
    assert recorder.jobs == []


def test_a_student_without_an_lm_is_told_before_the_teacher_is_asked() -> None:
    _, teacher, _ = programs({})
    with pytest.raises(InputError, match="no LM on self") as caught:
        BootstrapFinetune().compile(dspy.Predict(Sort), trainset=ROWS, teacher=teacher)
    assert caught.value.hint == "student.set_lm(lm)"


@pytest.mark.parametrize("exclude_demos", [False, True])
def test_rows_carry_the_students_prompt_and_not_the_teachers(exclude_demos: bool) -> None:
    student, teacher, recorder = programs()
    teacher.signature = teacher.signature.with_instructions("The teacher's long instructions.")
    teacher.demos = [dspy.Example(text="teacher's demo", label="ham")]
    student.demos = [dspy.Example(text="student's demo", label="spam")]
    finetune = BootstrapFinetune(same_label, exclude_demos=exclude_demos)
    trained = finetune.compile(student, trainset=ROWS, teacher=teacher)
    for row in recorder.jobs[0]:
        text = "\n".join(turns(row))
        assert "Is the message spam?" in text
        assert "teacher" not in text
        assert ("student's demo" in text) is not exclude_demos
    assert len(trained.demos) == (0 if exclude_demos else 1)


def test_the_adapter_given_writes_the_rows() -> None:
    student, teacher, recorder = programs()
    BootstrapFinetune(adapter=dspy.ChatAdapter()).compile(student, trainset=ROWS, teacher=teacher)
    assert all("[[ ## label ## ]]" in turns(row)[-1] for row in recorder.jobs[0])


class Twice(dspy.Module):
    """Calls its first predictor twice and its second once."""

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.Predict("word -> opposite")
        self.sort = dspy.Predict(Sort)

    def forward(self, text: str) -> Any:
        self.write(word="yes")
        self.write(word="no")
        return self.sort(text=text)


def test_a_predictor_called_twice_keeps_its_own_rows() -> None:
    recorder, (student, teacher) = Recorder(), (Twice(), Twice())
    student.set_lm(LM("student", Scripted({}), provider=recorder))
    teacher.set_lm(LM("teacher", Scripted({**TEXTS, "yes": "no", "no": "yes"})))
    finetune = BootstrapFinetune(same_label, multitask=False)
    trained = finetune.compile(student, trainset=ROWS[:2], teacher=teacher)
    answers = sorted(sorted(turns(row)[-1] for row in job) for job in recorder.jobs)
    assert answers == [["no", "no", "yes", "yes"], ["spam", "spam"]]
    assert trained.write.lm is not trained.sort.lm


def test_predictors_of_one_lm_train_one_model_together() -> None:
    recorder, (student, teacher) = Recorder(), (Twice(), Twice())
    student.set_lm(LM("student", Scripted({}), provider=recorder))
    teacher.set_lm(LM("teacher", Scripted({**TEXTS, "yes": "no", "no": "yes"})))
    trained = BootstrapFinetune(same_label).compile(student, trainset=ROWS[:2], teacher=[teacher])
    assert [len(job) for job in recorder.jobs] == [6]
    assert trained.write.lm is trained.sort.lm


def test_a_module_around_a_predictor_is_found_by_name() -> None:
    student, teacher, recorder = programs(
        {text: f"[[ ## reasoning ## ]]\nplain\n[[ ## label ## ]]\n{label}" for text, label in TEXTS.items()},
        dspy.ChainOfThought,
    )
    BootstrapFinetune(same_label).compile(student, trainset=ROWS, teacher=teacher)
    assert len(recorder.jobs[0]) == 4
    assert all("plain" in turns(row)[-1] for row in recorder.jobs[0])


def test_better_together_prompts_trains_and_evaluates_the_student(fresh_tiny: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    cast(Any, fresh_tiny.model).save_pretrained(folder)
    cast(Any, fresh_tiny.tokenizer).save_pretrained(folder)
    provider = LoRAProvider(tmp_path / "out", TrainConfig(lr=1e-2, max_steps=40, batch_size=4, rank=4))
    _, teacher, _ = programs()
    student = dspy.Predict(Sort)
    student.set_lm(connect(f"hf:{folder}", provider=provider))
    together = dspy.BetterTogether(
        metric=same_label, p=dspy.LabeledFewShot(k=1), w=BootstrapFinetune(same_label, num_threads=2)
    )
    trained: Any = together.compile(
        student, trainset=ROWS, valset=ROWS, teacher=teacher, strategy="p -> w", num_threads=1, seed=0
    )
    assert trained.flag_compilation_error_occurred is False
    assert sorted(c["strategy"] for c in trained.candidate_programs) == ["", "p", "p -> w"]
    assert trained.candidate_programs[0]["strategy"] == "p -> w"
    assert trained.candidate_programs[0]["score"] == 100
    assert isinstance(trained.lm.backend, StudentBackend)
    assert [trained(text=text).label for text in TEXTS] == list(TEXTS.values())
