"""Ways to damage a trace, each by a seed: at random in its bytes, and on purpose through HDF5."""

import contextlib

import h5py
import numpy as np

from precision_probe.trace.digest import write_trailer

HOSTILE = [
    *("", "\x1b]0;owned\x07\x1b[2J", "[bold red]x", "=cmd()", "null", "true", "[1, 2", "[" * 100_000, '{"a": 1e999}'),
    *("days since 2000-01-01", "s", "1o", "float64", '["float64"]', "[]", "9" * 5000, "x" * 70_000, "../../etc/passwd"),
    *(b"\xff\xfe\x00bytes", np.int64(-(2**63)), np.uint64(2**64 - 1), np.nan, np.inf, 0, 2, -1, [1.0, 2.0]),
    *(np.zeros((3, 3)), h5py.Empty("f8"), np.array([], "f4"), True, np.array(["a", "b"], object)),
]
NAMES = [
    *("units", "long_name", "block", "tensor", "direction", "native_dtype", "irreps", "layout", "_FillValue", "dtype"),
    *("scale_factor", "add_offset", "missing_value", "calendar", "coordinates", "_Unsigned", "DIMENSION_LIST", "CLASS"),
    *("NAME", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates", "title", "schema_version", "precisions"),
    *("modes", "blocks", "complete", "versions", "model_name", "created", "n_parameters", "text_crc32", "new"),
]


def _parts(file):
    found = ["/"]
    file.visit(lambda name: found.append("/" + name) and None)
    return found


def _pick(rng, items):
    return items[int(rng.integers(len(items)))]


def _variable(rng, file):
    return _pick(rng, [name for name in _parts(file) if isinstance(file[name], h5py.Dataset)])


# In bytes


def flip_bits(rng, data):
    for _ in range(int(rng.integers(1, 9))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def truncate(rng, data):
    del data[int(rng.integers(len(data))) :]


def zero_run(rng, data):
    first, length = int(rng.integers(len(data))), int(rng.integers(1, 4096))
    data[first : first + length] = bytes(len(data[first : first + length]))


def random_run(rng, data):
    first, length = int(rng.integers(len(data))), int(rng.integers(1, 256))
    data[first : first + length] = rng.bytes(len(data[first : first + length]))


def swap_blocks(rng, data):
    a, b = sorted(int(rng.integers(len(data) // 512)) * 512 for _ in range(2))
    data[a : a + 512], data[b : b + 512] = data[b : b + 512], data[a : a + 512]


def large_number(rng, data):
    first = int(rng.integers(len(data) - 8))
    data[first : first + 8] = _pick(rng, [2**63 - 1, 2**63, 2**64 - 1, 2**32]).to_bytes(8, "little")


# Through HDF5


def rename(rng, file):
    name = _pick(rng, _parts(file)[1:])
    file.move(name, name + _pick(rng, ["x", "_2", ".call1", "\x1b[31m"]))


def move_elsewhere(rng, file):
    """Never sealed: arrays that change places, and a new checksum over them, are another trace, not a damaged one."""
    names = _parts(file)[1:]
    a, b = _pick(rng, names), _pick(rng, names)
    if not a.startswith(b) and not b.startswith(a):
        file.move(a, "/aside")
        file.move(b, a)
        file.move("/aside", b)


def delete(rng, file):
    """Not a whole table: a trace without it, once sealed, is one that might have been made so."""
    del file[_pick(rng, [name for name in _parts(file)[1:] if not name.startswith("/tables") or name.count("/") > 2])]


def delete_attribute(rng, file):
    attributes = file[_pick(rng, _parts(file))].attrs
    if len(attributes):
        del attributes[_pick(rng, list(attributes))]


def hostile_attribute(rng, file):
    attributes, name = file[_pick(rng, _parts(file))].attrs, _pick(rng, NAMES)
    value = HOSTILE[int(rng.integers(len(HOSTILE)))]
    if isinstance(value, str) and len(value) > 60_000:
        value = value[:60_000]
    attributes[name] = value


def link(rng, file):
    name = _pick(rng, _parts(file)[1:])
    kind = int(rng.integers(5))
    others = [part for part in _parts(file) if part != name and not part.startswith(name + "/")]
    target = file[_pick(rng, others)]
    if kind:
        del file[name]
    if kind == 0:
        file[name + "_again"] = file[name]
    elif kind == 1:
        file[name] = h5py.SoftLink(_pick(rng, ["/nowhere", "/structures/name", "/", "."]))
    elif kind == 2:
        file[name] = h5py.ExternalLink(_pick(rng, ["/etc/passwd", "/dev/zero", "other.h5"]), "/structures/name")
    else:
        file[name] = target  # a second name, or a circle


def nest(rng, file):
    group = file[_pick(rng, [name for name in _parts(file) if isinstance(file[name], h5py.Group)])]
    for _ in range(_pick(rng, [5, 50, 500])):
        group = group.create_group("n")


def _replace(file, name, make):
    """Put another variable in the place of one, with the same attributes, and tied to the same dimensions."""
    old = file[name]
    attributes = {key: old.attrs[key] for key in old.attrs if key not in ("DIMENSION_LIST", "REFERENCE_LIST")}
    ties = np.array(old.attrs["DIMENSION_LIST"], dtype=object) if "DIMENSION_LIST" in old.attrs else None
    values = old[()]
    del file[name]
    new = make(file, name, values)
    for key, value in attributes.items():
        new.attrs[key] = value
    if ties is not None and len(ties) == new.ndim:
        new.attrs.create("DIMENSION_LIST", ties, dtype=h5py.vlen_dtype(h5py.ref_dtype))


def huge(rng, file):
    name, most = _variable(rng, file), _pick(rng, [2**63 - 1, 2**60, 2**40, 2**33])
    rank = max(1, file[name].ndim)
    shape = (most // (2 ** (rank - 1)) // 8, *[1] * (rank - 1))
    _replace(file, name, lambda f, n, v: f.create_dataset(n, shape, "f8", chunks=(1024, *[1] * (rank - 1))))


def resize(rng, file):
    name = _variable(rng, file)
    size = int(rng.integers(0, 40))
    _replace(file, name, lambda f, n, v: f.create_dataset(n, data=np.resize(v, (size, *np.shape(v)[1:]))))


def other_type(rng, file):
    name = _variable(rng, file)
    kinds = ["f2", "i1", "u8", "c16", "S5", np.dtype([("a", "f8")]), h5py.string_dtype(), h5py.ref_dtype, "?"]
    kind = _pick(rng, kinds)
    _replace(file, name, lambda f, n, v: f.create_dataset(n, np.shape(v), kind))


def kept_elsewhere(rng, file):
    name = _variable(rng, file)

    def make(f, n, v):
        shape = np.shape(v) or (1,)
        if rng.integers(2):
            layout = h5py.VirtualLayout(shape, "f8")
            layout[...] = h5py.VirtualSource(
                _pick(rng, ["/dev/zero", "/etc/passwd", "."]), "/structures/n_atoms", shape
            )
            return f.create_virtual_dataset(n, layout)
        size = int(np.prod(shape)) * 8
        return f.create_dataset(n, shape, "f8", external=[(_pick(rng, ["/etc/passwd", "/dev/zero"]), 0, size)])

    _replace(file, name, make)


def other_filter(rng, file):
    name = _variable(rng, file)

    def make(f, n, v):
        options = _pick(
            rng, [{"compression": "lzf"}, {"compression": "gzip"}, {"scaleoffset": 0}, {"fletcher32": True}]
        )
        if np.asarray(v).dtype.kind not in "iuf" or not np.size(v) or not np.ndim(v):
            return f.create_dataset(n, data=v)
        return f.create_dataset(n, data=v, chunks=True, **options)

    _replace(file, name, make)


def bomb(rng, file):
    name = _variable(rng, file)
    rank = max(1, file[name].ndim)
    shape = (2 ** int(rng.integers(20, 31)), *[1] * (rank - 1))
    chunks = (2**20, *[1] * (rank - 1))

    def make(f, n, v):
        made = f.create_dataset(n, shape, "f8", chunks=chunks, compression="gzip")
        made.id.write_direct_chunk((0,) * rank, bytes(64))
        return made

    _replace(file, name, make)


CANNOT = (ValueError, OSError, KeyError, TypeError, RuntimeError)  # what HDF5 itself refuses to do
BYTES = [flip_bits, flip_bits, flip_bits, truncate, zero_run, random_run, swap_blocks, large_number]
PARTS = [
    *(rename, move_elsewhere, delete, delete, delete_attribute, hostile_attribute, hostile_attribute, link, nest, huge),
    *(resize, other_type, kept_elsewhere, other_filter, bomb),
]


def mutate(seed, pristine, path):
    """Write a damaged copy of a trace.

    Args:
        seed: Says all that is done.
        pristine: The bytes of the trace.
        path: Where to.

    Returns:
        The name of what was done. Half of what is done in bytes, and of the rest, is sealed with a new checksum of the
        whole file, as somebody would who wants it to be believed.
    """
    rng = np.random.default_rng(seed)
    change = _pick(rng, [*BYTES, *PARTS])
    is_sealed = bool(rng.integers(2)) and change is not move_elsewhere
    if change in BYTES:
        data = bytearray(pristine)
        change(rng, data)
        path.write_bytes(data)
    else:
        path.write_bytes(pristine)
        with h5py.File(path, "r+", locking=False) as file, contextlib.suppress(*CANNOT):
            change(rng, file)
    if is_sealed and path.stat().st_size:
        write_trailer(path)
    return change.__name__ + (", sealed" if is_sealed else "")
