"""Tables kept in a trace, ``/tables/<name>``: what needs the model to be found out, and torch no more to be read."""

from dataclasses import dataclass, field

import pandas as pd
import xarray as xr

__all__ = ["HELD_OUT", "StoredTable", "from_dataset", "to_dataset"]

HELD_OUT = "held_out_"  # begins the names of a sweep's errors on structures that it was not searched on


@dataclass(frozen=True)
class StoredTable:
    """A table and what a reader must know of it.

    Attributes:
        frame: The rows; the index is not kept.
        title: What it says, in one line.
        units: Of each column that has one; others are text, counts or without unit.
    """

    frame: pd.DataFrame
    title: str
    units: dict[str, str] = field(default_factory=dict)


def to_dataset(name: str, table: StoredTable) -> xr.Dataset:
    """A table as a group of a trace: one variable for each column, along ``<name>.row``."""
    row = f"{name}.row"
    columns = {
        str(column): xr.Variable(
            row,
            values.astype(object if values.dtype.kind not in "biuf" else values.dtype).to_numpy(),
            {"units": table.units.get(str(column), "1"), "long_name": f"{column} of the table {name}"},
        )
        for column, values in table.frame.items()
    }
    return xr.Dataset(columns, attrs={"title": table.title})


def from_dataset(group: xr.Dataset) -> StoredTable:
    """The table that a group of a trace holds."""
    columns = {str(name): variable.values for name, variable in group.data_vars.items()}
    units = {name: str(group[name].attrs["units"]) for name in columns if group[name].attrs["units"] != "1"}
    return StoredTable(pd.DataFrame(columns), str(group.attrs["title"]), units)
