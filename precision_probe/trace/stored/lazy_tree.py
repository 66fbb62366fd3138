"""An open file as xarray has it, without looking for anything in it twice."""

from functools import cached_property

import h5netcdf
import h5py
import numpy as np
import xarray as xr
from xarray.backends import H5NetCDFStore

from precision_probe.trace.variables import SizedOnce, all_groups

__all__ = ["lazy_tree"]


class _FoundOnce(h5netcdf.Variable):  # type: ignore[misc]
    """A variable that is looked for in its file once while it is opened; h5netcdf does each time it is asked."""

    @cached_property
    def _h5ds(self) -> h5py.Dataset:
        return super()._h5ds

    def forget(self) -> None:
        """Be as h5netcdf has it: what stays open keeps chunks in memory."""
        self.__dict__.pop("_h5ds", None)
        self.__class__ = h5netcdf.Variable


class _Store(H5NetCDFStore):
    """A group as xarray reads it; texts are read at once, as xarray does, which would first import dask for it."""

    __slots__ = ()

    def open_store_variable(self, name: str, var: h5netcdf.Variable) -> xr.Variable:
        """One variable of the group."""
        var.__class__ = _FoundOnce
        variable: xr.Variable = super().open_store_variable(name, var)  # type: ignore[no-untyped-call]
        var.forget()
        if variable.encoding["dtype"] is not str:
            return variable
        return xr.Variable(variable.dims, np.asarray(variable._data).astype(str), variable.attrs, fastpath=True)


def lazy_tree(file: h5netcdf.File) -> xr.DataTree:
    """The groups of an open file, as :func:`xarray.open_datatree` has them; arrays are read when they are used."""
    datasets = {}
    for group in all_groups(file):
        SizedOnce.of_group(group)
        datasets[group.name] = xr.open_dataset(
            _Store(group),
            engine="store",  # not asked for, it is found out by reading what all installed packages offer
            decode_times=False,  # numbers and texts are taken as they are, whatever attributes would make of them
            decode_timedelta=False,
            decode_coords=False,
            concat_characters=False,
        )
    return xr.DataTree.from_dict(datasets)
