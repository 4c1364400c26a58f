"""What is in a data set, for people: numbers, and pictures on a sheet.

What shows data belongs here; nothing here changes them.
"""
