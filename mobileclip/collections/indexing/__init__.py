"""An index brought up to date: what is new is encoded, what moved is recognised, what is gone is dropped.

What is to be read and what is written down of it belongs here; how a file is read does not.
"""
