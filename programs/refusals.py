"""A model that declines: what it says in its own name, and where it was to write what somebody else would say."""

from __future__ import annotations

import re

_CANNOT = r"(?:can(?:no|['’])t|can not|could(?: no|n['’])t|won['’]t|will not|am (?:unable|not able) to|must)"
_HELPING = (
    r"(?:assist|help|fulfil|comply|provide|create|generate|write|produce|engage|support|participate|continue|decline)"
)
_DECLINES = re.compile(
    rf"\W*(?:(?:(?:i['’]?\s?a?m )?(?:very |so )?sorry|i apologi[sz]e|unfortunately)\b[,.]?(?: but)?,? i {_CANNOT}\b"
    rf"|i {_CANNOT} {_HELPING}\b|as an? (?:ai|language model)\b)",
    re.IGNORECASE,
)

_REFUSAL = re.compile(
    r"\W*(?:i'?\s?a?m (?:very )?(?:sorry|unable|not able)|sorry\b|i (?:can(?:no|')t|can not|won't|will not)\b"
    r"|i apologi[sz]e|as an ai\b)",
    re.IGNORECASE,
)


def declines(text: str) -> bool:
    """Return whether a text begins as models do that refuse; a numbered list does not.

    >>> declines("I'm sorry, but I can't assist with that."), declines("I cannot provide such texts.")
    (True, True)
    >>> declines("I can't log in since Monday."), declines("Sorry, my parcel is gone."), declines("1. I can't help it")
    (False, False, False)
    """
    return _DECLINES.match(text) is not None


def refuses(text: str) -> bool:
    """Return whether a text in the model's own name begins as a refusal; people say such things of themselves, too.

    >>> refuses("I'm unable to criticise this."), refuses("I can't log in since Monday."), refuses("The tea is hot.")
    (True, True, False)
    """
    return _REFUSAL.match(text) is not None
