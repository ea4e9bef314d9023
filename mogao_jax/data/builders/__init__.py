"""Converters of data sets into documents."""
