"""What was found as files for people: a sheet of pictures, a page of duplicates, and a file for a page in a browser.

What writes such a file belongs here; the server, with its page, is in `web`.
"""
