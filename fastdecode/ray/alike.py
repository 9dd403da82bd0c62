"""Whether the machines of a cluster have the same model and the same packages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastdecode.jobs.manifest import hashes_of, versions
from fastdecode.jobs.worker import Job


@dataclass(frozen=True)
class Expected:
    """What a machine must have to make the same items as the one that began the job.

    files      SHA-256 of the checkpoint's files and of its vqgan, by name
    versions   of fastdecode, torch and transformers, by name; None: any
    """

    files: Mapping[str, str]
    versions: Mapping[str, str] | None

    @staticmethod
    def here(job: Job, any_version: bool = False) -> Expected:
        """What this machine has."""
        return Expected(hashes_of(job), None if any_version else versions())

    def check(self, job: Job) -> None:
        """``ValueError`` says in what this machine differs."""
        found = versions()
        for name, version in (self.versions or found).items():
            if found[name] != version:
                raise ValueError(
                    f"this machine has {name} {found[name]}, and the job was begun with {version}: install that, or "
                    "give --any-version: its tokens may differ"
                )
        files = hashes_of(job)
        for name in sorted({*self.files, *files}):
            if files.get(name) != self.files.get(name):
                raise ValueError(
                    f"{name} of {job.model} is not on this machine what it is where the job was begun: copy that there"
                )
