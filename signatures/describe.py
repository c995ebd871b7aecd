"""The contract by which a teacher says what a label means, from rows that carry it and rows that do not."""

# pyright: reportUnknownMemberType=false, reportUntypedBaseClass=false

from __future__ import annotations

import dspy


class DescribeLabel(dspy.Signature):
    """Find out what a label means: what its texts have in common that the other texts do not have.

    Answer in one line: a readable name of one or two words, a colon, and a short description. The label may
    be an abbreviation or say nothing: believe the texts. Never quote a text.
    """

    task: str = dspy.InputField()
    label: str = dspy.InputField()
    texts: str = dspy.InputField(desc="texts with this label")
    other_texts: str = dspy.InputField(desc="texts with other labels")
    meaning: str = dspy.OutputField(desc="name: what the label's texts have in common")
