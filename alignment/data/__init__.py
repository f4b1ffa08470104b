"""Rows and text from files and data sets, and the stages that prepare them."""
