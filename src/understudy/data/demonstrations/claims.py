"""What an HDF5 file may ask for: nothing that lies in another file, and no more memory than it can mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from understudy.core.borders import check_unpacked


class Stored(NamedTuple):
    """A dataset as HDF5 has it; `h5py.Dataset` around it takes longer to make than a trajectory to read."""

    id: Any  # h5py.h5d.DatasetID
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Claims:
    """Refuses links into other files, and datasets that claim more memory than the file can mean.

    Raises ValueError for a file with an external link anywhere, before one is followed.
    """

    kinds: tuple[tuple[Any, np.dtype[Any]], ...] = ()
    """Types of entries that were met last, and numpy's: translating one takes longer than comparing a few."""

    def __init__(self, path: Path, file: Any) -> None:
        import h5py

        self.path, self.size, self.bytes = path, path.stat().st_size, 0
        self.memory: dict[np.dtype[Any], Any] = {}  # HDF5's types of arrays in memory
        external = h5py.h5l.TYPE_EXTERNAL
        found = file.id.links.visit(lambda name, info: name if info.type == external else None, info=True)
        if found is not None:
            self.refuse(found.decode(errors="replace"))

    def refuse(self, name: str) -> None:
        """Raise ValueError for what lies in another file."""
        raise ValueError(f"{self.path}: {name} lies in another file, which is not followed: copy the data into one")

    def dtype(self, opened: Any) -> np.dtype[Any]:
        """Type of the entries of a dataset or an attribute."""
        stored = opened.get_type()
        for known, dtype in self.kinds:
            if known.equal(stored):
                return dtype
        self.kinds = ((stored, stored.dtype), *self.kinds[:7])
        return self.kinds[0][1]

    def look(self, opened: Any) -> Stored:
        """What there is to know of a dataset before it is read."""
        return Stored(opened, opened.shape, self.dtype(opened))

    def read(self, dataset: Stored) -> np.ndarray:
        """All of a dataset of numbers that was checked."""
        import h5py

        values = np.empty(dataset.shape, dataset.dtype)
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, values, self.in_memory(dataset.dtype))
        return values

    def in_memory(self, dtype: np.dtype[Any]) -> Any:
        """HDF5's type of an array's entries, which takes longer to make than an array to read."""
        import h5py

        if dtype not in self.memory:
            self.memory[dtype] = h5py.h5t.py_create(dtype)
        return self.memory[dtype]

    def check(self, name: str, dataset: Any, values: int | None = None, rows: int | None = None) -> Any:
        """The dataset, if it may be read: how many bytes (`values`) if its entries do not say, or `rows` of it."""
        import h5py

        opened, shape, dtype, chunk = dataset.id, dataset.shape, dataset.dtype, ()
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
        if self.bytes > self.size:  # the look at the limit takes its time
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
