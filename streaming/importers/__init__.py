"""Importers: one file per data set or format, each writing the data set format of ``streaming.schema``."""
