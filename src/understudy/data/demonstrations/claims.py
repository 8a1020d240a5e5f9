"""What an HDF5 file may ask for: nothing that lies in another file, and no more memory than it can mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from understudy.core.borders import check_unpacked


class Claims:
    """Refuses links into other files, and datasets that claim more memory than the file can mean.

    Raises ValueError for a file with an external link anywhere, before one is followed.
    """

    def __init__(self, path: Path, file: Any) -> None:
        import h5py

        self.path, self.size, self.bytes = path, path.stat().st_size, 0
        external = h5py.h5l.TYPE_EXTERNAL
        found = file.id.links.visit(lambda name, info: name if info.type == external else None, info=True)
        if found is not None:
            self.refuse(found.decode(errors="replace"))

    def refuse(self, name: str) -> None:
        """Raise ValueError for what lies in another file."""
        raise ValueError(f"{self.path}: {name} lies in another file, which is not followed: copy the data into one")

    def check(self, name: str, dataset: Any, values: int | None = None, rows: int | None = None) -> Any:
        """The dataset, if it may be read: how many bytes (`values`) if its entries do not say, or `rows` of it."""
        import h5py

        opened = dataset.id
        shape, dtype, chunk = opened.shape, opened.dtype, ()
        if opened.get_offset() is None:  # not in one piece in this file, so look closer, which takes its time
            properties = opened.get_create_plist()
            if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
                self.refuse(name)
            chunk = properties.get_chunk() if properties.get_layout() == h5py.h5d.CHUNKED else ()
        if dtype.kind not in "biuf" and h5py.check_vlen_dtype(dtype) != np.uint8:
            raise ValueError(f"{self.path}: {name} is of type {dtype}: store numbers")
        entries = max(math.prod(shape if rows is None else (rows, *shape[1:])), math.prod(chunk) if chunk else 0)
        self.take(entries * dtype.itemsize if values is None else values)
        return dataset

    def take(self, count: int) -> None:
        """Count these bytes, too."""
        self.bytes += count
        check_unpacked(self.path, self.size, self.bytes)


def datasets(group: Any) -> dict[str, Any]:
    """The datasets below a group by their path, those that links lead to among them."""
    import h5py

    found, links = dict[str, Any](), dict[str, Any]()
    group.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    group.visititems_links(lambda name, link: links.update({name: link}))
    for name, link in links.items():
        if isinstance(link, h5py.SoftLink) and isinstance(item := group[name], h5py.Dataset):
            found[name] = item
    return found
