"""The local web server of an index, and its web page."""
