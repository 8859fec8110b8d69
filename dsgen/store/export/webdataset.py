"""Write samples as a WebDataset tar file."""

import io
import json
import tarfile
from collections.abc import Iterable
from typing import BinaryIO

from dsgen.store.export.plan import ExportSettings
from dsgen.store.export.samples import EncodedSample


def write_tar(stream: BinaryIO, samples: Iterable[EncodedSample], settings: ExportSettings) -> None:
    """Write samples as WebDataset expects them: consecutive files with a common key.

    The headers have neither time nor user, so the bytes depend on the samples alone.
    """
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for sample in samples:
            members = {f"{field}.{settings.suffix(field)}": code for field, code in sample.images.items()}
            members["json"] = json.dumps(sample.columns | {"units": settings.units}).encode()
            for name, content in members.items():
                member = tarfile.TarInfo(f"{sample.columns['row']:09d}.{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
