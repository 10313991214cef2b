"""Three real classification tasks, read from data that PyPI packages carry.

* ``speech``: which part of speech is an English word (Brill lexicon in the textblob package)?
* ``kind``: does a CLDR name mean a territory, a language, a script, a currency or a city (Babel)?
* ``language``: in which of eight languages is a CLDR name written (Babel)?

Each text begins with a word that asks for its task, as a prompt would: ``word running``, ``kind Samoa``,
``language lappföldi``. That word is all that tells the last two apart, for a router too.
An item is the thing named, not the string: a word, a CLDR key. All names of an item fall into the same
split, and a hash of the item alone decides which: new data moves no old item.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from babel import Locale

Split = list[tuple[str, int]]

SPEECH = ("noun", "plural noun", "adjective", "adverb", "verb", "present participle", "past form")
BRILL_TAGS = {
    "noun": ("NN",),
    "plural noun": ("NNS",),
    "adjective": ("JJ",),
    "adverb": ("RB",),
    "verb": ("VB",),
    "present participle": ("VBG",),
    "past form": ("VBN", "VBD"),
}
SPEECH_SHARE = 0.18
KINDS = ("territory", "language", "script", "currency", "city")
KIND_LOCALES = ("nl", "sv", "da", "fi", "pl", "cs", "hu", "hr")
LANGUAGES = ("fi", "hu", "pl", "cs", "tr", "hr", "ro", "et")
NAME_LETTERS = 20


class Named(NamedTuple):
    """One text with its class, and the item that it is a name of."""

    item: str
    text: str
    label: int


@dataclass(frozen=True)
class Task:
    """A labelled task whose splits share neither an item nor a text."""

    name: str
    classes: tuple[str, ...]
    train: Split
    dev: Split
    test: Split


@functools.cache
def load(name: str) -> Task:
    """Read one task.

    Args:
        name: A key of ``TASKS``.

    Returns:
        The task with its splits; the same on every machine for the same package versions.
    """
    return TASKS[name]()


def prompts(task: Task, split: str = "train") -> list[dict[str, str]]:
    """Give the texts of a task as lines of a router's prompt file.

    Args:
        task: The task whose texts the router shall learn to recognise.
        split: ``train`` to fit a router, ``test`` to evaluate it.

    Returns:
        One ``{"text": ...}`` per item of the split, without its label.
    """
    examples: Split = {"train": task.train, "dev": task.dev, "test": task.test}[split]
    return [{"text": text} for text, _ in examples]


def speech() -> Task:
    """Read the lower-case words that the lexicon gives one tag; the label is the part of speech."""
    return _split("speech", SPEECH, _brill_words(), test=0.085, dev=0.15)


def kind() -> Task:
    """Read CLDR names in eight Latin-script locales; the label is the kind of thing named."""
    return _split("kind", KINDS, _cldr_kinds(), test=0.09, dev=0.15)


def language() -> Task:
    """Read CLDR names in eight Latin-script locales; the label is the language."""
    return _split("language", LANGUAGES, _cldr_languages(), test=0.09, dev=0.15)


TASKS: dict[str, Callable[[], Task]] = {"speech": speech, "kind": kind, "language": language}


def _brill_words() -> Iterator[Named]:
    lexicon = (_package("textblob") / "en" / "en-lexicon.txt").read_text(encoding="utf-8")
    labels = {tag: label for label, name in enumerate(SPEECH) for tag in BRILL_TAGS[name]}
    for line in lexicon.splitlines():
        word, *tags = line.split() or [""]
        plain = word.isascii() and word.isalpha() and word.islower()
        # Most words would only lengthen the epoch that nobody trains.
        if len(tags) == 1 and tags[0] in labels and plain and _position("lexicon", word) < SPEECH_SHARE:
            yield Named(word, f"word {word}", labels[tags[0]])


def _cldr_languages() -> Iterator[Named]:
    for label, code in enumerate(LANGUAGES):
        for kind_of, table in _cldr_tables(Locale(code)):
            for key, name in table.items():
                yield Named(f"{kind_of}/{key}", f"language {name}", label)


def _cldr_kinds() -> Iterator[Named]:
    for code in KIND_LOCALES:
        for kind_of, table in _cldr_tables(Locale(code)):
            for key, name in table.items():
                yield Named(f"{kind_of}/{key}", f"kind {name}", KINDS.index(kind_of))


def _cldr_tables(locale: Locale) -> Iterator[tuple[str, dict[str, str]]]:
    cities = {zone: entry["city"] for zone, entry in locale.time_zones.items() if "city" in entry}
    tables = (locale.territories, locale.languages, locale.scripts, locale.currencies, cities)
    for kind_of, table in zip(KINDS, tables, strict=True):
        yield kind_of, {key: str(name) for key, name in table.items() if _is_name(key, str(name))}


def _is_name(key: str, name: str) -> bool:
    # A missing translation is the key itself, and numbered areas are no names.
    return name != key and len(name) <= NAME_LETTERS and not any(letter.isdigit() for letter in name)


def _split(name: str, classes: tuple[str, ...], named: Iterable[Named], *, test: float, dev: float) -> Task:
    parts: dict[str, Split] = {"train": [], "dev": [], "test": []}
    for entry in _distinct(named):
        position = _position(name, entry.item)
        part = "test" if position < test else "dev" if position < test + dev else "train"
        parts[part].append((entry.text, entry.label))
    return Task(name, classes, **parts)


def _distinct(named: Iterable[Named]) -> list[Named]:
    """Keep one entry per text, and none of a text that names two classes."""
    entries: dict[str, list[Named]] = {}
    for entry in named:
        entries.setdefault(_fold(entry.text), []).append(entry)
    kept = [min(same) for same in entries.values() if len({entry.label for entry in same}) == 1]
    return sorted(kept)


def _fold(text: str) -> str:
    # The backbone's tokenizer drops case and accents: what it cannot tell apart is the same text.
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def _package(name: str) -> Path:
    # Importing a package only to read its data can be slow, and needs all that it imports.
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the demo reads data of the package {name}: install it", name=name)
    return Path(spec.submodule_search_locations[0])


def _position(task: str, item: str) -> float:
    digest = hashlib.sha256(f"{task}\0{item}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
