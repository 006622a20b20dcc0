# Machinery: keep, and skip at first.
"""Suggest what was meant by an unknown option, key or column, from the names and help texts of the known ones."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Known(NamedTuple):
    """Something that could have been meant."""

    written: str  # how to write it, such as `--lr`
    names: tuple[str, ...]  # its names, such as `lr` and `train.lr`; the words of the first one count most
    description: str = ""
    choices: tuple[str, ...] = ()  # words that are values of it: `--cpu` was meant as `--device cpu`


def suggest(name: str, known: Sequence[Known], otherwise: str) -> str:
    """Return a question such as `did you mean --lr?`, or `otherwise` if no known name is similar.

    A name is similar if it has nearly the same letters or, failing that, if it has the same words, such as
    `--num-epochs` and `--epochs`. The words may also be in the description or the values of what was meant, or be its
    initials. A section, as in `--model`, stands for its first option.
    """
    places = {each_name: each.written for each in reversed(known) for each_name in each.names}
    name = name if name in places else name.rpartition(".")[2]

    def close(cutoff: float) -> list[str]:
        return [places[found] for found in difflib.get_close_matches(name, places, n=1, cutoff=cutoff)]

    section = [each.written for each in known if each.names[-1].startswith(f"{name}.")][:1]
    meant = close(0.75) or _with_same_words(name, known) or section or close(0.6)
    return f"did you mean {' or '.join(filter(None, (', '.join(meant[:-1]), meant[-1])))}?" if meant else otherwise


def unknown_name(kind: str, name: str, described: Mapping[str, str]) -> str:
    """Words that name a missing array, the nearest one, and those that are there, which are `described` by name."""
    listed = ", ".join(list(described.values())[:20]) + (", ..." if len(described) > 20 else "") or f"no {kind}s"
    advice = suggest(name, [Known(each, (each,)) for each in described], "")
    return f"no {kind} {name!r}; {f'{advice} ' if advice else ''}the file has {listed}"


def _with_same_words(name: str, known: Sequence[Known]) -> list[str]:
    """The known names, at most three, that share most words with an unknown name."""
    words = _words(name.removeprefix("no-"))
    scores = {}
    for each in known:
        own, about = _words(each.names[0]), _words(each.description)
        for choice in each.choices:
            if choice.lower() in words:
                scores[f"{each.written} {choice}"] = 2 / (len(words) + 1)
        in_name = [word for word in words if _occurs(word, own)]
        in_text = [word for word in words if word not in in_name and _occurs(word, about)]
        found = 2.0 * len(in_name) + (1 + 0.5 / (1 + len(about))) * len(in_text)  # a short text says more
        if len(own) > 1 and words == ["".join(word[0] for word in own)]:
            found, in_name = 2.0, words
        if 0 < len(words) <= 2 * len(in_name + in_text):
            scores[each.written] = found / (len(words) + len(own))
    return [written for written, score in scores.items() if score == max(scores.values())][:3]


def _words(text: str) -> list[str]:
    return re.findall("[a-z][a-z0-9]*", text.lower())


def _occurs(word: str, words: Sequence[str]) -> bool:
    """Whether a word is among others, or is the beginning of one of them, or begins with one of them."""
    return any(
        word == other or (min(len(word), len(other)) > 2 and (word.startswith(other) or other.startswith(word)))
        for other in words
    )
