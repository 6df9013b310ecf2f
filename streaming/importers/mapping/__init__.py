"""Your own logs: columns of Parquet, CSV or JSONL files become a data set, by a mapping file alone."""
