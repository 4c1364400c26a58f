"""The local page of an index: one small server for the person at this machine, and the page that it shows."""
