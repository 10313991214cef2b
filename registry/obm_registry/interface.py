"""What every registry can do for `obm`: the embedded one, a server, an OCI image layout.

References are `[host/]namespace/backbone[:tag][@digest]`. What a kind of registry cannot do raises `unsupported`,
in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from obm_format.progress import Progress, silent
from obm_registry import reports


class ExpertRegistry(Protocol):
    """Backbones and experts by reference."""

    def __enter__(self) -> Self:
        """The registry itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Give back what it holds."""

    def add_backbone(
        self, checkpoint: str | Path, ref: str, *, with_weights: bool = False, progress: Progress = silent
    ) -> reports.ListedBackbone:
        """Register a backbone, and with `with_weights` store its weights too; the same again changes nothing.

        Raises:
            RegistryError: `tag_exists` when the repository has another backbone, or its weights with other files
                beside them.
        """

    def pull_backbone(self, ref: str, out: str | Path, *, progress: Progress = silent) -> reports.PulledBackbone:
        """Write a backbone's checkpoint folder: its weights, each tensor checked, and the files beside them.

        Raises:
            RegistryError: `not_found`, also where the registry has the backbone without its weights.
            CheckpointError: `exists`, the folder holds something.
            BackboneMismatch: `backbone_mismatch`, the stored weights are not the backbone's.
        """

    def backbones(self) -> list[reports.ListedBackbone]:
        """Every backbone of the registry, by repository."""

    def backbone(self, ref: str, *, tensors: bool = True) -> reports.ListedBackbone:
        """The backbone of a repository.

        Raises:
            RegistryError: `not_found`.
        """

    def push(
        self,
        file: str | Path,
        ref: str,
        *,
        move: bool = False,
        bases: Sequence[str | Path] = (),
        progress: Progress = silent,
    ) -> reports.Transfer:
        """Publish an `.obm` file under a tag; only what the registry lacks is sent.

        The base vectors that it refers to go along: `bases`, or what lies beside it.

        Raises:
            FormatError: the file is damaged; `bad_reference` without a base vector that it refers to.
            RegistryError: `backbone_unknown`, `tag_exists`, and what the registry refuses.
            BackboneMismatch: `backbone_mismatch`.
        """

    def resolve(self, ref: str) -> reports.Resolved:
        """What a reference to an expert stands for.

        Raises:
            RegistryError: `not_found`; `bad_manifest` when it is no expert.
        """

    def pull(self, ref: str, out: str | Path, *, progress: Progress = silent) -> reports.Transfer:
        """Write an expert to a file: the very bytes that were pushed, each segment checked.

        Base vectors that it refers to are written beside it, under their ids.

        Raises:
            RegistryError: `not_found`, `bad_manifest`, `blob_damaged`.
            FormatError: the segments are no `.obm` file.
        """

    def signatures(self, ref: str) -> list[bytes]:
        """The signatures of an expert, whether they hold or not."""

    def add_signature(self, ref: str, signature: bytes) -> reports.Named:
        """Publish a signature of an expert; the same again changes nothing.

        Raises:
            RegistryError: `bad_signature` when it is about something else.
        """

    def experts(self, ref: str | None = None) -> list[reports.ListedExpert]:
        """The experts of the registry, of a repository, or the one that a reference names."""

    def tag(self, ref: str, name: str, *, move: bool = False) -> reports.Named:
        """Give what a reference names another tag in the same repository."""

    def log(self, ref: str) -> list[reports.LogEntry]:
        """The moves of a tag, or of all tags of a repository, the latest first."""

    def remove(self, ref: str) -> reports.Named:
        """Remove a tag, or with a digest a manifest and all its tags."""

    def yank(self, ref: str, *, reason: str = "", undo: bool = False) -> reports.Named:
        """Withdraw an expert, or take that back; it stays where it is."""
