"""What the writer of an expert may choose, and how those choices read in words.

Never looks at a checkpoint. Source: design page, "Defaults, and why"; obm-1 clauses 6.3 and 6.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from obm_format.codecs.alphas import AlphaChoice
from obm_format.compress.budget import Budget, parse_budget
from obm_format.compress.choices import Choice
from obm_format.container.names import TASK
from obm_format.errors import UsageError
from obm_format.model import AlphaRule, Granularity

PRESETS: Mapping[str, str] = {
    "chat": "mlp",
    "math": "attention",
    "code": "attention",
}  # the paper's positions
ENCODINGS = ("sign1", "tern1", "sparse", "affine8", "affine4", "affine3", "affine2")
RESTS = ("exact", "raw", "affine8", "affine4", "affine3", "affine2", "drop")
FIT = "fit"  # the rest where a budget chooses for it too; nothing that the caller says

_PAPER_ALPHA = AlphaChoice(granularity=Granularity.MATRIX, rule=AlphaRule.MEAN)
_DEFAULT_ALPHA = AlphaChoice(granularity=Granularity.ROW, rule=AlphaRule.PROJ)
_ALPHA = re.compile(r"(?P<rule>mean|rms|proj)(/(?P<granularity>matrix|row|group:(?P<group>[0-9]{1,9})))?")
_GAIN = re.compile(r"[0-9]{1,4}(\.[0-9]{1,9})?")
_RTVQ = re.compile(r"([2348])\+([2348])")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressOptions:
    """How to compress; `parse_compress_options` makes one from words.

    Args:
        task: task name, or "".
        position: which tensors are stored with 1 bit, see `positions.select`.
        encoding: how those are stored, one of ENCODINGS.
        planes: sign planes, 1 to 4; only for sign1.
        alpha: granularity, rule and gain; MATRIX means one alpha per logical matrix of a fused tensor.
        rest: how all others are stored, one of RESTS; FIT only with a budget.
        allow_removed: whether float tensors of the backbone may be missing from the fine-tune.
        budget: choose an encoding for each tensor of the position, and of a rest FIT, instead of `encoding` and
            `planes`, so that the file fits.
        asked_alpha: whether the caller asked for `alpha`: a budget then tries no other.
    """

    task: str = ""
    position: str = "linear"
    encoding: str = "sign1"
    planes: int = 1
    alpha: AlphaChoice = _DEFAULT_ALPHA
    rest: str = "exact"
    allow_removed: bool = False
    budget: Budget | None = None
    asked_alpha: bool = False

    @property
    def choice(self) -> Choice:
        """How a tensor of the position is stored without a budget."""
        with_alpha = self.encoding in ("sign1", "tern1")
        return Choice(encoding=self.encoding, planes=self.planes, alpha=self.alpha if with_alpha else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RtvqOptions:
    """How to compress several fine-tunes onto one base vector; `parse_rtvq_options` makes one from words.

    Args:
        base_bits: bits of the base vector: 2, 3, 4 or 8.
        offset_bits: bits of each offset, likewise.
        tasks: a task name for each fine-tune, or none at all.
        common: position, rest and allow_removed of all; what it says of the position's encoding is not used.
    """

    base_bits: int = 3
    offset_bits: int = 2
    tasks: tuple[str, ...] = ()
    common: CompressOptions = CompressOptions()


def parse_rtvq_options(bits: str, tasks: Sequence[str], common: CompressOptions) -> RtvqOptions:
    """Options from the words of the command line.

    Args:
        bits: bits of base vector and offset, `3+2`.
        tasks: a task name for each fine-tune, or none at all.
        common: position, rest and allow_removed.

    Raises:
        UsageError: `usage`.
    """
    match = _RTVQ.fullmatch(bits)
    if match is None:
        raise UsageError("usage", "these are no bits", expected="BASE+OFFSET, each 2, 3, 4 or 8, as 3+2", got=bits)
    return RtvqOptions(base_bits=int(match[1]), offset_bits=int(match[2]), tasks=tuple(tasks), common=common)


def parse_compress_options(  # noqa: PLR0913 - one per flag
    *,
    preset: str | None = None,
    position: str | None = None,
    encoding: str | None = None,
    planes: int | None = None,
    alpha: str | None = None,
    gain: str | None = None,
    rest: str | None = None,
    task: str = "",
    allow_removed: bool = False,
    budget: str | None = None,
) -> CompressOptions:
    """Options from the words of the command line; what is None takes the preset's value, or the default's.

    Args:
        preset: `chat`, `math` or `code`: the paper's position, with alpha `mean/matrix`.
        position: see `positions.select`; not together with a preset.
        encoding: one of ENCODINGS; None: sign1.
        planes: 1 to 4; None: 1.
        alpha: `mean|rms|proj[/matrix|row|group:N]`; without a granularity the preset's or default's stays.
        gain: positive decimal number that alphas are multiplied by.
        rest: one of RESTS; None: exact, or with a budget whatever fits.
        task: task name, or "".
        allow_removed: whether float tensors of the backbone may be missing from the fine-tune.
        budget: see `parse_budget`; not together with `encoding`, `planes` or `gain`.

    Raises:
        UsageError: `usage`.
    """
    if preset is not None and position is not None:
        raise UsageError("usage", "a preset says the position; give one of the two")
    if preset is not None and preset not in PRESETS:
        raise _unknown("preset", tuple(PRESETS), preset)
    if budget is not None and (encoding, planes, gain) != (None, None, None):
        raise UsageError("usage", "a budget chooses the encoding: it goes without encoding, planes and gain")
    encoding, planes = encoding or "sign1", 1 if planes is None else planes
    rest = ("exact" if budget is None else FIT) if rest is None else rest
    if encoding not in ENCODINGS:
        raise _unknown("encoding", ENCODINGS, encoding)
    if rest not in RESTS and rest is not FIT:
        raise _unknown("rest", RESTS, rest)
    if not 1 <= planes <= 4 or (planes > 1 and encoding != "sign1"):
        raise UsageError("usage", "sign1 has 1 to 4 planes, other encodings have none", got=planes)
    if TASK.fullmatch(task) is None:
        raise UsageError("usage", "this is no task name", expected="letters, digits, . _ -", got=ascii(task[:80]))
    choice = _DEFAULT_ALPHA if preset is None else _PAPER_ALPHA
    choice = _parse_alpha(alpha, choice) if alpha is not None else choice
    return CompressOptions(
        task=task,
        position=PRESETS[preset] if preset is not None else position if position is not None else "linear",
        encoding=encoding,
        planes=planes,
        alpha=replace(choice, gain=_parse_gain(gain)) if gain is not None else choice,
        rest=rest,
        allow_removed=allow_removed,
        budget=None if budget is None else parse_budget(budget),
        asked_alpha=alpha is not None or preset is not None,
    )


def _parse_alpha(text: str, default: AlphaChoice) -> AlphaChoice:
    match = _ALPHA.fullmatch(text)
    if match is None:
        raise UsageError("usage", "this is no alpha", expected="mean|rms|proj[/matrix|row|group:N]", got=text)
    choice = replace(default, rule=AlphaRule(match["rule"]))
    if match["group"] is not None:
        # obm-1 clause 6.3
        if int(match["group"]) % 64 or not int(match["group"]):
            raise UsageError("usage", "a group of columns is a positive multiple of 64", got=match["group"])
        return replace(choice, granularity=Granularity.GROUP, group=int(match["group"]))
    if match["granularity"] is not None:
        return replace(choice, granularity=Granularity(match["granularity"]))
    return choice


def _parse_gain(text: str) -> str:
    """The gain in its shortest form, so that 1.50 and 1.5 make the same file."""
    # obm-1 clause 6.4
    if _GAIN.fullmatch(text) is None or not Decimal(text):
        raise UsageError("usage", "the gain is a positive decimal number", expected=_GAIN.pattern, got=text)
    return f"{Decimal(text).normalize():f}"


def _unknown(what: str, known: tuple[str, ...], got: str) -> UsageError:
    return UsageError("usage", f"no such {what}", expected=", ".join(known), got=got)
