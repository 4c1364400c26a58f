"""The local web server of an index, and the page that it shows."""
