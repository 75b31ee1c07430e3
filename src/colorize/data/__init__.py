"""Bytes in, batches out: sources of photographs, crops, filter, splits, data set."""
