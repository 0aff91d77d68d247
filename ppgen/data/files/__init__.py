"""Files, folders, frames and data sets known by name -> raw columns."""
